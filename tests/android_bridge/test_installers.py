"""The installers, with commands of the system that only write down what they are asked for."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from llmaas.config import models
from llmaas.config.boards import Board, BoardKind
from llmaas.config.profiles import Hardware, suitable_profile
from llmaas.config.sources import load
from tests.support.drivers import BRIDGE, ROOT, needs

SCRIPTS = sorted(
    path for path in BRIDGE.rglob("*") if path.suffix == ".sh" or (path.parent.name == "sh" and path.is_file())
)
SHELLS = [path for path in SCRIPTS if path.read_text("utf-8").startswith("#!/bin/sh\n")]
DOORS = [ROOT / ".ci" / "run", *(path for path in sorted((ROOT / "scripts").iterdir()) if not path.suffix)]
LOG = """#!/bin/sh
echo "$(basename "$0") $*" >>"$CALLS"
"""
DPKG = LOG + 'grep -qx "$2" "$INSTALLED" 2>/dev/null\n'
PKG = LOG + 'shift 2; printf "%s\\n" "$@" >>"$INSTALLED"\n'
PYTHON = (
    LOG
    + """case "$*" in
"-m venv"*) for last; do :; done; rm -rf "$last"; mkdir -p "$last/bin"; cp "$0" "$last/bin/python" ;;
"-m pip wheel"*)
    [ ! -e "$FAIL" ] || { rm "$FAIL"; exit 1; }
    while [ "$1" != -w ]; do shift; done; touch "$2/llama_cpp_python-1.whl"; echo "$CMAKE_ARGS" >>"$CALLS" ;;
"-m pip install --upgrade"*)
    echo "${CMAKE_ARGS-}" >>"$CALLS"
    program=$(dirname "$0")/llmaas
    echo "#!$(dirname "$0")/python" >"$program"
    chmod +x "$program" ;;
