"""Constraints by what a request says: made ready once, within a time, and kept for the next request.

Law: the work is done on threads of its own, at most MAX_COMPILING at once; whoever waits for one does so for COMPILE_S
at most. None of these threads keeps the process from ending.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from llmaas.calls import Sampling
from llmaas.engine.constraint.gbnf import read_gbnf
from llmaas.engine.constraint.guidance import Guidance, is_installed
from llmaas.engine.constraint.limits import COMPILE_S, MAX_COMPILING, MAX_KEPT_BYTES, refuse
from llmaas.engine.constraint.machine import GrammarMachine, MachineConstraint
from llmaas.engine.constraint.port import Constraint
from llmaas.engine.constraint.schema_reader import read_schema
from llmaas.engine.constraint.schema_rules import schema_rules
from llmaas.engine.constraint.vocabulary import Vocabulary
from llmaas.errors import Busy, LlmaasError


class _Ready(Protocol):
    """A constraint that is made ready."""

    def begin(self) -> Constraint:
        """The constraint of an answer that begins."""


class Constraints:
    """What answers over one vocabulary may be made to keep to. Safe on any thread, its constraints on one each.

    ``guidance``: follow JSON schemas by llguidance; by default if it is installed.
    """

    def __init__(self, vocabulary: Vocabulary, *, guidance: bool | None = None) -> None:
        self.vocabulary = vocabulary
        use = is_installed() if guidance is None else guidance
        self._guidance = Guidance(vocabulary) if use else None
        self._kept: OrderedDict[tuple[str | None, str | None], _Ready] = OrderedDict()
        self._lock = threading.Lock()
        self._preparing = threading.Lock()
        self._slots = threading.Semaphore(MAX_COMPILING)

    def check(self, sampling: Sampling) -> None:
        """Make ready what ``sampling`` asks for. Raises BadRequest if it cannot be used, Busy if others wait already.

        Takes COMPILE_S at most, twice that if others are before it; the first time also what it takes to read the
        vocabulary, a second or two if that is large. To be called off the event loop.
        """
        if sampling.constrained and self._find(sampling) is None:
            self._prepare()
            self._keep(sampling, self._within_time(lambda: _translated(lambda: self._make(sampling))))

    def begin(self, sampling: Sampling) -> Constraint | None:
        """The constraint of an answer that begins; None if there is none. Raises BadRequest as ``check`` does.

        What ``check`` made ready is at hand, unless very many others came in between: it is then made again, here.
        """
        if not sampling.constrained:
            return None
        ready = self._find(sampling)
        if ready is None:
            self._prepare()
            ready = self._keep(sampling, _translated(lambda: self._make(sampling)))
        return ready.begin()

    def _find(self, sampling: Sampling) -> _Ready | None:
        with self._lock:
            key = sampling.grammar, sampling.json_schema
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, sampling: Sampling, ready: _Ready) -> _Ready:
        with self._lock:
            self._kept[sampling.grammar, sampling.json_schema] = ready
            while len(self._kept) > 1 and sum(map(_size, self._kept)) > MAX_KEPT_BYTES:
                self._kept.popitem(last=False)
        return ready

    def _prepare(self) -> None:
        """Read the vocabulary, once. It is not the fault of whoever comes first how long that takes."""
        with self._preparing:
            self.vocabulary.prepare()
            if self._guidance is not None:
                self._guidance.prepare()

    def _make(self, sampling: Sampling) -> _Ready:
        if sampling.json_schema is None:
            assert sampling.grammar is not None
            return _MachineReady(GrammarMachine(*read_gbnf(sampling.grammar), self.vocabulary))
        schema = read_schema(sampling.json_schema)
        if self._guidance is not None:
            return self._guidance.compile(schema)
        return _MachineReady(GrammarMachine(*schema_rules(schema), self.vocabulary))

    def _within_time(self, make: Callable[[], _Ready]) -> _Ready:
        """What ``make`` makes, on a thread of its own, which is left behind if it takes too long."""
        if not self._slots.acquire(timeout=COMPILE_S):
            raise Busy("other grammars and schemas are being read")
        results: list[_Ready | BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(make())
            except BaseException as error:  # whoever waits raises it
                results.append(error)
            finally:
                self._slots.release()
                done.set()

        threading.Thread(target=run, name="constraint", daemon=True).start()
        if not done.wait(COMPILE_S):
            raise refuse(f"the grammar or json_schema takes more than {COMPILE_S:g} s to read")
        (result,) = results
        if isinstance(result, BaseException):
            raise result
        return result


def _translated(make: Callable[[], _Ready]) -> _Ready:
    """What ``make`` makes; whatever goes wrong is the fault of what it was given, and raises BadRequest."""
    try:
        return make()
    except LlmaasError:
        raise
    except RecursionError:
        raise refuse("the json_schema is nested too deep") from None
    except Exception as error:
        raise refuse(f"the grammar or json_schema cannot be used: {error!r:.300}") from error


class _MachineReady:
    def __init__(self, machine: GrammarMachine) -> None:
        self._machine = machine

    def begin(self) -> MachineConstraint:
        return MachineConstraint(self._machine)


def _size(key: tuple[str | None, str | None]) -> int:
    return 2_000 + sum(len(text) for text in key if text is not None)
