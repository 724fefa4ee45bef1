#!/bin/sh
# Install llmaas as a service of the machine, for all users in the group "llmaas". Linux with systemd; run as root.
# What is there already is left as it is: a second run changes nothing, and one after a failure goes on.
set -eu

usage() {
    cat <<'USAGE'
usage: install.sh [OPTION...] [install | update | uninstall]

  --dry-run          say what would be done, and change nothing
  --model FILE       the GGUF model to serve (copied to /var/lib/llmaas; needed once)
  --prefix DIR       where the program goes (/opt/llmaas)
  --root DIR         install below DIR: for images and packages. No user is made, nothing is started
  --board KIND       jetson, raspberry or none: what suits the board; by itself what the board says that it is
  --cuda, --vulkan   build llama.cpp for a GPU (CUDA by itself on a Jetson, where nvcc is); later runs keep that,
                     and --cpu builds without it again
  --delete-data      uninstall: conversations, key, model and settings go, too

install     make the user, the environment and the units, and start the sockets
update      install this checkout's version over the one that is there, and restart
uninstall   remove the units, the program and the user; what was said stays in /var/lib/llmaas
USAGE
}

here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
dry='' root='' prefix=/opt/llmaas model='' gpu=auto board=auto delete='' action=install

fail() {
    printf 'install: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  hint: %s\n' "$2" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry=yes ;;
    --model | --prefix | --root | --board)
        [ $# -gt 1 ] || fail "$1 takes a value" "install.sh --help"
        case $1 in --model) model=$2 ;; --prefix) prefix=$2 ;; --root) root=${2%/} ;; *) board=$2 ;; esac
        shift
        ;;
    --cuda) gpu=cuda ;;
    --vulkan) gpu=vulkan ;;
    --cpu) gpu=none ;;
    --delete-data) delete=yes ;;
    -h | --help) usage && exit 0 ;;
    install | update | uninstall) action=$1 ;;
    *) fail "'$1' is not known" "install.sh --help" ;;
    esac
    shift
