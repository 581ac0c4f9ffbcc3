"""What pg8000's exceptions say: the SQLSTATE, and whether the connection is gone."""

from __future__ import annotations

from pg8000.exceptions import InterfaceError

# pg8000 has one class for all it finds wrong itself, lost connections and misuse alike; only its own words tell them
# apart. They are constants in its source, never the server's.
_LOST = frozenset({"network error", "communication error", "connection is closed"})


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE out of the dictionary in which pg8000 keeps the server's answer; None when there was no answer.

    SQLAlchemy cannot map pg8000's classes by meaning: a broken constraint may come as a ProgrammingError.
    """
    fields = error.args[0] if error.args else None
    return fields.get("C") if isinstance(fields, dict) else None


def is_disconnect(error: BaseException) -> bool:
    """True when pg8000 lost its connection, or could not make one."""
    if isinstance(error, OSError):
        return True
    if not isinstance(error, InterfaceError):
        return False
    return isinstance(error.__cause__, OSError) or (bool(error.args) and error.args[0] in _LOST)
