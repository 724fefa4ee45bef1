"""Programs of others against a server on the fake engine. ``scripts/clients`` installs them; without it they are
skipped. OpenAI's and Ollama's packages for Python have tests of their own."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from tests.support.http_edge import HttpEdge, http_edge
from tests.support.loop import on_a_loop

CLIENTS = Path(os.environ.get("LLMAAS_TEST_CLIENTS", Path(__file__).parents[2] / ".venv-clients"))
PROGRAMS = Path(__file__).parents[1] / "data" / "clients"
MOST_S = 120.0

pytestmark = pytest.mark.skipif(not (CLIENTS / "ready").is_file(), reason="scripts/clients has not installed them")
needs_js = pytest.mark.skipif(
    shutil.which("node") is None or not (CLIENTS / "js").is_dir(), reason="node or its packages are not installed"
)


async def ran(*command: str | Path, stdin: str = "", **environ: str) -> str:
    """What a program writes to stdout. It must end well."""
    pipe = asyncio.subprocess.PIPE
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdin=pipe, stdout=pipe, stderr=pipe, env={**kept, **environ}
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), MOST_S)
    except asyncio.TimeoutError:
        process.kill()
        raise
    assert process.returncode == 0, err.decode() + out.decode()[-8000:]
    return out.decode()


def python(edge: HttpEdge, name: str) -> tuple[str | Path, ...]:
    return CLIENTS / "bin" / "python", PROGRAMS / name, edge.address


@pytest.mark.parametrize("name", ["with_langchain.py", "with_litellm.py"])
@on_a_loop
async def test_libraries_for_python_work_unchanged(name: str, tmp_path: Path) -> None:
    async with http_edge(tmp_path, n_cells=8192) as edge:
        home = {"HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        assert "fine" in await ran(*python(edge, name), **home)


@needs_js
@pytest.mark.parametrize("name", ["with_openai.mjs", "with_ollama.mjs"])
@on_a_loop
async def test_packages_for_javascript_work_unchanged(name: str, tmp_path: Path) -> None:
    program = tmp_path / name
    program.write_bytes((PROGRAMS / name).read_bytes())
    (tmp_path / "node_modules").symlink_to(CLIENTS.resolve() / "js" / "node_modules")
    async with http_edge(tmp_path / "d", n_cells=8192) as edge:
        assert "fine" in await ran("node", program, edge.address)


@on_a_loop
async def test_the_llm_command_chats_and_goes_on(tmp_path: Path) -> None:
    async with http_edge(tmp_path / "d", n_cells=8192) as edge:
        home = tmp_path / "llm"
        home.mkdir()
        text = f"- model_id: here\n  model_name: default\n  api_base: http://{edge.address}/v1\n  can_stream: true\n"
        (home / "extra-openai-models.yaml").write_text(text)
        command = [CLIENTS / "bin" / "llm", "prompt", "-o", "max_tokens", "300"]
        environ = {"LLM_USER_PATH": str(home), "OPENAI_API_KEY": "none"}
        assert (await ran(*command, "-m", "here", "hello", **environ)).strip()
        assert (await ran(*command, "-m", "here", "--no-stream", "hello", **environ)).strip()
        assert (await ran(*command, "-c", "and now?", **environ)).strip()
        async with edge.daemon.connect("http") as client:
            longest = max(info.n_messages for info in await client.contexts())
        assert longest == 4, "the second question goes on in the context of the first"


@on_a_loop
async def test_schemathesis_finds_no_answer_that_the_document_does_not_foresee(tmp_path: Path) -> None:
    """Which requests are refused is not asked: no schema can say all that a request must keep to. Nor how fast this
    machine makes up requests."""
    async with http_edge(tmp_path, end_rate=0.1, n_cells=2048) as edge:
        asked = ["run", f"http://{edge.address}/openapi.json", "--seed", "1", "--max-time", "20"]
        left_out = ["--exclude-checks", "positive_data_acceptance", "--suppress-health-check", "all"]
        phases = ["--phases", "coverage,fuzzing,stateful"]
        said = await ran(CLIENTS / "bin" / "schemathesis", *asked, *left_out, *phases, HOME=str(tmp_path))
        assert " passed" in said
