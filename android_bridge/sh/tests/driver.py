"""The driver of the shell client: it runs llmaas-client once for each line. See ../../conformance/README.md."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "llmaas-client"
SHELL = os.environ.get("TEST_SHELL", "sh").split()
_ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ("\t", "\\t"))


def unescaped(field: str) -> str:
    return "\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in field.split("\\\\"))


def say(*fields: object) -> None:
    texts = [str(field) for field in fields]
    for plain, escaped in _ESCAPES:
        texts = [text.replace(plain, escaped) for text in texts]
    sys.stdout.write("\t".join(texts) + "\n")
    sys.stdout.flush()


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SHELL, str(SCRIPT), *args], capture_output=True, text=True, check=False, timeout=60)


def failed(done: subprocess.CompletedProcess[str]) -> None:
    found = re.match(r"llmaas-client: (\w+): (.*?)\n(?:  (.*)\n)?\Z", done.stderr, re.DOTALL)
    assert found and done.returncode in (1, 3), f"exit code {done.returncode}: {done.stderr}"
    say("failed", found[1], "yes" if done.returncode == 3 or found[1] == "busy" else "no", found[2], found[3] or "")


def ask(retry_s: str, name: str, tokens: str, text: str, *grammar: str) -> None:
    more = ("-g", grammar[0]) if grammar else ()
    done = run("-r", "-t", "0", "-w", retry_s, "-n", tokens, *more, "ask", name, text)
    if done.returncode:
        failed(done)
        return
    found = re.fullmatch(r"reason=(\w+) tokens=(\d+) pieces=(\d+)\n", done.stderr)
    assert found, done.stderr
    say("answer", *found.groups(), done.stdout.removesuffix("\n"))


def cancel(name: str, text: str) -> None:
    command = [*SHELL, str(SCRIPT), "-t", "0", "-n", "600", "ask", name, text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        first = process.stdout.read(1).decode()
        os.killpg(process.pid, signal.SIGINT)
    assert process.returncode != 0
    say("cancelled", first)


def simple(retry_s: str, *args: str) -> None:
    done = run("-w", retry_s, *args)
    if done.returncode:
        failed(done)
        return
    assert done.stderr == "", done.stderr
    match args[0]:
        case "hello":
            say("hello", done.stdout.removesuffix("\n"))
        case "list":
            say("contexts", *done.stdout.splitlines())
        case "show":
            _, *parts = re.split(r"^(system|user|assistant): ", done.stdout, flags=re.MULTILINE)
            say("messages", *(part.removesuffix("\n") if i % 2 else part for i, part in enumerate(parts)))
        case _:
            say("ok")


def main() -> None:
    place, app, token, retry_s = sys.argv[1:]
    os.environ |= {"LLMAAS_HTTP": place, "LLMAAS_TOKEN": token, "LLMAAS_APP": app if place.startswith("http+") else ""}
    for line in sys.stdin:
        what, *fields = (unescaped(field) for field in line.rstrip("\n").split("\t"))
        match what:
            case "ask":
                ask(retry_s, *fields)
            case "constrained":
                name, tokens, grammar, text = fields
                ask(retry_s, name, tokens, text, grammar)
            case "cancel":
                cancel(*fields)
            case "to":
                os.environ["LLMAAS_HTTP"] = fields[0]
                say("ok")
            case "create" if not fields[1]:
                simple(retry_s, what, fields[0])
            case _:
                simple(retry_s, what, *fields)


main()
