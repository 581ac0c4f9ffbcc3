"""`riverq demo` as a person runs it: what it says, how it ends, and what it leaves behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from datetime import timedelta

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier
from sqlalchemy.orm import Session

from riverq import migrate
from riverq.demo.jobs import SCHEMA, Base, SourceFile
from riverq.demo.show import Tally, print_results

pytestmark = pytest.mark.slow  # the whole demo, with a worker that is killed


def demo(url: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "riverq", "demo", "--database-url", url, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "80"},
    )


def schemas(url: str) -> list[str]:
    with psycopg.connect(url) as conn:
        rows = conn.execute("SELECT nspname FROM pg_namespace WHERE nspname = %s", (SCHEMA,)).fetchall()
    return [str(row[0]) for row in rows]


def test_adds_up_and_leaves_nothing(fresh_database: str) -> None:
    process = demo(fresh_database, "--files", "150")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    crash, last = out.strip().splitlines()[-2:]
    counted = re.fullmatch(r"demo: 150 files, 151 jobs completed, 1 duplicate skipped, (\d) retried, 0 lost", last)
    assert counted, last
    died = re.fullmatch(r"demo: psycopg killed half-way with (\d) jobs? running; back after [\d.]+ s", crash)
    assert died, crash
    assert int(died[1]) > 0
    assert int(counted[1]) <= 2, "at most two files fail at first, and those of the dead are not counted"
    assert all(len(line) <= 80 for line in out.splitlines())
    assert schemas(fresh_database) == []


def test_an_interrupt_leaves_nothing(fresh_database: str) -> None:
    process = demo(fresh_database)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("demo: indexing"):
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert schemas(fresh_database) == []
    with psycopg.connect(fresh_database, application_name="asking") as conn:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        for _ in range(250):  # the server notices closed connections a moment later
            if (left := conn.execute(others).fetchone()) == (0,):
                break
            conn.execute("SELECT pg_sleep(0.02), pg_stat_clear_snapshot()")
    assert left == (0,)


def test_a_database_that_is_missing_gets_one_sentence(fresh_database: str) -> None:
    missing = sa.make_url(fresh_database).set(database="no_such_database").render_as_string(hide_password=False)
    process = demo(missing)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in out + err
    assert len(err.strip().splitlines()) == 1
    assert "no_such_database" in err


@pytest.mark.parametrize("spoil", ["job", "file"])
def test_what_does_not_add_up_is_said(fresh_database: str, spoil: str, capsys: pytest.CaptureFixture[str]) -> None:
    engine = sa.create_engine(sa.make_url(fresh_database).set(drivername="postgresql+psycopg"))
    with psycopg.connect(fresh_database, autocommit=True) as conn:
        conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(SCHEMA)))
        migrate.up(engine, schema=SCHEMA)
        Base.metadata.create_all(engine)
        conn.execute(
            SQL(
                "INSERT INTO {}.river_job (args, kind, state, finalized_at) SELECT '{{}}', 'x', 'completed', now() "
                "FROM generate_series(1, 3)"
            ).format(Identifier(SCHEMA))
        )
        if spoil == "job":
            conn.execute(
                SQL("UPDATE {}.river_job SET state = 'available', finalized_at = NULL WHERE id = 1").format(
                    Identifier(SCHEMA)
                )
            )
    with Session(engine) as session, session.begin():
        counted = SourceFile(path="a.py", package="p", lines=1, functions=1, imports=1, worked_by="asyncpg")
        other = SourceFile(path="b.py", package="p", lines=None if spoil == "file" else 2)
        session.add_all([counted, other])
    tally = Tally.read(engine, files=2, inserted=3, duplicates=1)
    print_results(engine, timedelta(seconds=1))
    engine.dispose()
    assert not tally.adds_up
    assert tally.sentence().endswith("1 lost")
    assert "everything" in capsys.readouterr().out