done
# Engines that were built: of the machine, or of whoever makes an image.
wheels=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/llmaas/wheels
[ -n "$root" ] || wheels=/var/cache/llmaas/wheels
case $prefix in /*) ;; *) fail "--prefix takes a whole path, not '$prefix'" ;; esac
case $board in auto | none | jetson | raspberry) ;; *) fail "--board is jetson, raspberry or none, not '$board'" ;; esac

# do WHAT COMMAND...: say it, and do it.
perform() {
    printf 'install: %s\n' "$1"
    shift
    [ -n "$dry" ] || "$@"
}

# Only where this is the running system.
perform_live() {
    [ -n "$root" ] || perform "$@"
}

# put MODE FILE: stdin becomes the file, if it is another one than before.
put() {
    made=$(mktemp)
    cat >"$made"
    if cmp -s "$made" "$root$2"; then
        rm -f "$made"
        return
    fi
    changed=yes
    perform "write $2" install -D -m "$1" "$made" "$root$2"
    rm -f "$made"
}

make_user() {
    [ -z "$root" ] || return 0
    id llmaas >/dev/null 2>&1 || perform "make the user and the group llmaas" \
        useradd --system --user-group --home-dir /var/lib/llmaas --shell /usr/sbin/nologin llmaas
}

has_program() {
    [ -x "$root$prefix/venv/bin/llmaas" ] && [ "$(cat "$root$prefix/version" 2>/dev/null)" = "$(version)" ]
}

# What is to be installed, in one line: the version, how it was built, and for which Python: a new release of the system
# has another one, for which the environment is empty.
version() {
    python=$(${PYTHON:-python3} -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
    printf '%s %s %s\n' "$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$source/llmaas/version.py")" "$(build_options)" "$python"
}

find_board() {
    [ "$board" = auto ] || return 0
    case $({ tr -d '\0' <"${LLMAAS_BOARD:-/proc/device-tree/model}"; } 2>/dev/null || true) in
    *Jetson*) board=jetson ;;
    *"Raspberry Pi"*) board=raspberry ;;
    *) board=none ;;
    esac
}

# Where CUDA's compiler is: JetPack does not put it on the PATH.
has_nvcc() {
    command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]
}

# What was built for a GPU stays so, unless something else is said.
find_gpu() {
    [ "$gpu" = auto ] || return 0
    case $(cat "$root$prefix/version" 2>/dev/null || true) in
    *GGML_CUDA=ON*) gpu=cuda ;;
    *GGML_VULKAN=ON*) gpu=vulkan ;;
    *) ;;
    esac
}

build_options() {
    printf '%s' "-DLLAVA_BUILD=OFF $(build_flags) ${CMAKE_ARGS:-}"
}

build_flags() {
    case $gpu in
    cuda) printf '%s' -DGGML_CUDA=ON ;;
    vulkan) printf '%s' -DGGML_VULKAN=ON ;;
    none) ;;
    *) if [ "$board" = jetson ] && has_nvcc; then printf '%s' -DGGML_CUDA=ON; fi ;;
    esac
}

# Settings: the profile of the board, which spares its flash and computes less while it is hot; the daemon asks for less
# on a board with less RAM. Of any other machine the daemon may take a small part, so cells and pool go by the RAM.
settings() {
    mb=$(awk '/^MemTotal/ { print int($2 / 1024) }' "${LLMAAS_MEMINFO:-/proc/meminfo}")
    printf '# Settings of the daemon, made for %s MB of RAM. "llmaas serve --help" lists them.\n' "$mb"
    cat "$here/config.toml"
    case $board in
    jetson)
        if [ "$mb" -lt 12288 ]; then echo 'profile = "jetson-8g"'; else echo 'profile = "jetson-16g"'; fi
        ;;
    raspberry) echo 'profile = "pi-8g"' ;;
    *)
        if [ "$mb" -lt 5000 ]; then
            cells=2048 pool=64M
        elif [ "$mb" -lt 10000 ]; then
            cells=4096 pool=256M
        else
            cells=8192 pool=512M
        fi
        printf 'cells = %s\npool_bytes = "%s"\n' "$cells" "$pool"
        ;;
    esac
}

# What the board needs besides: the GPU's devices, and no swap on flash.
board_unit() {
    echo "# Made by install.sh for this board: $board."
    echo "[Service]"
    echo "MemorySwapMax=0"
    case $(build_flags) in
    *CUDA* | *VULKAN*)
        echo "PrivateDevices=no"
        echo "DevicePolicy=auto"
        echo "SupplementaryGroups=video render"
        ;;
    *) ;;
    esac
}

# The engine, built with these options. Its wheel is kept: after a failure, and for another version of llmaas, the next
# run goes on from there. pip's own cache and its look at what is installed know the engine's version alone, not how it
# was built. A wheel in the folder LLMAAS_WHEELS (scripts/build-wheel) is taken as it is.
build_engine() {
    engine=$(grep -oE 'llama-cpp-python==[0-9.]+' "$source/pyproject.toml" | head -n 1)
    if [ -n "${LLMAAS_WHEELS:-}" ]; then
        "$root$prefix/venv/bin/python" -m pip install --no-deps --force-reinstall --no-index \
            --find-links "$LLMAAS_WHEELS" "$engine"
        return
    fi
    place=$wheels/$(printf '%s %s' "$engine" "$(build_options)" | cksum | tr ' ' '-')
    if ! ls "$place"/llama_cpp_python-*.whl >/dev/null 2>&1; then
        mkdir -p "$place"
        CMAKE_ARGS="-DCMAKE_PROJECT_llama.cpp_INCLUDE=$source/scripts/llama.cmake $(build_options)" \
            "$root$prefix/venv/bin/python" -m pip wheel --no-cache-dir --no-deps --no-binary llama-cpp-python \
            -w "$place" "$engine"
    fi
    "$root$prefix/venv/bin/python" -m pip install --no-deps --force-reinstall "$place"/llama_cpp_python-*.whl
}

build_program() {
    "$root$prefix/venv/bin/python" -m pip --version >/dev/null 2>&1 ||
        ${PYTHON:-python3} -m venv --clear "$root$prefix/venv"
    PATH=$PATH:/usr/local/cuda/bin
    export PATH
    build_engine
    "$root$prefix/venv/bin/python" -m pip install --upgrade "${source}[http]"
    if [ -n "$root" ]; then
        # Programs of an environment name its python by the whole path: there the image is the root.
        for program in "$root$prefix"/venv/bin/*; do
            [ -L "$program" ] || sed -i "1s,^#!$root/,#!/," "$program"
        done
    fi
    version >"$root$prefix/version"
}

install_program() {
    if has_program && [ "$action" != update ]; then return 0; fi
    command -v "${PYTHON:-python3}" >/dev/null || fail "there is no python3" "apt install python3-venv"
    # A wheel of the engine needs no cmake; llmaas has C libraries of its own.
    programs="cmake cc c++"
    [ -z "${LLMAAS_WHEELS:-}" ] || programs=cc
    for program in $programs; do
        command -v "$program" >/dev/null || fail "there is no $program" "apt install build-essential cmake"
    done
    changed=yes
    perform "build llmaas in $prefix/venv (some minutes; llama.cpp is compiled)" build_program
}

install_model() {
    [ -n "$model" ] || {
        [ -e "$root/var/lib/llmaas/model.gguf" ] || [ -n "$root" ] ||
            printf 'install: there is no model yet: run again with --model FILE.gguf, or set it in /etc/llmaas/config.toml\n'
        return 0
    }
    [ -r "$model" ] || fail "the model $model cannot be read"
    if cmp -s "$model" "$root/var/lib/llmaas/model.gguf"; then return 0; fi
    changed=yes
    perform "copy the model" install -D -m 0644 "$model" "$root/var/lib/llmaas/model.gguf.new"
    # By a rename: a daemon that runs goes on with the old one.
    perform "put it in place" mv "$root/var/lib/llmaas/model.gguf.new" "$root/var/lib/llmaas/model.gguf"
}

do_install() {
    changed=''
    find_board
    find_gpu
    make_user
    install_program
    if [ ! -e "$root/etc/llmaas/config.toml" ]; then
        text=$(settings)
        put 0644 /etc/llmaas/config.toml <<SETTINGS
$text
SETTINGS
    fi
    install_model
    unit=$(sed "s,@PREFIX@,$prefix,g" "$here/llmaas.service")
    put 0644 /etc/systemd/system/llmaas.service <<UNIT
$unit
UNIT
    if [ "$board" != none ] || [ -n "$(build_flags)" ]; then
        unit=$(board_unit)
        put 0644 /etc/systemd/system/llmaas.service.d/board.conf <<UNIT
$unit
UNIT
    elif [ -e "$root/etc/systemd/system/llmaas.service.d/board.conf" ]; then
        changed=yes
        perform "remove board.conf" rm "$root/etc/systemd/system/llmaas.service.d/board.conf"
    fi
    for unit in llmaas.socket llmaas-admin.socket; do
        put 0644 "/etc/systemd/system/$unit" <"$here/$unit"
    done
    if [ -n "$changed" ]; then
        perform_live "own /var/lib/llmaas" install -d -o llmaas -g llmaas -m 0700 /var/lib/llmaas
        perform_live "tell systemd" systemctl daemon-reload
        perform_live "start the sockets, now and at boot" systemctl enable --now llmaas.socket llmaas-admin.socket
        perform_live "use the new version" systemctl try-restart llmaas.service
        printf 'install: done. "usermod -aG llmaas NAME" lets a user connect to /run/llmaas/llmaas.sock\n'
    else
        printf 'install: nothing to do\n'
    fi
}

do_uninstall() {
    units=/etc/systemd/system
    if [ -e "$root$units/llmaas.service" ]; then
        perform_live "stop" systemctl disable --now llmaas.socket llmaas-admin.socket llmaas.service
    fi
    [ ! -e "$wheels" ] || perform "remove $wheels" rm -rf "$wheels"
    rmdir "$(dirname "$wheels")" 2>/dev/null || true
    for path in $units/llmaas.service $units/llmaas.socket $units/llmaas-admin.socket \
        $units/llmaas.service.d/board.conf "$prefix"; do
        [ ! -e "$root$path" ] || perform "remove $path" rm -rf "$root$path"
    done
    rmdir "$root$units/llmaas.service.d" 2>/dev/null || true
    perform_live "tell systemd" systemctl daemon-reload
    # The sockets' folder; the sockets have gone with their units.
    if [ -z "$root" ] && [ -d /run/llmaas ]; then perform "remove /run/llmaas" rm -rf /run/llmaas; fi
    if [ -n "$delete" ]; then
        for path in /var/lib/llmaas /etc/llmaas $units/llmaas.service.d; do
            [ ! -e "$root$path" ] || perform "remove $path" rm -rf "$root$path"
        done
        if [ -z "$root" ] && id llmaas >/dev/null 2>&1; then perform "remove the user llmaas" userdel llmaas; fi
        # It stays behind its user where others are members.
        if [ -z "$root" ] && getent group llmaas >/dev/null; then
            perform "remove the group llmaas" groupdel llmaas
        fi
    else
        printf 'install: /var/lib/llmaas (conversations, their key, the model) and /etc/llmaas stay, and so does the user:\n'
        printf '  install.sh --delete-data uninstall removes them\n'
    fi
}

[ -n "$root" ] || [ -n "$dry" ] || [ "$(id -u)" = 0 ] || fail "this takes root" "run it by sudo"
case $action in
install | update) do_install ;;
uninstall) do_uninstall ;;
esac
