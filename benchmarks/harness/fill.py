"""Fills template databases: each contender its own tables and backlog, and for River's tables what growth asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from benchmarks.harness.cell import Content
from benchmarks.harness.process import ChildProcess

if TYPE_CHECKING:
    from benchmarks.contenders.registry import Contender
    from benchmarks.harness.server import Server

FILL_SECONDS = 600.0

APP_TABLE = "CREATE TABLE bench_app (id bigserial PRIMARY KEY, number bigint NOT NULL)"

# Values spread as in a table that is used: 100 000 different args, hours of finishing times.
FINISHED = """
    INSERT INTO river_job (state, attempt, attempted_at, attempted_by, created_at, finalized_at, scheduled_at, args,
                           kind, max_attempts, queue)
    SELECT 'completed', 1, t, '{bench}', t, t, t,
           jsonb_build_object('number', n % 100000, 'at', 0), 'finished', 25, 'default'
    FROM generate_series(1, {}) n, LATERAL (SELECT now() - n * interval '1.44 ms' AS t) x
"""
IDLE = """
    INSERT INTO river_job (state, args, kind, max_attempts, queue, scheduled_at)
    SELECT 'available', jsonb_build_object('number', n % 100000, 'at', 0), 'idle', 25, 'nobody', now()
    FROM generate_series(1, {}) n
"""
UNKNOWN = """
    INSERT INTO river_job (state, args, kind, max_attempts, queue, scheduled_at)
    SELECT 'available', jsonb_build_object('number', n % 100000, 'at', 0), 'unknown', 25, 'default',
           now() - interval '1 hour'
    FROM generate_series(1, {}) n
"""


def fill_template(
    server: Server, name: str, contender: Contender, filler: Contender, content: Content, log: Path
) -> None:
    """Make the tables of `filler`'s family in the empty database `name`, and put `content` in."""
    url = server.url(name)
    run_child(filler, {"task": "migrate", "url": url, "settings": "default"}, log)
    with psycopg.connect(server.url(name, user="postgres"), autocommit=True) as conn:
        conn.execute(APP_TABLE)
        if contender.family == "river":
            _fill_river(conn, content)
        elif any(content.counts[1:]):
            raise ValueError(f"only River's tables can be grown, not those of {contender.family}")
    if content.backlog:
        run_child(filler, {"task": "fill", "url": url, "settings": "default", "count": content.backlog}, log)


def run_child(contender: Contender, task: dict[str, object], log: Path) -> None:
    """A task that is not measured."""
    from benchmarks.contenders.registry import ROOT

    with ChildProcess(contender.command(), {**task, **contender.extra}, log, ROOT) as child:
        child.ready()
        child.go()
        child.expect("result", FILL_SECONDS)


def _fill_river(conn: psycopg.Connection[tuple[object, ...]], content: Content) -> None:
    """Without the indexes, which are made again afterwards, much quicker for millions of rows."""
    queries = [(FINISHED, content.finished), (IDLE, content.idle), (UNKNOWN, content.unknown)]
    if not any(count for _, count in queries):
        return
    indexes = conn.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'river_job' AND indexname <> 'river_job_pkey'"
    ).fetchall()
    for index, _ in indexes:
        conn.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(str(index))))
    for query, count in queries:
        if count:
            conn.execute(query.replace("{}", str(count)).encode())
    for _, definition in indexes:
        conn.execute(str(definition).encode())
