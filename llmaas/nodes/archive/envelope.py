"""The beginning of an archive, in clear or encrypted, and the stream behind it.

Law: what is no archive is refused by its first bytes; how an archive is encrypted stands in clear, nothing else does.

    llmaas archive 1\\n           blocks
    llmaas sealed archive 1\\n    u16 n | n bytes of msgpack: kind, wrapped, salt, log_n, payload_salt | segments
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import msgpack  # type: ignore[import-untyped,unused-ignore]

from llmaas.errors import BadRequest
from llmaas.nodes.archive.blocks import Sink, Source
from llmaas.nodes.archive.locks import KEY_BYTES, Lock, Opener, Wrapping
from llmaas.nodes.archive.sealing import SealingSink, UnsealingSource, payload_key

CLEAR = b"llmaas archive 1\n"
SEALED = b"llmaas sealed archive 1\n"
_LENGTH = struct.Struct("<H")
_MOST_HEAD = 4096


@contextmanager
def sealed(sink: Sink, lock: Lock | None) -> Iterator[Sink]:
    """What the blocks of an archive are written to. When the block has ended, all is in ``sink``."""
    if lock is None:
        sink.write(CLEAR)
        yield sink
        return
    file_key, salt = os.urandom(KEY_BYTES), os.urandom(16)
    wrapping = lock.wrap(file_key)
    fields = {name: getattr(wrapping, name) for name in Wrapping.__dataclass_fields__}
    body: bytes = msgpack.packb({**fields, "payload_salt": salt})
    head = SEALED + _LENGTH.pack(len(body)) + body
    sink.write(head)
    segments = SealingSink(sink, payload_key(file_key, salt, head))
    yield segments
    segments.close()


def opened(source: Source, opener: Opener | None) -> Source:
    """What the blocks are read from; an UnsealingSource if the archive is encrypted. Raises BadRequest."""
    start = source.read(len(CLEAR))
    if start == CLEAR:
        return source
    start += source.read(len(SEALED) - len(start))
    if start != SEALED:
        raise BadRequest("this is no archive of llmaas")
    if opener is None:
        raise BadRequest("the archive is encrypted", hint="Give --passphrase-file, or --key-file.")
    head, wrapping, salt = _sealed_head(source)
    file_key = opener.unwrap(wrapping)
    return UnsealingSource(source, payload_key(file_key, salt, head))


def _sealed_head(source: Source) -> tuple[bytes, Wrapping, bytes]:
    length = source.read(_LENGTH.size)
    n = _LENGTH.unpack(length)[0] if len(length) == _LENGTH.size else _MOST_HEAD
    body = source.read(min(n, _MOST_HEAD))
    try:
        fields = msgpack.unpackb(body, raw=False, max_ext_len=0)
        wrapping = Wrapping(**{name: fields[name] for name in Wrapping.__dataclass_fields__})
        salt = fields["payload_salt"]
        kinds = [type(value) for value in (wrapping.wrapped, wrapping.salt, salt)]
        if kinds != [bytes] * 3 or type(wrapping.log_n) is not int:
            raise TypeError("kinds")
    except (ValueError, TypeError, KeyError, msgpack.UnpackException) as error:
        raise BadRequest("the head of the encrypted archive is damaged; nothing can be read without it") from error
    return SEALED + length + body, wrapping, salt
