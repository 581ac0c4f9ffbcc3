"""The processes of a fleet, and what is done to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tests.faults.record import Record

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


@dataclass
class Member:
    """One worker process, with an id that is never used again. All times are by the database's clock."""

    client_id: str
    adapter: str
    process: subprocess.Popen[bytes]
    log: Path
    started_at: datetime
    died_at: datetime | None = None
    ended_at: datetime | None = None
    paused: list[tuple[datetime, datetime | None]] = field(default_factory=list)

    @property
    def lives(self) -> bool:
        """Whether it is neither killed nor ended; a stopped process lives."""
        return self.died_at is None and self.ended_at is None

    @property
    def is_paused(self) -> bool:
        """Whether it is stopped by a signal now."""
        return bool(self.paused) and self.paused[-1][1] is None


class Fleet:
    """Worker processes on one schema, each with a ledger of its own in `folder`."""

    def __init__(self, url: str, schema: str, record: Record, folder: Path, *, grace: float) -> None:
        self.members: list[Member] = []
        self.record = record
        self._url, self._schema, self._folder, self._grace = url, schema, folder, grace

    @property
    def ledgers(self) -> list[Path]:
        """What the workers wrote."""
        return sorted(self._folder.glob("*.ledger"))

    def living(self) -> list[Member]:
        """Those that run, or are stopped by a signal."""
        return [member for member in self.members if member.lives]

    def member(self, client_id: str) -> Member:
        """The process with this id."""
        return next(member for member in self.members if member.client_id == client_id)

    def leader(self) -> Member:
        """Who leads, by the table; waits for one."""
        deadline = time.monotonic() + PATIENCE
        while (leader := self.record.leader()) is None:
            assert time.monotonic() < deadline, "nobody leads"
            time.sleep(0.1)
        return self.member(leader)

    def start(self, adapter: str) -> Member:
        """Start a worker and wait until it works."""
        client_id = f"{adapter}_{len(self.members)}"
        log = self._folder / f"{client_id}.log"
        environment = {
            "DATABASE_URL": self._url,
            "FAULTS_ADAPTER": adapter,
            "FAULTS_CLIENT_ID": client_id,
            "FAULTS_GRACE": str(self._grace),
            "FAULTS_LEDGER": str(self._folder / f"{client_id}.ledger"),
            "FAULTS_SCHEMA": self._schema,
        }
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "riverq", "worker", "tests.faults.app:make_client"],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        member = Member(client_id, adapter, process, log, self.record.now())
        self.members.append(member)
        deadline = time.monotonic() + PATIENCE
        while b"worker: ready" not in log.read_bytes():
            assert process.poll() is None, _tail(log)
            assert time.monotonic() < deadline, _tail(log)
            time.sleep(0.05)
        return member

    def kill(self, member: Member) -> None:
        """End it without a chance to say anything."""
        member.process.kill()
        member.process.wait()
        member.died_at = self.record.now()

    def pause(self, member: Member) -> None:
        """Stop it where it stands."""
        member.process.send_signal(signal.SIGSTOP)
        member.paused.append((self.record.now(), None))

    def resume(self, member: Member) -> None:
        """Let it go on."""
        began, _ = member.paused[-1]
        member.paused[-1] = (began, self.record.now())
        member.process.send_signal(signal.SIGCONT)

    def cut(self, members: list[Member]) -> int:
        """Terminate every backend of these processes; returns how many there were."""
        return self.record.terminate([member.client_id for member in members])

    def stop(self, member: Member) -> None:
        """End it as an operator would, and see it end cleanly."""
        member.process.terminate()
        assert member.process.wait(PATIENCE) == 0, _tail(member.log)
        member.ended_at = self.record.now()

    def close(self) -> None:
        """Kill what is left."""
        for member in self.members:
            if member.process.poll() is None:
                member.process.kill()
                member.process.wait()

    def logs(self) -> str:
        """The end of every log, for a test that failed."""
        return "\n".join(f"== {member.client_id}\n{_tail(member.log)}" for member in self.members)


@contextmanager
def running_fleet(fleet: Fleet) -> Iterator[Fleet]:
    """Kill everything at the end; show the logs where the block failed."""
    try:
        yield fleet
    except BaseException:
        print(fleet.logs())
        raise
    finally:
        fleet.close()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-40:])
