"""A contender that works nothing: each task of it behaves in one of the ways that a real one may.

`python -m tests.bench_harness.fake_contender`, driven by the harness's half of the protocol.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from benchmarks.contenders.child import Child, Unsupported, main


async def migrate(child: Child) -> None:
    """Does as it is told."""
    await child.go()
    child.emit("result", tuned=child.tuned, url=child.url)


async def work(child: Child) -> None:
    """Runs `until` jobs, a thread for each half of them, and one more after it was told to stop."""
    await child.go()
    half, rest = divmod(child.until, 2)

    def run(count: int) -> None:
        for _ in range(count):
            child.done()

    threads = [threading.Thread(target=run, args=(count,)) for count in (half, half + rest)]
    for thread in threads:
        thread.start()
    await child.stop_requested()
    for thread in threads:
        thread.join()
    child.done()
    child.stopped()


async def unfinished(child: Child) -> None:
    """Never reaches `until`, so that only the timer tells how far it is."""
    await child.go()
    reporter = asyncio.create_task(child.report_progress())
    child.executed += 3
    await child.stop_requested()
    reporter.cancel()
    child.stopped()


async def chatty(child: Child) -> None:
    """Prints what is no line of the protocol."""
    print("a line of a library's own")
    await (await asyncio.create_subprocess_exec("echo", "a line of a subprocess")).wait()
    await child.go()
    print('{"event": "error", "message": "not from us"}')
    child.emit("result")


async def broken(child: Child) -> None:
    """Fails after its start."""
    await child.go()
    print("about to fail", file=sys.stderr)
    raise ValueError("no such luck")


async def unable(child: Child) -> None:
    """Has no such way."""
    await child.go()
    raise Unsupported("it has no COPY")


async def dying(child: Child) -> None:
    """Is gone without a word."""
    await child.go()
    print("out of memory", file=sys.stderr)
    os._exit(7)


async def dying_unready(child: Child) -> None:
    """Is gone before it is ready."""
    os._exit(8)


async def deaf(child: Child) -> None:
    """Does not stop."""
    await child.go()
    await asyncio.Event().wait()


HANDLERS = {
    handler.__name__: handler
    for handler in (migrate, work, unfinished, chatty, broken, unable, dying, dying_unready, deaf)
}

if __name__ == "__main__":
    main(HANDLERS)
