"""What pip gets: the client's wheel, and the wheel of llmaas as its source distribution builds it."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import msgpack  # type: ignore[import-untyped,unused-ignore]
import pytest

import llmaas
from tests.support.scripted import serving_in_a_thread

ROOT = Path(__file__).parents[1]
C_LIBRARIES = {
    "_cell_rows.so",
    "_tiles.so",
    "_dist.so",
    "_kvcodec.so",
    "_apart.so",
    "_map_guard.so",
    "_probe.so",
    "_slots.so",
    "_steps.so",
    "_vocab.so",
}


def pip(*args: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", *args, "--no-deps", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the client's wheel and msgpack in it, and nothing else."""
    place = tmp_path_factory.mktemp("thin")
    pip("wheel", "--wheel-dir", ".", str(ROOT / "client"), cwd=place)
    (wheel,) = place.glob("*.whl")
    assert wheel.name == f"llmaas_client-{llmaas.__version__}-py3-none-any.whl"
    pip("install", "--target", "packages", str(wheel), cwd=place)
    (place / "packages" / "msgpack").symlink_to(Path(msgpack.__file__).parent)
    return place / "packages"


def run_thin(thin: Path, code: str, **environ: str) -> str:
    """What ``code`` prints in an interpreter that has the packages in ``thin`` only."""
    command = [sys.executable, "-W", "error", "-I", "-S", "-c", f"import sys; sys.path.append({str(thin)!r})\n{code}"]
    done = subprocess.run(command, cwd=thin, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_thin_client_has_every_public_name(thin: Path) -> None:
    names = run_thin(thin, "import llmaas\nfor name in llmaas.__all__: print(name, getattr(llmaas, name) is not None)")
    assert names.split() == [word for name in llmaas.__all__ for word in (name, "True")]
    assert not (thin / "llmaas" / "cli").exists()


def test_the_thin_client_is_small_and_says_what_it_needs(thin: Path) -> None:
    files = [path for path in thin.rglob("*") if path.is_file() and "msgpack" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 1_000_000
    (found,) = metadata.distributions(path=[str(thin)])
    assert (found.metadata["Name"], found.version) == ("llmaas-client", llmaas.__version__)
    wanted = metadata.requires("llmaas") or []
    assert found.requires
    assert [r for r in found.requires if r not in [w.replace('"', "'") for w in wanted]] == []


def test_the_example_of_the_readme_runs_with_the_thin_client(thin: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    socket = tmp_path / "llmaas.sock"
    with serving_in_a_thread(socket):
        assert run_thin(thin, code, LLMAAS_SOCKET=str(socket)) == "0 \n0 0\n"


def test_the_same_sources_make_the_same_wheel(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pip("wheel", "--wheel-dir", name, str(ROOT / "client"), cwd=tmp_path)
    first, second = (next((tmp_path / name).iterdir()).read_bytes() for name in ("a", "b"))
    assert first == second


@pytest.mark.slow
def test_the_source_distribution_builds_a_wheel_for_every_python_of_the_platform(tmp_path: Path) -> None:
    if int(metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("scripts/setup installs a setuptools that can build it")
    build = "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in tracked.decode().split("\0")[:-1]:
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).write_bytes((ROOT / name).read_bytes())
    made = tmp_path / "made"
    subprocess.run([sys.executable, "-c", build, "build_sdist", str(made)], cwd=tmp_path / "src", check=True)
    subprocess.run(["tar", "-xf", *made.iterdir(), "-C", str(tmp_path)], check=True)
    (source,) = tmp_path.glob("llmaas-*")
    missing = [name for name in tracked.decode().split("\0")[:-1] if not (source / name).exists()]
    assert [name for name in missing if not name.startswith(".")] == []
    subprocess.run([sys.executable, "-c", build, "build_wheel", str(made)], cwd=source, check=True, timeout=170)
    (wheel,) = made.glob("*.whl")
    assert re.fullmatch(rf"llmaas-{re.escape(llmaas.__version__)}-py3-none-linux_\w+\.whl", wheel.name)
    built = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")}
    assert built == C_LIBRARIES
