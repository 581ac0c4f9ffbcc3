"""`Client` and `AsyncClient` are one interface: the same methods with the same parameters."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import riverq

ASYNC_WORDS = re.compile(r"\b(?:async_|Async|Sync)(?=\w)|(?<=\bAbstract)Async|(?<=\bAsync)Any(?=Session)")
AWAITABLE = re.compile(r"\bAwaitable\[(.*)\]")


def _faces() -> tuple[type[Any], type[Any]]:
    sync, async_ = getattr(riverq, "Client", None), getattr(riverq, "AsyncClient", None)
    if sync is None or async_ is None:
        pytest.skip("riverq has no Client yet")
    return sync, async_


def _public(face: type[Any]) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(face) if not name.startswith("_")}


def _as_sync(annotation: object) -> str:
    """An annotation as text, with every async word turned into its sync one."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", None) or str(annotation)
    return AWAITABLE.sub(r"\1", ASYNC_WORDS.sub("", text.replace(" ", "")))


def _shape(member: object) -> list[tuple[str, Any, Any, str]]:
    parameters = inspect.signature(member).parameters.values()  # type: ignore[arg-type]  # filtered by its caller
    return [(p.name, p.kind, p.default, _as_sync(p.annotation)) for p in parameters]


def test_both_faces_have_the_same_names() -> None:
    sync, async_ = _faces()
    assert set(_public(sync)) == set(_public(async_))


def test_both_faces_take_the_same_parameters() -> None:
    sync, async_ = _faces()
    twins = _public(async_)
    for name, member in {"__init__": sync.__init__, **_public(sync)}.items():
        twin = async_.__init__ if name == "__init__" else twins.get(name)
        if callable(member) and callable(twin):
            assert _shape(member) == _shape(twin), f"{name} differs between Client and AsyncClient"
            is_async = inspect.iscoroutinefunction(twin) or not inspect.iscoroutinefunction(member)
            assert is_async, f"Client.{name} is async"
        else:
            assert type(member) is type(twin), f"{name} is a method on one face only"


def test_both_faces_return_the_same() -> None:
    sync, async_ = _faces()
    twins = _public(async_)
    for name, member in _public(sync).items():
        if inspect.isfunction(member) and inspect.isfunction(twins.get(name)):
            returned = inspect.signature(member).return_annotation, inspect.signature(twins[name]).return_annotation
            assert _as_sync(returned[0]) == _as_sync(returned[1]), f"{name} returns something else"
