"""Parts of bench/replay.py: the work that is replayed, the programs that do it, what is measured, and the report."""
