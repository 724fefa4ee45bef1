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

_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_UUID = [f"^{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}$" for version in range(1, 9)]
_EMAIL = rf"^[A-Za-z0-9_]{{1,20}}(?:[.+-][A-Za-z0-9_]{{1,20}}){{0,2}}@(?:{_LABEL}\.){{1,3}}[a-z]{{2,10}}$"
_URI = rf"^https?://{_HOST}(?:/[A-Za-z0-9._~-]{{0,200}}){{0,5}}$"

FORMATS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": r"^P(?:[0-9]{1,6}D(?:T[0-9]{1,6}H)?|T[0-9]{1,6}[HMS]|[0-9]{1,6}W)$",
    "uuid": f"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}$",
    **{f"uuid{version}": pattern for version, pattern in enumerate(_UUID, 1)},
    **dict.fromkeys(("email", "idn-email", "name-email"), _EMAIL),
    **dict.fromkeys(("hostname", "idn-hostname"), f"^{_HOST}$"),
    **dict.fromkeys(("ipv4", "ipvanyaddress", "ipv4interface", "ipvanyinterface"), f"^{_IPV4}$"),
    **dict.fromkeys(("ipv4network", "ipvanynetwork"), f"^{_IPV4}/32$"),
    "ipv6": f"^(?:{_HEX}{{1,4}}:){{7}}{_HEX}{{1,4}}$",
    **dict.fromkeys(("uri", "uri-reference", "iri", "iri-reference"), _URI),
    **dict.fromkeys(("base64", "base64url", "byte"), "^(?:[A-Za-z0-9]{4})*$"),
}
"""By name: those of JSON Schema, and those of the same kind that pydantic and OpenAPI write."""
LIMITS = {"int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1), "uint64": (0, None), "uint": (0, None)}
"""Formats of numbers that are limits: from - to, both included."""
UNLIMITED = frozenset({"int64", "int", "float", "double", "decimal"})
"""Formats of numbers that any number fits that models write."""
PATTERNS = {
    # of Decimal, by pydantic 2.11 and 2.12
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?\d{1,40}(?:\.\d{1,40})?$",
}
"""Patterns that generators write and ``pattern.py`` cannot read, and what is narrower and can be."""
UNBOUNDED = frozenset({"password", "binary", "path", "file-path", "directory-path", "textarea"})
"""Formats, as generators write them, that any text fits, or of which only a program can tell: nothing is enforced."""
