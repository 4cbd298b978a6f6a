"""Define the command line: commands, arguments, help.

It imports nothing that takes time.
"""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, NoReturn

from tui.cli.capture_options import add_capture_options
from tui.cli.diagnosis_parser import add_diff, add_doctor, add_drops, add_shell, add_trace, add_why
from tui.cli.option_types import bytes_of, seconds_of

TOPICS = (
    "namespaces", "links", "bridges", "veths", "containers", "networks", "nat", "conntrack", "routes",
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
  vnet-tui network create shop --dry-run print the commands for a NAT network
  vnet-tui container create web --network shop
  vnet-tui publish web 8080:80           forward host port 8080 to web's port 80
  vnet-tui apply net.toml                create networks from a file
  vnet-tui undo                          undo the last change
  vnet-tui accelerate shop               turn on the fast path for a network
  vnet-tui completion bash > /etc/bash_completion.d/vnet-tui
"""
# Values of core.plan.requests, repeated here because importing it takes time.
KINDS = ("nat", "internal", "routed", "nic-bridged")
MODELS = ("closed", "bridged", "joined", "open")
CHANGE_COMMANDS = (
    "network", "container", "attach", "detach", "move", "publish", "unpublish", "link", "bridge", "port",
    "tune", "apply", "export", "undo", "history", "recover", "confirm", "cleanup", "agent",
)  # fmt: skip
# As core.plan.tuning has them.
PLAIN_SIZE, USUAL_SIZE = 65536, 262144
_PORTS = "[HOST_IP:]HOST_PORTS[:CONTAINER_PORTS][/PROTO], such as 8080:80, 127.0.0.1:53/udp, [::]:8000-8010"

FAST_PATH_COMMANDS = ("accelerate", "fastpath")
_DEMO = "open the dashboard on a demo lab, or on a recording of it"
_TARGETS = "a bridge, a network of Docker, podman or vnet-tui, or all"
type _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


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
    _add_show(_command(commands, "show", "print lists as text or JSON"))
    dump = _command(commands, "dump", "save a snapshot of this host to a file, for --from")
    dump.add_argument("file", metavar="FILE", help='file to write ("-": standard output)')
    _add_from(dump, argparse.SUPPRESS)
    _add_recording_commands(commands)
    dashboard = commands.add_parser(
        "demo", help=_DEMO, description=_DEMO, allow_abbrev=False,
        usage="vnet-tui demo [-h] [--ascii] [--write] [--no-traffic] [--fault FAULT] [--list-faults] "
        "[COMMAND ...]",
    )  # fmt: skip
    _add_dashboard_options(dashboard, argparse.SUPPRESS)
    dashboard.add_argument("--no-traffic", action="store_true", help="create no traffic in the lab")
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
    _add_flows(_command(commands, "flows", "list connections with their rates"))
    why = _command(commands, "why", "say whether A can reach B, hop by hop, and what stops it")
    doctor = _command(commands, "doctor", "list what is wrong on this host, and repair it")
    for command, add in ((why, add_why), (doctor, add_doctor)):
        add(command)
        _add_from(command, argparse.SUPPRESS)
    add_capture_options(
        _command(commands, "capture", "capture packets as lines, or to pcapng files for Wireshark")
    )
    add_drops(_command(commands, "drops", "count dropped packets by the kernel's reasons"))
    _change_commands(commands)
    _fast_path_commands(commands)
    add_trace(_command(commands, "trace", "list each link that a packet from A to B, or of a flow, passes"))
    add_shell(_command(commands, "shell", "open a shell in a container, or run a command there"))
    shell = _command(commands, "completion", "print a script that completes commands in a shell")
    shell.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
    return parser


def _add_recording_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands for recordings and bundles."""
    record = _command(commands, "record", "record this host over time to a file")
    record.add_argument("file", metavar="FILE", help="file to write; it must not exist yet")
    record.add_argument(
        "--for", dest="seconds", type=seconds_of, metavar="TIME", help="duration (default 10m, at most 24h)"
    )
    record.add_argument(
        "--max-size", dest="size", type=bytes_of, metavar="SIZE", help="size limit (default 64M, at most 2G)"
    )
    replay = _command(commands, "replay", "open a recording in the dashboard, with a time line")
    replay.add_argument("file", metavar="FILE", help="a file from `vnet-tui record` or R in the dashboard")
    add_diff(_command(commands, "diff", "print what changed between two moments, likely suspects first"))
    bundle = _command(commands, "bundle", "write a readable archive of the current state, for a bug report")
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


def _change_commands(commands: _Commands) -> None:
    """Add every command of CHANGE_COMMANDS."""
    _network(_group(commands, "network", "create, remove, list, join and separate networks"))
    _container(_group(commands, "container", "create and delete plain containers (named namespaces)"))
    _members(commands)
    _ports(commands)
    _links(commands)
    _tuning(commands)
    _files(commands)
    _journal(commands)
    agent = _command(
        commands, "agent", "run a service that restores networks when containers or firewalls restart"
    )
    agent.add_argument("--unit", action="store_true", help="print a systemd unit for the service, and exit")
    agent.add_argument(
        "--metrics", metavar="HOST:PORT", default="",
        help="serve Prometheus metrics at this address, such as 127.0.0.1:9742 (default: off)",
    )  # fmt: skip
    agent.add_argument(
        "--accelerate", nargs="+", metavar="NETWORK", default=[],
        help="keep the fast path on for these bridges and networks, or for all (docs/fast-path.md)",
    )  # fmt: skip
    agent.add_argument("--drops", action="store_true", help="with --metrics: also count dropped packets")
    agent.add_argument("--strict", action="store_true", help="with --accelerate: like `accelerate --strict`")


def _command(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text, allow_abbrev=False)


def _group(commands: _Commands, name: str, text: str) -> _Commands:
    group = _command(commands, name, text)
    return group.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)


