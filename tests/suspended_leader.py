"""A leader in a process of its own, to be suspended: `python -m tests.suspended_leader URL SCHEMA [unguarded]`.

Its one service writes its term into `<schema>.ledger` whenever it wakes. It says what happens, a word a line.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

import sqlalchemy as sa

from riverq.database import Database
from riverq.driver import load_driver
from riverq.elector import Elector, ElectorTiming, NotLeadingError, Term
from riverq.service import ServiceContext
from tests.fix_database import adapter_url

QUICK = ElectorTiming(
    interval=timedelta(milliseconds=300), ttl=timedelta(milliseconds=1500), trust_margin=timedelta(milliseconds=300)
)
NAP = 0.2


def say(word: str) -> None:
    print(word, flush=True)


async def lead(url: str, schema: str, *, guarded: bool) -> None:
    engine = sa.create_engine(adapter_url(url, "psycopg"))
    db = Database(engine, load_driver(engine), schema=schema)
    elector = Elector(ServiceContext(client_id="suspended"), db.limited(1), None, timing=QUICK)
    over = asyncio.Event()
    writing: list[asyncio.Task[None]] = []

    def write(conn: sa.Connection, schema: str, term: Term) -> None:
        if guarded:
            elector.check_leading()
        conn.execute(sa.text(f'INSERT INTO "{schema}".ledger VALUES (:at)'), {"at": term.elected_at})

    async def service(term: Term) -> None:
        while True:
            await db.run(write, term)
            say("napping")
            await asyncio.sleep(NAP)

    async def gained(term: Term) -> None:
        writing.append(asyncio.create_task(service(term)))

    async def lost() -> None:
        # A service that takes its time to end, and would write meanwhile; one that is refused has ended by itself.
        await asyncio.wait(writing, timeout=20.0 if guarded else 2 * NAP)
        for task in writing:
            task.cancel()
        results = await asyncio.gather(*writing, return_exceptions=True)
        say("refused" if any(isinstance(result, NotLeadingError) for result in results) else "cancelled")
        over.set()

    elector.on_gained, elector.on_lost = gained, lost
    await elector.start()
    await over.wait()
    await elector.stop()
    await db.close()


if __name__ == "__main__":
    asyncio.run(lead(sys.argv[1], sys.argv[2], guarded="unguarded" not in sys.argv))
