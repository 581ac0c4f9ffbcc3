"""River UI's endpoints, asked without a browser, on rows that riverq wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest

import riverq
from tests.interop.ui.crew import CUSTOMER, FEED_ERROR, LARGE, OUTPUT, SCRIPT, BuildReport, Crew, Jobs
from tests.interop.ui.server import Refused, RiverUI


def _ids(answer: Any) -> list[int]:
    return [int(each["id"]) for each in answer["data"]]


def _args(job: dict[str, Any]) -> Any:
    """Newer releases send args and metadata as JSON text in a string, so that scripts do not round numbers."""
    return json.loads(job["args"]) if isinstance(job["args"], str) else job["args"]


def test_it_is_well_and_takes_none_of_riverqs_tables_for_those_of_river_pro(ui: RiverUI) -> None:
    assert ui.get("/health-checks/minimal") == {"status": "ok"}
    assert ui.get("/health-checks/complete") == {"status": "ok"}
    features = ui.get("/features")
    assert features["job_list_hide_args_by_default"] is False
    assert set(features["extensions"].values()) <= {False}


def test_it_counts_the_jobs_of_each_state(ui: RiverUI, jobs: Jobs) -> None:
    assert ui.get("/states") == {state: len(ids) for state, ids in jobs.by_state().items()}


def test_it_lists_jobs_by_each_of_its_filters(ui: RiverUI, jobs: Jobs) -> None:
    for state, ids in jobs.by_state().items():
        assert sorted(_ids(ui.get(f"/jobs?state={state}"))) == sorted(ids), state
    assert _ids(ui.get("/jobs")) == [jobs.running]
    assert _ids(ui.get("/jobs?state=scheduled&kinds=poll_partner")) == [jobs.snoozed]
    assert _ids(ui.get("/jobs?state=scheduled&priorities=4&priorities=3")) == [jobs.snoozed]
    assert _ids(ui.get("/jobs?state=completed&queues=mail")) == [jobs.completed]
    assert _ids(ui.get("/jobs?state=completed&queues=default")) == []
    assert _ids(ui.get(f"/jobs?state=available&ids={jobs.waiting[1]}")) == [jobs.waiting[1]]
    assert len(_ids(ui.get("/jobs?state=available&limit=1"))) == 1


def test_it_reads_a_job_to_the_last_digit(ui: RiverUI, crew: Crew, jobs: Jobs) -> None:
    job = ui.get(f"/jobs/{jobs.completed}")
    assert _args(job) == {
        "customer": CUSTOMER,
        "amount": LARGE,
        "note": SCRIPT,
        "lines": [{"sku": "a&b", "count": 2}],
    }
    metadata = job["metadata"] if isinstance(job["metadata"], dict) else json.loads(job["metadata"])
    assert metadata == {
        "tenant": "<i>acme</i>",
        "order": LARGE,
        "output": OUTPUT,
        "sent_by": "post <office>",
    }
    plain = {name: job[name] for name in ("kind", "queue", "priority", "state", "tags", "attempt", "max_attempts")}
    assert plain == {
        "kind": "send_invoice",
        "queue": "mail",
        "priority": 2,
        "state": "completed",
        "tags": ["invoice", "eu-west"],
        "attempt": 1,
        "max_attempts": 25,
    }
    assert job["attempted_by"] == [crew.client.id]
    assert job["errors"] == []


def test_it_reads_every_attempts_error(ui: RiverUI, crew: Crew, jobs: Jobs) -> None:
    job = ui.get(f"/jobs/{jobs.retryable}")
    assert [(each["attempt"], each["error"]) for each in job["errors"]] == [
        (1, f"ValueError: {FEED_ERROR}"),
        (2, f"ValueError: {FEED_ERROR}"),
    ]
    assert {frozenset(each) for each in job["errors"]} == {frozenset({"at", "attempt", "error", "trace"})}
    row = crew.row(jobs.retryable)
    assert row is not None
    assert [each["trace"] for each in job["errors"]] == [each["trace"] for each in row["errors"]]


def test_it_lists_queues_with_counts_and_pauses(ui: RiverUI, jobs: Jobs) -> None:
    queues = {each["name"]: each for each in ui.get("/queues")["data"]}
    assert {name: (each["count_available"], each["count_running"]) for name, each in queues.items()} == {
        "default": (0, 1),
        "mail": (0, 0),
        "reports": (2, 0),
    }
    assert {name for name, each in queues.items() if each["paused_at"] is not None} == {"reports"}
    assert ui.get("/queues/reports")["count_available"] == 2


def test_it_completes_the_names_of_kinds_and_queues(ui: RiverUI, jobs: Jobs) -> None:
    assert ui.get("/autocomplete?facet=job_kind&match=po")["data"] == ["build_report", "import_feed", "poll_partner"]
    assert ui.get("/autocomplete?facet=job_kind&match=ep&exclude=poll_partner")["data"] == ["build_report"]
    assert ui.get("/autocomplete?facet=job_kind&after=import_feed")["data"] == ["poll_partner", "send_invoice"]
    assert ui.get("/autocomplete?facet=queue_name")["data"] == ["default", "mail", "reports"]
    assert ui.get("/autocomplete?facet=queue_name&match=ai")["data"] == ["mail"]


def test_ids_may_be_text_or_numbers_and_one_that_is_not_there_spoils_all(ui: RiverUI, crew: Crew, jobs: Jobs) -> None:
    first, second = jobs.waiting
    with pytest.raises(Refused) as refused:
        ui.send("POST", "/jobs/cancel", {"ids": [first, 10**15]})
    assert refused.value.status == 404
    crew.until(first, "available")
    ui.send("POST", "/jobs/cancel", {"ids": [str(first), second]})
    crew.until(first, "cancelled")
    crew.until(second, "cancelled")


def test_a_running_job_is_not_deleted(ui: RiverUI, crew: Crew, jobs: Jobs) -> None:
    with pytest.raises(Refused) as refused:
        ui.send("POST", "/jobs/delete", {"ids": [str(jobs.running)]})
    assert refused.value.status == 400
    crew.until(jobs.running, "running")


def test_a_retry_that_another_job_of_the_same_key_forbids_changes_nothing(ui: RiverUI, crew: Crew, jobs: Jobs) -> None:
    unique = riverq.UniqueOpts(by_args=True)
    old = crew.insert(BuildReport("2026-08"), queue="reports", unique_opts=unique)
    crew.client.job_cancel(old)
    new = crew.insert(BuildReport("2026-08"), queue="reports", unique_opts=unique)
    assert new != old
    with pytest.raises(Refused) as refused:
        ui.send("POST", "/jobs/retry", {"ids": [str(old)]})
    assert refused.value.status == 409
    crew.until(old, "cancelled")


def test_concurrency_limits_set_here_replace_what_else_a_queues_metadata_said(
    ui: RiverUI, crew: Crew, jobs: Jobs
) -> None:
    limits = {"global_limit": 5, "local_limit": 2, "partition": {"by_args": ["customer"], "by_kind": True}}
    assert ui.send("PATCH", "/queues/mail", {"concurrency": limits})["concurrency"] == limits
    assert crew.client.queue_get("mail").metadata == {"concurrency": limits}
    ui.send("PATCH", "/queues/mail", {"concurrency": None})
    assert crew.client.queue_get("mail").metadata == {}
