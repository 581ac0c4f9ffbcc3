"""Array literals, read back by the server through every adapter."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql as pg

from riverq.query.array import bytea_array, integer_array, text_array
from riverq.query.statement import Statement, array_param, catalog
from tests.fix_database import Transact

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
AWKWARD = st.sampled_from(
    ["", "NULL", "null", "{}", "{", "}", ",", '"', "\\", '\\"', " ", "\n\t", "é☃𝄞", "%s", ":x", "$1"]
)
SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_back(of: Any) -> Statement:
    array = sa.cast(array_param("x", of), pg.ARRAY(sa.Text()))
    return Statement(lambda _: sa.select(sa.cast(catalog.array_to_json(array), sa.Text())))


TEXTS = read_back(sa.Text())
INTEGERS = read_back(sa.BigInteger())
BYTES = read_back(pg.BYTEA())
JSONBS = read_back(pg.JSONB())


def elements(transact: Transact, adapter: str, statement: Statement, literal: str) -> list[Any]:
    text = transact(adapter, lambda conn: statement.execute(conn, "any", x=literal).scalar_one())
    found: list[Any] = json.loads(text)
    return found


@SETTINGS
@given(values=st.lists(st.none() | AWKWARD | TEXT, max_size=30))
def test_texts_come_back_as_they_were(transact: Transact, adapter: str, values: list[str | None]) -> None:
    assert elements(transact, adapter, TEXTS, text_array(values)) == values


@SETTINGS
@given(values=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=30))
def test_integers_come_back_as_they_were(transact: Transact, adapter: str, values: list[int | None]) -> None:
    found = elements(transact, adapter, INTEGERS, integer_array(values))
    assert found == [None if value is None else str(value) for value in values]


@SETTINGS
@given(values=st.lists(st.none() | st.binary(max_size=40), max_size=30))
def test_bytes_come_back_as_they_were(transact: Transact, adapter: str, values: list[bytes | None]) -> None:
    found = elements(transact, adapter, BYTES, bytea_array(values))
    assert found == [None if value is None else "\\x" + value.hex() for value in values]


@SETTINGS
@given(values=st.lists(st.none() | AWKWARD | TEXT, max_size=30))
def test_a_missing_jsonb_is_null_and_not_json_null(transact: Transact, adapter: str, values: list[str | None]) -> None:
    literal = text_array(None if value is None else json.dumps({"x": value}) for value in values)
    found = elements(transact, adapter, JSONBS, literal)
    assert [None if each is None else json.loads(each)["x"] for each in found] == values