def _add_change_command(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command that changes something, with the options of all such commands."""
    command = _command(commands, name, text)
    command.add_argument("--dry-run", action="store_true", help="print the commands; change nothing")
    command.add_argument("--json", action="store_true", help="print the plan and its result as JSON")
    command.add_argument("--auto-undo", action="store_true", help="undo interrupted changes first")
    return command


def _network(actions: _Commands) -> None:
    create = _add_change_command(actions, "create", "create a network")
    create.add_argument("name", metavar="NETWORK", help="its name, at most 15 bytes")
    create.add_argument(
        "--kind", choices=KINDS, default="nat",
        help="nat: masqueraded (default); internal: no traffic to or from outside; routed: without NAT; "
        "nic-bridged: on the LAN of a NIC",
    )  # fmt: skip
    create.add_argument(
        "--subnet", action="append", default=[],
        help="an IPv4 or IPv6 subnet; repeat the option for both (default: a free one)",
    )  # fmt: skip
    create.add_argument(
        "--gateway", action="append", default=[],
        help="the host's address in the subnet (default: the first one)",
    )  # fmt: skip
    create.add_argument("--ipv6", action="store_true", help="also choose a free IPv6 subnet")
    create.add_argument("--mtu", type=int, default=0, help="its MTU (default: the uplink's)")
    create.add_argument("--bridge", default="", help="the name of its bridge (default: br-NETWORK)")
    create.add_argument("--uplink", metavar="LINK", default="", help="the NIC to attach, if nic-bridged")
    create.add_argument("--nat66", action="store_true", help="masquerade IPv6 too")
    create.add_argument("--vlan-filtering", action="store_true", help="turn on the bridge's VLAN filtering")
    create.add_argument(
        "--engine", choices=("vnet", "docker"), default="vnet",
        help="create a network of vnet-tui or of Docker (default vnet)",
    )  # fmt: skip
    _yes(_named(_add_change_command(actions, "rm", "remove a network and detach its containers"), "NETWORK"))
    listing = _command(
        actions, "ls", "list the networks of vnet-tui and of engines (`vnet-tui show networks` lists all)"
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    for name, text in (
        ("join", "allow traffic between two networks of vnet-tui"),
        ("part", "isolate two joined networks from each other again"),
    ):
        pair = _add_change_command(actions, name, text)
        pair.add_argument("network", metavar="NETWORK", help="one network")
        pair.add_argument("other", metavar="OTHER", help="the other one")


def _named(command: argparse.ArgumentParser, what: str) -> argparse.ArgumentParser:
    command.add_argument("name", metavar=what, help=f"the {what.lower()}'s name")
    return command


def _yes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--yes", "-y", action="store_true", help="don't ask for confirmation")


def _container(actions: _Commands) -> None:
    create = _named(
        _add_change_command(actions, "create", "create a plain container: a named namespace"), "CONTAINER"
    )
    create.add_argument(
        "--model", choices=MODELS,
        help="closed: loopback only (default); bridged: on a network (default with --network); joined: in "
        "another container's namespace (default with --joined-with); open: in the host's namespace",
    )  # fmt: skip
    create.add_argument("--network", default="", help="the network to attach it to")
    _address(create)
    create.add_argument(
        "--joined-with", metavar="OTHER", default="", help="the container whose namespace it shares"
    )
    _named(_add_change_command(actions, "rm", "delete a plain container"), "CONTAINER")


def _address(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--address",
        action="append",
        default=[],
        help="an IPv4 or IPv6 address; repeat the option for both (default: a free one)",
    )


def _members(commands: _Commands) -> None:
    attach = _member(commands, "attach", "attach a container to a network")
    _address(attach)
    attach.add_argument(
        "--link", default="", help="the link's name in the container (default: the first free ethN)"
    )
    _member(commands, "detach", "detach a container from a network")
    move = _member(commands, "move", "move a container to another network")
    move.add_argument("to", metavar="TO", help="the network to attach it to")
    _address(move)


def _member(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    command = _add_change_command(commands, name, text)
    command.add_argument("container", metavar="CONTAINER", help="its name, RUNTIME:NAME or id")
    command.add_argument("network", metavar="NETWORK", help="the network's name")
    return command


def _ports(commands: _Commands) -> None:
    publish = _add_change_command(commands, "publish", "publish a port of a running container")
    publish.add_argument("container", metavar="CONTAINER", help="its name, RUNTIME:NAME or id")
    publish.add_argument("ports", metavar="PORTS", help=_PORTS)
    publish.add_argument(
        "--network", default="", help="the network to reach it through (default: the first possible)"
    )
    unpublish = _add_change_command(commands, "unpublish", "unpublish a port")
    unpublish.add_argument("ports", metavar="PORTS", help="[HOST_IP:]HOST_PORTS[/PROTO], as it was published")


def _links(commands: _Commands) -> None:
    links = _group(commands, "link", "change and delete links")
    change = _inside(_add_change_command(links, "set", "change a link's state, MTU, name or alias"))
    state = change.add_mutually_exclusive_group()
    state.add_argument("--up", action="store_true", default=None, help="set it up")
    state.add_argument("--down", action="store_false", dest="up", default=None, help="set it down")
    change.add_argument("--mtu", type=int, help="set its MTU")
    change.add_argument("--name", metavar="NEW", help="rename it")
    change.add_argument("--alias", metavar="TEXT", help="set its alias")
    _inside(_add_change_command(links, "rm", "delete a veth pair or a bridge"))
    bridges = _group(commands, "bridge", "change bridges")
    bridge = _inside(_add_change_command(bridges, "set", "change a setting of a bridge"))
    bridge.add_argument("setting", metavar="SETTING", help="its name in ip-link(8), such as stp_state")
    bridge.add_argument("value", metavar="VALUE", type=int, help="a number, in the units of ip-link(8)")
    ports = _group(commands, "port", "change bridge ports")
    port = _inside(_add_change_command(ports, "set", "change a flag of a bridge port"))
    port.add_argument("flag", metavar="FLAG", help="its name in bridge(8), such as isolated")
    port.add_argument("state", choices=("on", "off"), help="on or off")


def _inside(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("link", metavar="LINK", help="the link's name")
    command.add_argument("--ns", metavar="NAME", help="the link's namespace or container (default: the host)")
    return command


def _tuning(commands: _Commands) -> None:
    tune = _add_change_command(
        commands, "tune", "change packet sizes, offloads, RPS and filtering of a bridge"
    )
    tune.add_argument("network", metavar="NETWORK", help="the name of the bridge, or of its network")
    tune.add_argument(
        "--big-tcp", metavar="SIZE", nargs="?", const=USUAL_SIZE, type=_size,
        help=f"the largest packets between containers, in bytes (without SIZE {USUAL_SIZE}), or off",
    )  # fmt: skip
    tune.add_argument("--offloads", choices=("on", "off"), help="TSO, GSO, GRO and transmit checksums")
    tune.add_argument(
        "--br-netfilter", choices=("on", "off"),
        help="whether packets between its containers pass the host's firewall",
    )  # fmt: skip
    tune.add_argument("--rps", metavar="CPUS", help="CPUs that process received packets: all, off or a mask")
    tune.add_argument(
        "--no-track-dns", choices=("on", "off"), nargs="?", const="on",
        help="resolve names with Docker's DNS without conntrack in containers (without a value: on)",
    )  # fmt: skip
    tune.add_argument(
        "--only", metavar="CONTAINER", action="append", default=[],
        help="with --no-track-dns: only in this container; the option can be repeated",
    )  # fmt: skip


def _size(text: str) -> int:
    return PLAIN_SIZE if text == "off" else int(text)


def _files(commands: _Commands) -> None:
    apply = _add_change_command(commands, "apply", "create the networks and containers that a file describes")
    apply.add_argument(
        "file", metavar="FILE", help='a TOML file; docs/changing.md lists its keys ("-": standard input)'
    )
    apply.add_argument(
        "--prune", action="store_true",
        help="also remove networks, containers and ports of vnet-tui that the file doesn't name",
    )  # fmt: skip
    _yes(apply)
    export = _command(commands, "export", "write a file for `apply` that describes vnet-tui's networks")
    export.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="file to write (default: standard output)"
    )
    _yes(_add_change_command(commands, "cleanup", "remove everything that vnet-tui created"))


def _journal(commands: _Commands) -> None:
    undo = _add_change_command(commands, "undo", "undo a change")
    _entry(undo, "the change's id, or its number in `history` (default: the last change)")
    history = _command(commands, "history", "list earlier changes, the newest first")
    history.add_argument("--json", action="store_true", help="print JSON, each change with its commands")
    recover = _add_change_command(commands, "recover", "undo changes that a crash or kill interrupted")
    _entry(recover, "the change (default: all interrupted changes)")
    recover.add_argument(
        "--forget", action="store_true", help="don't undo the change: leave the host as it is"
    )
    confirm = _command(commands, "confirm", "keep a guarded change, which is undone after 60 s otherwise")
    _entry(confirm, "the change (default: the one that waits for confirmation)")
    confirm.add_argument("--json", action="store_true", help="print the result as JSON")


def _entry(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("entry", metavar="ID", nargs="?", default="", help=text)


def _fast_path_commands(commands: _Commands) -> None:
    """Add every command of FAST_PATH_COMMANDS."""
    text = "turn on the fast path: forward established connections of containers in eBPF"
    accelerate = _command(commands, "accelerate", text)
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
    _yes(accelerate)
    actions = _group(commands, "fastpath", "show state and requirements of the fast path")
    for name, text in (
        ("status", "show what is accelerated, and packets by verdict"),
        ("check", "check each requirement of the fast path"),
    ):
        action = _command(actions, name, text)
        action.add_argument("--json", action="store_true", help="print JSON (docs/json.md has its schema)")
