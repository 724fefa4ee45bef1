#!/bin/sh
# Install llmaas in Termux, as a service of termux-services. No root, no Rust.
# What is there already is left as it is: a second run changes nothing, and one after a failure goes on.
set -eu

usage() {
    cat <<'USAGE'
usage: install.sh [OPTION...] [install | update | uninstall]

  --dry-run          say what would be done, and change nothing
  --model FILE       the GGUF model to serve
  --at-boot          start at boot, by the app Termux:Boot
  --kleidiai         build with Arm's KleidiAI kernels, which help prefill on some phones (fetched while building);
                     later runs keep them, and --no-kleidiai builds without them again
  --data keep        uninstall: conversations, key and settings stay (the default)
  --data delete      uninstall: they go

install     packages, the program, a settings file that suits this phone, the service
update      this checkout's version over the one that is there, and restart
uninstall   the service, the program and what was built
USAGE
}

here=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$here/../.." && pwd)
dry='' model='' boot='' kleidiai='' data=keep action=install changed=''
home=$HOME/.local/share/llmaas-termux
wheels=$HOME/.cache/llmaas/wheels
config=$HOME/.config/llmaas/config.toml
no_model='# model = "/path/of/a/model.gguf"'
packages="python python-numpy python-cryptography clang cmake ninja make termux-services"

fail() {
    printf 'install: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf '  hint: %s\n' "$2" >&2
    exit 1
}

while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) dry=yes ;;
    --at-boot) boot=yes ;;
    --kleidiai) kleidiai=yes ;;
    --no-kleidiai) kleidiai=no ;;
    --model | --data)
        [ $# -gt 1 ] || fail "$1 takes a value" "install.sh --help"
        if [ "$1" = --model ]; then model=$2; else data=$2; fi
        shift
        ;;
    -h | --help) usage && exit 0 ;;
    install | update | uninstall) action=$1 ;;
    *) fail "'$1' is not known" "install.sh --help" ;;
    esac
    shift
