"""One transaction of riverq's own on the application's engine, and database errors in riverq's words.

A COMMIT whose answer is lost is not a failure and not a success; it gets an exception class of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, Engine, RootTransaction
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from riverq.database import translate, translating
from riverq.driver import AnyEngine, Driver
from riverq.errors import MayBeCommittedError, UnavailableError, UsageError

T = TypeVar("T")

MAY_BE_COMMITTED = (
    "the connection broke while committing, so the jobs may be inserted, or what else was asked for be done, or not "
    "(insert again with a unique key if a second job would do harm; other calls may simply be made again)"
)


def in_transaction(engine: AnyEngine, driver: Driver, fn: Callable[[Connection], T]) -> T:
    """Call `fn` in a transaction on a sync engine, and commit it."""
    if not isinstance(engine, Engine):
        raise UsageError(f"a sync transaction needs an Engine, got: {engine!r}")
    with translating(driver), engine.connect() as conn:
        return _commit(conn, driver, fn)


async def in_transaction_async(engine: AnyEngine, driver: Driver, fn: Callable[[Connection], T]) -> T:
    """Call `fn` in a transaction on an async engine, and commit it."""
    if not isinstance(engine, AsyncEngine):
        raise UsageError(f"an async transaction needs an AsyncEngine, got: {engine!r}")
    with translating(driver):
        async with engine.connect() as conn:
            return await conn.run_sync(_commit, driver, fn)


def _commit(conn: Connection, driver: Driver, fn: Callable[[Connection], T]) -> T:
    transaction: RootTransaction = conn.begin()
    try:
        result = fn(conn)
    except BaseException:
        transaction.rollback()
        raise
    try:
        transaction.commit()
    except SQLAlchemyError as error:
        told = translate(error, driver)
        if isinstance(told, UnavailableError):
            raise MayBeCommittedError(MAY_BE_COMMITTED, told.sqlstate) from error
        raise told from error
    return result
