"""A core for each thread of a load: only where there is one for each, and only as long as it lasts."""

from __future__ import annotations

import os

import pytest

from llmaas.kvchunks.tiering.own_core import own_core


class Kernel:
    """What a thread may use, in place of the kernel's affinities."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cores: set[int]) -> None:
        self.cores, self.asked, self.refuses = cores, list[set[int]](), False
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(self.cores), raising=False)
        monkeypatch.setattr(os, "sched_setaffinity", self.set, raising=False)

    def set(self, thread: int, cores: set[int]) -> None:
        assert thread == 0
        if self.refuses:
            raise OSError("as the test wants")
        self.cores = set(cores)
        self.asked.append(self.cores)


@pytest.mark.parametrize(("number", "core"), [(0, 2), (1, 5), (2, 7)])
def test_each_thread_has_a_core_and_may_use_all_afterwards(
    monkeypatch: pytest.MonkeyPatch, number: int, core: int
) -> None:
    kernel = Kernel(monkeypatch, {7, 2, 5})
    with own_core(number, 3):
        assert kernel.cores == {core}
    assert kernel.cores == {2, 5, 7}
    with pytest.raises(ValueError, match="the load's own"), own_core(number, 3):
        raise ValueError("the load's own")
    assert kernel.cores == {2, 5, 7}


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_with_another_number_of_cores_the_kernel_chooses(monkeypatch: pytest.MonkeyPatch, n_threads: int) -> None:
    kernel = Kernel(monkeypatch, {2, 5, 7})
    with own_core(0, n_threads):
        pass
    assert kernel.asked == []


def test_a_system_that_cannot_or_will_not_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, {0, 1})
    kernel.refuses = True
    with own_core(1, 2):
        pass
    monkeypatch.delattr(os, "sched_getaffinity")
    with own_core(1, 2):
        pass
    assert kernel.cores == {0, 1}