done
case $data in keep | delete) ;; *) fail "--data is keep or delete, not '$data'" ;; esac
case ${PREFIX:-} in /*) ;; *) fail "this is not Termux: PREFIX is not set" "on other systems see android_bridge/systemd" ;; esac
case $model in '' | /*) ;; *) model=$PWD/$model ;; esac
service=$PREFIX/var/service
bootfile=$HOME/.termux/boot/llmaas

# perform WHAT COMMAND...: say it, and do it.
perform() {
    printf 'install: %s\n' "$1"
    shift
    changed=yes
    [ -n "$dry" ] || "$@"
}

write_file() {
    mkdir -p "$(dirname "$2")"
    printf '%s\n' "$3" >"$2.new"
    chmod "$1" "$2.new"
    mv "$2.new" "$2"
}

# put MODE FILE TEXT: the file gets this text, if it has another one.
put() {
    if [ -f "$2" ] && [ "$(cat "$2")" = "$3" ]; then return 0; fi
    perform "write $2" write_file "$1" "$2" "$3"
}

# ---- what this phone is ----------------------------------------------------------------------------------------------

cpuinfo() {
    cat "${LLMAAS_CPUINFO:-/proc/cpuinfo}" 2>/dev/null || true
}

# Whether all cores have a feature. (Phones have cores of several kinds; a program may run on each of them.)
has_feature() {
    cpuinfo | awk -v want="$1" '
        /^Features/ { all++; for (i = 1; i <= NF; i++) if ($i == want) { with++; break } }
        END { exit !(all > 0 && all == with) }'
}

# Options of llama.cpp's build. What a core lacks ends the program, so nothing is taken for granted.
build_flags() {
    arch=
    if has_feature asimddp; then
        arch=armv8.2-a+dotprod
        if has_feature asimdhp; then arch=$arch+fp16; fi
        if has_feature i8mm; then arch=$arch+i8mm; fi
        if has_feature sve; then arch=$arch+sve; fi
        if has_feature sme; then arch=$arch+sme; fi
    fi
    printf '%s' "-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF"
    [ -z "$arch" ] || printf ' -DGGML_CPU_ARM_ARCH=%s' "$arch"
    [ "$kleidiai" != yes ] || printf ' -DGGML_CPU_KLEIDIAI=ON'
}

# What was built with KleidiAI's kernels keeps them. Where the CPU has what they use, and nothing was said, they are offered.
choose_kleidiai() {
    case $(cat "$home/version" 2>/dev/null || true) in
    *KLEIDIAI*) kleidiai=${kleidiai:-yes} ;;
    '') if [ -z "$kleidiai" ] && has_feature asimddp; then
        echo "install: Arm's KleidiAI kernels may help prefill on this CPU: --kleidiai builds them in"
    fi ;;
    *) ;;
    esac
}

memory_mb() {
    awk '/^MemTotal/ { print int($2 / 1024) }' "${LLMAAS_MEMINFO:-/proc/meminfo}"
}

free_storage_mb() {
    df -Pk "$HOME" | awk 'NR == 2 { print int($4 / 1024) }'
}

# Settings by RAM and storage: Android ends what takes too much, and a full flash ends more than this.
settings() {
    mb=$(memory_mb) left=$(free_storage_mb)
    if [ "$mb" -lt 6656 ]; then profile=phone-4g; else profile=phone-8g; fi
    disk=$((left / 10))
    if [ "$disk" -gt 4096 ]; then disk=4096; fi
    if [ "$disk" -lt 64 ]; then disk=64; fi
    cat <<SETTINGS
# Settings of the daemon, made for $mb MB of RAM and $left MB of free storage. "llmaas serve --help" lists them;
# "llmaas serve --show-config" shows what the profile sets.
profile = "$profile"
$(model_setting)
disk_bytes = "${disk}M"
nice = 5
# Other apps of the phone reach this port only, each by its token: llmaas app add NAME
http = "127.0.0.1:11434"
http_tokens = "required"
SETTINGS
}

model_setting() {
    if [ -n "$model" ]; then
        printf 'model = "%s"' "$(printf '%s' "$model" | sed 's/[\\"]/\\&/g')"
    else
        echo "$no_model"
    fi
}

# ---- steps -----------------------------------------------------------------------------------------------------------

install_packages() {
    missing=
    for package in $packages; do
        dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
    done
    # shellcheck disable=SC2086 # several packages
    [ -z "$missing" ] || perform "install packages:$missing" pkg install -y $missing
}

# What is to be installed, in one line: the version, how it was built, and for which Python: Termux replaces it, and an
# environment of the last one is empty for the next.
version() {
    python=$(dpkg -s python 2>/dev/null | sed -n 's/^Version: \([0-9]*\.[0-9]*\).*/\1/p')
    printf '%s %s %s' "$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$checkout/llmaas/version.py")" "$(build_flags)" "$python"
}

engine() {
    grep -oE 'llama-cpp-python==[0-9.]+' "$checkout/pyproject.toml" | head -n 1
}

# The wheel of this engine is kept for these flags: building it takes a phone half an hour. pip's own cache and its look
# at what is installed know the engine's version alone, not how it was built. A wheel in the folder LLMAAS_WHEELS, made by
# this on another phone, is taken as it is.
build_engine() {
    if [ -n "${LLMAAS_WHEELS:-}" ]; then
        "$home/venv/bin/python" -m pip install --no-deps --force-reinstall --no-index --find-links "$LLMAAS_WHEELS" \
            "$(engine)"
        return
    fi
    place=$wheels/$(printf '%s %s' "$(engine)" "$(build_flags)" | cksum | tr ' ' '-')
    mkdir -p "$place"
    if ! ls "$place"/llama_cpp_python-*.whl >/dev/null 2>&1; then
        CMAKE_ARGS="$(build_flags) -DCMAKE_PROJECT_llama.cpp_INCLUDE=$checkout/scripts/llama.cmake" \
            "$home/venv/bin/python" -m pip wheel --no-cache-dir --no-deps --no-binary llama-cpp-python \
            -w "$place" "$(engine)"
    fi
    "$home/venv/bin/python" -m pip install --no-deps --force-reinstall "$place"/llama_cpp_python-*.whl
}

