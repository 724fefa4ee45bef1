"""The formats of JSON schemas that are enforced, as patterns.

Law: each pattern allows only what the format's standard does, and less where that takes fewer words: no leap days and
leap seconds, no quoted mail boxes, no abbreviated IPv6.
"""

from __future__ import annotations

_DAY = r"(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
_DATE = rf"[1-9][0-9]{{3}}-{_DAY}"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,40}[a-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,4}}"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_HEX = "[0-9a-f]"

FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": r"^P(?:[0-9]{1,6}D(?:T[0-9]{1,6}H)?|T[0-9]{1,6}[HMS]|[0-9]{1,6}W)$",
    "uuid": f"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}$",
    "email": rf"^[A-Za-z0-9_]{{1,20}}(?:[.+-][A-Za-z0-9_]{{1,20}}){{0,2}}@(?:{_LABEL}\.){{1,3}}[a-z]{{2,10}}$",
    "hostname": f"^{_HOST}$",
    "ipv4": rf"^(?:{_BYTE}\.){{3}}{_BYTE}$",
    "ipv6": f"^(?:{_HEX}{{1,4}}:){{7}}{_HEX}{{1,4}}$",
    "uri": rf"^https?://{_HOST}(?:/[A-Za-z0-9._~-]{{0,200}}){{0,5}}$",
}
UNBOUNDED = frozenset({"password", "binary", "path", "file-path", "directory-path", "textarea"})
"""Formats, as generators write them, that any text fits, or of which only a program can tell: nothing is enforced."""
