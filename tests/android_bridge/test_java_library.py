"""The Java client's own tests, by JUnit: what can be tested in Java alone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.drivers import BRIDGE, build, needs

FOLDER = Path("/usr/share/java")
"""Where Debian's junit5 puts its jars, which name each other."""
JARS = (
    *(f"junit-jupiter-{part}.jar" for part in ("api", "engine", "params")),
    *(f"junit-platform-{part}.jar" for part in ("commons", "engine", "launcher", "reporting", "console")),
    *(
        "opentest4j.jar",
        "opentest4j-reporting-events.jar",
        "apiguardian-api.jar",
        "picocli.jar",
        "univocity-parsers.jar",
    ),
)


def junit() -> str:
    """JUnit's class path; the test is skipped if it is not installed."""
    missing = [jar for jar in JARS if not (FOLDER / jar).exists()]
    if missing:
        pytest.skip(f"there is no {', '.join(missing)} in {FOLDER}: apt install junit5")
    return ":".join(str(FOLDER / jar) for jar in JARS)


def test_junit_finds_the_client_right(tmp_path: Path) -> None:
    java, javac, jars = needs("java"), needs("javac"), junit()
    tests = sorted((BRIDGE / "java" / "tests").rglob("*.java"))
    options = ["--release", "11", "-Xlint:all,-path", "-Werror", "-encoding", "UTF-8", "-cp", jars, "-d", tmp_path]
    build(javac, *options, *sorted((BRIDGE / "java" / "src").rglob("*.java")), *tests)
    machine = [java, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
    frames = f"-Dllmaas.frames={BRIDGE / 'conformance' / 'frames.txt'}"
    launcher = ["-cp", f"{tmp_path}:{jars}", "org.junit.platform.console.ConsoleLauncher", "--scan-classpath"]
    output = [str(tmp_path), "--disable-banner", "--disable-ansi-colors", "--details=tree", "--fail-if-no-tests"]
    done = subprocess.run(
        [*machine, frames, *launcher, *output], capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    for written in (path.stem for path in tests if path.stem.endswith("Test")):
        assert f"─ {written} ✔" in done.stdout, f"{written} was not run: {done.stdout}"
    counts = {what: int(n) for n, what in re.findall(r"\[ *(\d+) tests (\w+) *\]", done.stdout)}
    assert counts["successful"] == counts["found"] > 200 and counts["skipped"] == counts["aborted"] == 0, counts