build_program() {
    # numpy and cryptography are Termux' own: they would need a Fortran and a Rust compiler. The environment is made anew
    # where its Python has gone.
    "$home/venv/bin/python" -m pip --version >/dev/null 2>&1 ||
        python -m venv --clear --system-site-packages "$home/venv"
    build_engine
    "$home/venv/bin/python" -m pip install --upgrade "${checkout}[http]"
    version >"$home/version"
}

install_program() {
    if [ "$action" != update ] && [ "$(cat "$home/version" 2>/dev/null)" = "$(version)" ]; then return 0; fi
    perform "build llmaas in $home/venv (llama.cpp is compiled, once for these flags: $(build_flags))" build_program
}

install_service() {
    put 0755 "$service/llmaas/run" "#!$PREFIX/bin/sh
exec 2>&1
export TMPDIR=$PREFIX/tmp
exec $home/venv/bin/llmaas serve"
    put 0755 "$service/llmaas-wake-lock/run" "#!$PREFIX/bin/sh
exec 2>&1
export TMPDIR=$PREFIX/tmp
exec $home/venv/bin/python $home/llmaas-wake-lock"
    put 0755 "$home/llmaas-wake-lock" "$(cat "$here/llmaas-wake-lock")"
    for name in llmaas llmaas-wake-lock; do
        # svlogd turns its log over at 1 MB, and keeps 4 old ones.
        put 0755 "$service/$name/log/run" "#!$PREFIX/bin/sh
mkdir -p $PREFIX/var/log/sv/$name
exec svlogd -tt $PREFIX/var/log/sv/$name"
        put 0644 "$PREFIX/var/log/sv/$name/config" "s1000000
n4"
    done
    [ -z "$boot" ] || put 0755 "$bootfile" "#!$PREFIX/bin/sh
. $PREFIX/etc/profile.d/start-services.sh"
}

# Settings that are there stay, but for a model where none was named before.
install_settings() {
    if [ ! -f "$config" ]; then
        put 0600 "$config" "$(settings)"
    elif [ -z "$model" ] || grep -qxF "$(model_setting)" "$config"; then
        return 0
    elif grep -qxF "$no_model" "$config"; then
        put 0600 "$config" "$(NEW=$(model_setting) awk -v old="$no_model" '$0 == old { $0 = ENVIRON["NEW"] } { print }' "$config")"
    else
        printf 'install: %s stays as it is; to serve this model, set there\n  %s\n' "$config" "$(model_setting)"
    fi
}

do_install() {
    [ -z "$model" ] || [ -r "$model" ] || fail "the model $model cannot be read"
    install_packages
    choose_kleidiai
    install_program
    install_settings
    install_service
    if [ -z "$changed" ]; then
        echo "install: nothing to do"
        return
    fi
    for name in llmaas llmaas-wake-lock; do
        perform "start $name" start "$name"
    done
    echo "install: done. Its log: $PREFIX/var/log/sv/llmaas/current. 'llmaas doctor' is $home/venv/bin/llmaas doctor"
}

# A new Termux session starts the services; in this one they may not be known yet.
start() {
    sv-enable "$1" && sv restart "$1" || echo "install: open a new session of Termux, which starts $1"
}

remove() {
    [ ! -e "$1" ] || perform "remove $1" rm -rf "$1"
}

do_uninstall() {
    for name in llmaas llmaas-wake-lock; do
        if [ -e "$service/$name" ]; then perform "stop $name" stop "$name"; fi
        remove "$service/$name"
        remove "$PREFIX/var/log/sv/$name"
    done
    for path in "$bootfile" "$home" "$HOME/.cache/llmaas"; do
        remove "$path"
    done
    if [ "$data" = delete ]; then
        for ending in '' .key .repack.json .loads.json .rope.json .costs.json; do
            remove "$HOME/.local/share/llmaas$ending"
        done
        remove "$HOME/.local/state/llmaas"
        remove "$HOME/.config/llmaas"
    else
        echo "install: conversations, their key and settings stay; --data delete removes them"
    fi
    echo "install: packages stay, since other programs may use them: $packages"
}

stop() {
    sv-disable "$1" || true
    sv down "$1" || true
}

case $action in
install | update) do_install ;;
uninstall) do_uninstall ;;
esac
