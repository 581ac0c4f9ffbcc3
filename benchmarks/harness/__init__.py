"""The harness: a Postgres of its own, children measured from outside, rounds, records, reports."""
