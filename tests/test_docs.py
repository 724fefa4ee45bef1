"""The documentation: links lead somewhere, lines can be read, files that it names exist, its Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Daemon, clean_environ

ROOT = Path(__file__).parents[1]
FOLDERS = (".", "docs", "docs/decisions", "examples", "bench", "traces", "android_bridge", "android_bridge/*")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
MOST_COLUMNS = 100


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its code."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may say, as GitHub makes it."""
    headings = re.findall(r"^#+\s+(.+?)\s*$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def test_there_are_pages() -> None:
    assert len(PAGES) > 30


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    lost = []
    for match in LINK.finditer(prose(page)):
        target = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", target):
            continue  # the network is not asked
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            lost.append(target)
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_line_is_wider_than_a_screen(page: Path) -> None:
    lines = page.read_text("utf-8").splitlines()
    assert [n for n, line in enumerate(lines, 1) if len(line) > MOST_COLUMNS] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        return  # it may name what is gone
    named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|c|h|md|json|jsonl|toml|png))`", page.read_text("utf-8")))
    roots = (ROOT, ROOT / "llmaas", ROOT / "llmaas" / "kvchunks", page.parent)
    assert [file for file in sorted(named) if not any((root / file).exists() for root in roots)] == []


@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/first-hour.md", "README.md"])
def test_the_python_of_a_page_runs(page: str, tmp_path: Path, gguf: Path) -> None:
    """All its blocks as one program, against a real daemon with the real model, twice: contexts are there already."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    daemon = Daemon(tmp_path)
    daemon.start()
    try:
        environ = clean_environ(tmp_path) | {"LLMAAS_SOCKET": str(daemon.socket)}
        for _ in range(2):
            command = [sys.executable, "-W", "error", "-c", "\n".join(blocks)]
            ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
            assert ran.returncode == 0, ran.stderr
            assert ran.stdout.strip()
    finally:
        daemon.stop()
