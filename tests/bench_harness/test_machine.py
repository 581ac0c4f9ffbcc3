from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from benchmarks.contenders import go_river
from benchmarks.contenders.unavailable import ContenderUnavailable
from benchmarks.harness import machine
from benchmarks.harness.server import Server

MOUNTS = """\
overlay / overlay rw 0 0
proc /proc proc rw 0 0
/dev/sdb1 /data ext4 rw 0 0
tmpfs /data/quick tmpfs rw 0 0
/dev/sdc1 /with\\040space xfs rw 0 0
/dev/sdd1 /data btrfs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/data/pg", "btrfs"),
        ("/data/quick/pg", "tmpfs"),
        ("/data/quicker", "btrfs"),
        ("/database", "overlay"),
        ("/with space/pg", "xfs"),
    ],
)
def test_the_filesystem_is_that_of_the_nearest_mount_that_is_not_covered(folder: str, kind: str) -> None:
    assert machine.filesystem(Path(folder), MOUNTS) == kind


def test_the_filesystem_is_unknown_where_nothing_tells() -> None:
    assert machine.filesystem(Path("/data"), "") is None


def test_cpu_and_memory_are_read() -> None:
    assert (
        machine.cpu_model("processor\t: 0\nmodel name\t: Some  CPU @ 2GHz\nmodel name\t: Other\n") == "Some CPU @ 2GHz"
    )
    assert machine.cpu_model("") == platform.machine()
    assert machine.memory_gb("MemTotal:       16000000 kB\nMemFree: 5 kB\n") == 16.4
    assert machine.memory_gb("") is None


@pytest.mark.parametrize(
    ("vm", "container", "said"),
    [
        ("kvm", "docker", "kvm, docker"),
        ("none", "lxc", "lxc"),
        ("none", "none", "none"),
        (None, None, "none"),
    ],
)
def test_virtual_machine_and_container_are_both_named(
    monkeypatch: pytest.MonkeyPatch, vm: str | None, container: str | None, said: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name)
    answers = {"--vm": vm, "--container": container}
    monkeypatch.setattr(machine, "_output", lambda command, **_: answers[command[1]])
    assert machine.virtualisation() == said


@pytest.mark.parametrize(
    ("cpuinfo", "said"),
    [("flags\t: fpu hypervisor sse\n", "virtual machine"), ("flags\t: fpu sse\n", "none"), ("Features: fp\n", None)],
)
def test_without_systemd_the_cpu_is_asked(monkeypatch: pytest.MonkeyPatch, cpuinfo: str, said: str | None) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(machine, "_read", lambda path: cpuinfo)
    assert machine.virtualisation() == said


def test_a_write_takes_time_and_leaves_nothing(tmp_path: Path) -> None:
    assert machine.fdatasync_seconds(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []


def test_go_is_left_out_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise ContenderUnavailable("no Go")

    monkeypatch.setattr(go_river, "find_go", nowhere)
    found = machine.versions()
    assert "Go" not in found
    assert found["Python"] == platform.python_version()
    assert found["psycopg"].endswith(")"), "which of psycopg's implementations it is decides its speed"


def test_a_command_that_is_missing_or_fails_says_nothing(tmp_path: Path) -> None:
    assert machine._output([str(tmp_path / "none")]) is None
    assert machine._output(["/bin/sh", "-c", "echo words; exit 1"]) is None
    assert machine._output(["/bin/sh", "-c", "echo words; exit 1"], any_exit_code=True) == "words"


def test_the_facts_are_json_and_name_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_go_version", lambda: "1.26.0")
    server = SimpleNamespace(
        folder=tmp_path / "nobody may write here", version="15.9", settings=lambda: {"shared_buffers": "1GB"}
    )
    facts = machine.facts(cast(Server, server))
    text = json.dumps(facts)
    assert json.loads(text) == facts
    assert facts["postgres"] == {"version": "15.9", "settings": {"shared_buffers": "1GB"}}
    assert facts["versions"]["Go"] == "1.26.0"
    assert str(tmp_path) not in text
    assert set(facts) == {"date", "machine", "postgres", "versions"}
    assert set(facts["machine"]) == {
        "cpu",
        "cores",
        "memory_gb",
        "kernel",
        "virtualisation",
        "filesystem",
        "fdatasync_us",
    }
