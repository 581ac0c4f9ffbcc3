"""The peer's operations on jobs, queues and the leader."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import riverq
from riverq.job_list import list_params
from tests.interop import neutral

OPTIONS = ("max_attempts", "metadata", "pending", "priority", "queue", "tags")


def insert_item(job: Mapping[str, Any]) -> riverq.InsertItem:
    """What riverq inserts for a job as the oracle's `insert` takes it."""
    options: dict[str, Any] = {name: job[name] for name in OPTIONS if name in job}
    if "scheduled_at" in job:
        options["scheduled_at"] = datetime.fromisoformat(job["scheduled_at"])
    if "unique" in job:
        unique = dict(job["unique"])
        if unique.get("by_period"):
            unique["by_period"] = timedelta(seconds=unique["by_period"])
        if "by_state" in unique:
            unique["by_state"] = tuple(map(riverq.JobState, unique["by_state"]))
        options["unique_opts"] = riverq.UniqueOpts(**unique)
    return riverq.InsertItem(riverq.RawArgs(job["kind"], job.get("args", "{}")), **options)


class JobOperations:
    """Each is the twin of the oracle's operation of that name."""

    control: Any
    schema: str

    def wait(self, result: Any) -> Any:
        raise NotImplementedError

    def session(self, tx: str | None) -> Any:
        raise NotImplementedError

    def op_insert(self, *, jobs: Sequence[Mapping[str, Any]], fast: bool = False, tx: str | None = None) -> Any:
        items = [insert_item(job) for job in jobs]
        session = self.session(tx)
        if fast:
            return self.wait(self.control.insert_many_fast(items, session=session))
        results = self.wait(self.control.insert_many(items, session=session))
        return [
            {
                "job": neutral.river_row(result.job),
                "unique_skipped_as_duplicate": result.unique_skipped_as_duplicate,
            }
            for result in results
        ]

    # -- one job

    def op_job_get(self, *, job_id: int, tx: str | None = None) -> Any:
        return self._row(self.control.job_get(job_id, session=self.session(tx)))

    def op_job_cancel(self, *, job_id: int, tx: str | None = None) -> Any:
        return self._row(self.control.job_cancel(job_id, session=self.session(tx)))

    def op_job_retry(self, *, job_id: int, tx: str | None = None) -> Any:
        return self._row(self.control.job_retry(job_id, session=self.session(tx)))

    def op_job_delete(self, *, job_id: int, tx: str | None = None) -> Any:
        return self._row(self.control.job_delete(job_id, session=self.session(tx)))

    def op_job_update(self, *, job_id: int, tx: str | None = None, **given: Any) -> Any:
        return self._row(self.control.job_update(job_id, session=self.session(tx), **given))

    def _row(self, result: Any) -> Any:
        return neutral.river_row(self.wait(result))

    # -- many jobs

    def op_job_list(self, *, tx: str | None = None, **asked: Any) -> Any:
        if "metadata" in asked:
            asked["metadata"] = json.loads(asked["metadata"])
        if "after_job" in asked:
            asked["after"] = self.wait(self.control.job_get(asked.pop("after_job")))
        page = self.wait(self.control.job_list(session=self.session(tx), **asked))
        return {"jobs": [neutral.river_row(row) for row in page.jobs], "cursor": page.cursor}

    def op_cursor_check(self, *, after: str) -> bool:
        list_params({}, limit=1, after=after)
        return True

    def op_job_delete_many(self, *, tx: str | None = None, **asked: Any) -> Any:
        if "unsafe_all" in asked:
            asked["unfiltered"] = asked.pop("unsafe_all")
        rows = self.wait(self.control.job_delete_many(session=self.session(tx), **asked))
        return [neutral.river_row(row) for row in rows]

    # -- queues and the leader

    def op_queue_get(self, *, queue: str, tx: str | None = None) -> Any:
        return neutral.river_queue(self.wait(self.control.queue_get(queue, session=self.session(tx))))

    def op_queue_list(self, *, limit: int = 100, tx: str | None = None) -> Any:
        queues = self.wait(self.control.queue_list(limit, session=self.session(tx)))
        return [neutral.river_queue(queue) for queue in queues]

    def op_queue_update(self, *, queue: str, metadata: Any = None, tx: str | None = None) -> Any:
        changed = self.control.queue_update(queue, metadata=metadata, session=self.session(tx))
        return neutral.river_queue(self.wait(changed))

    def op_queue_pause(self, *, queue: str, tx: str | None = None) -> None:
        self.wait(self.control.queue_pause(queue, session=self.session(tx)))

    def op_queue_resume(self, *, queue: str, tx: str | None = None) -> None:
        self.wait(self.control.queue_resume(queue, session=self.session(tx)))

    def op_request_resign(self, *, tx: str | None = None) -> None:
        self.wait(self.control.request_resign(session=self.session(tx)))
