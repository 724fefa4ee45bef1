"""The items of a response, and the events that tell of them while they grow.

Law: pure. Events come in the order that OpenAI's API documents: an item is added, its parts grow, it is done.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

from llmaas.http.deltas import CallBegin, Delta, TextDelta
from llmaas.http.responses_types import OutputCall, OutputMessage, OutputText

Event = dict[str, Any]


class ResponseItems:
    """What an answer has become so far."""

    def __init__(self) -> None:
        self.output: list[OutputMessage | OutputCall] = []

    def feed(self, deltas: Iterable[Delta]) -> list[Event]:
        """The events of what comes next."""
        events: list[Event] = []
        for delta in deltas:
            if isinstance(delta, TextDelta):
                events += self._text(delta.text)
            elif isinstance(delta, CallBegin):
                events += self._finish()
                call = OutputCall(f"fc_{secrets.token_hex(12)}", delta.id, delta.name)
                events += self._add(call)
            else:
                last = self.output[-1]
                assert isinstance(last, OutputCall)
                last.arguments += delta.text
                events.append(self._event("response.function_call_arguments.delta", delta=delta.text))
        return events

    def end(self, *, complete: bool) -> list[Event]:
        """The events of the end. An answer without any text or call has one empty message."""
        events = [] if self.output else self._text("")
        return events + self._finish("completed" if complete else "incomplete")

    def _text(self, text: str) -> list[Event]:
        events: list[Event] = []
        last = self.output[-1] if self.output else None
        if not isinstance(last, OutputMessage):
            events += self._finish()
            last = OutputMessage(f"msg_{secrets.token_hex(12)}", [])
            events += self._add(last)
            last.content.append(OutputText(""))
            events.append(self._event("response.content_part.added", content_index=0, part=OutputText("")))
        if text:
            last.content[0].text += text
            more = {"content_index": 0, "delta": text, "logprobs": []}
            events.append(self._event("response.output_text.delta", **more))
        return events

    def _add(self, item: OutputMessage | OutputCall) -> list[Event]:
        self.output.append(item)
        empty: OutputMessage | OutputCall = OutputMessage(item.id, [])
        if isinstance(item, OutputCall):
            empty = OutputCall(item.id, item.call_id, item.name)
        return [{"type": "response.output_item.added", "output_index": len(self.output) - 1, "item": empty}]

    def _finish(self, status: str = "completed") -> list[Event]:
        """The last item is done."""
        if not self.output or self.output[-1].status != "in_progress":
            return []
        item = self.output[-1]
        item.status = status
        if isinstance(item, OutputMessage):
            text = item.content[0].text
            events = [
                self._event("response.output_text.done", content_index=0, text=text, logprobs=[]),
                self._event("response.content_part.done", content_index=0, part=item.content[0]),
            ]
        else:
            done = "response.function_call_arguments.done"
            events = [self._event(done, arguments=item.arguments, name=item.name)]
        return [*events, {"type": "response.output_item.done", "output_index": len(self.output) - 1, "item": item}]

    def _event(self, type: str, **fields: Any) -> Event:
        return {"type": type, "item_id": self.output[-1].id, "output_index": len(self.output) - 1, **fields}
