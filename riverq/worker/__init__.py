"""A job's way through a process: claim, run, decide, write. docs/internals/worker.md walks it."""
