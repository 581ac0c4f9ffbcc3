"""chancy as a contender: a Chancy application and one Worker in the event loop's thread, on psycopg.

The jobs are coroutines, so the queue has chancy's async executor; its default is a pool of processes, which cannot be
compared with the rest. chancy imports a job's function by name, which is why everything lives in the module of that
name and not in `__main__`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from importlib import import_module
from typing import Any

from benchmarks.contenders.child import Child, Unsupported, main

FUNCTION = "benchmarks.contenders.chancy_child.bench"

NOTES = {
    "tuned": (
        "async executor, eager_polling on, polling_interval 1 s (its smallest), send_outgoing_interval 20 ms, LISTEN, "
        "plugins Leadership, Pruner and Recovery only, log level WARNING, uvloop"
    ),
    "default": (
        "async executor instead of the default process pool, else all defaults: polls every 5 s and on pushes only, "
        "writes results once a second, five plugins, logs every job"
    ),
    "unequal": (
        "results are written in batches, but one UPDATE a row (pipelined); many jobs at once are inserted one INSERT "
        "a row; polling is once a second at most, waking up is left to notifications and finished jobs"
    ),
}

FINISHED_SQL = f"SELECT count(*) FROM chancy_jobs WHERE func = '{FUNCTION}' AND state = 'succeeded'"
REMAINING_SQL = (
    f"SELECT EXISTS (SELECT FROM chancy_jobs WHERE queue = 'default' AND func = '{FUNCTION}'"
    " AND state IN ('pending', 'running', 'retrying'))"
)
ENDED_SQL = (
    "SELECT (kwargs ->> 'number')::bigint, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
    f" FROM chancy_jobs WHERE func = '{FUNCTION}' AND state = 'succeeded'"
)

FLUSH_SECONDS = 0.02
"""Between two writes of results, where chancy's default is a second."""

INSERT_BATCH = 1000


class Run:
    """What this process's jobs share."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.seconds = child.task["sleep_ms"] / 1000 if child.task.get("job") == "sleep" else 0.0
        self.samples: list[tuple[int, float, float]] = []
        self.wanted = int(child.task["rate"] * child.task["seconds"]) if child.task["task"] == "latency" else 0
        self.all_in = asyncio.Event()

    def sample(self, number: int, at: float) -> None:
        """Note when a job has started."""
        self.samples.append((number, at, time.time()))
        if len(self.samples) >= self.wanted:
            self.all_in.set()


_run: Run | None = None


async def bench(number: int, at: float) -> None:
    """The job. `at` is when it was inserted."""
    run = _run
    assert run is not None
    if run.wanted:
        run.sample(number, at)
    if run.seconds:
        await asyncio.sleep(run.seconds)
    run.child.done()


def make_job(number: int, at: float = 0) -> Any:
    """A chancy Job."""
    return import_module("chancy").Job(func=FUNCTION, kwargs={"number": number, "at": at})


def make_app(child: Child) -> Any:
    """A Chancy application, which connects when it is entered."""
    chancy = import_module("chancy")
    options: dict[str, Any] = {"notifications": child.task.get("listen", True)}
    if child.tuned:
        log = logging.getLogger("chancy")
        log.setLevel(logging.WARNING)
        plugins = (
            import_module("chancy.plugins.leadership").Leadership(),
            import_module("chancy.plugins.pruner").Pruner(),
        )
        options |= {
            "log": log,
            "no_default_plugins": True,
            "plugins": [*plugins, import_module("chancy.plugins.recovery").Recovery()],
        }
    else:
        _log_without_rich()
    return chancy.Chancy(child.url, **options)


def _log_without_rich() -> None:
    """chancy's own handler where rich is not installed: the environment's other packages bring a slower one along."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(levelname)s] %(message)s", "%Y-%m-%d %H:%M:%S"))
    log = logging.getLogger("chancy")
    log.setLevel(logging.INFO)
    log.handlers[:] = [handler]


