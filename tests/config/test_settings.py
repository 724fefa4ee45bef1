"""Settings: precedence, messages, sizes, and the table in the docs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.config.kinds import cpu_list, show_bytes, show_cpus, size, whole
from llmaas.config.settings import SETTINGS, Config, flag, variable
from llmaas.config.sources import load, unknown_variables
from llmaas.errors import ConfigError
from llmaas.records import NO_QUOTA

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
BAD = {
    "model": "",
    "models": "a b",
    "models_bytes": "most",
    "models_pool_bytes": "all",
    "models_disk_bytes": "-1",
    "models_bits": "16",
    "keep_alive": "-1",
    "held": "maybe",
    "devices": "none,CUDA0",
    "gpu_layers": "-1",
    "socket": "/" + "x" * 120,
    "daemon_uid": "-1",
    "http": "box.example:80",
    "http_tokens": "some",
    "http_hosts": "a b",
    "nodes": "box.example:7411",
    "data_dir": "",
    "profile": "toaster",
    "cells": "100",
    "least_cells": "none",
    "pool_bytes": "12 parsecs",
    "disk_bytes": "-1",
    "write_rate": "fast",
    "wear_budget": "little",
    "pressure": "maybe",
    "warm_start": "lukewarm",
    "threads": "0",
    "adaptive_threads": "often",
    "keep_thoughts": "some",
    "cpus": "0-",
    "nice": "-5",
    "governor": "maybe",
    "repack": "maybe",
    "tiles": "some",
    "full_windows": "half",
    "sequences": "1",
    "bits": "7/4",
    "encrypt": "perhaps",
    "key_source": "under the mat",
    "adapters": "red",
    "adapter_bytes": "some",
    "prefill_slice": "-3",
    "step_ms": "0",
    "max_running": "many",
    "quantum": "0",
    "ageing": "never",
    "rate": "-5",
    "app_rate": "fast",
    "queue_limit": "0",
    "priority_floor": "10",
    "urgent_apps": "a b",
    "app_contexts": "0",
    "anonymous_contexts": "0",
    "embedding_tokens": "-1",
    "slots": "1025",
    "slot_bytes": "3M",
    "slot_folder": "",
    "app_text_bytes": "1K",
    "max_tokens": "1.5",
    "log_level": "loud",
    "log_format": "xml",
    "record": "",
}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def test_defaults_are_valid_for_every_setting(environ: dict[str, str]) -> None:
    config = load({}, environ).config
    for name, row in SETTINGS.items():
        value = getattr(config, name)
        if value is not None:
            raw = value if isinstance(value, int) else str(value)
            assert row.kind.read(raw, Path("/")) == value


def test_a_quota_may_be_none(environ: dict[str, str]) -> None:
    config = load({"disk_bytes": "None"}, environ).config
    assert config.disk_bytes == NO_QUOTA and show_bytes(config.disk_bytes) == "none"


def test_flags_beat_variables_beat_the_file_beats_defaults(environ: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", "cells = 1024\nthreads = 3\nqueue_limit = 5\n")
    environ |= {"LLMAAS_CELLS": "2048", "LLMAAS_THREADS": "4"}
    loaded = load({"cells": "4096", "socket": None}, environ, file)
    config = loaded.config
    assert (config.cells, config.threads, config.queue_limit, config.sequences) == (4096, 4, 5, 32)
    assert [loaded.origins[n] for n in ("cells", "threads", "queue_limit", "sequences")] == [
        "flag --cells",
        "variable LLMAAS_THREADS",
        str(file),
        "default",
    ]


def test_the_default_file_is_read_if_it_exists(environ: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path / "etc" / "llmaas" / "config.toml", "cells = 512\n")
    assert load({}, environ).file is None
    loaded = load({}, environ | {"XDG_CONFIG_HOME": str(tmp_path / "etc")})
    assert (loaded.config.cells, loaded.file) == (512, file)


def test_the_variable_for_the_file_yields_to_the_flag(environ: dict[str, str], tmp_path: Path) -> None:
    one = write(tmp_path / "one.toml", "cells = 512\n")
    two = write(tmp_path / "two.toml", "cells = 1024\n")
    environ["LLMAAS_CONFIG"] = str(one)
    assert load({}, environ).config.cells == 512
    assert load({}, environ, two).config.cells == 1024


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("source", ["flag", "variable", "file"])
def test_a_bad_value_names_setting_source_value_and_what_is_allowed(
    name: str, source: str, environ: dict[str, str], tmp_path: Path
) -> None:
    bad, flags, file, origin = BAD[name], {}, None, ""
    if source == "flag":
        flags, origin = {name: bad}, flag(name)
    elif source == "variable":
        environ[variable(name)], origin = bad, variable(name)
    else:
        file = write(tmp_path / "c.toml", f'{name} = "{bad}"\n')
        origin = str(file)
    with pytest.raises(ConfigError) as caught:
        load(flags, environ, file)
    for part in (f"setting {name} ", origin, repr(bad), SETTINGS[name].kind.allowed):
        assert part in caught.value.message


@pytest.mark.parametrize("value", ["true", "[1]", "{a = 1}", "1979-05-27", "1.5"])
@pytest.mark.parametrize("name", ["cells", "socket", "bits", "log_level"])
def test_a_value_of_a_wrong_toml_type_is_refused(
    name: str, value: str, environ: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"setting {name} "):
        load({}, environ, write(tmp_path / "c.toml", f"{name} = {value}\n"))


def test_an_unknown_key_suggests_the_nearest_setting(environ: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", "pool_byte = 1\n")
    with pytest.raises(ConfigError, match="unknown setting 'pool_byte'") as caught:
        load({}, environ, file)
    assert "'pool_bytes'" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        load({}, environ, write(file, "qqqq = 1\n"))
    assert "cells" in caught.value.hint


@pytest.mark.parametrize("text", [b"cells = \n", b"\xff\xfe", b"cells = 300\ncells = 400\n"])
def test_a_file_that_is_not_toml_is_refused(text: bytes, environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match="not valid TOML"):
        load({}, environ, file)


def test_a_file_that_was_asked_for_must_be_there(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load({}, environ, tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load({}, environ, tmp_path)


def test_paths_start_at_the_file_that_holds_them_or_at_home(environ: dict[str, str], tmp_path: Path) -> None:
    file = write(tmp_path / "etc" / "c.toml", 'model = "m.gguf"\ndata_dir = "/var/x"\nrecord = "~/r.log"\n')
    config = load({"socket": "s.sock"}, environ, file).config
    assert config.model == tmp_path / "etc" / "m.gguf"
    assert config.data_dir == Path("/var/x")
    assert config.record == Path("~/r.log").expanduser()
    assert config.socket == Path.cwd() / "s.sock"


def test_places_follow_the_xdg_variables_unless_they_are_relative(environ: dict[str, str], tmp_path: Path) -> None:
    config = load({}, environ | {"XDG_RUNTIME_DIR": "/run/user/7", "XDG_DATA_HOME": "/d"}).config
    assert (config.socket, config.data_dir) == (Path("/run/user/7/llmaas/llmaas.sock"), Path("/d/llmaas"))
    config = load({}, environ | {"XDG_RUNTIME_DIR": "run", "XDG_DATA_HOME": "d"}).config
    assert config.socket == load({}, environ).config.socket
    assert config.data_dir == tmp_path / ".local" / "share" / "llmaas"


def test_without_a_home_directory_the_places_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(ConfigError, match="no home directory") as caught:
        load({}, {})
    assert "HOME" in caught.value.hint and "LLMAAS_DATA_DIR" in caught.value.hint
    assert load({}, {"LLMAAS_DATA_DIR": "/d"}).config.data_dir == Path("/d")
    assert load({}, {"XDG_DATA_HOME": "/d"}).config.data_dir == Path("/d/llmaas")


def test_apps_are_named_in_a_list(environ: dict[str, str], tmp_path: Path) -> None:
    assert load({"urgent_apps": "phone, 1000/mail"}, environ).config.urgent_apps == ("phone", "1000/mail")
    file = write(tmp_path / "c.toml", 'urgent_apps = ["phone"]\n')
    assert load({}, environ, file).config.urgent_apps == ("phone",)
    assert load({"urgent_apps": ""}, environ, file).config.urgent_apps == ()
    for bad in ("a/b", "1000/", "/a", "x" * 65):
        with pytest.raises(ConfigError, match="urgent_apps"):
            load({"urgent_apps": bad}, environ)


def test_adapters_are_named_in_a_list_or_in_a_table(environ: dict[str, str], tmp_path: Path) -> None:
    here = Path.cwd()
    given = load({"adapters": "mail=m.gguf, sms=/s=1.gguf"}, environ).config.adapters
    assert given == (("mail", here / "m.gguf"), ("sms", Path("/s=1.gguf")))
    file = write(tmp_path / "etc" / "c.toml", '[adapters]\nmail = "m.gguf"\n')
    assert load({}, environ, file).config.adapters == (("mail", tmp_path / "etc" / "m.gguf"),)
    assert load({"adapters": ""}, environ, file).config.adapters == ()
    for bad in ("a=1,a=2", "a/b=1", "=1", "a="):
        with pytest.raises(ConfigError, match="setting adapters"):
            load({"adapters": bad}, environ)


def test_settings_that_do_not_fit_together_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"max_running \(flag --max-running\) is 9; .* sequences .* which is 8"):
        load({"max_running": "9", "sequences": "8"}, environ)
    with pytest.raises(ConfigError, match="prefill_slice"):
        load({"cells": "256", "prefill_slice": "512"}, environ)


def test_strange_variables_are_told_with_the_meant_one() -> None:
    environ = {"LLMAAS_SOKET": "x", "LLMAAS_DEBUG": "1", "LLMAAS_CONFIG": "", "LLMAAS_CELLS": "1", "HOME": "/"}
    assert unknown_variables(environ) == [("LLMAAS_SOKET", "LLMAAS_SOCKET")]


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("64M", 64 << 20),
        ("64MiB", 64 << 20),
        ("64mb", 64 << 20),
        ("1.5G", 3 << 29),
        ("2097152", 2 << 20),
        (" 2 m", 2 << 20),
    ],
)
def test_sizes_are_read_in_powers_of_1024(text: str, n: int) -> None:
    assert size(1 << 20).read(text, Path()) == n


@pytest.mark.parametrize("text", ["", "M", "-5M", "5X", "1M2", "0.5M", "1e9", "nan", "9999999T", "٣M"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        size(1 << 20).read(text, Path())


@given(st.integers(1, 1 << 50))
def test_a_size_that_is_shown_reads_back_the_same(n: int) -> None:
    assert size(1).read(show_bytes(n), Path()) == n


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.integers())))
def test_every_kind_reads_a_value_or_raises_value_error(raw: object) -> None:
    for row in SETTINGS.values():
        try:
            value = row.kind.read(raw, Path("/base"))
        except ValueError:
            continue
        assert isinstance(value, (int, float, str, Path, tuple)) or (
            value is None and str(raw).strip().lower() == "none"
        )


def test_true_is_not_a_number() -> None:
    with pytest.raises(ValueError):
        whole(0, 5).read(True, Path())


def test_the_docs_list_has_every_setting_as_it_is() -> None:
    items = [" ".join(item.split()) for item in re.split(r"^\* ", DOCS.read_text("utf-8"), flags=re.MULTILINE)]
    rows = {item.split("`")[1]: item for item in items if item.startswith("**`")}
    for name, row in SETTINGS.items():
        told = f"**`{name}`**: {row.help}. Allowed: {row.kind.allowed}. Default: {row.default_text}."
        assert rows.get(name, "").startswith(told), rows.get(name)


def test_a_config_is_frozen_and_complete() -> None:
    assert [field.name for field in dataclasses.fields(Config)] == list(SETTINGS)
    with pytest.raises(TypeError):
        Config()  # type: ignore[call-arg]


def test_cpus_are_a_list_of_ranges_and_threads_follow_it(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmaas.config.settings.allowed_cpus", lambda: tuple(range(8)))
    config = load({"cpus": "6,0-2, 1"}, environ).config
    assert (config.cpus, config.threads) == ((0, 1, 2, 6), 4)
    assert show_cpus((0, 1, 2, 6)) == "0-2,6"
    assert load({"cpus": "0-3", "threads": "2"}, environ).config.threads == 2


def test_cpus_that_are_not_there_are_named_with_those_that_are(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmaas.config.settings.allowed_cpus", lambda: (0, 1, 4))
    with pytest.raises(ConfigError, match=r"cpus \(flag --cpus\) .* cannot use: 2-3,9") as caught:
        load({"cpus": "0-4,9"}, environ)
    assert "0-1,4" in caught.value.hint


@given(st.sets(st.integers(0, 9999), min_size=1, max_size=40))
def test_a_list_of_cpus_that_is_shown_reads_back_the_same(cpus: set[int]) -> None:
    found = tuple(sorted(cpus))
    assert cpu_list().read(show_cpus(found), Path()) == found
