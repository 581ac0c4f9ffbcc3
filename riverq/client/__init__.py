"""The two faces of a client, and how it is put together, started and stopped."""

from __future__ import annotations

from riverq.client.async_client import AsyncClient
from riverq.client.client import Client

__all__ = ["AsyncClient", "Client"]
