"""`riverq queues`, `riverq leader` and `riverq periodic`: what they do to the tables, and what they answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from psycopg.sql import SQL, Identifier

import riverq
from riverq.cli.main import main
from riverq.query.leader import leader_attempt_elect, leader_resign
from riverq.query.periodic_job import periodic_job_create
from riverq.query.queue import queue_create_or_touch

Run = Callable[..., tuple[int, str, str]]
NEXT = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture(params=["psycopg", "asyncpg", "pg8000"])
def driver(request: pytest.FixtureRequest) -> str:
    """Those that a URL can name: async only where there is nothing else."""
    name: str = request.param
    return name


@pytest.fixture
def run(database_url: str, schema: str, driver: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command on the test's schema: its code, and what it printed."""
    url = sa.make_url(database_url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, "--database-url", url, "--schema", schema])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def queues(engine: sa.Engine, schema: str) -> tuple[str, ...]:
    with engine.begin() as conn:
        for name in ("default", "mail"):
            queue_create_or_touch(conn, schema, name)
    return ("default", "mail")


def paused(url: str, schema: str) -> list[str]:
    with psycopg.connect(url) as conn:
        query = SQL("SELECT name FROM {} WHERE paused_at IS NOT NULL ORDER BY name")
        return [str(row[0]) for row in conn.execute(query.format(Identifier(schema, "river_queue")))]


# -- queues


def test_no_queues_is_said(run: Run) -> None:
    assert run("queues", "list") == (0, "no queues yet (a queue appears when a client first works it)\n", "")
    assert run("queues", "list", "--json") == (0, "[]\n", "")


def test_queues_are_listed_paused_resumed_and_described(
    run: Run, queues: tuple[str, ...], engine: sa.Engine, database_url: str, schema: str
) -> None:
    assert run("queues", "pause", "mail") == (0, "queue 'mail' paused; jobs that run go on\n", "")
    assert paused(database_url, schema) == ["mail"]
    code, out, _ = run("queues", "update", "mail", "--metadata", '{"owner": "é"}')
    assert (code, out) == (0, 'queue \'mail\' updated; its metadata is now {"owner": "é"}\n')
    inserter = riverq.Client(engine, riverq.Config(schema=schema))
    inserter.insert_many([riverq.RawArgs("k", {}) for _ in range(3)])
    inserter.insert(riverq.RawArgs("k", {}), queue="mial")
    inserter.insert(riverq.RawArgs("k", {}), delay=timedelta(hours=1))
    head, first, second, note = run("queues", "list")[1].splitlines()
    assert head.split()[:3] == ["NAME", "AVAILABLE", "RUNNING"]
    assert first.split()[:4] == ["default", "3", "0", "-"]
    assert note == "(no client has worked queue 'mial'; jobs available there: 1)"
    assert second.endswith('{"owner": "é"}')
    listed = json.loads(run("queues", "list", "--json")[1])
    assert [queue["name"] for queue in listed] == ["default", "mail"]
    assert (listed[0]["available"], listed[0]["running"], listed[1]["available"]) == (3, 0, 0)
    assert listed[0]["paused_at"] is None
    assert datetime.fromisoformat(listed[1]["paused_at"]).tzinfo is not None
    assert listed[1]["metadata"] == {"owner": "é"}
    assert run("queues", "resume", "mail") == (0, "queue 'mail' resumed\n", "")
    assert paused(database_url, schema) == []