esac
"""
)
STUBS = {"dpkg": DPKG, "pkg": PKG, "python": PYTHON, "python3": PYTHON, "sv": LOG, "sv-enable": LOG, "sv-disable": LOG}
ARM = "processor : 0\nFeatures : fp asimd asimdhp asimddp i8mm\n\nprocessor : 1\nFeatures : fp asimd asimdhp asimddp\n"


class House:
    """A home, a Termux, and what was asked of its commands."""

    def __init__(self, root: Path) -> None:
        self.root, self.home, self.prefix = root, root / "home", root / "usr"
        for folder in (self.home, self.prefix, root / "bin"):
            folder.mkdir()
        for name, text in STUBS.items():
            (root / "bin" / name).write_text(text)
            (root / "bin" / name).chmod(0o755)
        (root / "cpuinfo").write_text(ARM)
        (root / "meminfo").write_text("MemTotal:        3900000 kB\n")

    def run(self, script: str, *args: str, code: int = 0, **more: str) -> str:
        environ = {"HOME": self.home, "PREFIX": self.prefix, "CALLS": self.root / "calls", "FAIL": self.root / "fail"}
        environ |= {"INSTALLED": self.root / "installed", "LLMAAS_CPUINFO": self.root / "cpuinfo"}
        environ |= {"LLMAAS_BOARD": self.root / "board", "VERSION": self.root / "python-version"}
        environ |= {"LLMAAS_MEMINFO": self.root / "meminfo", "TMPDIR": self.root}
        words = {name: str(value) for name, value in environ.items()}
        words |= more
        words["PATH"] = f"{self.root / 'bin'}:{os.environ['PATH']}"
        command = ["sh", str(BRIDGE / script), *args]
        done = subprocess.run(command, env=words, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines() if (self.root / "calls").exists() else []

    def tree(self) -> dict[str, str]:
        """All files below home and prefix, and the image, with their contents and modes."""
        found = {}
        for top in (self.home, self.prefix, self.root / "image"):
            for path in sorted(top.rglob("*")):
                if path.is_file():
                    facts = path.stat()
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    found[str(path.relative_to(self.root))] = f"{facts.st_mode:o} {facts.st_mtime_ns} {digest}"
        return found


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_there_are_scripts() -> None:
    assert {path.name for path in SHELLS} >= {"llmaas-client", "install.sh"}


@pytest.mark.parametrize("script", SHELLS, ids=lambda path: str(path.relative_to(BRIDGE)))
def test_shellcheck_finds_nothing(script: Path) -> None:
    shellcheck_finds_nothing(script, "SC2250,SC2310,SC2312,SC2249")
    assert script.stat().st_mode & 0o111


@pytest.mark.parametrize("script", DOORS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_scripts_of_bash(script: Path) -> None:
    """SC2292 would have [[ ]] in place of [ ], which both kinds of scripts use."""
    shellcheck_finds_nothing(script, "SC2250,SC2310,SC2312,SC2249,SC2292")


def shellcheck_finds_nothing(script: Path, but: str) -> None:
    """With all of its checks ``but`` these."""
    command = [needs("shellcheck"), "-o", "all", "-e", but, script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["scripts.bats", "wheels.bats"])
def test_bats_finds_that_the_scripts_do_what_they_say(name: str) -> None:
    suite = Path(__file__).with_name(name)
    done = subprocess.run([needs("bats"), "--tap", suite], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") == suite.read_text("utf-8").count("\n@test ")


# -- Termux


def test_a_dry_run_on_a_phone_changes_nothing(house: House) -> None:
    before = house.tree()
    said = house.run("termux/install.sh", "--dry-run", "--at-boot", "--model", "/dev/null")
    assert "install packages: python python-numpy" in said and "write " in said
    assert house.tree() == before and not [call for call in house.calls() if not call.startswith("dpkg")]


def test_a_phone_is_set_up_once(house: House) -> None:
    said = house.run("termux/install.sh", "--at-boot")
    assert "done" in said
    calls = house.calls()
    assert any(call.startswith("pkg install -y python ") for call in calls)
    assert "sv-enable llmaas" in calls and "sv restart llmaas" in calls
    flags = next(call for call in calls if call.startswith("-DLLAVA_BUILD"))
    # A feature counts that all cores have.
    assert "-DGGML_CPU_ARM_ARCH=armv8.2-a+dotprod+fp16 " in flags and "i8mm" not in flags and "KLEIDIAI" not in flags
    settings = (house.home / ".config" / "llmaas" / "config.toml").read_text()
    assert 'profile = "phone-4g"' in settings and 'http_tokens = "required"' in settings
    run = house.prefix / "var" / "service" / "llmaas" / "run"
    assert run.stat().st_mode & 0o111 and run.read_text().startswith(f"#!{house.prefix}/bin/sh\n")
    assert "s1000000" in (house.prefix / "var" / "log" / "sv" / "llmaas" / "config").read_text()
    before = house.tree()
    assert house.run("termux/install.sh", "--at-boot") == "install: nothing to do\n"
    assert house.tree() == before


def test_the_settings_are_good_ones(house: House, tmp_path: Path) -> None:
    model = tmp_path / 'a "model".gguf'
    model.write_bytes(b"GGUF")
    house.run("termux/install.sh", "--model", str(model))
    file = house.home / ".config" / "llmaas" / "config.toml"
    config = load({}, {"HOME": str(house.home)}, file).config
    assert (config.profile, config.governor, config.wear_budget) == ("phone-4g", "on", 2 << 30)
    assert (config.cells, config.pool_bytes, config.http) == (2048, 64 << 20, "127.0.0.1:11434")
    assert models.find(config.model) == model


@pytest.mark.parametrize("mb", [2000, 3700, 5600, 6655, 6656, 7400, 11_300, 15_000])
def test_the_installers_choose_the_profile_that_the_daemon_would(house: House, mb: int) -> None:
    (house.root / "meminfo").write_text(f"MemTotal: {mb * 1024} kB\n")
    house.run("termux/install.sh")
    config = load({}, {"HOME": str(house.home)}, house.home / ".config" / "llmaas" / "config.toml").config
    assert config.profile == suitable_profile(Hardware(Board(BoardKind.PHONE), mb << 20))
    house.run("jetson/install.sh", "--root", str(house.root / "image"))
    config = load({}, {"HOME": "/"}, house.root / "image" / "etc" / "llmaas" / "config.toml").config
    assert config.profile == suitable_profile(Hardware(Board(BoardKind.JETSON), mb << 20))


def test_settings_that_are_there_stay(house: House) -> None:
    file = house.home / ".config" / "llmaas" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("cells = 777\n")
    house.run("termux/install.sh")
    assert file.read_text() == "cells = 777\n"


def test_after_a_failure_the_next_run_goes_on(house: House) -> None:
    (house.root / "fail").touch()
    house.run("termux/install.sh", code=1)
    assert "done" in house.run("termux/install.sh")
    assert len([call for call in house.calls() if call.startswith("pkg install")]) == 1
    house.run("termux/install.sh", "update")
    assert len([call for call in house.calls() if "pip wheel" in call]) == 2, "the wheel of these flags is kept"
    assert "-DGGML_CPU_KLEIDIAI=ON" not in "".join(house.calls())


def test_kernels_of_kleidiai_are_offered_and_kept(house: House) -> None:
    assert "--kleidiai builds them in" in house.run("termux/install.sh")
    assert "--kleidiai" not in house.run("termux/install.sh", "update")
    built = "pip wheel --no-cache-dir --no-deps --no-binary llama-cpp-python"
    flags = [("--kleidiai",), (), ("--no-kleidiai",), ("--kleidiai",)]
    for i, words in enumerate(flags):
        house.run("termux/install.sh", *words, "update")
        told = (house.home / ".local" / "share" / "llmaas-termux" / "version").read_text()
        assert ("-DGGML_CPU_KLEIDIAI=ON" in told) == (i != 2)
    assert len([call for call in house.calls() if built in call]) == 2, "both wheels are kept"
    (house.root / "cpuinfo").write_text("Features : fp asimd\n")
    house.run("termux/install.sh", "uninstall")
    assert "--kleidiai" not in house.run("termux/install.sh"), "this CPU has nothing that they use"


def test_another_python_of_termux_gets_the_program_again(house: House) -> None:
    """Its environment was empty for it; the engine's wheel is for any Python."""
    (house.root / "bin" / "dpkg").write_text(DPKG + 'code=$?; cat "$VERSION" 2>/dev/null; exit $code\n')
    for python in ("3.12.11-1", "3.13.0-2"):
        (house.root / "python-version").write_text(f"Package: python\nVersion: {python}\n")
        assert "build llmaas" in house.run("termux/install.sh")
        assert house.run("termux/install.sh") == "install: nothing to do\n"
    assert len([call for call in house.calls() if "pip wheel" in call]) == 1
    python = house.home / ".local" / "share" / "llmaas-termux" / "venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3.12")
    (house.root / "python-version").write_text("Version: 3.14.0-1\n")
    house.run("termux/install.sh")
    assert python.is_file()
    assert len([call for call in house.calls() if "-m venv" in call]) == 2


