"""riverq against the real River, on one database."""
