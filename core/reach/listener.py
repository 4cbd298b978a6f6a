"""Check that a process listens for a packet that a namespace delivers."""

from __future__ import annotations

from core.model import Listener, Ref, namespace_ref
from core.model.fix import Fix, FixSysctl
from core.reach import fixes
from core.reach.answer import Hop
from core.reach.packet import Packet
from core.text import end_text
from core.topology import Topology


def check_listener(topology: Topology, ns: int, packet: Packet) -> Hop:
    """Return the hop of a packet that arrives: a process listens, or none does."""
    place = topology.label(ns)
    net = topology.snapshot.nets.get(ns)
    key = "net.ipv6.icmp.echo_ignore_all" if packet.is_ipv6 else "net.ipv4.icmp_echo_ignore_all"
    if not packet.is_reply and not packet.dport and net is not None and net.sysctls.get(key) == "1":
        text = f"{place} doesn't answer echo requests"
        fix = Fix(f"set {key} to 0", (FixSysctl(ns, key, "0", "1"),))
        return Hop("listener", place, text, "stop", (f"{key} = 1",), namespace_ref(ns), fix, text)
    if packet.is_reply or not packet.dport:
        return Hop("listener", place, f"delivered to {packet.dst} in {place}")
    what = f"{packet.l4_proto} {packet.dport}"
    listening = topology.snapshot.listeners.get(ns)
    if listening is None:
        text = f"whether a process listens on {what} isn't known"
        return Hop("listener", place, text, "unknown", subject=text)
    on_port = [one for one in listening if (one.l4_proto, one.port) == (packet.l4_proto, packet.dport)]
    accepting = [one for one in on_port if _accepts(one, packet.dst)]
    if accepting:
        evidence = (f"LISTEN {end_text(accepting[0].address, packet.dport or None)}",)
        return Hop("listener", place, f"a process listens on {what}", evidence=evidence)
    return _refused(topology, ns, packet, on_port)


def _refused(topology: Topology, ns: int, packet: Packet, on_port: list[Listener]) -> Hop:
    place, what = topology.label(ns), f"{packet.l4_proto} {packet.dport}"
    where = "on the host" if ns == topology.host else f"in {place}"
    container = topology.container_of(ns)
    ref = Ref("container", (container.runtime, container.id)) if container else namespace_ref(ns)
    text, subject = f"nothing listens on {what}", f"nothing listens on {what} {where}"
    if on_port:
        only = ", ".join(dict.fromkeys(one.address for one in on_port))
        text = f"the process on {what} listens on {only} only, not on {packet.dst}"
        if all((":" in one.address) != packet.is_ipv6 for one in on_port):
            family = "IPv6" if packet.is_ipv6 else "IPv4"
            text = f"the process on {what} doesn't listen on {family}, only on {only}"
        subject = f"the service on {what} {where} listens on {only} only"
    evidence = tuple(f"LISTEN {end_text(one.address, one.port or None)}" for one in on_port)
    fix = fixes.start_service(container, what, bool(on_port))
    return Hop("listener", place, text, "stop", evidence, ref, fix, subject)


def _accepts(one: Listener, address: str) -> bool:
    if one.address == "::":
        return ":" in address or not one.ipv6_only
    if one.address == "0.0.0.0":
        return ":" not in address
    return one.address.removeprefix("::ffff:") == address
