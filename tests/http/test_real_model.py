"""HTTP before a daemon with the real model, as processes, by the clients that people use."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmaas.socket_place import http_socket
from tests.cli.conftest import Daemon
from tests.cli.test_http_process import free_port, healthy, until

openai = pytest.importorskip("openai")
ollama = pytest.importorskip("ollama")
HELLO: Any = [{"role": "user", "content": "Say hello."}]
WEATHER: Any = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 30}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Iterator[tuple[int, Path]]:
    """The port and the Unix socket."""
    found = free_port()
    daemon = Daemon(tmp_path_factory.mktemp("d"), more=("--http", f"127.0.0.1:{found}"))
    daemon.start()
    until(lambda: healthy(found))
    yield found, http_socket(daemon.socket)
    daemon.stop()
    assert "Traceback" not in daemon.log


@pytest.fixture
def port(served: tuple[int, Path]) -> int:
    return served[0]


@pytest.fixture
def unix(served: tuple[int, Path]) -> Path:
    return served[1]


def test_openais_client_talks_to_it(port: int) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        asked: Any = {"model": "default", "messages": HELLO, "max_tokens": 16, "temperature": 0}
        whole = client.chat.completions.create(**asked)
        assert whole.choices[0].message.content
        streamed = client.chat.completions.create(**asked, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
        assert text[:20] == whole.choices[0].message.content[:20]
        more = [*HELLO, {"role": "assistant", "content": text}, {"role": "user", "content": "And now goodbye."}]
        second = client.chat.completions.create(**{**asked, "messages": more})
        assert second.usage.prompt_tokens - second.usage.prompt_tokens_details.cached_tokens < 30
        assert client.responses.create(model="default", input="Hi.", max_output_tokens=8).output_text
        assert client.completions.create(model="default", prompt="One, two,", max_tokens=4).choices[0].text


def test_a_small_model_calls_a_tool_by_its_schema(port: int) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        found = client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "What is the weather in Paris?"}],
            tools=[{"type": "function", "function": WEATHER}],
            tool_choice="required",
            max_tokens=80,
            temperature=0,
        )
        (call,) = found.choices[0].message.tool_calls
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments)["unit"] in ("C", "F")


def test_ollamas_client_talks_to_it(port: int) -> None:
    with ollama.Client(host=f"http://127.0.0.1:{port}") as client:
        talk(client)


def talk(client: Any) -> None:
    (model,) = client.list().models
    whole = client.chat(model=model.model, messages=HELLO, options={"temperature": 0, "num_predict": 12})
    assert whole.message.content and whole.eval_count
    lines = list(client.generate(model.model, "Hello", stream=True, options={"num_predict": 5}))
    assert lines[-1].done


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_commands_and_the_program_of_the_page_do_what_they_say(port: int, unix: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text("utf-8")
    page = page.replace("127.0.0.1:11434", f"127.0.0.1:{port}")
    page = page.replace("/run/user/1000/llmaas/llmaas-http.sock", str(unix))
    commands = re.findall(r"^curl .*$", page, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30)
        assert ran.returncode == 0 and json.loads(ran.stdout), command
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and ran.stdout.strip(), ran.stderr
