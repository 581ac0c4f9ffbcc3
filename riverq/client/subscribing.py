"""How a client lets others listen to what happens in it."""

from __future__ import annotations


class Subscribing:
    """`Client.subscribe`."""


class AsyncSubscribing:
    """`AsyncClient.subscribe`."""
