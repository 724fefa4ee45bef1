"""One run: all calls of the work on one program, one after the other, each by its app's process.

Law: a call is made when the one before has ended and the pause is over, so every program gets the same order of calls
whatever its speed. What a program fails at is a row, and the run goes on.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lib.cli import Options
from bench.lib.machine import cpu_seconds, others_share
from bench.lib.stats import sig
from bench.replaying.apps import AppProcesses, CallFailed
from bench.replaying.cold import ColdFiles
from bench.replaying.journal import Journal
from bench.replaying.meters import MemoryWatch, Reading, difference, reading
from bench.replaying.programs import Program, forget, serving
from bench.replaying.systems import Budget, System
from bench.replaying.work import AGAIN_ANSWER, STREAM, STREAM_ANSWER, Work, WorkCall

Key = tuple[str, str]
MOST_FAILURES = 5
"""In a row, after which a run goes on no longer."""
_AHEAD_S = 0.3
"""The stream has begun when the first of the others is called."""
_SETTLE_S = 1.0
"""After the last call, for a program to write what it wants to write."""
AGAIN = ("restart", "beside")
"""Rows of contexts that are called once more."""


@dataclass
class Run:
    name: str
    """Which run it is: unique among those of a journal."""
    system: System
    work: Work
    budget: Budget
    options: Options
    journal: Journal
    progress: Callable[[int], None]
    """Told the number of calls done."""
    cold: bool = True
    """Before each call, the program's files leave the page cache."""
    disk_rate: float = 0.0
    """Bytes that the service reads in a second at most; 0: as many as the disk has."""
    restarts: int = 0
    """Contexts that are called once more after the program was started again."""
    beside: int = 0
    """Contexts that are called while another app's answer is streamed."""
    at_end: Callable[[Path], None] = lambda folder: None
    """Given the folder of what the program has kept, when it has ended."""
    histories: dict[Key, list[int]] = field(default_factory=lambda: defaultdict(list))
    messages: dict[Key, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))
    texts: dict[Key, str] = field(default_factory=lambda: defaultdict(str))
    occupant: Key | None = None
    """Whose state the only slot has, of a program whose slots clients save."""

    def carry_out(self, head: dict[str, Any]) -> None:
        """All of it. Raises NotInstalled, RuntimeError if the program does not start."""
        forget(self._folder)
        busy = cpu_seconds()
        with serving(self.system, self.options, self.budget, self._folder, self.disk_rate) as program:
            self.put("begin", **head, program=program.about)
            used = self._replay(program)
        if self.restarts:
            self._restart()
        self.at_end(self._folder)
        self.put("end", **used, others_cpu=sig(others_share(busy, cpu_seconds())))
        forget(self._folder)

    @property
    def _folder(self) -> Path:
        return self.options.folder / "state"

    def put(self, row: str, **fields: Any) -> None:
        self.journal.append({"run": self.name, "row": row, **fields})

    def _replay(self, program: Program) -> dict[str, Any]:
        watch, begun = MemoryWatch(program.pid), reading(program.pid)
        began = time.monotonic()
        measured, files = begun, ColdFiles(self._folder)
        names = [call.app for call in self.work.calls]
        with AppProcesses(self.system.kind, program.address, [*names, *([STREAM] if self.beside else [])]) as apps:
            failures = 0
            for call in self.work.calls:
                if call.n_new and measured is begun:
                    measured = reading(program.pid)  # contexts are there: what follows is the replay itself
                time.sleep(call.pause_s)
                if self.cold and call.n_new:
                    files.drop()
                failures = 0 if self._call(apps, call, "call", began) else failures + 1
                self.progress(1)
                if failures >= MOST_FAILURES:
                    self.put("failed", number=call.number, why="too many failures in a row: the run ends here")
                    break
            time.sleep(_SETTLE_S)
            end = self._read_end(program, measured)
            if self.beside and failures < MOST_FAILURES:
                self._beside(apps, began)
        return {
            "seconds": sig(time.monotonic() - began),
            "whole": difference(begun, end),
            "calls": difference(measured, end),
            **watch.close(),
        }

    def _read_end(self, program: Program, measured: Reading) -> Reading:
        try:
            return reading(program.pid)
        except OSError as error:
            self.put("failed", why=f"the program ended: {error}")
            return measured

    def _beside(self, apps: AppProcesses, began: float) -> None:
        """Stream an answer to one app, and call other contexts meanwhile."""
        if not self._call(apps, self.work.stream, "prepare", began):
            return
        apps.begin(STREAM, self._request(self.work.stream, STREAM_ANSWER, begins=False) | {"stream": True})
        time.sleep(_AHEAD_S)
        for call in self.work.called_again(self.beside, self.restarts)[0]:
            if apps.has_ended(STREAM):
                break
            self._call(apps, call, "beside", began)
        try:
            reply = apps.end(STREAM)
            self.put("stream", arrivals_us=reply["arrivals_us"], n_new=STREAM_ANSWER)
        except CallFailed as error:
            self.put("failed", why=f"while others were called: {error}"[:500], context=STREAM)
        self.occupant = None

    def _restart(self) -> None:
        """Start the program again, and call the contexts that were called last, once each."""
        self.occupant = None
        chosen = self.work.called_again(self.beside, self.restarts)[1]
        with (
            serving(self.system, self.options, self.budget, self._folder, self.disk_rate) as program,
            AppProcesses(self.system.kind, program.address, [call.app for call in chosen]) as apps,
        ):
            began, files = time.monotonic(), ColdFiles(self._folder)
            for call in chosen:
                if self.cold:
                    files.drop()
                self._call(apps, call, "restart", began)

    def _request(self, call: WorkCall, n_new: int, *, begins: bool) -> dict[str, Any]:
        key, kind = (call.app, call.context), self.system.kind
        file = _slot_file(key) if self.system.slot_files and kind == "llama_server" else ""
        mark = f"[{call.app} {call.context}]\n" if self.system.distinct and begins else ""
        return {
            "context": call.context,
            "text": mark + call.text,
            "tokens": call.tokens,
            "history": self.histories[key] if kind == "llama_server" else (),
            "history_text": self.texts[key] if kind == "llama_cpp_server" else "",
            "messages": self.messages[key] if kind == "hearth" else (),
            "n_new": n_new,
            "begins": begins,
            "restore": file if self.histories[key] and self.occupant != key else "",
            "save": file,
            "stream": False,
        }

    def _call(self, apps: AppProcesses, call: WorkCall, row: str, began: float) -> bool:
        key = call.app, call.context
        again = row in AGAIN
        begins = call.begins and not again
        n_new = AGAIN_ANSWER if again else call.n_new
        request = self._request(call, n_new, begins=begins)
        about = {"number": call.number, "app": call.app, "context": call.context, "begins": begins}
        about |= {"held": len(self.histories[key]), "n_prompt": len(call.tokens), "n_new": n_new}
        try:
            reply = apps.call(call.app, request)
        except CallFailed as error:
            self.put("failed", why=str(error)[:500], **about)
            self.occupant = None
            return False
        self.occupant = key if request["save"] else None
        text = reply.pop("text")
        self.put(row, at=sig(time.monotonic() - began), switches=call.switches or again, **about, **_shown(reply))
        self.histories[key] += [*call.tokens, *reply["tokens"]]
        self.texts[key] += call.text + text
        said = (("user", call.text), ("assistant", text))
        self.messages[key] += [{"role": role, "content": content} for role, content in said]
        return True


def _slot_file(key: Key) -> str:
    return hashlib.blake2b(repr(key).encode(), digest_size=8).hexdigest() + ".slot"


def _shown(reply: dict[str, Any]) -> dict[str, Any]:
    return {name: sig(value) if isinstance(value, float) else value for name, value in reply.items()}
