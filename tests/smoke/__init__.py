"""The whole of riverq, end to end, through what stands between it and Postgres in production."""
