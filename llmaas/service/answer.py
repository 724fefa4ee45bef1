"""The answer of one call: the tokens that were drawn, and the text to stream for them.

Law: ``draw`` runs on the engine's thread and does no more than it must; all text that can wait is made on the event
loop.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence

from llmaas.calls import Generation, Logprobs, Piece
from llmaas.engine.base import Engine
from llmaas.planner.events import Drawn
from llmaas.service.live_context import LiveContext
from llmaas.service.logprobs import logprobs
from llmaas.service.stream import TextStream


class Answer:
    """What a call has generated. ``generation`` None: the call draws nothing.

    The engine's thread writes ``drawn``, the times and the end of the context's tokens, in ``draw``. The event loop
    calls ``piece``. Two deques carry what ``draw`` has found to ``piece``. The text stream is fed by one of the two
    only: by ``draw`` if the call has stop strings, else by ``piece``. When no step of the call runs, the event loop
    may use everything.
    """

    def __init__(self, live: LiveContext, generation: Generation | None) -> None:
        self._live = live
        stop = generation.stop if generation else ()
        self._stops = bool(stop)
        self._n_logprobs = generation.logprobs if generation else None
        self._stream = TextStream(stop)
        self.drawn: list[int] = []
        """The tokens that were drawn; an end-of-generation token is not among them."""
        self._n_resumed = 0
        """Of ``drawn``: the tokens that an earlier call had drawn."""
        self._kept: list[int] | None = None
        self.told = array("i")
        """The tokens that were streamed, but for those that an earlier call had drawn. While steps run in a row these
        are more than ``draw`` has taken. Of the event loop."""
        self.first_token: float | None = None
        """When the answer had its first token, on the service's clock; None: it has none yet. Of an answer that goes
        on from an earlier call this is when that was read, before the call was admitted."""
        self.first_drawn: float | None = None
        """When this call drew its first token."""
        self.last_token: float | None = None
        self._texts: deque[str] = deque()
        """Text of tokens that were looked at for stop strings and are not streamed yet."""
        self._logprobs: deque[Logprobs] = deque()
        """Log probabilities of tokens that are not streamed yet."""

    @property
    def needs_each_token(self) -> bool:
        """Whether each token must be looked at before the next step: for stop strings, or for its logits."""
        return self._stops or self._n_logprobs is not None

    @property
    def n_drawn(self) -> int:
        """How many tokens this call drew itself."""
        return len(self.drawn) - self._n_resumed

    @property
    def text(self) -> str:
        """All text that was streamed so far."""
        return self._stream.text

    @property
    def kept(self) -> list[int]:
        """The tokens of the answer that the context keeps: all that were drawn, unless a stop string came."""
        return self.drawn if self._kept is None else self._kept

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stream.stopped_by

    def resume(self, tokens: Sequence[int], engine: Engine, now: float) -> Piece:
        """Begin with tokens that an earlier call has drawn, and that stand at the context's end; returns the piece that
        tells them. Before the first ``draw``, on any thread. Not with log probabilities."""
        self.drawn, self._n_resumed, self.first_token = list(tokens), len(tokens), now
        return Piece("".join([self._stream.feed(engine.piece(token)) for token in tokens]), tuple(tokens))

    def cut_untold(self, engine: Engine) -> int:
        """If a stop string came, cut it and what was drawn after it off the context: the app was not told of them, and
        goes on from what it was told. Returns how many leading tokens of the context stay as they were.

        A token that holds both goes too, and the part of its text that was told is tokenized by itself. Rejected: to
        keep such a token, since the model would go on from its text; and to tokenize the whole answer anew, since KV
        of its tokens would be lost.
        """
        tokens = self._live.tokens
        if not self._stream.stopped:
            return len(tokens)
        n, rest = self._stream.told()
        unchanged = len(tokens) - len(self.drawn) + n
        del tokens[unchanged:]
        after = tokens[-1] if tokens else None
        more = engine.tokenize(rest, special=False, bos=False, after=after) if rest else []
        self._kept = [*self.drawn[:n], *more]
        tokens.extend(self._kept[n:])
        return unchanged

    def draw(self, token: int, item: int, engine: Engine, now: float) -> Drawn:
        """Take the token that item ``item`` of a step drew; what it means for the answer. On the engine's thread."""
        if not self.drawn:
            self.first_token = now
        if not self.n_drawn:
            self.first_drawn = now
        self.last_token = now
        if engine.is_end(token):
            return Drawn.END
        self._live.tokens.append(token)
        self.drawn.append(token)
        if self._n_logprobs is not None:  # now: the next step overwrites the logits
            self._logprobs.append(logprobs(engine.logits(item), token, self._n_logprobs, engine.piece))
        if not self._stops:
            return Drawn.TOKEN
        self._texts.append(self._stream.feed(engine.piece(token)))
        return Drawn.LAST if self._stream.stopped else Drawn.TOKEN

    def piece(self, tokens: Sequence[int], engine: Engine) -> Piece | None:
        """The piece to stream for tokens that ``draw`` took or will take, in the same order, without one that ends the
        answer; None if there are none."""
        if not tokens:
            return None  # text that is held back comes when the turn is committed
        self.told.extend(tokens)
        if self._stops:
            text = "".join([self._texts.popleft() for _ in tokens])
        else:
            text = self._stream.feed(b"".join([engine.piece(token) for token in tokens]))
        found = tuple(self._logprobs.popleft() for _ in tokens) if self._logprobs else None
        return Piece(text, tuple(tokens), found)

    def has_logprobs(self, found: Sequence[Logprobs]) -> None:
        """Those of tokens that were drawn elsewhere, and are told next."""
        self._logprobs.extend(found)

    def last_piece(self) -> Piece | None:
        """The text that is still held back when the answer has ended: what might have become a stop string, or part of
        a character. None if there is none.
        """
        text = self._stream.end()
        return Piece(text, (), None if self._n_logprobs is None else ()) if text else None

    def tokens_per_second(self) -> float:
        """Of the tokens after the first that this call drew; 0 if there are none."""
        n = self.n_drawn
        spent = 0.0 if self.first_drawn is None or self.last_token is None else self.last_token - self.first_drawn
        return (n - 1) / spent if n > 1 and spent > 0 else 0.0
