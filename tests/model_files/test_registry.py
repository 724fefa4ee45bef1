"""The registry of models: a small file that is replaced as a whole, and never silently empty."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmaas.data_folder import REGISTRY, STORES, beside, main_folder
from llmaas.errors import BadRequest, UnknownModel
from llmaas.model_files.entry import ModelEntry, check_name, entry_of
from llmaas.model_files.registry import MOST_MODELS, ModelRegistry, RegistryDamaged


def entry(name: str, **fields: object) -> ModelEntry:
    return ModelEntry(name, Path(f"/models/{name}.gguf"), 100, **fields)  # type: ignore[arg-type]


def test_models_are_kept_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path / "data")
    assert registry.read().entries == ()
    first = registry.add(entry("a", settings={"cells": "4096"}, pinned=True))
    second = registry.add(entry("b", source="https://example.org/b.gguf", sha256="ab"))
    found = ModelRegistry(tmp_path / "data").read()
    assert found.entries == (first, second) and found.default == "a"
    assert first.store == "" and second.store == f"{STORES}/b"
    assert registry.store_of(first) == tmp_path / "data"
    assert registry.store_of(second) == tmp_path / "data" / STORES / "b"
    assert registry.path.stat().st_mode & 0o777 == 0o600 and registry.root.stat().st_mode & 0o777 == 0o700


def test_a_model_of_the_same_name_takes_the_place_and_the_contexts_of_the_one_before(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    for name in "abc":
        registry.add(entry(name))
    changed = registry.add(ModelEntry("b", Path("/other.gguf"), 5))
    assert changed.store == f"{STORES}/b"
    assert [each.file.name for each in registry.read().entries] == ["a.gguf", "other.gguf", "c.gguf"]


def test_a_model_that_comes_back_finds_its_contexts(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    registry.add(entry("a"))
    folder = registry.store_of(registry.add(entry("b")))
    folder.mkdir(parents=True)
    registry.remove("b")
    registry.remove("a")
    assert registry.read().default == ""
    assert registry.add(entry("b")).store == f"{STORES}/b"
    assert registry.add(entry("a")).store == ""


def test_the_default_model_is_the_first_until_another_is_made_it(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    for name in "abc":
        registry.add(entry(name))
    registry.set_default("c")
    assert registry.read().find("").name == "c"
    registry.remove("c")
    assert registry.read().find("").name == "a"
    with pytest.raises(UnknownModel, match="there are: a, b"):
        registry.set_default("c")


def test_a_model_may_be_called_by_its_file_but_names_go_first(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    registry.add(entry("a"))
    registry.add(ModelEntry("b", Path("/models/Mix-Q4.gguf"), 1))
    registry.add(ModelEntry("Mix-Q4", Path("/models/a.gguf"), 1))
    models = registry.read()
    assert models.find("Mix-Q4").name == "Mix-Q4"
    assert models.find("Mix-Q4.gguf").name == "b"


@pytest.mark.parametrize("name", ["", "a b", "../x", ".hidden", "x" * 65, "all", "none", "default", "a/b"])
def test_names_that_lead_elsewhere_or_mean_something_else_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadRequest, match="name"):
        ModelRegistry(tmp_path).add(entry(name))
    assert not (tmp_path / REGISTRY).exists()


def test_there_are_no_more_models_than_anyone_needs(tmp_path: Path) -> None:
    registry = ModelRegistry(tmp_path)
    for i in range(MOST_MODELS):
        registry.add(entry(f"m{i}"))
    with pytest.raises(BadRequest, match="already"):
        registry.add(entry("more"))
    registry.add(entry("m3"))


def test_two_commands_at_once_lose_nothing(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: ModelRegistry(tmp_path).add(entry(f"m{i}")), range(24)))
    models = ModelRegistry(tmp_path).read()
    assert sorted(each.name for each in models.entries) == sorted(f"m{i}" for i in range(24))
    assert sum(each.store == "" for each in models.entries) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 2, "models": [], "default": ""}',
        '{"version": 1}',
        '{"version": 1, "default": "", "models": [{"name": "a"}]}',
        '{"version": 1, "default": "", "models": [{"name": "../a", "file": "/a", "size_bytes": 1}]}',
        '{"version": 1, "default": "", "models": [{"name": "a", "file": "relative", "size_bytes": 1}]}',
        '{"version": 1, "default": "", "models": [{"name": "a", "file": "/a", "size_bytes": 1, "store": "../../x"}]}',
    ],
)
def test_a_damaged_registry_is_an_error_and_stays_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / REGISTRY).write_text(text)
    registry = ModelRegistry(tmp_path)
    for attempt in (registry.read, lambda: registry.add(entry("a"))):
        with pytest.raises(RegistryDamaged):
            attempt()
    assert (tmp_path / REGISTRY).read_text() == text


def test_a_registry_that_is_a_fifo_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / REGISTRY)
    with pytest.raises(RegistryDamaged, match="regular"):
        ModelRegistry(tmp_path).read()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda each: (
            st.dictionaries(
                st.sampled_from(["name", "file", "size_bytes", "store", "settings", "pinned", "sha256"]),
                each,
                max_size=4,
            )
            | st.lists(each, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_whatever_the_file_holds_is_an_entry_or_one_of_few_errors(value: object) -> None:
    try:
        found = entry_of(value)
    except (ValueError, TypeError, KeyError, AttributeError, BadRequest):
        return
    check_name(found.name)
    assert found.file.is_absolute()
    assert entry_of(json.loads(json.dumps(found.as_map()))) == found


def test_what_belongs_to_the_data_folder_is_found_from_each_store(tmp_path: Path) -> None:
    store = tmp_path / "data" / STORES / "b"
    assert main_folder(store) == store, "a folder that only has the name is nobody's"
    ModelRegistry(tmp_path / "data").add(entry("a"))
    assert main_folder(store) == tmp_path / "data" == main_folder(tmp_path / "data")
    assert beside(store, ".key") == tmp_path / "data.key"
