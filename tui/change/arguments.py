"""What the commands that change networks understand; says nothing about how they are done."""

from __future__ import annotations

import argparse

# The values that core.plan.requests knows; repeated here because a parser must be there at once.
KINDS = ("nat", "internal", "routed", "nic-bridged")
MODELS = ("closed", "bridged", "joined", "open")
COMMANDS = (
    "network", "container", "attach", "detach", "move", "publish", "unpublish", "link", "bridge", "port",
    "tune", "apply", "export", "undo", "history", "recover", "confirm", "cleanup", "agent",
)  # fmt: skip
# As core.plan.tuning has them.
PLAIN_SIZE, USUAL_SIZE = 65536, 262144
_PORTS = "[HOST_IP:]HOST_PORTS[:CONTAINER_PORTS][/PROTO], such as 8080:80, 127.0.0.1:53/udp, [::]:8000-8010"

type _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: _Commands) -> None:
    """Add every command of COMMANDS."""
    _network(_group(commands, "network", "make, remove, list, join and part networks"))
    _container(_group(commands, "container", "make and delete plain containers (named namespaces)"))
    _members(commands)
    _ports(commands)
    _links(commands)
    _tuning(commands)
    _files(commands)
    _journal(commands)
    agent = _command(commands, "agent", "keep up what vnet made when containers and firewalls restart")
    agent.add_argument("--unit", action="store_true", help="print a systemd unit for it instead")
    agent.add_argument(
        "--metrics", metavar="HOST:PORT", default="",
        help="serve Prometheus metrics there, such as 127.0.0.1:9742 (off)",
    )  # fmt: skip
    agent.add_argument(
        "--accelerate", nargs="+", metavar="NETWORK", default=[],
        help="keep the fast path up for these bridges and networks, or all (docs/fast-path.md)",
    )  # fmt: skip
    agent.add_argument("--strict", action="store_true", help="with --accelerate: as accelerate --strict")


def _command(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text, allow_abbrev=False)


def _group(commands: _Commands, name: str, text: str) -> _Commands:
    group = _command(commands, name, text)
    return group.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)


