"""The driver of the Python client: see README.md beside this file."""

from __future__ import annotations

import json
import sys
from typing import Any

from llmaas import Cancelled, Client, LlmaasError, Message, Sampling
from llmaas.api.wire import Decoder, encode

FRAMES: dict[str, dict[str, Any]] = {
    "ping": {"id": 3, "op": "ping"},
    "create": {
        "id": 300,
        "op": "create",
        "name": "inbox",
        "system": "You are brief. You sort mails into folders.",
        "exist_ok": True,
    },
    "generate": {
        "id": 5000000000,
        "op": "generate",
        "context": "inbox",
        "messages": [{"role": "user", "content": "Grüße 😀"}],
        "max_tokens": 70000,
        "temperature": 0.5,
    },
}


def unescaped(field: str) -> str:
    return "\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in field.split("\\\\"))


def say(*fields: object) -> None:
    texts = [str(f).replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") for f in fields]
    sys.stdout.write("\t".join(texts) + "\n")
    sys.stdout.flush()


def json_of(frame: dict[str, Any]) -> str:
    def plain(value: object) -> str:
        assert isinstance(value, bytes)
        return f"bin:{value.hex()}"

    return json.dumps(frame, ensure_ascii=False, separators=(",", ":"), default=plain).replace("\\n", "\\u000a")


def ask(client: Client, name: str, tokens: str, text: str, grammar: str | None = None) -> None:
    n_pieces = 0
    stream = client.generate(
        name, [Message("user", text)], max_tokens=int(tokens), sampling=Sampling(temperature=0, grammar=grammar)
    )
    for piece in stream:
        n_pieces += bool(piece.text)
    say("answer", stream.done.reason.value, stream.done.n_tokens, n_pieces, stream.text)


def cancel(client: Client, name: str, text: str) -> None:
    stream = client.generate(name, [Message("user", text)], max_tokens=600)
    first = next(stream).text
    stream.cancel()
    try:
        say("answer", stream.done.reason.value, stream.done.n_tokens, 1, first)
    except Cancelled:
        say("cancelled", stream.text)


def obey(client: Client, what: str, *fields: str) -> None:
    match what:
        case "hello":
            say("hello", client.server["model"])
        case "create":
            client.context(fields[0], system=fields[1] or None)
            say("ok")
        case "ask":
            ask(client, *fields)
        case "constrained":
            name, tokens, grammar, text = fields
            ask(client, name, tokens, text, grammar)
        case "cancel":
            cancel(client, *fields)
        case "show":
            messages = client.show(fields[0]).messages
            say("messages", *(text for each in messages for text in (each.role, each.content)))
        case "list":
            say("contexts", *(info.name for info in client.contexts()))
        case "hint":
            client.hint(fields[0])
            say("ok")
        case "delete":
            client.delete(fields[0])
            say("ok")
        case _:
            raise AssertionError(what)


def main() -> None:
    place, app, token, retry_s = sys.argv[1:]
    client = None
    for line in sys.stdin:
        fields = [unescaped(field) for field in line.rstrip("\n").split("\t")]
        try:
            if fields[0] == "decode":
                decoder = Decoder()
                found = decoder.feed(bytes.fromhex(fields[1]))
                say("json", json_of(found[0]))
                continue
            if fields[0] == "encode":
                say("frame", encode(FRAMES[fields[1]]).hex())
                continue
            if fields[0] == "to":
                if client is not None:
                    client.close()
                client, place = None, fields[1]
                say("ok")
                continue
            if client is None:
                client = Client(place, app=app or None, token=token, retry_s=float(retry_s))
            obey(client, *fields)
        except LlmaasError as error:
            say("failed", error.code, "yes" if error.retryable else "no", error.message, error.hint)
    if client is not None:
        client.close()


main()
