"""The isolation levels that engines are given in tests, as parameters.

SQLAlchemy's dialect of pg8000 sets them for the session. In transaction mode that stays on a server's connection, where
it is not this client's any more and meets whoever comes next.
"""

from __future__ import annotations

import pytest

REPEATABLE_READ, SERIALIZABLE = (
    pytest.param(level, marks=pytest.mark.own_session("the level that its engine sets"))
    for level in ("REPEATABLE READ", "SERIALIZABLE")
)
