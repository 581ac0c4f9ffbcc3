"""Measurements of riverq; see README.md."""
