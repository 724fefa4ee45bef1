"""Benches: programs that measure llmaas on this machine, each as ``python -m bench.NAME`` (bench/README.md)."""
