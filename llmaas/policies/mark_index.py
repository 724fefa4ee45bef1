"""Which nodes hold which marks of contexts, in few bytes, for a million contexts.

Law: pure. Ten bytes a mark: 8 that are the mark, 2 that number the node. They are kept in buckets by their first bits,
sorted, in two arrays each; a dict of Python integers takes ten times as much (``bench/cluster.py`` measures it). Adding
a mark moves half a bucket, some kilobytes; nothing is ever merged or sorted anew, which would stop decisions meanwhile.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from llmaas.policies.context_marks import MARK_BYTES, MOST_MARKS
from llmaas.records import CHUNK_TOKENS

MOST_NODES = 1 << 16
_BUCKET_BITS = 12


class MarkIndex:
    """
    >>> index = MarkIndex()
    >>> index.add("a", [1, 2, 4, 5]), index.add("b", [1, 2])
    (None, None)
    >>> index.held([1, 2, 3, 4, 5, 6])  # tokens of a context's front, by node
    {'a': 320, 'b': 128}
    """

    def __init__(self) -> None:
        self._buckets: dict[int, tuple[array[int], array[int]]] = {}
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._free: list[int] = []
        self._counts = Counter[int]()

    def __len__(self) -> int:
        """How many marks there are, of all nodes."""
        return sum(len(marks) for marks, _ in self._buckets.values())

    def n_of(self, node: str) -> int:
        """How many marks there are of a node."""
        number = self._numbers.get(node)
        return 0 if number is None else self._counts[number]

    @property
    def nbytes(self) -> int:
        """What the marks take."""
        return sum(a.itemsize * len(a) for arrays in self._buckets.values() for a in arrays)

    def add(self, node: str, marks: Iterable[int]) -> None:
        """The node holds these, too. One that it is known to hold changes nothing. Raises ValueError for what is no
        mark, and for more marks than a node may have; those before it are kept.
        """
        number = self._number(node)
        for mark in marks:
            if not 0 <= mark < 1 << 64:
                raise ValueError(f"node {node}: {mark} is no mark of {MARK_BYTES} bytes")
            bucket, owners = self._buckets.setdefault(mark >> (64 - _BUCKET_BITS), (array("Q"), array("H")))
            at = bisect_left(bucket, mark)
            while at < len(bucket) and bucket[at] == mark and owners[at] < number:
                at += 1
            if at == len(bucket) or bucket[at] != mark or owners[at] != number:
                if self._counts[number] == MOST_MARKS:
                    raise ValueError(f"node {node}: more than {MOST_MARKS} marks are not possible")
                self._counts[number] += 1
                bucket.insert(at, mark)
                owners.insert(at, number)

    def remove(self, node: str, marks: Iterable[int]) -> None:
        """The node holds these no more. What it was not known to hold changes nothing."""
        if (number := self._numbers.get(node)) is None:
            return
        for mark in marks:
            arrays = self._buckets.get(mark >> (64 - _BUCKET_BITS))
            if arrays is None:
                continue
            bucket, owners = arrays
            at = bisect_left(bucket, mark)
            while at < len(bucket) and bucket[at] == mark and owners[at] != number:
                at += 1
            if at < len(bucket) and bucket[at] == mark:
                del bucket[at], owners[at]
                self._counts[number] -= 1

    def forget(self, node: str) -> None:
        """The node is gone, and all that it held."""
        number = self._numbers.pop(node, None)
        if number is None:
            return
        for key, (bucket, owners) in self._buckets.items():
            if number in owners:
                kept = [i for i, owner in enumerate(owners) if owner != number]
                self._buckets[key] = array("Q", [bucket[i] for i in kept]), array("H", [owners[i] for i in kept])
        self._counts.pop(number, None)
        self._free.append(number)

    def held(self, chain: Sequence[int]) -> dict[str, int]:
        """How many of the first tokens of a context each node holds, as far as marks tell."""
        found: dict[int, int] = {}
        for n, mark in enumerate(chain, start=1):
            arrays = self._buckets.get(mark >> (64 - _BUCKET_BITS))
            if arrays is None:
                continue
            bucket, owners = arrays
            at = bisect_left(bucket, mark)
            while at < len(bucket) and bucket[at] == mark:
                found[owners[at]] = n * CHUNK_TOKENS
                at += 1
        return {self._names[number]: tokens for number, tokens in found.items()}

    def _number(self, node: str) -> int:
        number = self._numbers.get(node)
        if number is not None:
            return number
        if self._free:
            number = self._free.pop()
            self._names[number] = node
        elif len(self._names) == MOST_NODES:
            raise ValueError(f"a cluster of more than {MOST_NODES} nodes is not possible")
        else:
            number = len(self._names)
            self._names.append(node)
        self._numbers[node] = number
        return number
