"""Define the arguments of commands that diagnose.

It imports nothing that takes time.
"""

from __future__ import annotations

import argparse

from tui.cli.option_types import port_of, seconds_of


def add_drops(drops: argparse.ArgumentParser) -> None:
    """Add the arguments of `vnet-tui drops`."""
    drops.add_argument(
        "filter", nargs="*", metavar="FILTER", help="a filter as in the dashboard: ct:web1 reason:NETFILTER"
    )
    drops.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")
    drops.add_argument(
        "--follow", action="store_true", help="repeat until Ctrl-C; with --json, one counter per line"
    )
    drops.add_argument("--by", choices=("reason", "container", "link"), default="reason", help="group drops")
    drops.add_argument(
        "--over", type=float, metavar="SECONDS", default=None,
        help="count for SECONDS (default 5; with --follow 1), at most 3600; with --packets 10, at most 60",
    )  # fmt: skip
    drops.add_argument(
        "--packets", action="store_true", help="list each dropped packet, with addresses and ports"
    )
    drops.add_argument("--all", action="store_true", help="also list reasons that are normal on every host")


_END = "a container, namespace, address, host, or outside (any host beyond the default route)"


def add_why(why: argparse.ArgumentParser) -> None:
    """Add the arguments of `vnet-tui why`."""
    why.add_argument("a", metavar="A", help=f"the sender: {_END}")
    why.add_argument("b", metavar="B", help="the receiver, likewise")
    why.add_argument(
        "--port",
        type=port_of,
        default="",
        metavar="PORT[/PROTO]",
        help="its port: 443/tcp, 53/udp (default: ICMP)",
    )
    why.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")
    why.add_argument(
        "--probe",
        action="store_true",
        help="verify the answer: send one packet, and record what the kernel does",
    )
    why.add_argument("--fix", action="store_true", help="repair what stops the packet; asks first")
    _add_repair_options(why)


def add_trace(trace: argparse.ArgumentParser) -> None:
    """Add the arguments of `vnet-tui trace`."""
    trace.description = (
        "Send one packet from A to B, and list each link that it passes. With a flow instead of "
        "A and B, send nothing: list the links that the flow's own packets pass."
    )
    trace.add_argument(
        "a", metavar="A",
        help="the sender: a container, namespace or host; or a flow: 10.0.0.2:4000-10.0.0.3:80",
    )  # fmt: skip
    trace.add_argument("b", metavar="B", nargs="?", help=f"the receiver (none for a flow): {_END}")
    trace.add_argument(
        "--port", default="", metavar="PORT[/PROTO]", help="its port: 443/tcp, 53/udp (default: ICMP)"
    )
    trace.add_argument(
        "--mtu", action="store_true", help="also measure the path MTU, and name the link that limits it"
    )
    trace.add_argument(
        "--hops", action="store_true", help="also list the routers on the way, as traceroute does"
    )
    trace.add_argument(
        "--for", dest="seconds", type=seconds_of, metavar="TIME",
        help="how long to wait for packets of a flow (default 5s, at most 60s)",
    )  # fmt: skip
    trace.add_argument(
        "--functions", action="store_true",
        help="also list the kernel functions that the packet passes (needs CONFIG_FPROBE)",
    )  # fmt: skip
    trace.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")


def add_shell(shell: argparse.ArgumentParser) -> None:
    """Add the arguments of `vnet-tui shell`."""
    shell.add_argument("container", metavar="CONTAINER", help="a container or namespace: name, id or inode")
    shell.add_argument(
        "--net", action="store_true", help="run this host's programs, in its network namespace only"
    )
    shell.add_argument("run", nargs=argparse.REMAINDER, metavar="COMMAND", help="run this instead of a shell")


def add_doctor(doctor: argparse.ArgumentParser) -> None:
    """Add the arguments of `vnet-tui doctor`."""
    doctor.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")
    doctor.add_argument("--all", action="store_true", help="also list muted findings")
    doctor.add_argument("--fix", metavar="ID", default="", help="repair a finding; asks first")
    doctor.add_argument("--mute", metavar="ID", nargs="+", default=[], help="don't list these any more")
    doctor.add_argument("--unmute", metavar="ID", nargs="+", default=[], help="list these again")
    _add_repair_options(doctor)


def _add_repair_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dry-run", action="store_true", help="with --fix: print the commands only")
    command.add_argument(
        "--auto-undo", action="store_true", help="with --fix: undo interrupted changes first"
    )
    command.add_argument("--yes", "-y", action="store_true", help="don't ask for confirmation")


def add_diff(diff: argparse.ArgumentParser) -> None:
    """Add the arguments of `diff`."""
    diff.description = (
        "Print what changed between two moments, the likeliest suspects first. A moment is a file from "
        "`dump` or `bundle`, FILE@TIME in a recording (14:05:30, 2026-01-31T14:05, -5m before its end, "
        "+30s after its start; default: its end), or now. Exit status: 0 no difference, 1 differences, "
        "2 an error."
    )
    diff.add_argument(
        "old", metavar="A", nargs="?", default="",
        help="the earlier moment (default: your newest dump, bundle or recording in this folder)",
    )  # fmt: skip
    diff.add_argument("new", metavar="B", nargs="?", default="now", help="the later moment (default: now)")
    diff.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")
    diff.add_argument("-q", "--quiet", action="store_true", help="print only the number of differences")
