"""``/``: the web page for browsers, and the words that Ollama's clients look for.

Law: the page is one file that asks no other host for anything. Its content security policy lets its own script run and
nothing else, so text that reaches the page cannot become code.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

from llmaas.http.call import HttpCall
from llmaas.http.edge import Edge

OLLAMA_WORDS = b"Ollama is running"
"""What Ollama answers there; some of its clients compare it."""


async def page(edge: Edge, call: HttpCall) -> None:
    if "text/html" not in call.headers.get("accept", ""):
        await call.reply(OLLAMA_WORDS, kind=b"text/plain; charset=utf-8")
        return
    html, policy = _page()
    headers = [
        (b"content-security-policy", policy),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]
    await call.reply(html, 200, *headers, kind=b"text/html; charset=utf-8")


@functools.cache
def _page() -> tuple[bytes, bytes]:
    """The file, and the policy that allows its script and its style."""
    html = resources.files("llmaas.http.web").joinpath("page.html").read_bytes()
    script, style = (_hash_of(tag, html) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy.encode()


def _hash_of(tag: bytes, html: bytes) -> str:
    """The hash of the one element of that name, as a policy writes it."""
    (text,) = re.findall(b"<%s>(.*?)</%s>" % (tag, tag), html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
