"""The long run of slots, shortly; and that it notices what must not be."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from llmaas.api.client import Client
from llmaas.slots.grants import SlotSettings
from tests.stress import slots
from tests.stress.slots import FAR, PARTS, Flaw, Programs, run

SHORT = {"trips": 2_000, "kills": 100, "rings": 5_000, "client": 2_000, "service": 1_000}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where there is no compiler, or none with an address sanitizer."""
    source = tmp_path_factory.mktemp("c") / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    command = ["cc", *slots.SANITIZED, str(source), "-o", str(source.with_suffix(""))]
    if shutil.which("cc") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("there is no C compiler with an address sanitizer")


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("part", "far"), [*((part, False) for part in PARTS), *((part, True) for part in FAR)])
def test_each_part_finds_no_flaw(part: str, far: bool) -> None:
    (found,) = run({part: SHORT[part]}, random.randrange(10**6), far)
    assert found["part"] == part
    done = found.get("states") or found.get("killed") or found["round_trips"]
    assert abs(done - SHORT[part]) < 64, found


def test_programs_that_fail_and_slots_that_stay_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Flaw, match="ended with 1"):
        slots.program("false")
    with pytest.raises(Flaw, match="cannot be built"):
        _ = Programs(tmp_path)["no_such_program"]
    with (
        slots.serving(SlotSettings(2, 16 << 10)) as edge,
        Client(edge.path, app="mail", transport="slots"),
        monkeypatch.context() as patch,
        pytest.raises(Flaw, match="1 slots are stuck"),
    ):
        patch.setattr(slots, "STUCK_S", 0.0)
        edge.wait_until_free()
