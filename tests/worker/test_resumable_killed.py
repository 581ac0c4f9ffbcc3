"""A process is killed in the middle of a step; what it saved is what the next one goes on from."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from riverq import StepCursor
from tests.worker.harness import House, Raw
from tests.worker.steps import CURSOR, STEP, kept

ROOT = Path(__file__).resolve().parents[2]

DIES = """
import os, signal, sys
from datetime import timedelta
from typing import Any
import sqlalchemy, riverq

url, schema = sys.argv[1:]
engine = sqlalchemy.create_engine(url, connect_args={"options": f"-csearch_path={schema}"})
workers = riverq.Workers()

def copy(cursor: riverq.StepCursor) -> None:
    for page in range(1, 4):
        with engine.begin() as conn:
            cursor.save({"page": page}, session=conn)
    cursor.set({"page": 99})
    os.kill(os.getpid(), signal.SIGKILL)

@workers.work(kind="echo")
def work(job: riverq.Job[dict[str, Any]]) -> None:
    job.step("first", lambda: None)
    job.cursor_step("copy", copy)

config = riverq.Config(workers=workers, queues={"default": riverq.QueueConfig(max_workers=1)})
with riverq.Client(engine, config).running():
    signal.pause()
"""


async def test_a_killed_process_leaves_what_it_saved(house: House, tmp_path: Path) -> None:
    [job_id] = house.rows.insert()
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    url = house.rows.url.replace("postgresql://", "postgresql+psycopg://", 1)
    command = [sys.executable, str(script), url, house.rows.schema]
    died = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    row = house.rows.get(job_id)
    assert (row["state"], kept(row)) == ("running", {STEP: "copy", CURSOR: {"copy": {"page": 3}}})

    house.rows.sql("UPDATE JOB SET state = 'available' RETURNING id")  # rescued
    seen: list[Any] = []

    def copy(cursor: StepCursor) -> None:
        seen.append(cursor.value)

    @house.workers.work(kind="echo")
    def work(job: Raw) -> None:
        job.step("first", seen.append, "first")
        job.cursor_step("copy", copy)

    await house.start(house.completer)
    await house.run_all()
    row = house.rows.get(job_id)
    assert (seen, row["state"], kept(row)) == ([{"page": 3}], "completed", {STEP: None, CURSOR: None})
