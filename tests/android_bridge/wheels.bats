#!/usr/bin/env bats
# scripts/build-wheel and scripts/setup with a wheel, as a person runs them, on a checkout of which little is there, and
# with stubs of Python and the compilers:
#
#     bats tests/android_bridge/wheels.bats

setup() {
    ROOT=$BATS_TEST_TMPDIR/checkout
    export CALLS=$BATS_TEST_TMPDIR/calls TMPDIR=$BATS_TEST_TMPDIR HAS_ENGINE=1 TRIES=0
    local real=$BATS_TEST_DIRNAME/../..
    mkdir -p "$ROOT/scripts" "$ROOT/llmaas" "$BATS_TEST_TMPDIR/bin" "$BATS_TEST_TMPDIR/wheels"
    cp "$real"/scripts/{setup,build-wheel,engine.sh,llama.cmake} "$ROOT/scripts/"
    cp "$real"/{pyproject.toml,setup.py} "$ROOT/"
    ENGINE=$(grep -oE 'llama-cpp-python==[0-9.]+' "$real/pyproject.toml" | head -n 1)
    WHEEL=llama_cpp_python-${ENGINE#*==}-py3-none-linux_x86_64.whl
    WHEELS=$BATS_TEST_TMPDIR/wheels
    PATH=$BATS_TEST_TMPDIR/bin:$PATH
    : >"$CALLS"
    # What is read from standard input is told apart by what it asks.
    stub python3 'case "$*" in
"-m venv"*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
"-m pip wheel"*) while [ "$1" != -w ]; do shift; done; touch "$2/'"$WHEEL"'" ;;
"- "*) cat >/dev/null; exit "$HAS_ENGINE" ;;
"-") case "$(cat)" in *LlamaEngine*) exit "$TRIES" ;; *hashlib*) echo stamp ;; *) : ;; esac ;;
esac'
    for name in cmake aarch64-linux-gnu-gcc aarch64-linux-gnu-g++; do stub "$name" ''; done
    unset PYTHON CMAKE_ARGS LLMAAS_WHEELS
}

# stub NAME BODY: a command that notes that it was called, and does BODY.
stub() {
    printf '#!/bin/sh\necho "$(basename "$0") $* CMAKE_ARGS=$CMAKE_ARGS $_PYTHON_HOST_PLATFORM" >>"$CALLS"\n%s\n' "$2" \
        >"$BATS_TEST_TMPDIR/bin/$1"
    chmod +x "$BATS_TEST_TMPDIR/bin/$1"
}

# never WORDS: fails if a call had them. (bats overlooks "! grep", unless it comes last.)
never() {
    if grep -q -- "$1" "$CALLS"; then return 1; fi
}

@test "build-wheel: the wheel is built as setup builds the engine, and is in the folder" {
    cd "$BATS_TEST_TMPDIR"
    PYTHON=python3 run "$ROOT/scripts/build-wheel" made
    [ "$status" -eq 0 ]
    [ -e "made/$WHEEL" ]
    [[ $output == *"made/$WHEEL in "* ]]
    grep -q -- "-m pip wheel -w .* --no-deps --no-binary llama-cpp-python $ENGINE CMAKE_ARGS=-DLLAVA_BUILD=OFF" "$CALLS"
    grep -q -- "_INCLUDE=$ROOT/scripts/llama.cmake" "$CALLS"
    never --no-cache-dir
    : >"$CALLS"
    run "$ROOT/scripts/setup"
    grep -q -- "-m pip install --no-compile --verbose --no-deps --no-binary llama-cpp-python $ENGINE CMAKE_ARGS=-DLLAVA" \
        "$CALLS"
}

@test "build-wheel: with options of its own it takes nothing that pip kept" {
    CMAKE_ARGS=-DGGML_NATIVE=OFF PYTHON=python3 run "$ROOT/scripts/build-wheel" "$BATS_TEST_TMPDIR/made"
    [ "$status" -eq 0 ]
    grep -q -- '--no-cache-dir .*CMAKE_ARGS=.* -DGGML_NATIVE=OFF' "$CALLS"
}

