"""Run the commands that change networks: make requests of their arguments."""

from __future__ import annotations

import argparse

from core.model import LinkKey, Ref
from core.plan import Plan, Refused
from core.plan.requests import (
    PROTOCOLS,
    Attach,
    ChangeBridge,
    ChangeLink,
    ChangePort,
    CreateContainer,
    CreateNetwork,
    Delete,
    Detach,
    Join,
    JoinOverlay,
    LeaveOverlay,
    Move,
    Publish,
    RemoveContainer,
    RemoveNetwork,
    Request,
    Separate,
    Tune,
    Unpublish,
)
from core.text import quoted, safe
from core.topology import Topology
from tui.cli import files, history
from tui.cli.console import answers_yes, command_errors, confirm, is_interactive, print_plan
from tui.cli.files import list_networks
from tui.cli.perform import (
    LIGHT,
    PUBLISHING,
    RULED,
    TRACKED,
    TUNED,
    WHOLE,
    Parts,
    bridge_named,
    change,
    perform,
    plan_requests,
    read_topology,
    with_frr,
)
from tui.command import CommandError

_OTHERS = {
    "apply": files.apply,
    "export": files.write_export,
    "cleanup": files.cleanup,
    "undo": history.undo,
    "recover": history.recover,
    "history": history.history,
    "confirm": confirm,
}
# Things that these delete may have firewall rules of their own.
_DELETING = (("container", "rm"), ("link", "rm"))


def _parts(options: argparse.Namespace, action: str) -> Parts:
    """Return the parts of a snapshot that the plan needs."""
    if (options.command, action) in _DELETING:
        return WHOLE
    parts = RULED if getattr(options, "uplink", "") else LIGHT
    if options.command == "network":
        return with_frr(parts)
    if getattr(options, "no_track_dns", None):
        return TRACKED
    return {"publish": PUBLISHING, "tune": TUNED}.get(options.command, parts)


def _remove_network(options: argparse.Namespace) -> int:
    """Remove a network; ask first if attachments or ports go as well.

    Scripts aren't asked.
    """

    def planner(topology: Topology) -> Plan | Refused:
        return plan_requests((request_of(options, topology),), topology)

    asks = is_interactive() and not options.yes and not options.json
    return perform(options, planner, with_frr(LIGHT), _agreed if asks else None)


def _agreed(plan: Plan) -> bool:
    print_plan(plan)
    return not plan.side_effects or answers_yes("Remove all of this?")


def run(options: argparse.Namespace) -> int:
    """Run one of CHANGE_COMMANDS; returns the exit code. Raises CommandError."""
    if options.command in _OTHERS:
        with command_errors():
            return _OTHERS[options.command](options)
    if options.command == "agent":
        # Imported only here: it imports the watcher as well.
        from tui.cli import agent

        return agent.run(options)
    action = getattr(options, "action", "")
    if (options.command, action) == ("network", "ls"):
        return list_networks(read_topology(WHOLE), options.json)
    if (options.command, action) == ("network", "rm"):
        return _remove_network(options)
    return change(options, lambda topology: request_of(options, topology), _parts(options, action))


def request_of(options: argparse.Namespace, topology: Topology) -> Request:
    """Return the request of a command line on the current host.

    Raises CommandError.
    """
    match options.command:
        case "network":
            return _network(options)
        case "container":
            return _container(options)
        case "publish" | "unpublish":
            return _port(options)
        case "link" | "bridge" | "port":
            return _link(options, topology)
        case "tune":
            return _tune(options, topology)
        case "attach":
            addresses = tuple(options.address)
            return Attach(options.container, options.network, addresses, options.link, options.vlan)
        case "detach":
            return Detach(options.container, options.network)
        case _:
            return Move(options.container, options.network, options.to, tuple(options.address))


def _network(options: argparse.Namespace) -> Request:
    match options.action:
        case "create":
            return CreateNetwork(
                options.name, options.kind, tuple(options.subnet), tuple(options.gateway), options.ipv6,
                options.mtu, options.bridge, options.uplink, options.nat66, options.vlan_filtering,
                options.engine, options.vni, tuple(options.remotes), options.local, tuple(options.ranges),
                options.evpn, tuple(options.peers), options.asn, options.reflector, options.datapath,
                options.etcd,
            )  # fmt: skip
        case "join":
            return _join(options)
        case "leave":
            return LeaveOverlay(options.network, tuple(options.remotes), tuple(options.peers))
        case "part":
            return Separate(options.network, options.other)
        case _:
            return RemoveNetwork(options.name)


def _join(options: argparse.Namespace) -> Request:
    """Return the request to join two networks, or one overlay."""
    overlay = CreateNetwork(
        options.network, "overlay", tuple(options.subnet), tuple(options.gateway), options.ipv6, options.mtu,
        vni=options.vni, remotes=tuple(options.remotes), local=options.local, ranges=tuple(options.ranges),
        evpn=options.evpn, peers=tuple(options.peers), asn=options.asn, reflector=options.reflector,
        etcd=options.etcd,
    )  # fmt: skip
    if not options.other:
        if options.remotes or options.peers or options.evpn or options.reflector or options.etcd:
            return JoinOverlay(overlay)
        raise CommandError(
            f'can\'t join "{safe(options.network)}": neither another network nor a remote host is given. '
            f"Try: vnet-tui network join {quoted(options.network)} OTHER, or --remote or --etcd"
        )
    if overlay != CreateNetwork(options.network, "overlay"):
        raise CommandError("can't join two networks: the options are for an overlay. Try: without OTHER")
    return Join(options.network, options.other)


