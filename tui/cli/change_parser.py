"""Define the arguments of commands that change networks.

It imports nothing that takes time.
"""

from __future__ import annotations

import argparse

from tui.cli.option_types import count_of
from tui.cli.subcommands import Commands, add_command, add_group, add_yes

# Values of core.plan.requests, repeated here because importing it takes time.
KINDS = ("nat", "internal", "routed", "nic-bridged", "ovs", "overlay")
MODELS = ("closed", "bridged", "joined", "open")
# As core.plan.tuning has them.
PLAIN_SIZE, USUAL_SIZE = 65536, 262144
# The default rate of the storm guard, and how many times as many multicast frames.
RATE, MULTICAST_TIMES = 500, 10
_PORTS = "[HOST_IP:]HOST_PORTS[:CONTAINER_PORTS][/PROTO], such as 8080:80, 127.0.0.1:53/udp, [::]:8000-8010"


def add_change_commands(commands: Commands) -> None:
    """Add every command of CHANGE_COMMANDS."""
    _network(add_group(commands, "network", "create, remove, list, join and separate networks"))
    _container(add_group(commands, "container", "create and delete plain containers (named namespaces)"))
    _members(commands)
    _ports(commands)
    _links(commands)
    _tuning(commands)
    _files(commands)
    _journal(commands)
    agent = add_command(
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
    agent.add_argument(
        "--etcd", action="store_true", help="with --unit: let the service reach etcd (docs/etcd.md)"
    )
    agent.add_argument("--strict", action="store_true", help="with --accelerate: like `accelerate --strict`")


def _add_change_command(
    commands: Commands, name: str, text: str, as_json: str = "print the plan and its result as JSON"
) -> argparse.ArgumentParser:
    """Add a command that changes something, with the options of all such commands."""
    command = add_command(commands, name, text)
    command.add_argument("--dry-run", action="store_true", help="print the commands; change nothing")
    command.add_argument("--json", action="store_true", help=as_json)
    command.add_argument("--auto-undo", action="store_true", help="undo interrupted changes first")
    return command


def _network(actions: Commands) -> None:
    create = _add_change_command(actions, "create", "create a network")
    create.add_argument("name", metavar="NETWORK", help="its name, at most 15 bytes")
    create.add_argument(
        "--kind", choices=KINDS, default="nat",
        help="nat: masqueraded (default); internal: no traffic to or from outside; routed: without NAT; "
        "nic-bridged: on the LAN of a NIC; overlay: the same network on several hosts, by VXLAN; "
        "ovs: as nat, on a bridge of Open vSwitch",
    )  # fmt: skip
    _subnets(create)
    create.add_argument("--bridge", default="", help="the name of its bridge (default: br-NETWORK)")
    create.add_argument("--uplink", metavar="LINK", default="", help="the NIC to attach, if nic-bridged")
    create.add_argument("--nat66", action="store_true", help="masquerade IPv6 too")
    create.add_argument("--vlan-filtering", action="store_true", help="turn on the bridge's VLAN filtering")
    create.add_argument(
        "--datapath", choices=("system", "netdev"), default="",
        help="of an ovs network: the kernel's (default), or in user space",
    )  # fmt: skip
    create.add_argument(
        "--engine", choices=("vnet", "docker"), default="vnet",
        help="create a network of vnet-tui or of Docker (default vnet)",
    )  # fmt: skip
    _overlay(create)
    add_yes(
        _named(_add_change_command(actions, "rm", "remove a network and detach its containers"), "NETWORK")
    )
    listing = add_command(
        actions, "ls", "list the networks of vnet-tui and of engines (`vnet-tui show networks` lists all)"
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    join = _add_change_command(
        actions, "join", "allow traffic between two networks, or join an overlay that another host has"
    )
    join.add_argument("network", metavar="NETWORK", help="one network, or the overlay")
    join.add_argument("other", metavar="OTHER", nargs="?", default="", help="the other network")
    _subnets(join)
    _overlay(join)
    leave = _add_change_command(actions, "leave", "leave an overlay: remove it from this host")
    leave.add_argument("network", metavar="NETWORK", help="the overlay")
    _remote(leave, "only close the tunnel to this host; repeat the option for several")
    _peer(leave, "only close the session with this host; repeat the option for several")
    part = _add_change_command(actions, "part", "isolate two joined networks from each other again")
    part.add_argument("network", metavar="NETWORK", help="one network")
    part.add_argument("other", metavar="OTHER", help="the other one")


def _subnets(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--subnet", action="append", default=[],
        help="an IPv4 or IPv6 subnet; repeat the option for both (default: a free one; of an overlay the one "
        "that follows from its name)",
    )  # fmt: skip
    command.add_argument(
        "--gateway", action="append", default=[],
        help="the host's address in the subnet (default: the first one)",
    )  # fmt: skip
    command.add_argument("--ipv6", action="store_true", help="also choose an IPv6 subnet")
    command.add_argument("--mtu", type=int, default=0, help="its MTU (default: the uplink's)")


def _overlay(command: argparse.ArgumentParser) -> None:
    _remote(command, "an overlay's other host, by address; repeat the option for several")
    command.add_argument(
        "--etcd", metavar="URL", default="",
        help="keep an overlay's definition, hosts and addresses in etcd, such as http://192.0.2.9:2379; "
        "several servers are separated by commas (docs/etcd.md)",
    )  # fmt: skip
    command.add_argument(
        "--evpn", action="store_true",
        help="let an overlay's hosts find each other by BGP EVPN of FRRouting, without --remote",
    )  # fmt: skip
    _peer(command, "with EVPN, a host to have a BGP session with; repeat the option for several")
    command.add_argument("--asn", type=int, default=0, help="the AS number (default: FRRouting's, or 65000)")
    command.add_argument(
        "--reflector", action="store_true",
        help="pass on what one peer announces to the others, which then need no sessions with each other",
    )  # fmt: skip
    command.add_argument(
        "--vni", type=count_of, default=0, help="an overlay's number (default: from its name)"
    )
    command.add_argument(
        "--local", metavar="ADDRESS", default="",
        help="this host's address for the tunnels (default: the one by which it reaches the others)",
    )  # fmt: skip
    command.add_argument(
        "--range", dest="ranges", metavar="SUBNET", action="append", default=[],
        help="the part of the subnet that this host assigns (default: from its address)",
    )  # fmt: skip


def _peer(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("--peer", dest="peers", metavar="ADDRESS", action="append", default=[], help=text)


def _remote(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument(
        "--remote", dest="remotes", metavar="ADDRESS", action="append", default=[], help=text
    )


def _named(command: argparse.ArgumentParser, what: str) -> argparse.ArgumentParser:
    command.add_argument("name", metavar=what, help=f"the {what.lower()}'s name")
    return command


def _container(actions: Commands) -> None:
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


def _members(commands: Commands) -> None:
    attach = _member(commands, "attach", "attach a container to a network")
    _address(attach)
    attach.add_argument(
        "--link", default="", help="the link's name in the container (default: the first free ethN)"
    )
    attach.add_argument("--vlan", metavar="TAG", type=int, default=0, help="its VLAN on an ovs network")
    _member(commands, "detach", "detach a container from a network")
    move = _member(commands, "move", "move a container to another network")
    move.add_argument("to", metavar="TO", help="the network to attach it to")
    _address(move)


def _member(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    command = _add_change_command(commands, name, text)
    command.add_argument("container", metavar="CONTAINER", help="its name, RUNTIME:NAME or id")
    command.add_argument("network", metavar="NETWORK", help="the network's name")
    return command


def _ports(commands: Commands) -> None:
    publish = _add_change_command(commands, "publish", "publish a port of a running container")
    publish.add_argument("container", metavar="CONTAINER", help="its name, RUNTIME:NAME or id")
    publish.add_argument("ports", metavar="PORTS", help=_PORTS)
    publish.add_argument(
        "--network", default="", help="the network to reach it through (default: the first possible)"
    )
    unpublish = _add_change_command(commands, "unpublish", "unpublish a port")
    unpublish.add_argument("ports", metavar="PORTS", help="[HOST_IP:]HOST_PORTS[/PROTO], as it was published")


def _links(commands: Commands) -> None:
    links = add_group(commands, "link", "change and delete links")
    change = _inside(_add_change_command(links, "set", "change a link's state, MTU, name or alias"))
    state = change.add_mutually_exclusive_group()
    state.add_argument("--up", action="store_true", default=None, help="set it up")
    state.add_argument("--down", action="store_false", dest="up", default=None, help="set it down")
    change.add_argument("--mtu", type=int, help="set its MTU")
    change.add_argument("--name", metavar="NEW", help="rename it")
    change.add_argument("--alias", metavar="TEXT", help="set its alias")
    _inside(_add_change_command(links, "rm", "delete a veth pair or a bridge"))
    bridges = add_group(commands, "bridge", "change bridges")
    bridge = _inside(_add_change_command(bridges, "set", "change a setting of a bridge"))
    bridge.add_argument("setting", metavar="SETTING", help="its name in ip-link(8), such as stp_state")
    bridge.add_argument("value", metavar="VALUE", type=int, help="a number, in the units of ip-link(8)")
    ports = add_group(commands, "port", "change bridge ports")
    port = _inside(_add_change_command(ports, "set", "change a flag of a bridge port"))
    port.add_argument("flag", metavar="FLAG", help="its name in bridge(8), such as isolated")
    port.add_argument("state", choices=("on", "off"), help="on or off")


def _inside(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("link", metavar="LINK", help="the link's name")
    command.add_argument("--ns", metavar="NAME", help="the link's namespace or container (default: the host)")
    return command


def _tuning(commands: Commands) -> None:
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


def _files(commands: Commands) -> None:
    apply = _add_change_command(commands, "apply", "create the networks and containers that a file describes")
    apply.add_argument(
        "file", metavar="FILE", help='a TOML file; docs/changing.md lists its keys ("-": standard input)'
    )
    apply.add_argument(
        "--prune", action="store_true",
        help="also remove networks, containers and ports of vnet-tui that the file doesn't name",
    )  # fmt: skip
    add_yes(apply)
    export = add_command(commands, "export", "write a file for `apply` that describes vnet-tui's networks")
    export.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="file to write (default: standard output)"
    )
    add_yes(_add_change_command(commands, "cleanup", "remove everything that vnet-tui created"))


def _journal(commands: Commands) -> None:
    undo = _add_change_command(commands, "undo", "undo a change")
    _entry(undo, "the change's id, or its number in `history` (default: the last change)")
    history = add_command(commands, "history", "list earlier changes, the newest first")
    history.add_argument("--json", action="store_true", help="print JSON, each change with its commands")
    recover = _add_change_command(commands, "recover", "undo changes that a crash or kill interrupted")
    _entry(recover, "the change (default: all interrupted changes)")
    recover.add_argument(
        "--forget", action="store_true", help="don't undo the change: leave the host as it is"
    )
    confirm = add_command(commands, "confirm", "keep a guarded change, which is undone after 60 s otherwise")
    _entry(confirm, "the change (default: the one that waits for confirmation)")
    confirm.add_argument("--json", action="store_true", help="print the result as JSON")


def _entry(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("entry", metavar="ID", nargs="?", default="", help=text)


def add_storm(actions: Commands) -> None:
    """Add the actions of `vnet-tui storm`."""
    text = "limit the broadcast and multicast frames that enter a network's ports"
    guard = _add_change_command(actions, "guard", text, as_json="print JSON")
    guard.add_argument("network", metavar="NETWORK", help="a network or bridge, or the name of a single port")
    guard.add_argument("state", choices=("on", "off", "status"), help="on, off, or show the counters")
    guard.add_argument(
        "--rate", type=count_of, metavar="N", default=RATE,
        help=f"broadcast frames a second that may enter each port, and as many ARP (default {RATE})",
    )  # fmt: skip
    guard.add_argument(
        "--multicast", type=count_of, metavar="N",
        help=f"multicast frames a second (default {MULTICAST_TIMES} times --rate)",
    )  # fmt: skip
    guard.add_argument("--burst", type=count_of, metavar="N", help="frames at once (default: as --rate)")
    guard.add_argument(
        "--all-ports", action="store_true", help="also ports that vnet-tui didn't attach to the bridge"
    )
    guard.add_argument(
        "--xdp", action="store_true",
        help="limit in the driver of NICs what enters by them, if it runs XDP programs; many drivers "
        "interrupt the link for a moment",
    )  # fmt: skip
    text = "send a probe out of each port of a bridge, and name the ports that it comes back on"
    loop = _add_change_command(actions, "loop", text, as_json="print JSON")
    loop.add_argument("network", metavar="NETWORK", help="a network or bridge")
    loop.add_argument(
        "--block", action="store_true",
        help="set a port of each loop down; asks first, and `undo` sets it up again",
    )  # fmt: skip
    add_yes(loop)
