# shellcheck shell=bash
# How the engine is built, for the scripts that build it: setup, build-wheel. To be sourced in the checkout's root.

# engine_requirement: what pip is asked for.
engine_requirement() {
    grep -oE 'llama-cpp-python==[0-9.]+' pyproject.toml | head -n 1
}

# gpu_wanted: cuda, rocm, vulkan or none, as LLMAAS_GPU says. By itself what the machine has both the device and the
# compiler for: others would make a build of many minutes that is of no use here.
gpu_wanted() {
    case ${LLMAAS_GPU:-auto} in
        cuda | rocm | vulkan | none) printf '%s' "$LLMAAS_GPU" ;;
        auto)
            if [ -n "$(compgen -G '/dev/nvidia[0-9]*' || compgen -G '/dev/nvhost-gpu')" ] && command -v nvcc >/dev/null; then
                printf cuda
            elif [ -e /dev/kfd ] && command -v hipcc >/dev/null; then
                printf rocm
            elif [ -n "$(compgen -G '/dev/dri/renderD*')" ] && command -v glslc >/dev/null && has_vulkan_headers; then
                printf vulkan
            else
                printf none
            fi
            ;;
        *) return 1 ;;
    esac
}

has_vulkan_headers() {
    printf '#include <vulkan/vulkan.h>\n' | ${CC:-cc} -E - >/dev/null 2>&1
}

# gpu_option GPU: the option of llama.cpp's build.
gpu_option() {
    case $1 in
        cuda) printf '%s' -DGGML_CUDA=ON ;;
        rocm) printf '%s' -DGGML_HIP=ON ;;
        vulkan) printf '%s' -DGGML_VULKAN=ON ;;
        *) ;;
    esac
}

# build_engine_with PIP...: have that pip, "python -m pip install" or so, build the engine with our options, and with
# those in CMAKE_ARGS. It gets options of pip and what is to be built.
build_engine_with() {
    # Without the multimodal library, which llmaas does not use either.
    local args gpu include requirement options=(--verbose --no-deps --no-binary llama-cpp-python)
    include=$(printf %q "$PWD/scripts/llama.cmake")
    requirement=$(engine_requirement)
    gpu=$(gpu_option "$(gpu_wanted)")
    args="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=${include} ${gpu} ${CMAKE_ARGS:-}"
    # pip keeps what it built, whatever the options were.
    [ -z "${gpu}${CMAKE_ARGS:-}" ] || options+=(--no-cache-dir)
    # pip unpacks into a folder with a random name. ccache, where installed, must see all paths relative to it.
    CMAKE_ARGS=${args} SKBUILD_BUILD_DIR=build CCACHE_BASEDIR=${TMPDIR:-/tmp} CCACHE_NOHASHDIR=1 \
        "$@" "${options[@]}" "${requirement}"
}
