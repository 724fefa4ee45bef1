"""``llmaas trace``: each action, and what it says when it cannot."""

from __future__ import annotations

import gzip
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from llmaas.cli.main import main
from llmaas.traces.call import TraceCall
from llmaas.traces.files import load, save

RECORDED = Path(__file__).parents[1] / "data" / "version-0.1.0"
EVENING = Path(__file__).parents[2] / "traces" / "evening.jsonl"


def test_a_made_trace_is_shown_counted_and_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.jsonl.gz"
    assert main(["trace", "gen", "markov", "--contexts", "4", "--hours", "10", "-o", str(path)]) == 0
    n = len(load(path))
    assert main(["trace", "stats", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calls"] == n > 50
    assert main(["trace", "show", str(path), "--first", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["trace", "stats", str(path)]) == 0
    assert "gap_s_p50" in capsys.readouterr().out
    assert main(["replay", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calls"] == n
    for pattern in ("random", "phone"):
        assert main(["trace", "gen", pattern, "--limit", "1", "--contexts", "1", "-o", str(path)]) == 0


def test_without_a_file_a_trace_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "gen", "evening", "--limit", "3500", "--seed", "20"]) == 0
    made = capsys.readouterr().out.splitlines()
    assert made[0].startswith("# llmaas trace gen evening ")
    assert made[1:] == EVENING.read_text().splitlines()


def test_public_data_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": f"c{i}", "app": "mail", "turns": [{"role": "user", "content": "Hello."}]} for i in range(3)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    screen = ["time,screen_status", *(f"{t},3" for t in range(0, 10**6, 2000))]
    (tmp_path / "s.csv").write_text("\n".join(screen))
    azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    (tmp_path / "a.csv").write_text(azure)
    mooncake = {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}
    (tmp_path / "m.jsonl").write_text(json.dumps(mooncake))
    chat = {"messages": [[{"sender": "a", "text": "hi", "timestamp": "2018-05-16T08:31:15Z"}]]}
    (tmp_path / "h.jsonl").write_text(json.dumps(chat))
    for source, name in (
        ("conversations", "c.jsonl"),
        ("unlocks", "s.csv"),
        ("azure", "a.csv"),
        ("mooncake", "m.jsonl"),
        ("chats", "h.jsonl"),
    ):
        out = tmp_path / f"{source}.jsonl"
        assert main(["trace", "import", source, str(tmp_path / name), "--calls", "5", "-o", str(out)]) == 0, source
        assert load(out)
    assert load(tmp_path / "conversations.jsonl")[0].text == "User: Hello.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("show none.jsonl", "cannot read none.jsonl"),
        ("stats empty --json", None),
        ("plot empty -o x.png", "has no calls to draw"),
        ("record empty -o x", "is not a recording"),
        ("record none", "cannot read none"),
        ("record damaged", "damaged"),
        ("import azure empty", "no call that fits"),
        ("import mooncake wrong", "line 1"),
        ("gen markov -o no/such/folder.jsonl", "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: str,
    message: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("wrong").write_text("nonsense\n")
    whole = gzip.decompress((RECORDED / "faults-0.recording.gz").read_bytes())
    Path("damaged").write_bytes(whole[:2000] + bytes(200) + whole[2200:])
    assert main(["trace", *arguments.split()]) == (0 if message is None else 2)
    assert message is None or message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["gen chaos", "gen markov --contexts 0", "gen markov --hours -1", "gen"])
def test_wrong_usage_is_refused(arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["trace", *arguments.split()])
    assert ended.value.code == 2


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="the extra demo is not installed")
def test_a_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "plot", str(EVENING), "-o", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    save(tmp_path / "$t", [TraceCall(0, "a$b$_", "c", 1, 1), TraceCall(1, "$", "c", 1, 1)])
    assert main(["trace", "plot", str(tmp_path / "$t"), "-o", str(tmp_path / "p.svg")]) == 0
    assert main(["trace", "plot", str(EVENING), "-o", str(tmp_path / "p.nonsense")]) == 2
    assert "Name it .png" in capsys.readouterr().err
