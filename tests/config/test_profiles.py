"""Profiles: which one suits a machine, what it sets, and that it never asks for more than there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from llmaas.config.boards import Board, BoardKind, find_board, is_termux
from llmaas.config.kinds import show_bytes
from llmaas.config.profiles import DESKTOP, PROFILE_SETTINGS, PROFILES, Hardware, Profile, halvings, suitable_profile
from llmaas.config.settings import SETTINGS
from llmaas.config.sources import LoadedConfig, load
from llmaas.errors import ConfigError

GIB, MIB = 1 << 30, 1 << 20
DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
TERMUX = {"PREFIX": "/data/data/com.termux/files/usr"}
TOKEN_BYTES = 48 << 10
"""Of KV in cells: more than models of one to three billion parameters have (Qwen2.5-1.5B: 28 KiB, 3B: 36 KiB)."""


def put(path: Path, data: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def loaded(home: Path, machine: Hardware, **flags: str) -> LoadedConfig:
    return load(flags, {"HOME": str(home)}, machine=machine)


# -- which machine this is


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (b"Raspberry Pi 5 Model B Rev 1.0\0", BoardKind.PI),
        (b"Raspberry Pi 4 Model B Rev 1.5\0", BoardKind.PI),
        (b"NVIDIA Jetson Orin Nano Developer Kit\0", BoardKind.JETSON),
        (b"Radxa ROCK 5B\0", BoardKind.OTHER),
        (b"\xff\xfe\0\0", BoardKind.OTHER),
        (b"", BoardKind.OTHER),
    ],
)
@pytest.mark.parametrize("place", ["proc/device-tree/model", "sys/firmware/devicetree/base/model"])
def test_a_board_is_known_by_its_device_tree(tmp_path: Path, place: str, model: bytes, kind: BoardKind) -> None:
    put(tmp_path / place, model)
    found = find_board({}, tmp_path)
    assert found.kind is kind and "\0" not in found.name
    if kind is BoardKind.PI:
        assert found.name == model.decode().rstrip("\0")


def test_a_jetson_is_known_by_its_release_file_where_the_device_tree_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "proc" / "device-tree" / "model").mkdir(parents=True)
    assert find_board({}, tmp_path) == Board()
    put(tmp_path / "etc" / "nv_tegra_release", b"# R36 (release)")
    assert find_board({}, tmp_path).kind is BoardKind.JETSON


def test_a_phone_is_known_by_termux_or_by_android(tmp_path: Path) -> None:
    assert find_board(TERMUX, tmp_path).kind is BoardKind.PHONE
    assert find_board({"TERMUX_VERSION": "0.118"}, tmp_path).kind is BoardKind.PHONE
    assert not is_termux({"PREFIX": "/usr/local"})
    put(tmp_path / "system" / "bin" / "app_process64")
    put(tmp_path / "proc" / "device-tree" / "model", b"Some SoC\0")
    assert find_board({}, tmp_path) == Board(BoardKind.PHONE, "Some SoC")


def test_a_machine_that_says_nothing_is_no_board(tmp_path: Path) -> None:
    assert find_board({}, tmp_path) == Board()


# -- which profile suits it


@pytest.mark.parametrize(
    ("kind", "gib", "name"),
    [
        (BoardKind.PHONE, 2.8, "phone-4g"),
        (BoardKind.PHONE, 3.6, "phone-4g"),
        (BoardKind.PHONE, 5.4, "phone-4g"),
        (BoardKind.PHONE, 7.2, "phone-8g"),
        (BoardKind.PHONE, 15, "phone-8g"),
        (BoardKind.PI, 1.8, "pi-8g"),
        (BoardKind.PI, 7.9, "pi-8g"),
        (BoardKind.PI, 15.8, "pi-8g"),
        (BoardKind.JETSON, 3.3, "jetson-8g"),
        (BoardKind.JETSON, 7.4, "jetson-8g"),
        (BoardKind.JETSON, 15.3, "jetson-16g"),
        (BoardKind.JETSON, 61, "jetson-16g"),
        (BoardKind.OTHER, 1, DESKTOP),
        (BoardKind.OTHER, 64, DESKTOP),
    ],
)
def test_a_profile_is_chosen_by_kind_and_ram(tmp_path: Path, kind: BoardKind, gib: float, name: str) -> None:
    machine = Hardware(Board(kind), int(gib * GIB))
    assert suitable_profile(machine) == name
    found = loaded(tmp_path, machine)
    assert found.config.profile == name and found.origins["profile"] == "default"


def test_a_machine_of_unknown_ram_gets_the_least_of_its_kind() -> None:
    names = [suitable_profile(Hardware(Board(kind))) for kind in BoardKind]
    assert names == ["phone-4g", "pi-8g", "jetson-8g", DESKTOP]


# -- what it sets


def test_every_profile_is_made_of_settings_that_are_valid() -> None:
    assert [field.name for field in fields(Profile)] == ["ram", *PROFILE_SETTINGS]
    for profile in PROFILES.values():
        for name in PROFILE_SETTINGS:
            value = getattr(profile, name)
            if value is not None:
                raw = value if isinstance(value, int) else str(value)
                assert SETTINGS[name].kind.read(raw, Path()) == value


@pytest.mark.parametrize("gib", [2.5, 4, 8, 23.5, 128])
def test_a_desktop_has_the_defaults_of_the_settings(tmp_path: Path, gib: float) -> None:
    plain = load({}, {"HOME": str(tmp_path)})
    found = loaded(tmp_path, Hardware(Board(), int(gib * GIB), lambda folder: 40 * GIB))
    assert found.config == plain.config
    assert set(found.origins.values()) == {"default"}
    for name in PROFILE_SETTINGS:
        if name != "threads":
            assert getattr(found.config, name) == SETTINGS[name].default({}), name


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_that_is_asked_for_sets_all_that_nothing_else_sets(tmp_path: Path, name: str) -> None:
    profile = PROFILES[name]
    plenty = Hardware(Board(), 64 * GIB, lambda folder: 1 << 42)
    config = loaded(tmp_path, plenty, profile=name, cpus="0").config
    for each in PROFILE_SETTINGS:
        if each != "threads":
            assert getattr(config, each) == getattr(profile, each)
    assert config.threads == 1


def test_whatever_is_set_wins_over_the_profile(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('profile = "phone-4g"\ncells = 8192\n')
    environ = {"HOME": str(tmp_path), "LLMAAS_POOL_BYTES": "1G"}
    found = load({"bits": "6"}, environ, file, Hardware(Board(BoardKind.PI), GIB))
    assert (found.config.cells, found.config.pool_bytes, found.config.bits) == (8192, GIB, 6.0)
    assert found.config.governor == "on" and found.config.profile == "phone-4g"
    assert (found.origins["cells"], found.origins["governor"]) == (str(file), "profile phone-4g")
    # A value that is set is taken as it is, also if it is the usual default.
    assert load({"governor": "off", "profile": "pi-8g"}, environ).config.governor == "off"


def test_a_flag_beats_the_file_for_the_profile_too(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('profile = "phone-4g"\n')
    environ = {"HOME": str(tmp_path), "LLMAAS_PROFILE": "pi-8g"}
    assert load({}, environ, file).config.profile == "pi-8g"
    assert load({"profile": "jetson-8g"}, environ, file).config.profile == "jetson-8g"


def test_threads_are_never_more_than_there_are_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmaas.config.settings.default_threads", lambda: 8)
    assert loaded(tmp_path, Hardware(), profile="phone-8g").config.threads == 4
    assert loaded(tmp_path, Hardware(), profile="jetson-8g").config.threads == 6
    assert loaded(tmp_path, Hardware()).config.threads == 8
    assert loaded(tmp_path, Hardware(), profile="phone-8g", threads="7").config.threads == 7
    monkeypatch.setattr("llmaas.config.settings.default_threads", lambda: 2)
    assert loaded(tmp_path, Hardware(), profile="jetson-16g").config.threads == 2


# -- that it fits


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("mib", [256, 512, 900, 1024, 1800, 2048, 3300, 4096, 6000, 7400, 16000, 64000])
def test_no_profile_asks_for_more_than_a_third_of_the_ram(tmp_path: Path, name: str, mib: int) -> None:
    config = loaded(tmp_path, Hardware(Board(), mib * MIB), profile=name).config
    least = 256 * TOKEN_BYTES + 4 * MIB
    assert config.cells * TOKEN_BYTES + config.pool_bytes <= max(least, mib * MIB / 3)
    assert config.cells >= config.prefill_slice


@pytest.mark.parametrize("name", PROFILES)
def test_what_is_made_for_more_is_halved_until_it_fits(name: str) -> None:
    profile = PROFILES[name]
    assert [halvings(profile, profile.ram >> n) for n in range(4)] == [0, 1, 2, 3]
    assert halvings(profile, int(profile.ram * 0.9)) == 0, "what firmware keeps"
    assert halvings(profile, None) == halvings(profile, 0) == 0


def test_chunks_take_no_more_than_half_of_the_disk(tmp_path: Path) -> None:
    asked: list[Path] = []

    def disk(folder: Path) -> int:
        asked.append(folder)
        return 100 * MIB

    found = loaded(tmp_path, Hardware(disk_of=disk), data_dir=str(tmp_path / "d"))
    assert found.config.disk_bytes == 50 * MIB and asked == [tmp_path / "d"]
    assert found.origins["disk_bytes"] == "profile desktop"
    assert loaded(tmp_path, Hardware(disk_of=disk), disk_bytes="1G").config.disk_bytes == GIB
    assert loaded(tmp_path, Hardware(disk_of=lambda folder: None)).config.disk_bytes == PROFILES[DESKTOP].disk_bytes


def test_a_profile_that_is_none_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"setting profile .* one of phone-4g, phone-8g, pi-8g"):
        loaded(tmp_path, Hardware(), profile="toaster")


def test_cells_that_a_profile_gives_are_named_where_they_do_not_go_with_another_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"at most cells \(profile phone-4g\), which is 2048"):
        loaded(tmp_path, Hardware(), profile="phone-4g", prefill_slice="4096")


def test_the_docs_table_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    told = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows if name in PROFILES}
    shown = {
        name: [
            show_bytes(profile.ram),
            str(profile.cells),
            show_bytes(profile.pool_bytes),
            show_bytes(profile.disk_bytes),
            "all" if profile.threads is None else f"at most {profile.threads}",
            f"{profile.bits:g}",
            profile.governor,
            "none" if profile.wear_budget is None else show_bytes(profile.wear_budget),
        ]
        for name, profile in PROFILES.items()
    }
    assert told == shown
