"""Memory that was lent: whom it is given to, what is left in it, and folders that are none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmaas.errors import Busy, ConfigError, MachineError
from llmaas.slots.grants import GrantedSlot, SlotGrants, SlotSettings
from llmaas.slots.layout import HEADER, STATE
from llmaas.slots.lent import LentMemories
from llmaas.slots.memory import SlotMemory, use_slot
from tests.support.far_slots import lent


def folder_of(root: Path, names: list[str], nbytes: int = 16 << 10) -> Path:
    for name in names:
        (root / name).write_bytes(bytes(nbytes))
    return root


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.booleans()), max_size=60))
def test_no_memory_is_ever_given_to_two_apps_or_twice_at_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int, bool]]
) -> None:
    memories = LentMemories(folder_of(tmp_path_factory.mktemp("lent"), [str(i) for i in range(6)]))
    whose: dict[int, tuple[int, int]] = {}
    out: list[int] = []
    for app, user, back in steps:
        if back and out:
            memories.give_back(out.pop(app % len(out)))
            continue
        found = memories.take(f"{user}/{app}", user)
        if found is None:
            of_user = [number for number, (other, _) in whose.items() if other == user]
            mine = [number for number, owner in whose.items() if owner == (user, app)]
            assert set(mine) <= set(out) and (len(of_user) == memories.of_user or len(whose) == 6)
            continue
        assert found not in out and whose.setdefault(found, (user, app)) == (user, app)
        out.append(found)


@pytest.mark.parametrize("names", [[], ["1"], ["0", "2"], ["00"], ["x"]], ids=str)
def test_a_folder_without_memories_is_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ConfigError, match="must hold files 0, 1, 2") as error:
        SlotGrants(SlotSettings(folder=folder_of(tmp_path, names)))
    assert "llmaas vm run --slots" in error.value.hint


def granted(grants: SlotGrants, app: str) -> GrantedSlot:
    return grants.grant(app, int(app.partition("/")[0]))


def test_what_was_one_apps_is_never_anothers_and_the_error_says_so(tmp_path: Path) -> None:
    grants = SlotGrants(SlotSettings(folder=folder_of(tmp_path, ["0", "1", "2", "3"])))
    mail = granted(grants, "1/mail")
    mail.end.leave()
    grants.release(mail)
    other, again = granted(grants, "1/other"), granted(grants, "1/mail")
    assert (mail.device, other.device, again.device, again.generation) == (0, 1, 0, 3)
    with pytest.raises(Busy, match="another app's") as error:  # a user has half of them
        granted(grants, "1/third")
    assert "Use the socket" in error.value.hint
    assert granted(grants, "2/third").device == 2
    assert grants.in_use == 3


def test_a_slot_in_it_is_wiped_before_and_after_and_as_large_as_fits(tmp_path: Path) -> None:
    with lent(1, 1 << 16) as (fds, folder):
        os.pwrite(fds[0], b"what was said before" * 3000, 0)
        layout, memory = use_slot(folder / "0", 7, 1000)
        assert layout.ring_bytes == 1 << 14 and memory.nbytes == HEADER + (2 << 14)
        words = memory.load(0, layout.nbytes)
        assert words[STATE : STATE + 4] == (1).to_bytes(4, sys.byteorder)
        assert not words[28:STATE].strip(b"\0") and not words[STATE + 4 :].strip(b"\0")
        memory.close()


@pytest.mark.parametrize(("nbytes", "words"), [(None, "cannot be opened"), (12287, "too small")])
def test_memory_that_cannot_be_used_is_told_and_not_counted(tmp_path: Path, nbytes: int | None, words: str) -> None:
    grants = SlotGrants(SlotSettings(folder=folder_of(tmp_path, ["0"], 16 << 10)))
    if nbytes is None:
        (tmp_path / "0").unlink()
    else:
        os.truncate(tmp_path / "0", nbytes)
    for _ in range(3):
        with pytest.raises(MachineError, match=words):
            granted(grants, "1/mail")
    assert grants.in_use == 0
    folder_of(tmp_path, ["0"])
    assert granted(grants, "1/mail").device == 0


def test_who_keeps_it_mapped_reads_zeros_afterwards(tmp_path: Path) -> None:
    with lent(1, 1 << 16) as (fds, folder):
        grants = SlotGrants(SlotSettings(folder=folder))
        slot = granted(grants, "1/mail")
        kept = SlotMemory(fds[0], slot.layout.nbytes)
        slot.end.write(b"an answer")
        assert b"an answer" in kept.load(0, kept.nbytes)
        slot.end.leave()
        assert not kept.load(0, kept.nbytes).strip(b"\0")
        kept.close()
