"""Real processes, real faults: killed, stopped and cut off, then every job's fate proven from outside.

They take minutes, so they are no part of `make test`: `make test-faults` runs them.
"""
