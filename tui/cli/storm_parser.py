"""Define the arguments of `vnet-tui storm`."""

from __future__ import annotations

from tui.cli.subcommands import Commands, add_command, add_yes

RATE, MULTICAST_TIMES = 500, 10


def add_storm(actions: Commands) -> None:
    """Add the actions of `vnet-tui storm`."""
    text = "limit the broadcast and multicast frames that enter a network's ports"
    guard = add_command(actions, "guard", text)
    guard.add_argument("network", metavar="NETWORK", help="a network or bridge, or the name of a single port")
    guard.add_argument("state", choices=("on", "off", "status"), help="on, off, or show the counters")
    guard.add_argument(
        "--rate", type=int, metavar="N", default=RATE,
        help=f"broadcast frames a second that may enter each port, and as many ARP (default {RATE})",
    )  # fmt: skip
    guard.add_argument(
        "--multicast", type=int, metavar="N",
        help=f"multicast frames a second (default {MULTICAST_TIMES} times --rate)",
    )  # fmt: skip
    guard.add_argument("--burst", type=int, metavar="N", help="frames at once (default: as --rate)")
    guard.add_argument(
        "--all-ports", action="store_true", help="also ports that vnet-tui didn't attach to the bridge"
    )
    loop = add_command(actions, "loop", _LOOP)
    loop.add_argument("network", metavar="NETWORK", help="a network or bridge")
    loop.add_argument(
        "--block",
        action="store_true",
        help="set a port of each loop down; asks first, and `undo` sets it up again",
    )
    add_yes(loop)
    for command in (guard, loop):
        command.add_argument("--dry-run", action="store_true", help="print the commands; change nothing")
        command.add_argument("--json", action="store_true", help="print JSON")
        command.add_argument("--auto-undo", action="store_true", help="undo interrupted changes first")


_LOOP = "send a probe out of each port of a bridge, and name the ports that it comes back on"