async def migrate(child: Child) -> None:
    """chancy's tables, those of its default plugins included."""
    app = import_module("chancy").Chancy(child.url)
    await child.go()
    async with app:
        await app.migrate()
    child.emit("result")


async def push_all(app: Any, count: int) -> None:
    """Push jobs 0 to count - 1 through `push_many`, a transaction for each batch."""
    for start in range(0, count, INSERT_BATCH):
        jobs = [make_job(number) for number in range(start, min(start + INSERT_BATCH, count))]
        async for _ in app.push_many(jobs, batch_size=INSERT_BATCH):
            pass


async def fill(child: Child) -> None:
    """A backlog."""
    app = make_app(child)
    await child.go()
    async with app:
        await push_all(app, child.task["count"])
    child.emit("result", count=child.task["count"])


async def insert(child: Child) -> None:
    """One call after the other until the time is up."""
    mode, batch = child.task["mode"], child.task["batch"]
    if mode == "copy":
        raise Unsupported("chancy does not insert by COPY")
    app = make_app(child)
    dict_row = import_module("psycopg.rows").dict_row
    await child.go()
    count = 0
    async with app:
        deadline = time.monotonic() + child.task["seconds"]
        while time.monotonic() < deadline:
            if mode == "single":
                await app.push(make_job(count))
                count += 1
            elif mode == "single_tx":
                async with app.pool.connection() as conn, conn.cursor(row_factory=dict_row) as cursor:
                    await cursor.execute("INSERT INTO bench_app (number) VALUES (%s)", (count,))
                    await app.push_ex(cursor, make_job(count))
                count += 1
            else:
                jobs = [make_job(number) for number in range(count, count + batch)]
                async for _ in app.push_many(jobs, batch_size=batch):
                    pass
                count += batch
        child.emit("result", count=count)  # the clock stops here, not after closing


async def make_worker(child: Child, app: Any) -> Any:
    """Declare the queue, as is needed before a worker takes jobs from it, and make the worker."""
    chancy = import_module("chancy")
    options: dict[str, Any] = {"polling_interval": 1, "eager_polling": True} if child.tuned else {}
    queue = chancy.Queue("default", concurrency=child.task["workers"], executor=chancy.Chancy.Executor.Async, **options)
    await app.declare(queue, upsert=True)
    worker = chancy.Worker(app)
    if child.tuned:
        worker.send_outgoing_interval = FLUSH_SECONDS
    return worker


async def work(child: Child) -> None:
    """Work until told to stop; with `insert`, also insert as many meanwhile."""
    global _run
    _run = Run(child)
    app = make_app(child)
    await child.go()
    async with app:
        reporter = asyncio.create_task(child.report_progress())
        inserter = asyncio.create_task(push_all(app, child.task.get("insert", 0)))
        worker = await make_worker(child, app)
        await worker.start()
        await child.stop_requested()
        inserter.cancel()
        with suppress(asyncio.CancelledError):
            await inserter
        await worker.stop()
        reporter.cancel()
    child.stopped()


async def latency(child: Child) -> None:
    """Insert at an even rate and note when each job starts."""
    global _run
    _run = run = Run(child)
    app = make_app(child)
    await child.go()
    async with app:
        worker = await make_worker(child, app)
        await worker.start()
        await asyncio.sleep(1)

        async def push_one(number: int) -> None:
            await app.push(make_job(number, time.time()))

        await child.insert_evenly(run.wanted, push_one)
        with suppress(TimeoutError):
            await asyncio.wait_for(run.all_in.wait(), 10)
        child.emit("result", samples=run.samples)
        await child.stop_requested()
        await worker.stop()
    child.stopped()


def run() -> None:
    """Serve the harness."""
    main(
        {"migrate": migrate, "fill": fill, "insert": insert, "work": work, "latency": latency},
        uvloop=lambda task: task.get("settings") == "tuned",
    )


if __name__ == "__main__":
    import_module("benchmarks.contenders.chancy_child").run()
