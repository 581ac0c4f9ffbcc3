"""Migrations: every way in, against real databases."""
