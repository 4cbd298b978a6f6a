"""Define the command line: commands, arguments, help.

It imports nothing that takes time.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, NoReturn

from tui.cli.capture_options import add_capture_options
from tui.cli.change_parser import add_change_commands, add_storm
from tui.cli.diagnosis_parser import add_diff, add_doctor, add_drops, add_shell, add_trace, add_why
from tui.cli.option_types import bytes_of, hosts_of, seconds_of
from tui.cli.subcommands import Commands, add_command, add_group, add_yes

TOPICS = (
    "namespaces", "links", "bridges", "veths", "containers", "networks", "nat", "conntrack", "routes",
    "ovs", "overlay",
)  # fmt: skip
EXAMPLES = """\
examples:
  vnet-tui                               open the dashboard (root sees all)
  vnet-tui show veths                    veth pairs, both ends in one row
  vnet-tui show links --ns web1          the links of a namespace or container
  vnet-tui show nat --json | jq '.nat[]' for scripts; schema: docs/json.md
  vnet-tui flows --by container          rates of connections, by container
  vnet-tui why web1 db --port 5432       can web1 reach db? what stops it?
  vnet-tui doctor                        what is wrong here, and repairs
  vnet-tui trace web1 203.0.113.80       each link that one packet passes
  vnet-tui drops --follow                dropped packets: where and why
  vnet-tui dump host.vnet                save a snapshot to a file
  vnet-tui --from host.vnet              open that file (needs no root)
  vnet-tui record now.vnetrec            record this host; see also `replay`
  vnet-tui capture web1 -w web1.pcapng   capture packets for Wireshark
  vnet-tui diff host.vnet                what changed since that dump
  vnet-tui bundle report.tar.gz          write an archive for a bug report
  vnet-tui shell web1                    open a shell in a container
  vnet-tui demo                          open the dashboard on a demo lab
  vnet-tui demo --hosts 3                three hosts, and an overlay network
  vnet-tui network create shop --dry-run print the commands for a NAT network
  vnet-tui container create web --network shop
  vnet-tui publish web 8080:80           forward host port 8080 to web's port 80
  vnet-tui apply net.toml                create networks from a file
  vnet-tui undo                          undo the last change
  vnet-tui accelerate shop               turn on the fast path for a network
  vnet-tui completion bash > /etc/bash_completion.d/vnet-tui
"""
CHANGE_COMMANDS = (
    "network", "container", "attach", "detach", "move", "publish", "unpublish", "link", "bridge", "port",
    "tune", "apply", "export", "undo", "history", "recover", "confirm", "cleanup", "agent",
)  # fmt: skip

FAST_PATH_COMMANDS = ("accelerate", "fastpath")
_DEMO = "open the dashboard on a demo lab, or on a recording of it"
_TARGETS = "a bridge, a network of Docker, podman or vnet-tui, or all"


class _Parser(argparse.ArgumentParser):
    """Suggest a similar word for a wrong one; report a help that can't be written."""

    def print_help(self, file: Any = None) -> None:
        (file or sys.stdout).write(self.format_help())

    def error(self, message: str) -> NoReturn:
        from difflib import get_close_matches

        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if found:
            known = re.split(r",\s*", found[2].replace("'", ""))
            near = get_close_matches(found[1], known, n=1, cutoff=0.7)
            message += f"; did you mean {near[0]}?" if near else ""
        super().error(message)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; shell completion uses it as well."""
    parser: argparse.ArgumentParser = _Parser(
        prog="vnet-tui",
        description="See this host's bridges, veth pairs, network namespaces, containers, NAT and\n"
        "conntrack, live, and change them safely. Without a command, the dashboard opens.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    _add_dashboard_options(parser, False)
    parser.add_argument(
        "--read-only", action="store_true",
        help="never allow changes, and give up the rights to make them",
    )  # fmt: skip
    _add_from(parser, None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_show(add_command(commands, "show", "print lists as text or JSON"))
    dump = add_command(commands, "dump", "save a snapshot of this host to a file, for --from")
    dump.add_argument("file", metavar="FILE", help='file to write ("-": standard output)')
    _add_from(dump, argparse.SUPPRESS)
    _add_recording_commands(commands)
    dashboard = commands.add_parser(
        "demo", help=_DEMO, description=_DEMO, allow_abbrev=False,
        usage="vnet-tui demo [-h] [--ascii] [--write] [--no-traffic] [--hosts COUNT] [--fault FAULT] "
        "[--list-faults] [COMMAND ...]",
    )  # fmt: skip
    _add_dashboard_options(dashboard, argparse.SUPPRESS)
    dashboard.add_argument("--no-traffic", action="store_true", help="create no traffic in the lab")
    dashboard.add_argument(
        "--hosts", type=hosts_of, default=1, metavar="COUNT",
        help="build 2 to 9 hosts that share an overlay network; H in the dashboard goes to the next one",
    )  # fmt: skip
    dashboard.add_argument(
        "--fault", action="append", default=[], dest="faults", metavar="FAULT",
        help="inject a fault into a healthy lab; repeat it or use commas for several; none: only a healthy "
        "lab, demo: the usual lab with its own faults",
    )  # fmt: skip
    dashboard.add_argument(
        "--list-faults", action="store_true", help="print the names of all faults with a sentence each"
    )
    dashboard.add_argument(
        "run", nargs=argparse.REMAINDER, metavar="COMMAND",
        help="run this command in the lab instead of the dashboard",
    )  # fmt: skip
    _add_flows(add_command(commands, "flows", "list connections with their rates"))
    why = add_command(commands, "why", "say whether A can reach B, hop by hop, and what stops it")
    doctor = add_command(commands, "doctor", "list what is wrong on this host, and repair it")
    for command, add in ((why, add_why), (doctor, add_doctor)):
        add(command)
        _add_from(command, argparse.SUPPRESS)
    add_capture_options(
        add_command(commands, "capture", "capture packets as lines, or to pcapng files for Wireshark")
    )
    add_drops(add_command(commands, "drops", "count dropped packets by the kernel's reasons"))
    add_change_commands(commands)
    _fast_path_commands(commands)
    add_trace(
        add_command(commands, "trace", "list each link that a packet from A to B, or of a flow, passes")
    )
    add_shell(add_command(commands, "shell", "open a shell in a container, or run a command there"))
    add_storm(add_group(commands, "storm", "limit broadcast and multicast of bridge ports, and find loops"))
    shell = add_command(commands, "completion", "print a script that completes commands in a shell")
    shell.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
    return parser


def _add_recording_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands for recordings and bundles."""
    record = add_command(commands, "record", "record this host over time to a file")
    record.add_argument("file", metavar="FILE", help="file to write; it must not exist yet")
    record.add_argument(
        "--for", dest="seconds", type=seconds_of, metavar="TIME", help="duration (default 10m, at most 24h)"
    )
    record.add_argument(
        "--max-size", dest="size", type=bytes_of, metavar="SIZE", help="size limit (default 64M, at most 2G)"
    )
    replay = add_command(commands, "replay", "open a recording in the dashboard, with a time line")
    replay.add_argument("file", metavar="FILE", help="a file from `vnet-tui record` or R in the dashboard")
    add_diff(add_command(commands, "diff", "print what changed between two moments, likely suspects first"))
    bundle = add_command(
        commands, "bundle", "write a readable archive of the current state, for a bug report"
    )
    bundle.add_argument("file", metavar="FILE", help="file to write, a .tar.gz")
    _add_from(bundle, argparse.SUPPRESS)


