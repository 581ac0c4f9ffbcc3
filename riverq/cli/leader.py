"""`riverq leader show|resign`: who leads the fleet, and asking it to let another do so.

The leader's row outlives a leader that died, until somebody bids after its end; a row past its end means that nobody
leads.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from riverq.cli.call import AnyClient, add_database, ask
from riverq.cli.values import plain, shown
from riverq.query.leader import leader_current

ACTIONS = ("show", "resign")


def add_parser(commands: Any) -> None:
    """Register `riverq leader` and its actions."""
    actions = commands.add_parser("leader", help="show who leads, or ask it to resign").add_subparsers(
        metavar="ACTION", required=True
    )
    show = actions.add_parser("show", help="show who leads; exit code 1 if nobody does")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(run=_show)
    resign = actions.add_parser("resign", help="ask the leader to resign")
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
    leader = ask(args, _leader)
    if leader is None:
        print("riverq: nobody leads, so there is nobody to resign", file=sys.stderr)
        return 1
    ask(args, lambda client: client.request_resign())
    print(f"asked {leader.leader_id} to resign; every client that may lead, this one too, then bids for the next term")
    return 0


def _leader(client: AnyClient) -> Any:
    return client._control(None, leader_current)
