"""Clients of all languages, each behind a driver: a program that does what lines of its stdin say.

``android_bridge/conformance/README.md`` describes the lines. A driver is built once for all tests; where the compiler
or interpreter is missing, tests are skipped with that reason.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BRIDGE = ROOT / "android_bridge"
SOON = 30.0
"""Seconds within which a driver must answer, even on a busy machine."""
_ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ("\t", "\\t"))


def line_of(*fields: object) -> bytes:
    """Fields as one line.

    >>> line_of("ask", 8, "two" + chr(10) + "lines")
    b'ask\\t8\\ttwo\\\\nlines\\n'
    """
    texts = [str(field) for field in fields]
    for plain, escaped in _ESCAPES:
        texts = [text.replace(plain, escaped) for text in texts]
    return "\t".join(texts).encode() + b"\n"


def fields_of(line: bytes) -> list[str]:
    """What ``line_of`` made a line of."""
    fields = []
    for field in line.decode().rstrip("\n").split("\t"):
        first, *rest = field.split("\\\\")
        fields.append("\\".join(part.replace("\\n", "\n").replace("\\t", "\t") for part in (first, *rest)))
    return fields


@dataclass(frozen=True)
class Way:
    """A client, and how it reaches the daemon."""

    name: str
    place: str
    """``socket`` (frames), ``http-unix`` or ``http-tcp``."""
    build: Callable[[Path], list[str]]
    """Makes the driver in a folder; the command that starts it. Skips the test where that cannot be."""

    @property
    def speaks_http(self) -> bool:
        return self.place != "socket"


def needs(program: str) -> str:
    """The program's path; the test is skipped if there is none."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"there is no {program}")
    return found


def build(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", f"the compiler warns: {done.stderr}"


def python_driver(_: Path) -> list[str]:
    return [sys.executable, "-W", "error", str(BRIDGE / "conformance" / "driver.py")]


WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror")


def c_driver(folder: Path) -> list[str]:
    """With the compiler's checks of addresses and of undefined behaviour, where it has them."""
    cc, source, driver = needs("cc"), BRIDGE / "c" / "tests" / "driver.c", folder / "driver-c"
    checks = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    probe = [cc, *checks, "-x", "c", "-", "-o", str(folder / "probe")]
    if subprocess.run(probe, input=b"int main(void) { return 0; }", capture_output=True, check=False).returncode:
        checks = []
    build(cc, "-O1", *checks, *WARNINGS, source, "-o", driver)
    return [str(driver)]


def js_driver(_: Path) -> list[str]:
    return [needs("node"), str(BRIDGE / "js" / "tests" / "driver.mjs")]


def sh_driver(_: Path) -> list[str]:
    needs("curl")
    return [sys.executable, "-W", "error", str(BRIDGE / "sh" / "tests" / "driver.py")]


def java_driver(folder: Path) -> list[str]:
    """Compiled as Java 11, with the program of the client's page; Unix sockets take Java 16."""
    java, javac = needs("java"), needs("javac")
    page = (BRIDGE / "java" / "README.md").read_text("utf-8")
    imports, body = re.findall(r"^```java\n(import .*?;)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    (folder / "Page.java").write_text(f"{imports}\nclass Page {{ void run() {{ {body} }} }}\n", "utf-8")
    sources = [
        *sorted((BRIDGE / "java" / "src").rglob("*.java")),
        BRIDGE / "java" / "tests" / "llmaas/client/Driver.java",
    ]
    build(
        javac,
        "--release",
        "11",
        "-Xlint:all",
        "-Werror",
        "-encoding",
        "UTF-8",
        "-d",
        folder,
        folder / "Page.java",
        *sources,
    )
    return [java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", str(folder), "llmaas.client.Driver"]


WAYS = (
    Way("python", "socket", python_driver),
    Way("c", "socket", c_driver),
    Way("java", "socket", java_driver),
    Way("java-http", "http-tcp", java_driver),
    Way("js", "http-tcp", js_driver),
    Way("js-unix", "http-unix", js_driver),
    Way("sh", "http-unix", sh_driver),
    Way("sh-tcp", "http-tcp", sh_driver),
)


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Way], list[str]]:
    """Builds the driver of a way, once."""
    built: dict[Callable[[Path], list[str]], list[str]] = {}

    def command(way: Way) -> list[str]:
        if way.build not in built:
            built[way.build] = way.build(tmp_path_factory.mktemp(way.name))
        return built[way.build]

    return command


class Driver:
    """A driver that runs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def __call__(self, *fields: object) -> list[str]:
        """Have it do something; the fields of its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line_of(*fields))
        line = await asyncio.wait_for(self.process.stdout.readline(), SOON)
        assert line, f"the driver has ended at {fields}"
        return fields_of(line)

    async def ok(self, *fields: object) -> list[str]:
        """The same; it must not fail."""
        answer = await self(*fields)
        assert answer[0] != "failed", f"{fields}: {answer}"
        return answer[1:]

    async def refused(self, code: str, *fields: object) -> list[str]:
        """The same; it must fail with this code, and say what to do. Whether it may succeed later, and the message."""
        answer = await self(*fields)
        assert answer[:2] == ["failed", code], f"{fields}: {answer}"
        assert len(answer[3]) > 10 and answer[2] in ("yes", "no"), answer
        return answer[2:]


@asynccontextmanager
async def started(
    command: list[str], place: str | Path, app: str = "mail", token: str = "", retry_s: int = 0
) -> AsyncIterator[Driver]:
    """A driver that connects to ``place`` when it is first asked. It must end well, and write nothing to stderr."""
    pipe = asyncio.subprocess.PIPE
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLMAAS_")}
    process = await asyncio.create_subprocess_exec(
        *command, str(place), app, token, str(retry_s), stdin=pipe, stdout=pipe, stderr=pipe, limit=1 << 24, env=kept
    )
    driver = Driver(process)
    try:
        yield driver
        assert process.stdin is not None and process.stderr is not None
        process.stdin.close()
        said = await asyncio.wait_for(process.stderr.read(), SOON)
        assert (await asyncio.wait_for(process.wait(), SOON), said.decode()) == (0, "")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
