"""`riverq leader show|resign`: who leads the fleet, and asking it to let another do so.

The leader's row outlives a leader that died, until somebody bids after its end; a row past its end means that nobody
leads. A request to resign is a notification, which a leader without LISTEN does not hear: the row is looked at until
it tells of another term, so that what is said is what has happened.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import sys
import time
from typing import Any

from riverq.cli.call import AnyClient, add_database, ask
from riverq.cli.values import plain, shown
from riverq.query.leader import Leader, leader_current

ACTIONS = ("show", "resign")

PATIENCE = 5.0
"""Seconds in which a leader that hears has resigned and another one, or itself, leads."""

LOOK_AGAIN = 0.1


def add_parser(commands: Any) -> None:
    """Register `riverq leader` and its actions."""
    actions = commands.add_parser("leader", help="show who leads, or ask it to resign").add_subparsers(
        metavar="ACTION", required=True
    )
    show = actions.add_parser("show", help="show who leads; exit code 1 if nobody does")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=_show)
    resign = actions.add_parser("resign", help="ask the leader to resign; exit code 1 if it does not")
    resign.set_defaults(run=_resign)
    for each in (show, resign):
        add_database(each)


def _show(args: argparse.Namespace) -> int:
    leader = ask(args, _leader)
    if args.json:
        print(json.dumps(None if leader is None else leader._asdict(), default=plain, indent=2))
    elif leader is None:
        print("nobody leads")
    else:
        print(f"{leader.leader_id} leads since {shown(leader.elected_at)}; its lease ends {shown(leader.expires_at)}")
    return 1 if leader is None else 0


def _resign(args: argparse.Namespace) -> int:
    before, after = ask(args, _change)
    if before is None:
        print("riverq: nobody leads, so there is nobody to resign", file=sys.stderr)
        return 1
    if after is None:
        print(f"{before.leader_id} has resigned; nobody has followed it yet")
    elif after.elected_at != before.elected_at:
        again = ", which may bid like all the others" if after.leader_id == before.leader_id else ""
        print(f"{before.leader_id} has resigned; {after.leader_id} leads now{again}")
    else:
        print(
            f"riverq: asked {before.leader_id} to resign, but it still leads (a leader that only polls does not hear "
            "it, one that has lost its connection not yet: stop that client instead)",
            file=sys.stderr,
        )
        return 1
    return 0


async def _change(client: AnyClient) -> tuple[Leader | None, Leader | None]:
    """Ask for a resignation; the term before, and the one after it as soon as there is one."""
    before = after = await _leader(client)
    if before is None:
        return None, None
    asked = client.request_resign()
    if inspect.isawaitable(asked):
        await asked
    deadline = time.monotonic() + PATIENCE
    while (after is None or after.elected_at == before.elected_at) and time.monotonic() < deadline:
        await asyncio.sleep(LOOK_AGAIN)
        after = await _leader(client)
    return before, after


async def _leader(client: AnyClient) -> Leader | None:
    found: Any = client._control(None, leader_current)
    leader: Leader | None = await found if inspect.isawaitable(found) else found
    return leader
