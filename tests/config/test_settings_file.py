"""Settings are written into a file that people write: nothing else in it changes, and it is never half written."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llmaas.config.settings_file import edited, save
from llmaas.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OWN = """\
# my settings
model = "m.gguf"    # the small one
  pool_bytes   =  "64M"  # RAM is short
rate = 5

[adapters]
# kept
rate = "rate.gguf"
"""


def test_a_value_is_changed_in_its_place_and_all_else_stays() -> None:
    assert edited(OWN, {"pool_bytes": "1G"}) == OWN.replace('"64M"', '"1G"')
    assert edited(OWN, {"rate": "none"}) == OWN.replace("rate = 5", 'rate = "none"')


def test_a_new_value_goes_before_the_tables() -> None:
    new = edited(OWN, {"disk_bytes": "2G"})
    assert new == OWN.replace("rate = 5\n", 'rate = 5\ndisk_bytes = "2G"\n')
    assert edited("[adapters]\n", {"rate": 2.5}) == "rate = 2.5\n[adapters]\n"


@pytest.mark.parametrize("text", ["", "# nothing\n", "cells = 4096", "'rate' = 3 # odd\n", '"rate"=3'])
def test_what_was_asked_for_is_what_the_file_says(text: str) -> None:
    new = edited(text, {"rate": 12345.5, "pool_bytes": "64M"})
    assert tomllib.loads(new) == {**tomllib.loads(text), "rate": 12345.5, "pool_bytes": "64M"}


@pytest.mark.parametrize(
    "text",
    ['rate = """\n5"""\n', 'model = """\nrate = 1\n"""\nrate = 5\n', "rate = [\n1]\n", "no toml", "rate = 1\nrate = 2"],
)
def test_what_cannot_be_edited_surely_is_refused_and_stays(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="cannot save") as caught:
        save(file, {"rate": 7.0})
    assert "rate = 7" in caught.value.hint
    assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_keeps_its_mode_a_link_stays_one_and_a_folder_is_made(tmp_path: Path) -> None:
    real, link = tmp_path / "real.toml", tmp_path / "new" / "link.toml"
    link.parent.mkdir()
    real.write_text("cells = 300\n")
    real.chmod(0o640)
    link.symlink_to(real)
    save(link, {"rate": 1.0})
    assert link.is_symlink() and real.read_text() == "cells = 300\nrate = 1\n"
    assert real.stat().st_mode & 0o777 == 0o640
    save(tmp_path / "a" / "b" / "c.toml", {"rate": 1.0})
    assert (tmp_path / "a" / "b" / "c.toml").stat().st_mode & 0o077 == 0


def test_a_disk_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.toml"
    file.write_text("rate = 1\n")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        save(file, {"rate": 2.0})
    assert file.read_text() == "rate = 1\n" and list(tmp_path.iterdir()) == [file]
