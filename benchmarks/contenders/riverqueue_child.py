"""River's own insert-only Python client as a contender, on its SQLAlchemy driver; the tables are River's."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from benchmarks.contenders.child import Child, Unsupported, main

NOTES = {
    "tuned": "AsyncClient on SQLAlchemy and asyncpg, uvloop",
    "default": "Client on SQLAlchemy and psycopg, as its documentation begins",
    "unequal": "inserts only, has no COPY, and sends no notification, so that workers find its jobs by polling",
}

Insert = Callable[[int], Awaitable[object]]


@dataclass
class BenchArgs:
    """The job, as its documentation shows one."""

    number: int
    at: float = 0
    kind: str = "bench"

    def to_json(self) -> str:
        """The args."""
        return json.dumps({"number": self.number, "at": self.at})


def _batch(start: int, count: int) -> list[BenchArgs]:
    return [BenchArgs(number) for number in range(start, start + count)]


def _async_calls(url: str, size: int) -> dict[str, Insert]:
    sqlalchemy, riverqueue = import_module("sqlalchemy"), import_module("riverqueue")
    engine: Any = import_module("sqlalchemy.ext.asyncio").create_async_engine(url.replace("://", "+asyncpg://", 1))
    client: Any = riverqueue.AsyncClient(import_module("riverqueue.driver.riversqlalchemy").AsyncDriver(engine))
    app_insert = sqlalchemy.text("INSERT INTO bench_app (number) VALUES (:number)")

    async def single_tx(number: int) -> None:
        async with engine.begin() as connection:
            await connection.execute(app_insert, {"number": number})
            await client.insert_tx(connection, BenchArgs(number))

    return {
        "single": lambda number: client.insert(BenchArgs(number)),
        "single_tx": single_tx,
        "batch": lambda number: client.insert_many(_batch(number, size)),
    }


def _sync_calls(url: str, size: int) -> dict[str, Insert]:
    sqlalchemy, riverqueue = import_module("sqlalchemy"), import_module("riverqueue")
    engine: Any = sqlalchemy.create_engine(url.replace("://", "+psycopg://", 1))
    client: Any = riverqueue.Client(import_module("riverqueue.driver.riversqlalchemy").Driver(engine))
    app_insert = sqlalchemy.text("INSERT INTO bench_app (number) VALUES (:number)")

    async def single(number: int) -> None:
        client.insert(BenchArgs(number))

    async def single_tx(number: int) -> None:
        with engine.begin() as connection:
            connection.execute(app_insert, {"number": number})
            client.insert_tx(connection, BenchArgs(number))

    async def batch(number: int) -> None:
        client.insert_many(_batch(number, size))

    return {"single": single, "single_tx": single_tx, "batch": batch}


async def insert(child: Child) -> None:
    """One call after the other for some seconds."""
    mode, size = child.task["mode"], child.task.get("batch", 1)
    calls = (_async_calls if child.tuned else _sync_calls)(child.url, size)
    if mode not in calls:
        raise Unsupported(f"River's Python client has no {mode.upper()}")
    call, step, count = calls[mode], size if mode == "batch" else 1, 0
    await child.go()
    end = time.monotonic() + child.task["seconds"]
    while time.monotonic() < end:
        await call(count)
        count += step
    child.emit("result", count=count)


async def unsupported(child: Child) -> None:
    """All the other tasks."""
    raise Unsupported("River's Python client inserts only")


if __name__ == "__main__":
    main(
        {"insert": insert, "migrate": unsupported, "fill": unsupported, "work": unsupported, "latency": unsupported},
        uvloop=lambda task: task.get("settings") == "tuned",
    )
