"""A notification that nobody asked for: behind a pooler another client's LISTEN may be left on the server."""

from __future__ import annotations

import sqlalchemy as sa

from riverq.database import Database
from tests.drivers.adapters import dispose, driver_engine


async def test_what_others_listen_to_disturbs_no_transaction(adapter: str, database_url: str) -> None:
    driver = driver_engine(adapter, database_url, pool_size=1, max_overflow=0)
    database = Database(driver.engine, driver, schema="public", owns_engine=False)

    def listen(conn: sa.Connection, _schema: str) -> None:
        conn.exec_driver_sql("LISTEN overheard")

    def notify(conn: sa.Connection, _schema: str) -> int:
        conn.exec_driver_sql("NOTIFY overheard, 'Grüße'")
        return 1

    def select(conn: sa.Connection, _schema: str) -> int:
        return int(conn.exec_driver_sql("SELECT 2").scalar_one())

    try:
        await database.run(listen)
        assert await database.run(notify) == 1
        assert await database.run(select) == 2
    finally:
        await database.close()
        await dispose(driver.engine)
