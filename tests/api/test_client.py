"""Client against a scripted daemon: answers, errors, cancelling, lost connections, Ctrl-C."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from llmaas.api import operations
from llmaas.api.client import Client
from llmaas.api.server import serve
from llmaas.calls import FinishReason, Sampling
from llmaas.errors import (
    BadRequest,
    Cancelled,
    ContextExists,
    ContextTooLong,
    LlmaasError,
    NotServing,
    ShuttingDown,
)
from llmaas.records import ContextSpan, Message
from tests.support.loop import on_a_loop
from tests.support.scripted import ScriptedBackend, serving_in_a_thread


def test_sync_every_operation(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail", admin=True) as client:
        assert client.server["model"] == "scripted"
        info = client.create(name="inbox", system="Be brief.")
        assert client.contexts() == [info] == client.contexts(everyone=True)
        assert client.show("inbox").messages == (Message("system", "Be brief."),)
        assert client.fork("inbox", name="copy").name == "copy"
        assert client.truncate("copy", n_messages=0).name == "copy"
        assert client.migrate("copy", everyone=True).name == "copy"
        exported = client.export_context("inbox")
        assert exported.spans[0] == ContextSpan(b"\1\0\0\0", "system", "Be brief.")
        assert client.import_context(exported, name="taken").name == "taken"
        client.delete("taken")
        client.delete("copy")
        assert client.append("inbox", [Message("user", "count 0")]).n_tokens == 9
        assert client.stats()["requests"] == 3
        client.ping()
        stream = client.generate("inbox", [Message("user", "count 20")])
        assert [piece.text for piece in stream] == [f"{i} " for i in range(20)]
        assert stream.done.reason is FinishReason.STOP
        assert client.generate("inbox", prompt="count 9").done.n_generated == 3
        with pytest.raises(ContextExists, match="inbox"):
            client.create(name="inbox")
        with pytest.raises(ContextTooLong):
            list(client.generate("inbox", prompt="too long"))
        with pytest.raises(BadRequest, match="seed"):
            client.generate("inbox", sampling=Sampling(seed=-1))
        client.delete(info.id, everyone=True)
        assert client.contexts() == []


def test_sync_requests_that_were_begun_have_their_own_results(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        made = [client.begin(operations.create(name=f"box-{i}")) for i in range(5)]
        twice = client.begin(operations.create(name="box-2"))
        assert made[3].result().name == "box-3", "in any order"
        assert [one.result().name for one in made] == [f"box-{i}" for i in range(5)]
        assert len(client.contexts()) == 5, "another request waits for what was begun"
        with pytest.raises(ContextExists):
            twice.result()


def test_sync_cancel_ends_the_stream_with_what_came(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        client.create(name="inbox")
        stream = client.generate("inbox", prompt="wait")
        assert next(stream).text == "so "
        stream.cancel()
        stream.cancel()
        with pytest.raises(Cancelled) as caught:
            _ = stream.done
        assert caught.value.n_generated == 1
        with pytest.raises(Cancelled):
            next(stream)
        client.ping()


def test_sync_a_stream_that_was_left_is_cancelled_by_the_next_call(path: Path) -> None:
    async def cancelled(backend: ScriptedBackend, _: object) -> list[int]:
        return [int(request) for request in backend.cancelled]

    with serving_in_a_thread(path) as there, Client(path, app="mail") as client:
        client.create(name="inbox")
        for piece in client.generate("inbox", prompt="wait"):
            assert piece.text == "so "
            break
        client.ping()
        assert there(cancelled) == [1]
        with client.generate("inbox", prompt="wait"):
            pass
        assert there(cancelled) == [1, 2]


def test_sync_what_is_lost_or_closed_says_so(path: Path) -> None:
    async def stop(_: object, server: Any) -> None:
        await server.close()

    with serving_in_a_thread(path) as there:
        client = Client(path, app="mail")
        client.create(name="inbox")
        stream = client.generate("inbox", prompt="wait")
        next(stream)
        there(stop)
        for _ in range(2):
            with pytest.raises(ShuttingDown):
                next(stream)
        with pytest.raises(ShuttingDown):
            client.ping()
        client.close()
        with pytest.raises(LlmaasError):
            client.ping()
    with serving_in_a_thread(path):
        client = Client(path, app="mail")
        client.close()
        client.close()
        with pytest.raises(NotServing, match="closed"):
            client.ping()


@on_a_loop
async def test_sync_a_daemon_that_dies_is_not_serving(path: Path) -> None:
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom tests.support.scripted import ScriptedBackend, serve\n"
        "async def main():\n    await serve(ScriptedBackend(), Path(sys.argv[1]))\n    print('up', flush=True)\n"
        "    await asyncio.Event().wait()\nasyncio.run(main())\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"up\n"
        client = Client(path, app="mail")
        client.create(name="inbox")
        stream = client.generate("inbox", prompt="wait")
        next(stream)
        daemon.kill()
        with pytest.raises(NotServing, match="lost"):
            next(stream)
        with pytest.raises(NotServing):
            client.ping()
        client.close()

    await (await serve(ScriptedBackend(), path)).close()


def interrupt(after: float) -> threading.Thread:
    """Ctrl-C for the main thread, in a moment."""
    main = threading.main_thread().ident
    assert main is not None

    def strike() -> None:
        time.sleep(after)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    return thread


def test_sync_ctrl_c_leaves_the_stream_and_the_connection_usable(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        client.create(name="inbox")
        stream = client.generate("inbox", prompt="wait")
        next(stream)
        strike = interrupt(0.05)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        strike.join()
        stream.cancel()
        with pytest.raises(Cancelled):
            _ = stream.done
        assert [p.text for p in client.generate("inbox", prompt="count 3")] == ["0 ", "1 ", "2 "]


def test_sync_ctrl_c_in_an_append_cancels_it_before_the_next_call(path: Path) -> None:
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        client.create(name="inbox")
        strike = interrupt(0.05)
        with pytest.raises(KeyboardInterrupt):
            client.append("inbox", prompt="wait")
        strike.join()
        assert client.append("inbox", prompt="count 0").n_tokens == 9


def test_sync_ctrl_c_at_any_instant_never_loses_a_byte(path: Path) -> None:
    """Interrupts rain down while pieces arrive; iteration goes on after each, and no text is missing."""
    rng = random.Random(7)
    struck = 0
    with serving_in_a_thread(path), Client(path, app="mail") as client:
        client.create(name="inbox")
        for _ in range(40):
            strike = stream = None
            while True:
                try:
                    strike = strike or interrupt(rng.uniform(0, 0.01))
                    stream = stream or client.generate("inbox", prompt="count 200")
                    done = stream.done
                    strike.join()
                    break
                except KeyboardInterrupt:
                    struck += 1
            assert done.reason is FinishReason.STOP
            assert stream.text == "".join(f"{i} " for i in range(200))
    assert struck >= 40
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
