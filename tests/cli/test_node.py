"""``llmaas node`` as a person uses it, on two machines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmaas.cli.node_listener import refuse_nodes
from llmaas.config.sources import load
from llmaas.errors import ConfigError
from tests.cli.conftest import Daemon, Run
from tests.support.node_house import free_port


def shown(llmaas: Run, *more: str, **environ: str) -> tuple[str, str]:
    """Card and fingerprint."""
    out = llmaas("node", "show", *more, **environ)
    assert out.returncode == 0, out
    return out.stdout.strip(), next(word for word in out.stderr.split() if word.count("-") == 4)


def test_two_nodes_are_paired_by_their_cards(llmaas: Run, tmp_path: Path) -> None:
    here, there = ({"LLMAAS_DATA_DIR": str(tmp_path / name)} for name in ("here", "there"))
    card, fingerprint = shown(llmaas, "--nodes", "10.0.0.5:7411", **there)
    assert card.endswith("@10.0.0.5:7411") and len(card) < 600
    paired = llmaas("node", "pair", "desk", card, **here)
    assert paired.returncode == 0 and fingerprint in paired.stdout and "too" in paired.stderr
    file = tmp_path / "card"
    file.write_text(card + "\n")
    again = llmaas("node", "pair", "desk", str(file), "--address", "desk:7411", "--fingerprint", fingerprint, **here)
    assert again.returncode == 0, again
    piped = llmaas("node", "pair", "phone", "-", stdin=shown(llmaas, **here)[0], **there)
    assert piped.returncode == 0, piped
    said = json.loads(llmaas("node", "ls", "--json", **here).stdout)
    assert said == [{"name": "desk", "address": "desk:7411", "fingerprint": fingerprint}]
    assert "none" in llmaas("node", "ls", **there).stdout, "the phone has no address"
    assert llmaas("node", "rm", "desk", **here).returncode == 0
    assert "No nodes" in llmaas("node", "ls", **here).stdout
    gone = llmaas("node", "rm", "desk", **here)
    assert gone.returncode == 1 and "not paired" in gone.stderr


@pytest.mark.parametrize(
    "words, code, said",
    [
        (("desk", "llmaas-node-1:AAAA"), 2, "no certificate"),
        (("desk", "llmaas-node-1:!"), 2, "no card"),
        (("desk", "no-such-file"), 2, "no file"),
        (("de sk", "CARD"), 2, "no name"),
        (("desk", "CARD", "--address", "nowhere"), 2, "no address"),
        (("desk", "CARD", "--fingerprint", "aaaaa-aaaaa-aaaaa-aaaaa-aaaaa"), 1, "its fingerprint is"),
        (("desk", "OWN"), 2, "this very node"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_pinned(
    llmaas: Run, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    here, there = ({"LLMAAS_DATA_DIR": str(tmp_path / name)} for name in ("here", "there"))
    cards = {"CARD": shown(llmaas, **there)[0]} if "CARD" in words else {}
    if "OWN" in words:
        cards["OWN"] = shown(llmaas, **here)[0]
    out = llmaas("node", "pair", *(cards.get(word, word) for word in words), **here)
    assert out.returncode == code and said in out.stderr and "Traceback" not in out.stderr
    assert json.loads(llmaas("node", "ls", "--json", **here).stdout) == []


def test_a_daemon_that_listens_is_asked_who_it_is_and_somebody_compares(
    llmaas: Run, gguf: Path, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    desk = Daemon(tmp_path / "desk", more=("--nodes", address, "--no-warm-start"))
    desk.root.mkdir()
    here, there = {"LLMAAS_DATA_DIR": str(tmp_path / "here")}, {"LLMAAS_DATA_DIR": str(desk.data_dir)}
    unanswered = llmaas("node", "pair", "desk", address, **here)
    assert unanswered.returncode == 1 and "no node answers" in unanswered.stderr
    desk.start()
    try:
        _, fingerprint = shown(llmaas, **there)
        asked = llmaas("node", "pair", "desk", address, **here)
        assert asked.returncode == 2 and fingerprint in asked.stderr and "--fingerprint" in asked.stderr
        assert llmaas("node", "pair", "desk", address, "--fingerprint", fingerprint.upper(), **here).returncode == 0
        assert "does not know this one" in llmaas("node", "ls", "--check", **here).stdout
        assert llmaas("node", "pair", "phone", shown(llmaas, **here)[0], **there).returncode == 0
        assert "answers, serves" in llmaas("node", "ls", "--check", **here).stdout
        assert llmaas("node", "rm", "phone", **there).returncode == 0
        assert "does not know this one" in llmaas("node", "ls", "--check", **here).stdout
    finally:
        assert desk.stop() == 0


def test_several_models_have_no_nodes_and_that_is_said() -> None:
    refuse_nodes(load({}, {}, None).config)
    with pytest.raises(ConfigError, match="several models") as raised:
        refuse_nodes(load({"nodes": "0.0.0.0:7411"}, {}, None).config)
    assert "one model" in raised.value.hint
