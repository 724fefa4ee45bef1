# shellcheck shell=bash
# How the engine is built, for the scripts that build it: setup, build-wheel. To be sourced in the checkout's root.

# engine_requirement: what pip is asked for.
engine_requirement() {
    grep -oE 'llama-cpp-python==[0-9.]+' pyproject.toml | head -n 1
}

# build_engine_with PIP...: have that pip, "python -m pip install" or so, build the engine with our options, and with
# those in CMAKE_ARGS. It gets options of pip and what is to be built.
build_engine_with() {
    # Without the multimodal library, which llmaas does not use either.
    local args include requirement options=(--verbose --no-deps --no-binary llama-cpp-python)
    include=$(printf %q "$PWD/scripts/llama.cmake")
    requirement=$(engine_requirement)
    args="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=${include} ${CMAKE_ARGS:-}"
    # pip keeps what it built, whatever the options were.
    [ -z "${CMAKE_ARGS:-}" ] || options+=(--no-cache-dir)
    # pip unpacks into a folder with a random name. ccache, where installed, must see all paths relative to it.
    CMAKE_ARGS=${args} SKBUILD_BUILD_DIR=build CCACHE_BASEDIR=${TMPDIR:-/tmp} CCACHE_NOHASHDIR=1 \
        "$@" "${options[@]}" "${requirement}"
}
