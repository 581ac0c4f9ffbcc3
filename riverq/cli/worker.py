"""`riverq worker module:attribute`: work a client's queues until a signal says otherwise.

Signals (SIGINT and SIGTERM alike). The first stops fetching and waits for running jobs, at most `soft_stop_timeout`.
The second cancels running jobs and gives them back. The third leaves: results that are known are written, jobs that
still run keep their rows `running` for rescue and are named, and the process is gone within two seconds with exit
code 1. Handlers are Python's own, not the loop's, so that they work while a job blocks the loop.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import FrameType
from typing import Any

from riverq.client import AsyncClient, Client
from riverq.client.lifecycle import Runtime
from riverq.errors import ConfigError, RiverqError
from riverq.validation import nearest

HARD_EXIT = 2.0
"""Seconds between the third signal and the end of the process, whatever happens."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def add_parser(commands: Any) -> None:
    """Register `riverq worker`."""
    parser = commands.add_parser("worker", help="work the queues of a client", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "client", metavar="MODULE:ATTRIBUTE", help="a Client or AsyncClient, or a function that makes one"
    )
    parser.add_argument("--queues", metavar="A,B", help="work only these of the client's queues")
    parser.add_argument(
        "--soft-stop-timeout", type=_duration, metavar="TIME", help="as 30s, 5m; overrides the client's"
    )
    parser.add_argument(
        "--log-level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="what is logged to stderr (default: info)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Work until stopped; returns 0 after a clean stop, 1 after a failed start or a hard stop."""
    level = getattr(logging, args.log_level.upper())
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    target = load_target(args.client)
    return asyncio.run(_work(args, target))


def load_target(spec: str) -> Any:
    """What `module:attribute` names. Raises ConfigError where there is no such thing."""
    module_name, _, path = spec.partition(":")
    if not all(module_name.split(".")) or not path:
        raise ConfigError(f"expected module:attribute, got: {spec!r} (as in myapp.jobs:client)")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise RiverqError(f"cannot import {module_name}: {error}") from error
        raise ConfigError(f"no module named {error.name!r} (looked in {os.getcwd()} and on sys.path)") from error
    except (Exception, SystemExit) as error:
        raise RiverqError(f"cannot import {module_name}: {type(error).__name__}: {error}") from error
    for name in path.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"module {module_name!r} has no {path!r} ({nearest(name, _public_names(found))})")
        found = getattr(found, name)
    return found


def _public_names(owner: Any) -> list[str]:
    return [name for name in vars(owner) if not name.startswith("_")]


async def _work(args: argparse.Namespace, target: Any) -> int:
    client = await _client(target, args.client)
    _override(client, args)
    stopping = Stopping(asyncio.create_task(client._make_runtime()))
    with stopping.on_signals():
        try:
            runtime = await stopping.started()
        except asyncio.CancelledError:
            print("riverq worker: stopped: nothing was started", flush=True)
            return 0
        print(f"riverq worker: ready: {runtime.describe()}", flush=True)
        code = await stopping.wait()
    verb = "stopped" if code == 0 else "stopped hard"
    print(f"riverq worker: {verb}: {runtime.summary()}", flush=True)
    return code


async def _client(target: Any, spec: str) -> Client | AsyncClient:
    found = target
    if not isinstance(found, (Client, AsyncClient)) and callable(found):
        try:
            found = found()
            if inspect.isawaitable(found):
                found = await found
        except RiverqError:
            raise
        except Exception as error:
            raise RiverqError(f"{spec} cannot make its client: {type(error).__name__}: {error}") from error
    if not isinstance(found, (Client, AsyncClient)):
        raise ConfigError(
            f"expected {spec} to be a Client, an AsyncClient or a function that makes one, got: {found!r}"
        )
    return found


def _override(client: Client | AsyncClient, args: argparse.Namespace) -> None:
    config = client.config
    if args.queues is not None:
        names = [name.strip() for name in args.queues.split(",") if name.strip()]
        for name in names:
            if name not in config.queues:
                raise ConfigError(f"the client has no queue {name!r} ({nearest(name, config.queues)})")
        config = replace(config, queues={name: config.queues[name] for name in names})
    if args.soft_stop_timeout is not None:
        config = replace(config, soft_stop_timeout=args.soft_stop_timeout)
    if not config.queues:
        raise ConfigError(f"{args.client} has no queues to work (give it Config(queues={{'default': QueueConfig(…)}}))")
    client._core.config = config


class Stopping:
    """Counts the signals and does what each means."""

    def __init__(self, starting: asyncio.Task[Runtime]) -> None:
        self._starting = starting
        self._runtime: Runtime | None = None
        self._loop = asyncio.get_running_loop()
        self._signals = 0
        self._task: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[int] = self._loop.create_future()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM here while the block runs."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def started(self) -> Runtime:
        """What runs now. Raises CancelledError where a signal came first; what was started is then stopped."""
        self._runtime = await self._starting
        return self._runtime

    async def wait(self) -> int:
        """Until everything has ended; the exit code."""
        return await self._ended

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 2:
            threading.Thread(target=_leave_soon, daemon=True).start()
        self._loop.call_soon_threadsafe(self._act, self._signals)

    def _act(self, count: int) -> None:
        if self._runtime is None:
            self._starting.cancel()
        elif count == 1:
            print("riverq worker: stopping; waiting for running jobs (again to cancel them)", flush=True)
            self._task = self._loop.create_task(self._stop(self._runtime))
        elif count == 2:
            print("riverq worker: cancelling running jobs (again to leave at once)", flush=True)
            self._runtime.cancel_jobs()
        elif count == 3:
            self._task = self._loop.create_task(self._abort(self._runtime))

    async def _stop(self, runtime: Runtime) -> None:
        try:
            await runtime.stop()
        except Exception as error:
            logging.getLogger("riverq").exception("worker: Stop failed")
            self._end(1, error)
        else:
            self._end(0)

    async def _abort(self, runtime: Runtime) -> None:
        left = await runtime.abort(timedelta(seconds=HARD_EXIT / 2))
        if left:
            ids = ", ".join(str(job_id) for job_id in left)
            print(f"riverq worker: left running, for rescue: {ids}", flush=True)
        self._end(1)
        # Threads of jobs that never end must not hold the process; everything that can be written is written.
        print(f"riverq worker: stopped hard: {runtime.summary()}", flush=True)
        sys.stderr.flush()
        os._exit(1)

    def _end(self, code: int, _error: Exception | None = None) -> None:
        if not self._ended.done():
            self._ended.set_result(code)


def _leave_soon() -> None:
    time.sleep(HARD_EXIT)
    os._exit(1)


def _duration(text: str) -> timedelta:
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = text[len(number) :] or "s"
    try:
        seconds = float(number) * _UNITS[unit]
        duration = timedelta(seconds=seconds)
    except (ValueError, KeyError, OverflowError):
        raise argparse.ArgumentTypeError(f"expected a time such as 30s, 500ms or 5m, got: {text!r}") from None
    if seconds < 0:
        raise argparse.ArgumentTypeError(f"expected a time of at least 0, got: {text!r}")
    return duration
