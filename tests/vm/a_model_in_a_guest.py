"""A real model in a guest that QEMU emulates: ``MODEL=FILE scripts/test-vm`` builds the guest and runs this file.

Everything is computed by instructions that QEMU translates, so it takes minutes; each step has its limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmaas.records import Message
from tests.vm.in_a_guest import GUEST, Vm, found_in, host_files, shared_memories

MODEL = Path(os.environ.get("LLMAAS_VM_MODEL", "/nonexistent"))
FLAGS = ("--cells", "512", "--threads", "1", "--repack", "off")
FIRST_TOKEN_S = 240.0
pytestmark = [
    pytest.mark.skipif(not (GUEST.is_dir() and MODEL.is_file()), reason="MODEL=FILE scripts/test-vm has both"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    made = Vm(tmp_path_factory.mktemp("model"), memory="1G")
    for image in ("model.img", "store.img"):  # of another key
        (GUEST / image).unlink(missing_ok=True)
    try:
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.process.kill()
            made.process.wait()


def test_a_model_answers_in_an_emulated_guest(vm: Vm) -> None:
    """The first token by slots; by the socket the same, and one more."""
    assert vm.command("key", str(vm.key)).returncode == 0
    begun = time.monotonic()
    assert vm.command("import", str(MODEL), *vm.common).returncode == 0
    print(f"import of {MODEL.stat().st_size >> 20} MiB, with the start: {time.monotonic() - begun:.1f} s")
    print(f"start until it serves: {vm.start(module='llmaas', flags=FLAGS):.1f} s")
    said = ""
    for way, n in (("slots", 1), ("socket", 2)):
        with vm.client(way, transport=way) as client:
            context = client.create(name="notes")
            begun = time.monotonic()
            stream = client.generate(context.id, [Message("user", "What is the capital of France?")], max_tokens=n)
            text = "".join(piece.text for piece in stream)
            took = time.monotonic() - begun
            print(f"\n{stream.done.n_generated} tokens by {way}: {took:.1f} s, {text!r}")
            assert stream.done.n_generated == n and text and text.startswith(said) and took < FIRST_TOKEN_S
            said = text
    assert vm.process is not None
    data = MODEL.read_bytes()
    marks = [data[:64], data[len(data) // 2 :][:64], data[-64:]]
    files = [*host_files(vm, (vm.qemu, vm.process.pid)), *shared_memories((vm.qemu,)).values()]
    assert GUEST / "model.img" in files
    assert all(found_in(mark, [*files, MODEL]) == [MODEL] for mark in marks)
    assert vm.command("stop").returncode == 0
    (GUEST / "model.img").unlink()
