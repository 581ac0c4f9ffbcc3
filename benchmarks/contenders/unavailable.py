"""The one way in which a contender says that this machine cannot run it."""

from __future__ import annotations


class ContenderUnavailable(Exception):
    """Says what is missing and where to get it; the harness leaves the contender out and writes the reason down."""
