"""How a client reads jobs: one, a page, or all that match."""

from __future__ import annotations

from typing import TypeVar

from riverq.client.session import AsyncAnySession, SyncSession
from riverq.client.verb import Verb

T = TypeVar("T")


class ListVerbs:
    """The reading verbs of `Client`."""

    def _control(self, session: SyncSession | None, verb: Verb[T]) -> T:
        raise NotImplementedError


class AsyncListVerbs:
    """The reading verbs of `AsyncClient`."""

    async def _control(self, session: AsyncAnySession | None, verb: Verb[T]) -> T:
        raise NotImplementedError