def _add_dashboard_options(parser: argparse.ArgumentParser, default: bool | str) -> None:
    """Add options of the dashboard.

    With the default argparse.SUPPRESS, the value before the command stays.
    """
    for name, text in (
        ("--ascii", "draw the dashboard with ASCII characters only"),
        ("--write", "allow changes in the dashboard from the start"),
    ):
        parser.add_argument(name, action="store_true", default=default, help=text)


def _add_from(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--from", dest="source", metavar="FILE", default=default,
        help="open a file from `dump` or `bundle` instead of this host",
    )  # fmt: skip


def _add_show(show: argparse.ArgumentParser) -> None:
    show.add_argument(
        "topic", nargs="?", default="all", choices=("all", *TOPICS), help="the list to print (default: all)"
    )
    show.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")
    show.add_argument(
        "--ns", metavar="NAME", help="only this namespace, given by name, container, systemd unit or inode"
    )
    show.add_argument("--flows", metavar="BRIDGE", help="with ovs: the OpenFlow flows of that bridge")
    _add_from(show, argparse.SUPPRESS)


def _add_flows(flows: argparse.ArgumentParser) -> None:
    flows.add_argument(
        "filter", nargs="*", metavar="FILTER", help="a filter as in the dashboard: ct:web1 rate:>1M port:443"
    )
    flows.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")
    flows.add_argument(
        "--follow", action="store_true", help="repeat until Ctrl-C; with --json, one flow per line"
    )
    flows.add_argument(
        "--per-hop", action="store_true", help="show a connection once for each namespace that tracks it"
    )
    flows.add_argument(
        "--by", choices=("container", "network", "peer", "port", "process", "client"), default="",
        help="group flows",
    )  # fmt: skip
    flows.add_argument(
        "--over", type=float, metavar="SECONDS", default=None,
        help="measure rates for SECONDS (default 1; with --json 0, unless --top, --by or rate: needs rates)",
    )  # fmt: skip
    flows.add_argument(
        "--top", type=int, metavar="COUNT", default=None, help="show only the fastest COUNT flows"
    )
    flows.add_argument(
        "--sockets", action="store_true", help="also read round-trip times, retransmits and processes"
    )
    _add_from(flows, argparse.SUPPRESS)


class _Version(argparse.Action):
    """Print the installed version, which is looked up only here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"vnet-tui {version('vnet-tui')}")
        parser.exit()


def _fast_path_commands(commands: Commands) -> None:
    """Add every command of FAST_PATH_COMMANDS."""
    text = "turn on the fast path: forward established connections of containers in eBPF"
    accelerate = add_command(commands, "accelerate", text)
    accelerate.add_argument(
        "targets", nargs="*", metavar="NETWORK", help=f"{_TARGETS}; added to the accelerated ones"
    )
    accelerate.add_argument(
        "--off", action="store_true", help="turn it off for these networks, or (without NETWORK) for all"
    )
    accelerate.add_argument(
        "--strict",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="pause it while firewall rules match on `ct state invalid`",
    )
    which = accelerate.add_mutually_exclusive_group()
    which.add_argument(
        "--capture",
        metavar="ADDRESS",
        default="",
        help="leave packets of this address to the kernel, so that tcpdump sees all of them",
    )
    which.add_argument("--release", metavar="ADDRESS", default="", help="accelerate this address again")
    accelerate.add_argument("--dry-run", action="store_true", help="print the effects; change nothing")
    add_yes(accelerate)
    actions = add_group(commands, "fastpath", "show state and requirements of the fast path")
    for name, text in (
        ("status", "show what is accelerated, and packets by verdict"),
        ("check", "check each requirement of the fast path"),
    ):
        action = add_command(actions, name, text)
        action.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")