@test "build-wheel: for ARM it takes the cross compiler, and the wheel is named after ARM" {
    PYTHON=python3 run "$ROOT/scripts/build-wheel" --aarch64 "$BATS_TEST_TMPDIR/made"
    [ "$status" -eq 0 ]
    grep -q -- '--no-cache-dir .*-DCMAKE_SYSTEM_PROCESSOR=aarch64 .*aarch64-linux-gnu-g++ .* linux-aarch64$' "$CALLS"
}

@test "build-wheel: what is missing is said before anything is built" {
    rm "$BATS_TEST_TMPDIR/bin/aarch64-linux-gnu-g++"
    for tool in bash basename dirname; do ln -s "$(command -v "$tool")" "$BATS_TEST_TMPDIR/bin/$tool"; done
    real=$PATH PATH=$BATS_TEST_TMPDIR/bin
    PYTHON=python3 run bash "$ROOT/scripts/build-wheel" --aarch64
    PATH=$real
    [ "$status" -eq 1 ]
    [[ $output == *'apt install g++-aarch64-linux-gnu'* ]]
    PYTHON=python3 run "$ROOT/scripts/build-wheel" --arm
    [ "$status" -eq 1 ]
    [[ $output == *'there is no option --arm'* ]]
    never 'pip wheel'
}

@test "build-wheel: a build that fails shows its end" {
    stub python3 'case "$*" in "-m pip wheel"*) echo "no such compiler"; exit 1 ;; esac'
    PYTHON=python3 run "$ROOT/scripts/build-wheel" "$BATS_TEST_TMPDIR/made"
    [ "$status" -eq 1 ]
    [[ $output == *'no such compiler'*'the engine could not be built'*'made/build-wheel.log'* ]]
}

@test "setup: takes the wheel from the folder, compiles nothing, and tries the engine" {
    touch "$WHEELS/$WHEEL"
    cd "$BATS_TEST_TMPDIR"
    LLMAAS_WHEELS=wheels run "$ROOT/scripts/setup"
    [ "$status" -eq 0 ]
    grep -q -- "-m pip install --no-compile --no-deps --no-index --find-links $WHEELS $ENGINE" "$CALLS"
    never --no-binary
    [[ $output == *'trying the engine'* ]]
    [ "$(cat "$ROOT/.venv/.llmaas-setup")" = "none stamp" ]
}

@test "setup: without a fitting wheel it says so, and what to do" {
    touch "$WHEELS/llama_cpp_python-0.0.1-py3-none-linux_x86_64.whl"
    for folder in "$WHEELS" "$BATS_TEST_TMPDIR/none"; do
        LLMAAS_WHEELS=$folder run "$ROOT/scripts/setup"
        [ "$status" -eq 1 ]
        [[ $output == *"there is no wheel of $ENGINE in $folder"*'scripts/build-wheel'* ]]
    done
}

@test "setup: a wheel for another CPU is taken off again" {
    touch "$WHEELS/$WHEEL"
    export TRIES=132
    LLMAAS_WHEELS=$WHEELS run "$ROOT/scripts/setup"
    [ "$status" -eq 1 ]
    [[ $output == *'exit code 132: the wheel is for other CPUs'*'GGML_NATIVE=OFF'* ]]
    grep -q -- '-m pip uninstall -y llama-cpp-python' "$CALLS"
    [ ! -e "$ROOT/.venv/.llmaas-setup" ]
}

@test "setup: a GPU that is asked for is built for, once; another one again" {
    LLMAAS_GPU=vulkan run "$ROOT/scripts/setup"
    [ "$status" -eq 0 ]
    grep -q -- '--no-cache-dir .*CMAKE_ARGS=.* -DGGML_VULKAN=ON' "$CALLS"
    : >"$CALLS"
    HAS_ENGINE=0 LLMAAS_GPU=vulkan run "$ROOT/scripts/setup"
    [ "$status" -eq 0 ]
    never GGML
    HAS_ENGINE=0 LLMAAS_GPU=none run "$ROOT/scripts/setup"
    [ "$status" -eq 0 ]
    grep -q -- '--force-reinstall .*CMAKE_ARGS=' "$CALLS"
    never GGML_VULKAN
}

@test "setup: a GPU of no known kind is an error that names the kinds" {
    LLMAAS_GPU=voodoo run "$ROOT/scripts/setup"
    [ "$status" -eq 1 ]
    [[ $output == *"voodoo"*"cuda, rocm, vulkan"* ]]
    never GGML
}
