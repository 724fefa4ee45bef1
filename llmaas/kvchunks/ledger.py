"""The ledger: which copies of every chunk exist, what needs them, and how many bytes they take.

Law: policies propose, the ledger disposes. A copy, in the POOL or on DISK, moves only along ``TRANSITIONS``; anything
else raises PolicyBug and changes nothing. BEGIN reserves the copy's bytes, ARRIVE or FAIL ends the move::

              BEGIN            ARRIVE
    ABSENT ─────────▶ ARRIVING ─────────▶ PRESENT
      ▲                  │                   │
      └─────── FAIL ─────┴─────── DROP ──────┘

CELLS are not kept here: what is in cells belongs to a sequence, so the planner's contexts know it.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmaas.errors import PolicyBug
from llmaas.records import AppId, ChunkKey, Tier

NO_APP = AppId("")


class Copy(enum.Enum):
    """State of one copy of a chunk, in the POOL or on DISK."""

    ABSENT = "absent"
    ARRIVING = "arriving"
    PRESENT = "present"
    __hash__ = object.__hash__  # each member exists once; enum's own is Python code, a third of what a move costs


class Move(enum.Enum):
    """Ways from one state to the next."""

    BEGIN = "begin"
    ARRIVE = "arrive"
    FAIL = "fail"
    DROP = "drop"
    __hash__ = object.__hash__


TRANSITIONS: dict[tuple[Copy, Move], Copy] = {
    (Copy.ABSENT, Move.BEGIN): Copy.ARRIVING,
    (Copy.ARRIVING, Move.ARRIVE): Copy.PRESENT,
    (Copy.ARRIVING, Move.FAIL): Copy.ABSENT,
    (Copy.PRESENT, Move.DROP): Copy.ABSENT,
}


@dataclass(slots=True, eq=False)
class Chunk:
    """One chunk's line in the ledger. Read freely; only the ledger writes."""

    key: ChunkKey
    app: AppId = NO_APP
    """Whose contexts contain it. Apps share no chunks: their keys differ."""
    refs: int = 0
    """Contexts that contain it. At 0 it is garbage."""
    cold: int = 0
    """Of these, contexts that no longer keep it on DISK."""
    pins: int = 0
    """Running loads, saves and writes that use it."""
    pool: Copy = Copy.ABSENT
    pool_bytes: int = 0
    disk: Copy = Copy.ABSENT
    disk_bytes: int = 0

    @property
    def to_read(self) -> bool:
        """Whether only DISK has it, and nothing brings it to the POOL yet."""
        return self.disk is Copy.PRESENT and self.pool is Copy.ABSENT

    @property
    def tier(self) -> Tier:
        """The best tier that has a whole copy, CELLS aside."""
        if self.pool is Copy.PRESENT:
            return Tier.POOL
        return Tier.DISK if self.disk is Copy.PRESENT else Tier.NONE

    @property
    def moving(self) -> bool:
        """A copy is on its way."""
        return self.pool is Copy.ARRIVING or self.disk is Copy.ARRIVING


