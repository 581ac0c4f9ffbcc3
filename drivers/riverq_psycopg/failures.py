"""What psycopg's exceptions say: the SQLSTATE, and whether the connection is gone."""

from __future__ import annotations

import psycopg


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of a psycopg exception; None where the server did not answer, as when connecting failed."""
    return error.sqlstate if isinstance(error, psycopg.Error) else None


def is_disconnect(error: BaseException) -> bool:
    """True for an operational error without a SQLSTATE, which is one that libpq made itself.

    A refused password looks the same: libpq has no result to take a code from when connecting fails.
    """
    return isinstance(error, psycopg.OperationalError) and error.sqlstate is None