def test_a_star_means_all(run: Run, queues: tuple[str, ...], database_url: str, schema: str) -> None:
    assert run("queues", "pause", "*")[1] == "all queues paused; jobs that run go on\n"
    assert paused(database_url, schema) == list(queues)
    assert run("queues", "resume", "*")[1] == "all queues resumed\n"
    assert paused(database_url, schema) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--for", "1h30m"], "for 1:30:00"), (["--until", "2031-05-06T07:08:09Z"], "until 2031-05-06 07:08:09Z")],
)
def test_a_pause_may_have_an_end(
    run: Run, queues: tuple[str, ...], database_url: str, schema: str, arguments: list[str], words: str
) -> None:
    assert run("queues", "pause", "mail", *arguments)[1] == f"queue 'mail' paused {words}; jobs that run go on\n"
    with psycopg.connect(database_url) as conn:
        query = SQL("SELECT name, until, until - paused_at FROM {}").format(Identifier(schema, "riverq_queue"))
        ((name, until, lasting),) = conn.execute(query).fetchall()
    assert name == "mail"
    assert until == NEXT if "--until" in arguments else round(lasting / timedelta(minutes=1)) == 90


@pytest.mark.parametrize("command", [["pause"], ["resume"], ["update", "--metadata", "{}"]])
def test_an_unknown_queue_is_one_sentence(run: Run, queues: tuple[str, ...], command: list[str]) -> None:
    code, out, err = run("queues", *command, "mial")
    assert (code, out) == (1, "")
    assert err == "riverq: queue not found: 'mial' (a queue appears when a client first works it)\n"


# -- the leader


def test_nobody_leads(run: Run) -> None:
    assert run("leader", "show") == (1, "nobody leads\n", "")
    assert run("leader", "show", "--json") == (1, "null\n", "")
    assert run("leader", "resign") == (1, "", "riverq: nobody leads, so there is nobody to resign\n")


@pytest.mark.parametrize("over", [False, True])
def test_a_leader_is_shown_until_its_lease_ends(run: Run, engine: sa.Engine, schema: str, over: bool) -> None:
    begun = datetime.now(UTC) - timedelta(hours=1)
    with engine.begin() as conn:
        leader_attempt_elect(conn, schema, leader_id="web_1", ttl=timedelta(minutes=59 if over else 90), now=begun)
    code, out, _ = run("leader", "show")
    found = json.loads(run("leader", "show", "--json")[1])
    if over:
        assert (code, out, found) == (1, "nobody leads\n", None)
        return
    assert code == 0
    assert out.startswith(f"web_1 leads since {begun:%Y-%m-%d %H:%M:%S}Z; its lease ends ")
    assert found["leader_id"] == "web_1"
    assert datetime.fromisoformat(found["elected_at"]) == begun


class Leading(threading.Thread):
    """A leader that resigns when it hears that it is asked to, and bids at once under the name `then`, if any."""

    def __init__(self, engine: sa.Engine, url: str, schema: str, then: str | None) -> None:
        super().__init__(daemon=True)
        self._engine, self._schema, self._then = engine, schema, then
        self._heard = psycopg.connect(url, autocommit=True)
        self._heard.execute(SQL("LISTEN {}").format(Identifier(f"{schema}.river_leadership")))
        with engine.begin() as conn:
            self._term = leader_attempt_elect(conn, schema, leader_id="web_1", ttl=timedelta(hours=1))
        self.start()

    def run(self) -> None:
        (heard,) = self._heard.notifies(timeout=60, stop_after=1)
        assert json.loads(heard.payload)["action"] == "request_resign"
        assert self._term is not None
        with self._engine.begin() as conn:
            leader_resign(conn, self._schema, leader_id="web_1", elected_at=self._term.elected_at)
            if self._then is not None:
                leader_attempt_elect(conn, self._schema, leader_id=self._then, ttl=timedelta(hours=1))

    def end(self) -> None:
        self.join()
        self._heard.close()


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ("web_2", "web_1 has resigned; web_2 leads now\n"),
        ("web_1", "web_1 has resigned; web_1 leads now, which may bid like all the others\n"),
        (None, "web_1 has resigned; nobody has followed it yet\n"),
    ],
)
def test_a_resignation_is_asked_for_and_seen(
    run: Run,
    engine: sa.Engine,
    database_url: str,
    schema: str,
    monkeypatch: pytest.MonkeyPatch,
    then: str | None,
    words: str,
) -> None:
    monkeypatch.setattr("riverq.cli.leader.PATIENCE", 60.0 if then else 2.0)
    leading = Leading(engine, database_url, schema, then)
    assert run("leader", "resign") == (0, words, "")
    leading.end()