def _changing(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    """A command that changes something: what all of these take."""
    command = _command(commands, name, text)
    command.add_argument("--dry-run", action="store_true", help="print the commands; change nothing")
    command.add_argument("--json", action="store_true", help="print what is done, and how it ended, as JSON")
    command.add_argument(
        "--auto-undo", action="store_true", help="first take back changes that were cut off earlier"
    )
    return command


def _network(actions: _Commands) -> None:
    create = _changing(actions, "create", "make a network")
    create.add_argument("name", metavar="NETWORK", help="its name, 15 bytes at most")
    create.add_argument(
        "--kind", choices=KINDS, default="nat", help="what becomes of packets to outside (nat)"
    )
    create.add_argument(
        "--subnet", action="append", default=[], help="its subnet; once for IPv4, once for IPv6 (a free one)"
    )
    create.add_argument("--gateway", action="append", default=[], help="the host's address on it (the first)")
    create.add_argument("--ipv6", action="store_true", help="choose an IPv6 subnet as well")
    create.add_argument("--mtu", type=int, default=0, help="its MTU (that of the way out)")
    create.add_argument("--bridge", default="", help="its bridge's name (br-NETWORK)")
    create.add_argument("--uplink", metavar="LINK", default="", help="the card of a nic-bridged network")
    create.add_argument("--nat66", action="store_true", help="translate IPv6 as well")
    create.add_argument("--vlan-filtering", action="store_true", help="make the bridge VLAN-aware")
    create.add_argument("--engine", choices=("vnet", "docker"), default="vnet", help="who makes it (vnet)")
    _yes(_named(_changing(actions, "rm", "remove a network; what is on it is detached"), "NETWORK"))
    listing = _command(
        actions, "ls", "list the networks of vnet and the engines (all: vnet-tui show networks)"
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    for name, text in (("join", "let two networks reach each other"), ("part", "keep two networks apart")):
        pair = _changing(actions, name, text)
        pair.add_argument("network", metavar="NETWORK", help="one network")
        pair.add_argument("other", metavar="OTHER", help="the other")


def _named(command: argparse.ArgumentParser, what: str) -> argparse.ArgumentParser:
    command.add_argument("name", metavar=what, help=f"the {what.lower()}'s name")
    return command


def _yes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--yes", "-y", action="store_true", help="do not ask")


def _container(actions: _Commands) -> None:
    create = _named(_changing(actions, "create", "make a plain container: a named namespace"), "CONTAINER")
    create.add_argument("--model", choices=MODELS, help="how it is connected (closed)")
    create.add_argument("--network", default="", help="the network of a bridged container")
    _address(create)
    create.add_argument(
        "--joined-with", metavar="OTHER", default="", help="the container that it is one with"
    )
    _named(_changing(actions, "rm", "delete a plain container"), "CONTAINER")


def _address(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--address",
        action="append",
        default=[],
        help="its address; once of each family (free ones)",
    )


def _members(commands: _Commands) -> None:
    attach = _member(commands, "attach", "attach a container to a network")
    _address(attach)
    attach.add_argument("--link", default="", help="the link's name inside (the first free ethN)")
    _member(commands, "detach", "take a container off a network")
    move = _member(commands, "move", "take a container off one network and attach it to another")
    move.add_argument("to", metavar="TO", help="the network to move it to")
    _address(move)


def _member(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    command = _changing(commands, name, text)
    command.add_argument("container", metavar="CONTAINER", help="its name, RUNTIME:NAME or id")
    command.add_argument("network", metavar="NETWORK", help="the network's name")
    return command


def _ports(commands: _Commands) -> None:
    publish = _changing(commands, "publish", "publish a port of a running container")
    publish.add_argument("container", metavar="CONTAINER", help="its name, RUNTIME:NAME or id")
    publish.add_argument("ports", metavar="PORTS", help=_PORTS)
    publish.add_argument("--network", default="", help="the network to reach it by (the first that can)")
    unpublish = _changing(commands, "unpublish", "withdraw a published port")
    unpublish.add_argument("ports", metavar="PORTS", help="[HOST_IP:]HOST_PORTS[/PROTO], as it was published")


def _links(commands: _Commands) -> None:
    links = _group(commands, "link", "change and delete links")
    change = _inside(_changing(links, "set", "change a link"))
    state = change.add_mutually_exclusive_group()
    state.add_argument("--up", action="store_true", default=None, help="set it up")
    state.add_argument("--down", action="store_false", dest="up", default=None, help="set it down")
    change.add_argument("--mtu", type=int, help="set its MTU")
    change.add_argument("--name", metavar="NEW", help="rename it")
    change.add_argument("--alias", metavar="TEXT", help="set its alias")
    _inside(_changing(links, "rm", "delete a veth pair or a bridge"))
    bridge = _inside(_changing(_group(commands, "bridge", "change bridges"), "set", "change a bridge"))
    bridge.add_argument("setting", metavar="SETTING", help="its name in ip-link(8), such as stp_state")
    bridge.add_argument("value", metavar="VALUE", type=int, help="a number, counted as in ip-link(8)")
    port = _inside(_changing(_group(commands, "port", "change bridge ports"), "set", "change a bridge port"))
    port.add_argument("flag", metavar="FLAG", help="its name in bridge(8), such as isolated")
    port.add_argument("state", choices=("on", "off"), help="what to switch it to")


def _inside(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("link", metavar="LINK", help="the link's name")
    command.add_argument("--ns", metavar="NAME", help="the namespace or container that it is in (the host)")
    return command


def _tuning(commands: _Commands) -> None:
    tune = _changing(commands, "tune", "tune a bridge, or a network's, with its ports and containers")
    tune.add_argument("network", metavar="NETWORK", help="the network's or the bridge's name")
    tune.add_argument(
        "--big-tcp", metavar="SIZE", nargs="?", const=USUAL_SIZE, type=_size,
        help=f"the largest packets inside the host, in bytes ({USUAL_SIZE}), or off",
    )  # fmt: skip
    tune.add_argument("--offloads", choices=("on", "off"), help="TSO, GSO, GRO and transmit checksums")
    tune.add_argument(
        "--br-netfilter", choices=("on", "off"), help="whether what is bridged passes the host's firewall"
    )
    tune.add_argument("--rps", metavar="CPUS", help="who takes over received packets: all, off or a mask")
    tune.add_argument(
        "--no-track-dns", choices=("on", "off"), nargs="?", const="on",
        help="inside containers, have Docker's DNS work without conntrack",
    )  # fmt: skip
    tune.add_argument(
        "--only", metavar="CONTAINER", action="append", default=[],
        help="--no-track-dns in this container alone; may be given several times",
    )  # fmt: skip


def _size(text: str) -> int:
    return PLAIN_SIZE if text == "off" else int(text)


def _files(commands: _Commands) -> None:
    apply = _changing(commands, "apply", "make what a file says, showing the difference first")
    apply.add_argument(
        "file", metavar="FILE", help='TOML, its keys in docs/changing.md ("-": standard input)'
    )
    apply.add_argument("--prune", action="store_true", help="also remove what is vnet's and not in the file")
    _yes(apply)
    export = _command(commands, "export", "print the file that describes what vnet made")
    export.add_argument("file", metavar="FILE", nargs="?", default="-", help="where to (standard output)")
    _yes(_changing(commands, "cleanup", "remove all that vnet made, and nothing else"))


def _journal(commands: _Commands) -> None:
    undo = _changing(commands, "undo", "take back an earlier change")
    _entry(undo, "the change by its id or number in history (the last one)")
    history = _command(commands, "history", "list the changes that were made, the last one first")
    history.add_argument("--json", action="store_true", help="print JSON, each change with its commands")
    recover = _changing(commands, "recover", "take back changes that were cut off")
    _entry(recover, "the change (all that were cut off)")
    recover.add_argument("--forget", action="store_true", help="leave what is there, and offer it no more")
    confirm = _command(commands, "confirm", "keep a guarded change, which is taken back otherwise")
    _entry(confirm, "the change (the one that waits)")
    confirm.add_argument("--json", action="store_true", help="print how it ended as JSON")


def _entry(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument("entry", metavar="ID", nargs="?", default="", help=text)