def test_a_model_is_named_where_none_was(house: House, tmp_path: Path) -> None:
    file = house.home / ".config" / "llmaas" / "config.toml"
    house.run("termux/install.sh")
    assert load({}, {"HOME": str(house.home)}, file).config.model is None
    models = [tmp_path / 'a "new" \\ & model.gguf', tmp_path / "another.gguf"]
    for model in models:
        model.write_bytes(b"GGUF")
    assert f"write {file}" in house.run("termux/install.sh", "--model", str(models[0]))
    assert house.run("termux/install.sh", "--model", str(models[0])) == "install: nothing to do\n"
    before = house.tree()
    assert f'model = "{models[1]}"' in house.run("termux/install.sh", "--model", str(models[1]))
    assert house.tree() == before and str(load({}, {"HOME": str(house.home)}, file).config.model) == str(models[0])
    assert "cannot be read" in house.run("termux/install.sh", "--model", str(tmp_path / "none"), code=1)


@pytest.mark.parametrize("data", ["keep", "delete"])
def test_nothing_is_left_on_a_phone_but_what_is_to_be_kept(house: House, data: str) -> None:
    house.run("termux/install.sh", "--at-boot")
    # Beside its folder the daemon writes files whose names are in its code.
    code = "".join(path.read_text("utf-8") for path in (ROOT / "llmaas").rglob("*.py"))
    endings = set(re.findall(r'"(\.key|\.\w+\.json)"\)', code))
    assert endings >= {".key", ".loads.json", ".costs.json"}
    written = [f".local/share/llmaas{name}" for name in ("/index", *endings)]
    written.append(".local/state/llmaas/chat_history")
    for name in written:
        (house.home / name).parent.mkdir(parents=True, exist_ok=True)
        (house.home / name).write_text("the daemon's")
    house.run("termux/install.sh", "--data", data, "uninstall")
    left = {*written, ".config/llmaas/config.toml"} if data == "keep" else set()
    assert {name.removeprefix("home/") for name in house.tree()} == left
    house.run("termux/install.sh", "--data", data, "uninstall")


