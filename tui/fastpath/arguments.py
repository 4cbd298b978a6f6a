"""What `vnet-tui accelerate` and `vnet-tui fastpath` understand; says nothing about how they are done."""

from __future__ import annotations

import argparse

COMMANDS = ("accelerate", "fastpath")
_WHAT = "a bridge, a network of Docker, podman or vnet, or all"

type _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: _Commands) -> None:
    """Add every command of COMMANDS."""
    text = "let packets of containers take the fast path, with the firewall still in charge"
    accelerate = commands.add_parser("accelerate", help=text, description=text, allow_abbrev=False)
    accelerate.add_argument("targets", nargs="*", metavar="NETWORK", help=f"{_WHAT}; they add up")
    accelerate.add_argument("--off", action="store_true", help="no longer; without a name: nothing any more")
    accelerate.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="pause where a rule is about packets that conntrack calls invalid, which it does not look for",
    )
    which = accelerate.add_mutually_exclusive_group()
    which.add_argument(
        "--capture",
        metavar="ADDRESS",
        default="",
        help="leave that address to the kernel, where tcpdump sees it",
    )
    which.add_argument("--release", metavar="ADDRESS", default="", help="accelerate that address again")
    accelerate.add_argument("--dry-run", action="store_true", help="say what would change; change nothing")
    accelerate.add_argument("--yes", "-y", action="store_true", help="do not ask")
    text = "how the fast path stands, and what it needs"
    fastpath = commands.add_parser("fastpath", help=text, description=text, allow_abbrev=False)
    actions = fastpath.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    for name, text in (
        ("status", "what is accelerated, and what became of its packets"),
        ("check", "what the fast path needs of this machine, one by one"),
    ):
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        action.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")
