"""What every verb of a client is made of: a function of a connection, checked before there is one.

A transaction that will be prepared for a two-phase commit cannot notify, and a change that no client hears of could go
unnoticed for minutes; such a session is refused before anything is written. Where the server has no NOTIFY there is
nothing to refuse: all clients poll.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from riverq.errors import SessionError
from riverq.job_list import LARGEST_ID
from riverq.query.notify import can_notify, has_notify
from riverq.validation import integer

T = TypeVar("T")

Verb = Callable[[Connection, str], T]
"""Called with a connection and the schema."""


def check_job_id(job_id: object) -> None:
    """Raises ConfigError for what cannot be a job's id."""
    integer("job_id", job_id, 1, LARGEST_ID)


def refuse_two_phase(conn: Connection) -> None:
    """Raises SessionError for a transaction that cannot notify where others can."""
    if has_notify(conn) and not can_notify(conn):
        raise SessionError(
            "a two-phase transaction cannot notify the clients (leave session= out, or give a session without twophase)"
        )