def test_what_is_no_termux_is_told_so(house: House) -> None:
    done = subprocess.run(
        ["sh", BRIDGE / "termux" / "install.sh"],
        env={"HOME": "/", "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "not Termux" in done.stderr
    assert "not known" in house.run("termux/install.sh", "--wrong", code=1)


# -- systemd


def test_an_image_is_set_up_once_and_emptied(house: House) -> None:
    image = house.root / "image"
    (house.root / "m.gguf").write_bytes(b"GGUF")
    args = ("--root", str(image), "--model", str(house.root / "m.gguf"))
    before = house.tree()
    assert "write /etc/systemd/system/llmaas.socket" in house.run("systemd/install.sh", "--dry-run", *args)
    assert house.tree() == before
    assert "done" in house.run("systemd/install.sh", *args)
    units = image / "etc" / "systemd" / "system"
    program = image / "opt" / "llmaas" / "venv" / "bin" / "llmaas"
    assert program.read_text() == "#!/opt/llmaas/venv/bin/python\n", "it is to run where the image is the root"
    assert "ExecStart=/opt/llmaas/venv/bin/llmaas serve" in (units / "llmaas.service").read_text()
    assert (image / "var" / "lib" / "llmaas" / "model.gguf").read_bytes() == b"GGUF"
    assert not [call for call in house.calls() if "systemctl" in call]
    before = house.tree()
    assert house.run("systemd/install.sh", *args).endswith("install: nothing to do\n")
    assert house.tree() == before
    assert [name for name in house.tree() if name.endswith(".whl")], "a run after a failure has the engine"
    house.run("systemd/install.sh", "--root", str(image), "uninstall")
    assert sorted(house.tree()) == ["image/etc/llmaas/config.toml", "image/var/lib/llmaas/model.gguf"]
    house.run("systemd/install.sh", "--root", str(image), "--delete-data", "uninstall")
    assert house.tree() == {}


def test_what_an_engine_was_built_with_counts_and_is_kept(house: House) -> None:
    """pip takes an engine of the same version for the same one, whatever it was built with."""
    image = house.root / "image"
    board = image / "etc" / "systemd" / "system" / "llmaas.service.d" / "board.conf"
    built = "pip wheel --no-cache-dir --no-deps --no-binary llama-cpp-python"
    gpus = [((), ""), (("--vulkan",), "VULKAN"), (("update",), "VULKAN"), (("--cuda",), "CUDA"), (("--cpu",), "")]
    for words, gpu in gpus:
        house.run("systemd/install.sh", "--board", "none", "--root", str(image), *words)
        told = (image / "opt" / "llmaas" / "version").read_text()
        assert ("GGML" in told) == bool(gpu) and f"{gpu and '=ON'}" in told and gpu in told
        assert board.is_file() == bool(gpu)
    calls = house.calls()
    assert len([call for call in calls if built in call]) == 3, "each was built once"
    put = [call for call in calls if "pip install --no-deps --force-reinstall" in call]
    assert len(put) == len(gpus) and put[0] == put[-1] and put[1] == put[2] and len(set(put)) == 3


def test_options_of_ones_own_are_built_in(house: House) -> None:
    house.run("systemd/install.sh", "--root", str(house.root / "image"), CMAKE_ARGS="-DGGML_NATIVE=OFF")
    flags = next(call for call in house.calls() if call.startswith("-DCMAKE"))
    assert flags.endswith(" -DGGML_NATIVE=OFF") and "-DLLAVA_BUILD=OFF" in flags


@pytest.mark.parametrize("board", ["jetson", "raspberry", "none"])
def test_a_board_gets_what_suits_it(house: House, board: str) -> None:
    image = house.root / "image"
    if board == "jetson":
        (house.root / "bin" / "nvcc").write_text(LOG)
        (house.root / "bin" / "nvcc").chmod(0o755)
    script = "systemd/install.sh" if board == "none" else f"{board}/install.sh"
    house.run(script, "--root", str(image))
    before = house.tree()
    assert house.run(script, "--root", str(image)).endswith("install: nothing to do\n") and house.tree() == before
    machine = Hardware(ram=3_900_000 << 10)
    settings = load({}, {"HOME": "/"}, image / "etc" / "llmaas" / "config.toml", machine).config
    assert (settings.cells, settings.socket) == (2048, Path("/run/llmaas/llmaas.sock"))
    assert settings.profile == {"jetson": "jetson-8g", "raspberry": "pi-8g", "none": "desktop"}[board]
    assert settings.governor == ("off" if board == "none" else "on")
    flags = next(call for call in house.calls() if call.startswith("-DCMAKE"))
    assert ("-DGGML_CUDA=ON" in flags) == (board == "jetson")
    drop_in = image / "etc" / "systemd" / "system" / "llmaas.service.d" / "board.conf"
    assert drop_in.is_file() == (board != "none")
    if board != "none":
        text = drop_in.read_text()
        assert "MemorySwapMax=0" in text and ("PrivateDevices=no" in text) == (board == "jetson")
        house.run(script, "--root", str(image), "uninstall")
        assert not drop_in.parent.exists()


def test_a_board_is_known_by_what_it_says(house: House) -> None:
    for said, board in (("Raspberry Pi 5 Model B Rev 1.0\0", "raspberry"), ("NVIDIA Jetson Orin Nano\0", "jetson")):
        (house.root / "board").write_text(said)
        told = house.run("systemd/install.sh", "--dry-run", "--root", str(house.root / "image"))
        assert "write /etc/systemd/system/llmaas.service.d/board.conf" in told, board
    (house.root / "board").write_text("some laptop")
    assert "board.conf" not in house.run("systemd/install.sh", "--dry-run", "--root", str(house.root / "image"))


def units(folder: Path) -> list[str]:
    """The units as installed, with a program that is there."""
    for name in ("llmaas.service", "llmaas.socket", "llmaas-admin.socket"):
        text = (BRIDGE / "systemd" / name).read_text().replace("@PREFIX@/venv/bin/llmaas", shutil.which("true") or "")
        (folder / name).write_text(text)
    return [str(folder / name) for name in ("llmaas.service", "llmaas.socket", "llmaas-admin.socket")]


def drop_ins(house: House) -> dict[str, str]:
    """What is added to the unit: on a Jetson for its GPU, and as README.md says for HTTP."""
    nvcc = house.root / "bin" / "nvcc"
    nvcc.write_text(LOG)
    nvcc.chmod(0o755)
    house.run("jetson/install.sh", "--root", str(house.root / "image"))
    gpu = (house.root / "image/etc/systemd/system/llmaas.service.d/board.conf").read_text("utf-8")
    assert "PrivateDevices=no" in gpu
    page = (BRIDGE / "systemd" / "README.md").read_text("utf-8")
    (http,) = re.findall(r"^```\n(\[Service\]\n.*?)^```", page, re.MULTILINE | re.DOTALL)
    return {"plain": "", "gpu": gpu, "http": http, "gpu and http": gpu + http}


@pytest.mark.parametrize("kind", ["plain", "gpu", "http", "gpu and http"])
def test_systemd_takes_the_units_and_finds_them_safe(tmp_path: Path, house: House, kind: str) -> None:
    analyze, files = needs("systemd-analyze"), units(tmp_path)
    with (tmp_path / "llmaas.service").open("a") as unit:
        unit.write(f"\n{drop_ins(house)[kind]}")
    done = subprocess.run([analyze, "verify", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "llmaas" not in done.stderr, done.stderr
    command = [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(tmp_path / "llmaas.service")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
