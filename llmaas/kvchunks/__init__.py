"""The chunk rooms: name a chunk (keys), code it (codec), know where it is (ledger), keep it (store, pool)."""
