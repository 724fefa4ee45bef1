"""Constraints by what a request says: made ready once, within a time, and kept for the next request.

Law: the work is done on threads of its own, at most MAX_COMPILING at once; whoever waits for one does so for COMPILE_S
at most. None of these threads keeps the process from ending.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping

from llmaas.calls import Sampling
from llmaas.engine.constraint.gbnf import read_gbnf
from llmaas.engine.constraint.guidance import Guidance, is_installed
from llmaas.engine.constraint.limits import COMPILE_S, MAX_COMPILING, MAX_HELD_BYTES, MAX_KEPT_BYTES, refuse
from llmaas.engine.constraint.machine import GrammarMachine, MachineConstraint, MachineMemory
from llmaas.engine.constraint.marked import MarkedSchema
from llmaas.engine.constraint.port import Constraint, ReadyConstraint
from llmaas.engine.constraint.rules import Rules
from llmaas.engine.constraint.schema_reader import PlainSchema, read_schema
from llmaas.engine.constraint.schema_rules import schema_rules
from llmaas.engine.constraint.vocabulary import Vocabulary
from llmaas.errors import Busy, LlmaasError

_log = logging.getLogger(__name__)


class Constraints:
    """What answers over one vocabulary may be made to keep to. Safe on any thread, its constraints on one each.

    ``guidance``: follow JSON schemas by llguidance; by default if it is installed.
    """

    def __init__(self, vocabulary: Vocabulary, *, guidance: bool | None = None) -> None:
        self.vocabulary = vocabulary
        use = is_installed() if guidance is None else guidance
        self._guidance = Guidance(vocabulary) if use else None
        self._machines = MachineMemory()
        self._kept: OrderedDict[Sampling, ReadyConstraint] = OrderedDict()
        """Those that were used last, MAX_KEPT_BYTES of them."""
        self._held: weakref.WeakValueDictionary[Sampling, ReadyConstraint] = weakref.WeakValueDictionary()
        """All that are ready: those that are kept, and those that somebody holds."""
        self._lock = threading.Lock()
        self._preparing = threading.Lock()
        self._slots = threading.Semaphore(MAX_COMPILING)

    def check(self, sampling: Sampling) -> ReadyConstraint | None:
        """Make ready what ``sampling`` asks for; None if that is nothing. It stays ready while the result is held.

        Takes COMPILE_S at most, twice that if others are before it; the first time also what it takes to read the
        vocabulary, a second or two if that is large. To be called off the event loop. Raises BadRequest if it cannot be
        used, Busy if others wait already or hold too much memory.
        """
        if not sampling.constrained:
            return None
        ready = self._find(sampling)
        if ready is None:
            self._prepare()
            ready = self._keep(sampling, self._within_time(lambda: _translated(lambda: self._make(sampling))))
        return ready

    def begin(self, sampling: Sampling) -> Constraint | None:
        """The constraint of an answer that begins; None if there is none. Raises BadRequest as ``check`` does.

        What ``check`` made ready is at hand while its result is held; else it is made again, here.
        """
        if not sampling.constrained:
            return None
        ready = self._find(sampling)
        if ready is None:
            self._prepare()
            ready = self._keep(sampling, _translated(lambda: self._make(sampling)))
        return ready.begin()

    def _find(self, sampling: Sampling) -> ReadyConstraint | None:
        key = _key(sampling)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._held.get(key)

    def _keep(self, sampling: Sampling, ready: ReadyConstraint) -> ReadyConstraint:
        key = _key(sampling)
        with self._lock:
            ready = self._held.setdefault(key, ready)  # somebody else may have been faster
            self._kept[key] = ready
            while _n_bytes(self._kept) > MAX_KEPT_BYTES:
                self._kept.popitem(last=False)
            if _n_bytes(self._held) > MAX_HELD_BYTES:
                raise Busy("requests that wait hold too many large grammars and schemas")
        return ready

    def _prepare(self) -> None:
        """Read the vocabulary, once. It is not the fault of whoever comes first how long that takes."""
        with self._preparing:
            self.vocabulary.prepare()
            if self._guidance is not None:
                try:
                    self._guidance.prepare()
                except ImportError as error:  # installed, but not for this system
                    _log.warning("llguidance cannot be loaded: %s; schemas are followed without it", error)
                    self._guidance = None

    def _make(self, sampling: Sampling) -> ReadyConstraint:
        if sampling.json_schema is None:
            assert sampling.grammar is not None
            return self._machine(*read_gbnf(sampling.grammar))
        schema = self._follow(read_schema(sampling.json_schema))
        if not sampling.schema_marks:
            return schema
        begin, end = sampling.schema_marks
        return MarkedSchema(schema, begin, end, self.vocabulary)

    def _follow(self, schema: PlainSchema) -> ReadyConstraint:
        if self._guidance is not None:
            return self._guidance.compile(schema)
        return self._machine(*schema_rules(schema))

    def _machine(self, rules: Rules, root: int) -> ReadyConstraint:
        return _MachineReady(GrammarMachine(rules, root, self.vocabulary, self._machines), rules.n_bytes)

    def _within_time(self, make: Callable[[], ReadyConstraint]) -> ReadyConstraint:
        """What ``make`` makes, on a thread of its own, which is left behind if it takes too long."""
        if not self._slots.acquire(timeout=COMPILE_S):
            raise Busy("other grammars and schemas are being read")
        results: list[ReadyConstraint | BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(make())
            except BaseException as error:  # whoever waits raises it
                results.append(error)
            finally:
                self._slots.release()
                done.set()

        try:
            threading.Thread(target=run, name="constraint", daemon=True).start()
        except BaseException:  # the system has no more threads
            self._slots.release()
            raise
        if not done.wait(COMPILE_S):
            raise refuse(f"the grammar or json_schema takes more than {COMPILE_S:g} s to read")
        (result,) = results
        if isinstance(result, BaseException):
            raise result
        return result


def _translated(make: Callable[[], ReadyConstraint]) -> ReadyConstraint:
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
    def __init__(self, machine: GrammarMachine, n_bytes: int) -> None:
        self._machine, self.n_bytes = machine, n_bytes

    def begin(self) -> MachineConstraint:
        return MachineConstraint(self._machine)


def _key(sampling: Sampling) -> Sampling:
    """Equal for samplings with the same constraint."""
    return Sampling(grammar=sampling.grammar, json_schema=sampling.json_schema, schema_marks=sampling.schema_marks)


def _n_bytes(ready: Mapping[Sampling, ReadyConstraint]) -> int:
    """Those that are ready, and the texts that they are found by."""
    texts = sum(len(text) for key in ready for text in (key.grammar, key.json_schema) if text is not None)
    return texts + sum(one.n_bytes for one in ready.values())
