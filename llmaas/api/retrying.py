"""What the clients do when the connection is lost: which requests they make again, how long they wait, and how an
answer that is told again is joined to what was told of it.

Law: sans-I/O. Only requests that may be carried out twice without harm are made again: those that change nothing that
an app has made, and calls with an idempotency key. What the daemon refused because it was busy was not carried out.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace

from llmaas.api import messages as msg
from llmaas.api.adapter_messages import ListAdapters
from llmaas.api.app_messages import ListApps
from llmaas.api.embed_message import Embed
from llmaas.api.mark_messages import ListMarks, MarksOf
from llmaas.calls import Piece
from llmaas.clock import Clock, RealClock
from llmaas.errors import Busy, LlmaasError, ModelEnded, NotServing, ShuttingDown

LOST = (NotServing, ShuttingDown, ModelEnded)
"""What a request fails with if its connection, its daemon or the process of its model is gone."""
NOT_YET = (NotServing, ShuttingDown, Busy)
"""What connecting fails with while there is no daemon, or no place."""
MOST_TRIES = 8
"""How often one request is made again: it may be what ends the daemon."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0


class Retries:
    """``seconds``: how long to try after each loss; 0: not at all."""

    def __init__(self, seconds: float, clock: Clock | None = None) -> None:
        self.seconds = seconds
        self._clock = clock or RealClock()

    def prepared(self, request: msg.Request) -> msg.Request:
        """The request, so that it can be made again: a call without an idempotency key gets one."""
        if not self.seconds or not isinstance(request, msg.Append | msg.Generate) or request.idempotency_key:
            return request
        if isinstance(request, msg.Generate) and request.logprobs is not None:
            return request  # log probabilities are not stored with a turn
        return replace(request, idempotency_key=os.urandom(16).hex())

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each try to connect, until the time is up."""
        late, pause = self._clock.now() + self.seconds, 0.0
        while self.seconds and self._clock.now() + pause <= late:
            yield pause
            pause = min(max(2 * pause, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)

    def waits(self) -> Iterator[float]:
        """Seconds to wait before each try of a request that was refused, until the time is up. They are drawn, so that
        clients that were refused together do not come together again."""
        late, most = self._clock.now() + self.seconds, FIRST_WAIT_S
        while (left := late - self._clock.now()) > 0:
            yield min(left, most * random.uniform(0.5, 1.0))
            most = min(2 * most, _LONGEST_WAIT_S)


def repeatable(request: msg.Request | None) -> bool:
    """Whether a request may be made again if nobody knows whether it was carried out."""
    match request:
        case msg.Append() | msg.Generate():
            return request.idempotency_key is not None
        case msg.ListContexts() | msg.Show() | msg.Hint() | msg.Stats() | msg.Ping():
            return True
        case ListAdapters() | ListApps() | Embed() | ListMarks() | MarksOf():
            return True
        case msg.Create():  # with exist_ok the one that was made before is found
            return request.exist_ok
        case msg.Resolve():  # another anonymous context at most, which goes when room is needed
            return True
        case _:
            return False


class Retelling:
    """Compares an answer that is told again with what was told of it, and lets pass what follows that."""

    def __init__(self, text: str, tokens: list[int]) -> None:
        self._text, self._tokens = text, tokens
        self._at_text = self._at_token = 0
        self.differs = False
        """Whether another answer is told than had begun."""

    def rest(self, piece: Piece) -> Piece | None:
        """What of the piece is new; None if nothing is, or if the answer differs from what was told."""
        if not piece.of_answer:
            return piece
        text, tokens = self._text[self._at_text :], self._tokens[self._at_token :]
        n_text, n_tokens = min(len(text), len(piece.text)), min(len(tokens), len(piece.tokens))
        self._at_text, self._at_token = self._at_text + n_text, self._at_token + n_tokens
        if text[:n_text] != piece.text[:n_text] or tuple(tokens[:n_tokens]) != piece.tokens[:n_tokens]:
            self.differs = True
        new = replace(piece, text=piece.text[n_text:], tokens=piece.tokens[n_tokens:])
        return None if self.differs or not (new.text or new.tokens) else new

    def end(self) -> LlmaasError | None:
        """The answer has ended: why it does not go on from what was told; None if it does."""
        self.differs |= self._at_text < len(self._text) or self._at_token < len(self._tokens)
        if not self.differs:
            return None
        return NotServing(
            "the connection was lost, and the answer that was made anew is not the one that had begun",
            hint="It is stored: 'show' the context, or ask again with the idempotency_key.",
        )
