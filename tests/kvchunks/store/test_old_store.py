"""A store that an earlier version wrote opens as it is: every token, every chunk, every key."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from llmaas.kvchunks.codec.header import check
from llmaas.kvchunks.store.master_key import MasterKey
from llmaas.kvchunks.store.store import Store
from llmaas.records import ChunkKey, ContextId

WRITTEN = Path(__file__).parents[2] / "data" / "version-0.1.0"


def test_a_store_of_an_earlier_version_opens_with_all_that_was_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(WRITTEN / "store.zip") as archive:
        archive.extractall(tmp_path)
    told = json.loads((WRITTEN / "store.json").read_text("utf-8"))
    for path in [tmp_path / "store", *(tmp_path / "store").rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    with Store(tmp_path / "store", master=MasterKey(bytes(32))) as store:
        assert store.check().problems == ()
        rows = {str(row.id): row for row in store.contexts()}
        assert rows.keys() == {context["id"] for context in told["contexts"]}
        for context in told["contexts"]:
            row = rows[context["id"]]
            assert (row.app, row.name, row.adapter) == (context["app"], context["name"], context["adapter"])
            assert list(store.tokens(ContextId(row.id))) == context["tokens"]
        chunks = sorted((chunk.key.hex(), chunk.nbytes) for chunk in store.chunks())
        assert chunks == [tuple(chunk) for chunk in told["chunks"]]
        keys = [ChunkKey(bytes.fromhex(key)) for key, _ in chunks]
        for key, payload in zip(keys, store.get(keys), strict=True):
            assert payload is not None
            check(payload, key)
