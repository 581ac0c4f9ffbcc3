"""From a command's arguments to an answer of the database, through a client that only inserts.

The verbs of both faces have the same names, so a command is written once: it returns a value, or an awaitable where
only an async driver is installed. Everything runs in one event loop and every engine is disposed of in it.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from riverq.cli.database import engine_from_args
from riverq.client import AsyncClient, Client
from riverq.config import Config
from riverq.errors import ConfigError

AnyClient = Client | AsyncClient


def add_database(parser: argparse.ArgumentParser) -> None:
    """The options that say which database, and where in it."""
    parser.add_argument("--database-url", metavar="URL", help="Postgres URL; DATABASE_URL by default")
    parser.add_argument("--schema", help="the schema of River's tables; by default the search_path decides")


def ask(args: argparse.Namespace, question: Callable[[AnyClient], Any]) -> Any:
    """What `question` returns of a client on the database of `args`."""
    return asyncio.run(_ask(args, question))


async def _ask(args: argparse.Namespace, question: Callable[[AnyClient], Any]) -> Any:
    engine = engine_from_args(args)
    config = Config(schema=args.schema)
    client = Client(engine, config) if isinstance(engine, Engine) else AsyncClient(engine, config)
    return await answer(client, question)


async def answer(client: AnyClient, question: Callable[[AnyClient], Any]) -> Any:
    """What `question` returns of `client`, whose engine is done with after it."""
    engine = client._core.engine
    try:
        found = question(client)
        return await found if inspect.isawaitable(found) else found
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        driver = engine.dialect.driver
        raise ConfigError(f"the database URL has an option that {driver} does not know: {error}") from error
    finally:
        closing: Any = engine.dispose()
        if inspect.isawaitable(closing):
            await closing
