"""`python -m benchmarks` asks the only question there is so far."""

from __future__ import annotations

from benchmarks.throughput import main

main()
