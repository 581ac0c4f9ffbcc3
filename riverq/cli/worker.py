"""`riverq worker module:attribute`: work a client's queues until a signal says otherwise.

Signals (SIGINT and SIGTERM alike). The first stops fetching and waits for running jobs, at most `soft_stop_timeout`.
The second cancels running jobs and gives them back. The third leaves: results that are known are written, jobs that
still run keep their rows `running` for rescue and are named, and the process is gone within two seconds with exit
code 1. With `--processes` this process is only the supervisor of others (`riverq.cli.supervisor`), which it starts
with the same options.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from riverq.cli.bench_progress import say
from riverq.cli.health import HealthServer
from riverq.cli.json_logs import log_as_json
from riverq.cli.probe import Probe
from riverq.cli.stopping import Stopping
from riverq.cli.tether import Tether
from riverq.cli.values import address, count, duration
from riverq.client import AsyncClient, Client
from riverq.client.queues import QueueSet
from riverq.errors import ConfigError, RiverqError
from riverq.periodic import PeriodicJobs
from riverq.validation import nearest


def add_parser(commands: Any) -> None:
    """Register `riverq worker`."""
    parser = commands.add_parser("worker", help="work the queues of a client", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "client", metavar="MODULE:ATTRIBUTE", help="a Client or AsyncClient, or a function that makes one"
    )
    parser.add_argument("--queues", metavar="A,B", help="work only these of the client's queues")
    parser.add_argument("--soft-stop-timeout", type=duration, metavar="TIME", help="as 30s, 5m; overrides the client's")
    parser.add_argument("--client-id", metavar="ID", help="overrides the client's; with --processes ID_1, ID_2, …")
    parser.add_argument("--no-leader", action="store_true", help="never lead; for clients without periodic jobs")
    parser.add_argument("--processes", type=count, metavar="N", help="supervise N such workers; SIGHUP renews them")
    parser.add_argument(
        "--health",
        type=address,
        metavar="HOST:PORT",
        help="answer /live, /ready, /leader and /health over HTTP; :PORT is the loopback's",
    )
    parser.add_argument(
        "--log-level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="what is logged to stderr (default: info)",
    )
    parser.add_argument("--json-logs", action="store_true", help="log JSON, one object a line")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Work until stopped; returns 0 after a clean stop, 1 after a failed start or a hard stop."""
    tether = Tether.from_environment()
    level = getattr(logging, args.log_level.upper())
    if not args.json_logs:
        logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
        return _run(args, tether)
    log_as_json(level)
    try:
        return _run(args, tether)
    except RiverqError as error:
        if args.debug:
            raise
        logging.getLogger("riverq").error("worker: Failed (error=%s)", error)  # noqa: TRY400  # it is a sentence, as in text
        return 2 if isinstance(error, ConfigError) else 1


def _run(args: argparse.Namespace, tether: Tether | None) -> int:
    if args.processes is not None and tether is None:
        from riverq.cli.supervisor import supervise

        return supervise(args)
    return asyncio.run(_Worker(args, tether).work())


class _Worker:
    """One worker process, from its options to its exit code."""

    def __init__(self, args: argparse.Namespace, tether: Tether | None) -> None:
        self._args = args
        self._tether = tether
        self._name = "riverq worker" if tether is None else f"riverq worker {tether.number}"

    async def work(self) -> int:
        """Start, work until told to stop, stop."""
        with self._probed() as probe:
            client = await make_client(load_target(self._args.client), self._args.client)
            self._override(client)
            starting = asyncio.create_task(client._make_runtime())
            stopping = Stopping(starting, self._say, hints=self._tether is None)
            with stopping.on_signals():
                if self._tether is not None:
                    self._tether.attach(stopping.order, self._say)
                try:
                    runtime = await stopping.started()
                except asyncio.CancelledError:
                    self._say("stopped: nothing was started")
                    return 0
                self._say(f"ready: {runtime.describe()}")
                probe.started(runtime)
                code = await stopping.wait()
        self._say(f"{'stopped' if code == 0 else 'stopped hard'}: {runtime.summary()}")
        return code

    @contextmanager
    def _probed(self) -> Iterator[Probe]:
        """Answer for this process, to whoever asks over HTTP or to the supervisor."""
        probe = Probe(asyncio.get_running_loop(), None if self._tether is None else self._tether.report)
        server = None if self._args.health is None else HealthServer(self._args.health, probe.health)
        if server is not None:
            self._say(f"health at {server.url}")
        if server is not None or self._tether is not None:
            probe.start()
        try:
            yield probe
        finally:
            probe.close()
            if server is not None:
                server.close()

    def _override(self, client: Client | AsyncClient) -> None:
        args, core = self._args, client._core
        config, queues = core.config, core.queues
        if args.queues is not None:
            names = [name.strip() for name in args.queues.split(",") if name.strip()]
            for name in names:
                if name not in queues:
                    raise ConfigError(f"the client has no queue {name!r} ({nearest(name, queues)})")
            queues = {name: queues[name] for name in names}
            config = replace(config, queues=queues)
            core.queue_set = QueueSet(config)
        if args.soft_stop_timeout is not None:
            config = replace(config, soft_stop_timeout=args.soft_stop_timeout)
        if args.no_leader:
            config = replace(config, leader_election=False)
            if len(core.periodic_jobs):
                raise ConfigError("periodic jobs need a client that may lead (drop --no-leader, or the periodic jobs)")
            core.periodic_jobs = PeriodicJobs(may_lead=False, clock=core.ctx.clock)  # so that it takes none later
        client_id = args.client_id
        if client_id is None and self._tether is not None:
            # Also where the application names its client: N processes of one name could not be told apart.
            client_id = f"{client.id}_{self._tether.number}"
        if client_id is not None:
            config = replace(config, client_id=client_id)
            core.ctx = replace(core.ctx, client_id=client_id)
        if not queues:
            raise ConfigError(
                f"{args.client} has no queues to work (give it Config(queues={{'default': QueueConfig(…)}}))"
            )
        core.config = config

    def _say(self, text: str) -> None:
        say(f"{self._name}: {text}", sys.stdout)


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


async def make_client(target: Any, spec: str) -> Client | AsyncClient:
    """The client that `target` is or makes. Raises ConfigError where it is nothing of the kind."""
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
