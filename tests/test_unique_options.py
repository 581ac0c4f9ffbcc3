"""Which fields make the key, which options can be, and what holds for all keys."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from riverq.codec import encode
from riverq.errors import ConfigError
from riverq.job import JobState
from riverq.job_args import job_args, spec_of
from riverq.unique import (
    DEFAULT_STATES,
    REQUIRED_STATES,
    UniqueOpts,
    state_mask,
    states_of_mask,
    unique,
    unique_paths,
    unique_text,
)
from tests.test_unique import BY_ARGS, NOW, Nested, Plain, SelectedModel, text_of


@dataclass
class Party:
    name: str = ""
    id: Annotated[str, unique] = ""


@dataclass
class Order:
    buyer: Party | None = None
    whole: Annotated[Nested | None, unique] = None
    many: Annotated[list[Party], unique] = field(default_factory=list)


@dataclass
class Transfer:
    payer: Party = field(default_factory=Party)
    payee: Party = field(default_factory=Party)


@dataclass
class MarkedTransfer:
    payer: Annotated[Party, unique] = field(default_factory=Party)
    payee: Annotated[Party, unique] = field(default_factory=Party)


@dataclass
class Tree:
    name: Annotated[str, unique]
    left: Tree | None = None
    right: Annotated[Tree | None, unique] = None


@dataclass
class Base:
    tenant: Annotated[str, unique] = ""


@dataclass
class Derived(Base):
    body: str = ""


def test_marked_fields_become_paths() -> None:
    assert unique_paths(Order) == (("buyer", "id"), ("many",), ("whole",))
    assert unique_paths(Derived) == (("tenant",),)
    assert unique_paths(Plain) == ()
    assert unique_paths(SelectedModel) == (("path/key",),)


def test_recursion_ends_and_a_marked_field_of_the_same_class_counts_whole() -> None:
    assert unique_paths(Tree) == (("name",), ("right",))


def test_a_second_field_of_one_class_counts_as_rivers_does(caplog: pytest.LogCaptureFixture) -> None:
    assert unique_paths(MarkedTransfer) == (("payee",), ("payer", "id"))
    assert caplog.text == ""
    assert unique_paths(Transfer) == (("payer", "id"),)
    assert "Transfer: Leaving field payee out of unique keys" in caplog.text


def test_null_is_present_and_a_path_through_null_is_not() -> None:
    assert text_of(Order(), "k", BY_ARGS) == '&kind=k&args={"many":[],"whole":null}'


# -- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exclude_kind": True}, "exclude_kind alone"),
        ({"exclude_kind": True, "by_state": list(JobState)}, "exclude_kind alone"),
        ({"by_period": timedelta(milliseconds=999)}, "by_period to be at least 1 s"),
        ({"by_period": 60}, "timedelta"),
        ({"by_args": 1}, "by_args"),
        ({"by_state": [JobState.AVAILABLE, JobState.RUNNING]}, "missing: pending, scheduled"),
        ({"by_state": []}, "missing: available, pending, running, scheduled"),
        ({"by_state": ["asleep"]}, "by_state to hold job states"),
        ({"by_state": 5}, "by_state to hold job states"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        UniqueOpts(**options)


def test_states_and_masks_are_gos() -> None:
    five = DEFAULT_STATES - {JobState.RETRYABLE}
    assert [state_mask(states) for states in (DEFAULT_STATES, five, REQUIRED_STATES, JobState)] == [245, 213, 209, 255]
    assert f"{UniqueOpts(by_args=True).mask:08b}" == "11110101"
    assert f"{UniqueOpts(by_state=(state for state in five)).mask:08b}" == "11010101"
    assert f"{UniqueOpts(by_state=[*REQUIRED_STATES, *REQUIRED_STATES]).mask:08b}" == "11010001"
    assert all(states_of_mask(state_mask([state])) == {state} for state in JobState)


def test_emptiness_and_equality() -> None:
    assert UniqueOpts().is_empty
    assert not UniqueOpts(by_state=JobState).is_empty
    assert UniqueOpts(by_state=iter(JobState)) == UniqueOpts(by_state=list(JobState))
    assert hash(UniqueOpts(by_state=list(JobState))) == hash(UniqueOpts(by_state=JobState))


# -- properties

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.dictionaries(TEXT, st.integers() | TEXT, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_insertion_does_not_matter(args: dict[str, Any], rng: Any) -> None:
    shuffled = list(args.items())
    rng.shuffle(shuffled)
    texts = {
        unique_text(BY_ARGS, kind="k", encoded_args=encode(OrderedDict(pairs)), paths=(), at=NOW, queue="q")
        for pairs in (args.items(), shuffled)
    }
    assert len(texts) == 1


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001  # the zone is beside
    st.timedeltas(timedelta(seconds=1), timedelta(days=400)),
)
def test_a_period_starts_before_its_time_and_ends_after(at: datetime, length: timedelta) -> None:
    text = unique_text(UniqueOpts(by_period=length), kind="k", encoded_args="{}", paths=(), at=at, queue="q")
    start = datetime.fromisoformat(text.partition("&period=")[2])
    assert start <= at < start + length + timedelta(seconds=1)


@job_args("unique_declared", unique_opts=UniqueOpts(by_args=True))
@dataclass
class Declared:
    a: int = 1


def test_options_of_the_class_are_kept() -> None:
    assert spec_of(Declared).defaults == {"unique_opts": UniqueOpts(by_args=True)}
