"""riverq: River, the Postgres job queue, for Python."""
