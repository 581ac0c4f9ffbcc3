"""River UI, the official one, on rows that only riverq has written."""
