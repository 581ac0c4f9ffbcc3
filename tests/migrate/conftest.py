from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa

from tests.migrate.ways import Place


@pytest.fixture
def place(database_url: str) -> Iterator[Place]:
    """An empty database of the test's own."""
    name = f"riverq_migrate_{uuid4().hex[:12]}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            url = sa.make_url(database_url).set(drivername="postgresql", database=name)
            yield Place(url.render_as_string(hide_password=False))
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