class Ledger:
    """All chunks of all contexts, and the bytes of each tier.

    >>> ledger, key = Ledger(pool_budget=100), ChunkKey(bytes(16))
    >>> ledger.ref(key)
    >>> ledger.begin_pool(key, 60)
    >>> ledger.tier(key), ledger.pool_used
    (<Tier.NONE: 3>, 60)
    >>> ledger.arrive_pool(key, 50)
    >>> ledger.tier(key), ledger.pool_used
    (<Tier.POOL: 1>, 50)
    """

    def __init__(self, pool_budget: int) -> None:
        self.pool_budget = pool_budget
        self.pool_used = 0
        """Bytes in the POOL, reserved ones included."""
        self.disk_used = 0
        """Bytes on DISK, reserved ones included."""
        self._disk_of = Counter[AppId]()
        self._chunks: dict[ChunkKey, Chunk] = {}

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, key: object) -> bool:
        return key in self._chunks

    def chunk(self, key: ChunkKey) -> Chunk:
        """The chunk's line. Raises PolicyBug if no context contains it."""
        try:
            return self._chunks[key]
        except KeyError:
            raise PolicyBug(f"chunk {key.hex()} is not in the ledger") from None

    def tier(self, key: ChunkKey) -> Tier:
        return self.chunk(key).tier

    def disk_used_of(self, app: AppId) -> int:
        """Bytes on DISK of an app's chunks, reserved ones included."""
        return self._disk_of[app]

    # -- what needs it

    def ref(self, key: ChunkKey, app: AppId = NO_APP) -> None:
        """One more context contains the chunk, of this app."""
        chunk = self._chunks.get(key)
        if chunk is None:
            chunk = self._chunks[key] = Chunk(key, app)
        chunk.refs += 1

    def unref(self, key: ChunkKey) -> None:
        """One context less contains the chunk; that context must be warm."""
        chunk = self.chunk(key)
        if chunk.refs == chunk.cold:
            raise PolicyBug(f"chunk {key.hex()} has no warm reference to remove")
        chunk.refs -= 1

    def cool(self, key: ChunkKey) -> None:
        """A context that contains the chunk no longer keeps it on DISK."""
        chunk = self.chunk(key)
        if chunk.refs == chunk.cold:
            raise PolicyBug(f"chunk {key.hex()} is cold in all its contexts")
        chunk.cold += 1

    def warm(self, key: ChunkKey) -> None:
        """One of these contexts is in use again."""
        chunk = self.chunk(key)
        if chunk.cold == 0:
            raise PolicyBug(f"chunk {key.hex()} is cold in no context")
        chunk.cold -= 1

    def pin(self, key: ChunkKey) -> Chunk:
        """Keep the chunk's copies until ``unpin``."""
        chunk = self.chunk(key)
        chunk.pins += 1
        return chunk

    def unpin(self, key: ChunkKey) -> None:
        chunk = self.chunk(key)
        if chunk.pins == 0:
            raise PolicyBug(f"chunk {key.hex()} is not pinned")
        chunk.pins -= 1

    # -- moves

    def begin_pool(self, key: ChunkKey, nbytes: int) -> None:
        """Reserve ``nbytes`` of the POOL for a copy that is on its way."""
        chunk = self.chunk(key)
        if self.pool_used + nbytes > self.pool_budget:
            raise PolicyBug(f"no room for {nbytes} bytes: {self.pool_used} of {self.pool_budget} are used")
        chunk.pool = self._next(chunk, chunk.pool, Move.BEGIN)
        chunk.pool_bytes = nbytes
        self.pool_used += nbytes

    def arrive_pool(self, key: ChunkKey, nbytes: int) -> None:
        """The copy is whole; ``nbytes`` is its true size, at most what was reserved."""
        chunk = self.chunk(key)
        if nbytes > chunk.pool_bytes:
            raise PolicyBug(f"chunk {key.hex()} takes {nbytes} bytes, {chunk.pool_bytes} were reserved")
        chunk.pool = self._next(chunk, chunk.pool, Move.ARRIVE)
        self.pool_used += nbytes - chunk.pool_bytes
        chunk.pool_bytes = nbytes

    def shrink_pool(self, key: ChunkKey, nbytes: int) -> None:
        """The copy was coded again, smaller. What is on DISK is another form then, so it must have been dropped."""
        chunk = self.chunk(key)
        if chunk.pool is not Copy.PRESENT or chunk.disk is not Copy.ABSENT or nbytes > chunk.pool_bytes:
            raise PolicyBug(f"chunk {key.hex()} cannot shrink from {chunk.pool_bytes} to {nbytes} bytes")
        self.pool_used += nbytes - chunk.pool_bytes
        chunk.pool_bytes = nbytes

    def fail_pool(self, key: ChunkKey) -> None:
        self._clear_pool(key, Move.FAIL)

    def drop_pool(self, key: ChunkKey) -> None:
        """Remove the POOL copy. A pinned one raises."""
        chunk = self.chunk(key)
        if chunk.pins:
            raise PolicyBug(f"chunk {key.hex()} is pinned")
        self._clear_pool(key, Move.DROP)

    def begin_disk(self, key: ChunkKey) -> None:
        """Reserve on DISK what the POOL copy takes."""
        chunk = self.chunk(key)
        if chunk.pool is not Copy.PRESENT:
            raise PolicyBug(f"chunk {key.hex()} has no POOL copy to write")
        chunk.disk = self._next(chunk, chunk.disk, Move.BEGIN)
        self._set_disk(chunk, chunk.pool_bytes)

    def arrive_disk(self, key: ChunkKey, nbytes: int) -> None:
        chunk = self.chunk(key)
        chunk.disk = self._next(chunk, chunk.disk, Move.ARRIVE)
        self._set_disk(chunk, nbytes)

    def fail_disk(self, key: ChunkKey) -> None:
        chunk = self.chunk(key)
        chunk.disk = self._next(chunk, chunk.disk, Move.FAIL)
        self._set_disk(chunk, 0)

    def found_on_disk(self, key: ChunkKey, nbytes: int) -> None:
        """At start: the store holds the chunk."""
        chunk = self.chunk(key)
        chunk.disk = self._next(chunk, chunk.disk, Move.BEGIN)
        self.arrive_disk(key, nbytes)

    def drop_disk(self, key: ChunkKey) -> None:
        chunk = self.chunk(key)
        chunk.disk = self._next(chunk, chunk.disk, Move.DROP)
        self._set_disk(chunk, 0)

    # -- room and garbage

    def room(self, nbytes: int) -> int:
        """Bytes that must leave the POOL before ``nbytes`` more fit; 0 or less if they fit now."""
        return self.pool_used + nbytes - self.pool_budget

    def sweep(self, key: ChunkKey) -> tuple[bool, bool]:
        """Remove the chunk if no context contains it and nothing uses or moves it.

        Returns whether it had a POOL copy, and whether it had a DISK copy; (False, False) if it stays.
        """
        chunk = self._chunks.get(key)
        if chunk is None or chunk.refs or chunk.pins or chunk.moving:
            return False, False
        had = chunk.pool is Copy.PRESENT, chunk.disk is Copy.PRESENT
        if had[0]:
            self.drop_pool(key)
        if had[1]:
            self.drop_disk(key)
        del self._chunks[key]
        return had

    def evict(self, victims: Iterable[ChunkKey], gain: Callable[[ChunkKey], int]) -> None:
        """Carry out an eviction plan whole, or raise PolicyBug and change nothing."""
        plan = list(victims)
        if len(set(plan)) != len(plan):
            raise PolicyBug("an eviction plan names a chunk twice")
        for key in plan:
            chunk = self.chunk(key)
            if chunk.pins or chunk.pool is not Copy.PRESENT or not gain(key):
                raise PolicyBug(f"an eviction plan names chunk {key.hex()}, which may not be evicted")
        for key in plan:
            self.drop_pool(key)

    def check(self) -> list[str]:
        """Problems found; empty when the books balance."""
        problems = []
        pool = sum(c.pool_bytes for c in self._chunks.values())
        disk = sum(c.disk_bytes for c in self._chunks.values())
        if pool != self.pool_used:
            problems.append(f"POOL bytes: {self.pool_used} on the books, {pool} in the chunks")
        if disk != self.disk_used:
            problems.append(f"DISK bytes: {self.disk_used} on the books, {disk} in the chunks")
        of_apps = Counter[AppId]()
        for c in self._chunks.values():
            of_apps[c.app] += c.disk_bytes
        if +of_apps != self._disk_of:
            problems.append("DISK bytes: those of some app are wrong on the books")
        for c in self._chunks.values():
            if c.pool is Copy.ABSENT and c.pool_bytes:
                problems.append(f"chunk {c.key.hex()} has no POOL copy but {c.pool_bytes} bytes")
            if not 0 <= c.cold <= c.refs:
                problems.append(f"chunk {c.key.hex()} is cold in {c.cold} of {c.refs} contexts")
            if not c.refs and not c.pins and not c.moving:
                problems.append(f"chunk {c.key.hex()} is garbage")
        return problems

    def _clear_pool(self, key: ChunkKey, move: Move) -> None:
        chunk = self.chunk(key)
        chunk.pool = self._next(chunk, chunk.pool, move)
        self.pool_used -= chunk.pool_bytes
        chunk.pool_bytes = 0

    def _set_disk(self, chunk: Chunk, nbytes: int) -> None:
        self.disk_used += nbytes - chunk.disk_bytes
        self._disk_of[chunk.app] += nbytes - chunk.disk_bytes
        if not self._disk_of[chunk.app]:
            del self._disk_of[chunk.app]
        chunk.disk_bytes = nbytes

    @staticmethod
    def _next(chunk: Chunk, state: Copy, move: Move) -> Copy:
        try:
            return TRANSITIONS[state, move]
        except KeyError:
            raise PolicyBug(f"chunk {chunk.key.hex()}: a copy that is {state.value} cannot {move.value}") from None