def test_a_leader_that_does_not_hear_is_told_of(
    run: Run, engine: sa.Engine, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("riverq.cli.leader.PATIENCE", 0.3)
    with engine.begin() as conn:
        leader_attempt_elect(conn, schema, leader_id="web_1", ttl=timedelta(hours=1))
    code, out, err = run("leader", "resign")
    assert (code, out) == (1, "")
    assert err.startswith("riverq: asked web_1 to resign, but it still leads (a leader that only polls does not hear")


# -- periodic jobs


def durable(engine: sa.Engine, schema: str, *names: str) -> None:
    with engine.begin() as conn:
        periodic_job_create(conn, schema, dict.fromkeys(names, NEXT))


def test_durable_rows_are_listed(run: Run, engine: sa.Engine, schema: str) -> None:
    assert run("periodic", "list")[1] == "no durable periodic jobs (with MODULE:ATTRIBUTE: all of a client)\n"
    durable(engine, schema, "daily", "weekly")
    _, first, second = run("periodic", "list")[1].splitlines()
    assert first.split()[:4] == ["daily", "2031-05-06", "07:08:09Z", "yes"]
    assert second.startswith("weekly")
    found = json.loads(run("periodic", "list", "--json")[1])
    assert [(row["id"], row["next_run_at"], row["registered"]) for row in found] == [
        ("daily", "2031-05-06T07:08:09Z", None),
        ("weekly", "2031-05-06T07:08:09Z", None),
    ]


def test_a_database_without_our_tables_gets_the_command(
    engine: sa.Engine, database_url: str, scratch_schema: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine.begin() as conn:
        conn.execute(sa.text(f'DROP TABLE "{scratch_schema}".riverq_periodic_job'))
    assert main(["periodic", "list", "--database-url", database_url, "--schema", scratch_schema]) == 1
    assert "riverq's own tables are missing" in capsys.readouterr().err


@pytest.mark.parametrize("client", ["periodic_client", "periodic_async_client"])
def test_with_a_client_what_it_has_registered_is_listed(
    engine: sa.Engine,
    database_url: str,
    schema: str,
    client: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("TEST_SCHEMA", schema)
    durable(engine, schema, "daily", "forgotten")
    assert main(["periodic", "list", f"tests.cli.app:{client}", "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["registered"], row["durable"]) for row in found] == [
        ("daily", True, True),
        ("hourly", True, False),
        (None, True, False),
        ("forgotten", False, True),
    ]
    assert [row["schedule"] for row in found] == ["0 9 * * *", "every 1:00:00", "never", None]
    assert found[0]["next_run_at"] == "2031-05-06T07:08:09Z"
    assert datetime.fromisoformat(found[1]["next_run_at"]) > datetime.now(UTC)
    assert found[2]["next_run_at"] is None
    assert main(["periodic", "list", f"tests.cli.app:{client}"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:3] == ["-", "never", "no"]
    assert "(not registered by this client)" in lines[3]


@pytest.mark.parametrize("command", [["queues", "list"], ["leader", "show"], ["periodic", "list"]])
def test_missing_tables_get_the_command(
    empty_schema: str, database_url: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--database-url", database_url, "--schema", empty_schema]) == 1
    assert f"(run: riverq migrate-up --schema {empty_schema})" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["queues", "list"], ["leader", "resign"], ["periodic", "list"]])
def test_a_server_that_is_not_there_is_one_sentence(
    driver: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--database-url", f"postgresql+{driver}://u:geheim@127.0.0.1:1/shop"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("riverq: ")
    assert shown.count("\n") == 1
    assert "geheim" not in shown
