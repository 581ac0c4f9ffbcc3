"""The questions in the order in which a full run asks them: what matters most first, the longest last."""

from __future__ import annotations

from benchmarks.questions import growth, horizon, insert, latency, pgbouncer, scale, throughput

QUESTIONS = {
    module.__name__.rpartition(".")[2]: module
    for module in (throughput, insert, latency, scale, pgbouncer, growth, horizon)
}
