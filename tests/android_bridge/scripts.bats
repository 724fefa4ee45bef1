#!/usr/bin/env bats
# The scripts of android_bridge as a person runs them, with stubs of all that changes a machine:
#
#     bats tests/android_bridge/scripts.bats
#
# test_installers.py looks more closely; this needs no Python.

setup() {
    BRIDGE=$(cd "$BATS_TEST_DIRNAME/../../android_bridge" && pwd)
    export HOME=$BATS_TEST_TMPDIR/home PREFIX=$BATS_TEST_TMPDIR/usr TMPDIR=$BATS_TEST_TMPDIR
    export CALLS=$BATS_TEST_TMPDIR/calls INSTALLED=$BATS_TEST_TMPDIR/installed
    export LLMAAS_CPUINFO=$BATS_TEST_TMPDIR/cpuinfo LLMAAS_MEMINFO=$BATS_TEST_TMPDIR/meminfo
    export LLMAAS_BOARD=$BATS_TEST_TMPDIR/board
    IMAGE=$BATS_TEST_TMPDIR/image
    mkdir -p "$HOME" "$PREFIX" "$BATS_TEST_TMPDIR/bin"
    PATH=$BATS_TEST_TMPDIR/bin:$PATH
    printf 'Features : fp asimd asimdhp asimddp\n' >"$LLMAAS_CPUINFO"
    printf 'MemTotal: 7600000 kB\n' >"$LLMAAS_MEMINFO"
    : >"$CALLS"
    : >"$INSTALLED"
    for name in sv sv-enable sv-disable systemctl useradd userdel; do stub "$name" ''; done
    stub dpkg 'grep -qx "$2" "$INSTALLED"'
    stub pkg 'shift 2; printf "%s\n" "$@" >>"$INSTALLED"'
    python='case "$*" in
"-m venv"*) for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
"-m pip wheel"*) while [ "$1" != -w ]; do shift; done; touch "$2/llama_cpp_python-1.whl" ;;
"-m pip install --upgrade"*) program=$(dirname "$0")/llmaas; echo "#!$(dirname "$0")/python" >"$program"; chmod +x "$program" ;;
esac'
    stub python "$python"
    stub python3 "$python"
}

# stub NAME BODY: a command that notes that it was called, and does BODY.
stub() {
    printf '#!/bin/sh\necho "$(basename "$0") $*" >>"$CALLS"\n%s\n' "$2" >"$BATS_TEST_TMPDIR/bin/$1"
    chmod +x "$BATS_TEST_TMPDIR/bin/$1"
}

# All files that an installer may have made, with their contents, modes and times.
tree() {
    find "$HOME" "$PREFIX" "$IMAGE" -type f -printf '%p %m %T@ ' -exec cksum {} ';' 2>/dev/null | sort
}

@test "termux: a dry run changes nothing" {
    before=$(tree)
    run "$BRIDGE/termux/install.sh" --dry-run --at-boot
    [ "$status" -eq 0 ]
    [ "$(tree)" = "$before" ]
    ! grep -qv '^dpkg ' "$CALLS"
}

@test "termux: the second run changes nothing" {
    run "$BRIDGE/termux/install.sh" --at-boot
    [ "$status" -eq 0 ]
    grep -q '^pkg install -y python ' "$CALLS"
    grep -q '^sv-enable llmaas$' "$CALLS"
    grep -q 'profile = "phone-8g"' "$HOME/.config/llmaas/config.toml"
    before=$(tree)
    : >"$CALLS"
    run "$BRIDGE/termux/install.sh" --at-boot
    [ "$status" -eq 0 ]
    [ "$output" = "install: nothing to do" ]
    [ "$(tree)" = "$before" ]
    ! grep -q '^pkg ' "$CALLS"
}

@test "termux: uninstall keeps what was said, or leaves nothing" {
    "$BRIDGE/termux/install.sh" --at-boot
    mkdir -p "$HOME/.local/share/llmaas"
    echo said >"$HOME/.local/share/llmaas/index"
    run "$BRIDGE/termux/install.sh" uninstall
    [ "$status" -eq 0 ]
    left=$(find "$HOME" "$PREFIX" -type f | sort)
    [ "$left" = "$(printf '%s\n' "$HOME/.config/llmaas/config.toml" "$HOME/.local/share/llmaas/index")" ]
    run "$BRIDGE/termux/install.sh" --data delete uninstall
    [ "$status" -eq 0 ]
    [ -z "$(tree)" ]
}

@test "termux: elsewhere it says where to look" {
    unset PREFIX
    run "$BRIDGE/termux/install.sh"
    [ "$status" -eq 1 ]
    [[ $output == *"not Termux"*"android_bridge/systemd"* ]]
}

@test "systemd: the second run changes nothing, and uninstall leaves nothing" {
    printf GGUF >"$BATS_TEST_TMPDIR/m.gguf"
    run "$BRIDGE/systemd/install.sh" --root "$IMAGE" --model "$BATS_TEST_TMPDIR/m.gguf"
    [ "$status" -eq 0 ]
    before=$(tree)
    run "$BRIDGE/systemd/install.sh" --root "$IMAGE" --model "$BATS_TEST_TMPDIR/m.gguf"
    [ "$status" -eq 0 ]
    [[ $output == *"nothing to do" ]]
    [ "$(tree)" = "$before" ]
    run "$BRIDGE/systemd/install.sh" --root "$IMAGE" --delete-data uninstall
    [ "$status" -eq 0 ]
    [ -z "$(tree)" ]
    ! grep -q '^systemctl ' "$CALLS"
}

@test "termux and systemd: a wheel of the engine is taken from a folder" {
    mkdir -p "$BATS_TEST_TMPDIR/wheels"
    export LLMAAS_WHEELS=$BATS_TEST_TMPDIR/wheels
    run "$BRIDGE/termux/install.sh"
    [ "$status" -eq 0 ]
    run "$BRIDGE/systemd/install.sh" --root "$IMAGE" --board none
    [ "$status" -eq 0 ]
    [ "$(grep -c -- "--no-index --find-links $LLMAAS_WHEELS llama-cpp-python==" "$CALLS")" -eq 2 ]
    ! grep -q 'pip wheel' "$CALLS"
}

@test "boards: each gets its profile and its unit, once" {
    for board in jetson raspberry; do
        run "$BRIDGE/$board/install.sh" --root "$IMAGE/$board"
        [ "$status" -eq 0 ]
        grep -q 'MemorySwapMax=0' "$IMAGE/$board/etc/systemd/system/llmaas.service.d/board.conf"
        before=$(tree)
        run "$BRIDGE/$board/install.sh" --root "$IMAGE/$board"
        [[ $output == *"nothing to do" ]]
        [ "$(tree)" = "$before" ]
        "$BRIDGE/$board/install.sh" --root "$IMAGE/$board" --delete-data uninstall
    done
    [ -z "$(tree)" ]
}

@test "every script answers --help, and a wrong word with what to do" {
    for script in termux/install.sh systemd/install.sh jetson/install.sh raspberry/install.sh sh/llmaas-client; do
        run "$BRIDGE/$script" --help
        [ "$status" -eq 0 ]
        [[ $output == *"usage: "* ]]
        run "$BRIDGE/$script" --wrong
        [ "$status" -ne 0 ]
        [ -n "$output" ]
    done
}

@test "sh: without a daemon the client says so, exit code 3" {
    export LLMAAS_HTTP=$BATS_TEST_TMPDIR/none.sock
    run "$BRIDGE/sh/llmaas-client" list
    [ "$status" -eq 3 ]
    [ -n "$output" ]
}