def _container(options: argparse.Namespace) -> Request:
    if options.action == "rm":
        return RemoveContainer(options.name)
    given = "joined" if options.joined_with else "bridged" if options.network else "closed"
    model = options.model or given
    return CreateContainer(options.name, model, options.network, tuple(options.address), options.joined_with)


def _port(options: argparse.Namespace) -> Request:
    host_ip, host_ports, container_ports, l4_proto = ports_of(options.ports)
    if options.command == "unpublish":
        return Unpublish(host_ports, l4_proto, host_ip)
    return Publish(options.container, host_ports, container_ports, l4_proto, host_ip, options.network)


def ports_of(text: str) -> tuple[str, str, str, str]:
    """Parse a published port: host address, host ports, container ports, protocol.

    Takes the syntax of `docker run -p`, "[HOST_IP:]HOST_PORTS[:CONTAINER_PORTS][/PROTO]", and the one that
    vnet-tui prints, "PROTO/[HOST_IP:]PORTS". Empty container ports mean those of the host. Malformed values
    are returned as they are, for the plan to refuse. Raises CommandError for too many parts.
    """
    first, slash, rest = text.partition("/")
    if slash and first in PROTOCOLS:
        where, l4_proto = rest, first
    else:
        where, l4_proto = first, rest if slash else PROTOCOLS[0]
    host_ip = ""
    if where.startswith("["):
        host_ip, closed, where = where[1:].partition("]:")
        if not closed:
            raise CommandError(
                f'can\'t use "{safe(text)}" as a port: "]:" must follow the IPv6 address. Try: [ADDRESS]:PORT'
            )
    parts = where.split(":")
    if not host_ip and (len(parts) == 3 or (len(parts) == 2 and "." in parts[0])):
        host_ip, *parts = parts
    if len(parts) > 2:
        raise CommandError(
            f'can\'t use "{safe(text)}" as a port: it has too many parts. '
            "Try: [HOST_IP:]HOST_PORTS[:CONTAINER_PORTS][/PROTO]"
        )
    return host_ip, parts[0], parts[1] if len(parts) == 2 else "", l4_proto


def _link(options: argparse.Namespace, topology: Topology) -> Request:
    key = _key(options, topology)
    match options.command, options.action:
        case "link", "set":
            return ChangeLink(key, options.up, options.mtu, options.name, options.alias)
        case "bridge", _:
            return ChangeBridge(key, options.setting, options.value)
        case "port", _:
            return ChangePort(key, options.flag, options.state == "on")
        case _:
            return Delete(Ref("link", tuple(key)))


def _tune(options: argparse.Namespace, topology: Topology) -> Request:
    given = (options.big_tcp, options.offloads, options.br_netfilter, options.rps, options.no_track_dns)
    if all(one is None for one in given):
        raise CommandError(
            "can't tune: no option is given. Try: --big-tcp, --offloads, --br-netfilter, --rps or "
            "--no-track-dns"
        )
    if options.only and options.no_track_dns is None:
        raise CommandError(
            "can't use --only: it needs --no-track-dns, as the other options tune the whole bridge. "
            f"Try: --no-track-dns on --only {quoted(options.only[0])}"
        )
    switched = {"on": True, "off": False, None: None}
    return Tune(
        bridge_named(options.network, topology, "tune").key,
        options.big_tcp,
        switched[options.offloads],
        switched[options.br_netfilter],
        options.rps,
        switched[options.no_track_dns],
        tuple(options.only),
    )


def _key(options: argparse.Namespace, topology: Topology) -> LinkKey:
    ns = topology.host if options.ns is None else _namespace(options.ns, topology)
    net = topology.snapshot.nets.get(ns)
    for link in net.links.values() if net else ():
        if options.link in (link.name, *link.altnames):
            return link.key
    place = topology.label(ns)
    raise CommandError(
        f'can\'t find the link "{safe(options.link)}": {safe(place)} has none of that name. '
        f"Try: vnet-tui show links --ns {quoted(place)}"
    )


def _namespace(text: str, topology: Topology) -> int:
    """Return the namespace with that name, inode or container."""
    for inode, space in topology.snapshot.namespaces.items():
        if text in (topology.label(inode), str(inode), *space.names):
            return inode
    named = {one.netns for one in topology.containers.values() if text in (one.name, one.id, one.uid)} - {
        None
    }
    if len(named) == 1:
        return next(ns for ns in named if ns is not None)
    if named:
        reason = "several containers have that name. Try: the id of one"
    else:
        reason = "there is none of that name. Try: vnet-tui show namespaces"
    raise CommandError(f'can\'t find the namespace "{safe(text)}": {reason}')
