"""Compare the kernel, sysctls of namespaces and links, and listening ports."""

from __future__ import annotations

from collections.abc import Iterator

from core.diff.changelist import ChangeList, Topic, in_both, missing_in
from core.model import IpSettings, Listener, NetState, Snapshot, namespace_ref
from core.text import end_text


def compare_host(log: ChangeList) -> None:
    """Report another kernel, and sysctls that came or went."""
    old, new = log.old.snapshot.host, log.new.snapshot.host
    ref = namespace_ref(log.new.host)
    if old.kernel and new.kernel and old.kernel != new.kernel:
        log.add("changed", ref, f"the kernel changed from {old.kernel} to {new.kernel}", Topic.SETTING)
    for name in missing_in(new.sysctls, old.sysctls) if new.sysctls else ():
        if name.startswith("net.bridge."):
            log.add("removed", ref, f"{name} no longer exists (was {old.sysctls[name]})", Topic.SYSCTL, 1)
    for name in missing_in(old.sysctls, new.sysctls) if old.sysctls else ():
        if name.startswith("net.bridge."):
            log.add(
                "added", ref, f"{name} is {new.sysctls[name]} (br_netfilter was not loaded)", Topic.SYSCTL
            )


def compare_ip_settings(log: ChangeList) -> None:
    """Report changed sysctls of namespaces and links: forwarding, rp_filter, proxies.

    A link's setting that follows that of all links is left out, and so are the host's that compare_sysctls
    reports."""
    for ns, old, new in in_both(log.old.snapshot.nets, log.new.snapshot.nets):
        before = {(one.family, one.ifindex): one for one in old.settings}
        ref, where = namespace_ref(ns), log.label(ns)
        is_host = ns == log.new.host
        all_links: dict[tuple[int, str], tuple[int, int]] = {}
        for one in new.settings:  # those of all links come first
            was = before.get((one.family, one.ifindex))
            for field, change in _changed_settings(was, one):
                follows = all_links.get((one.family, field)) == change
                if one.ifindex == 0:
                    all_links[one.family, field] = change
                if not follows and not (is_host and one.ifindex == 0 and field == "forwarding"):
                    sentence = (
                        f"{_sysctl(one, field, new)} in {where} changed from {change[0]} to {change[1]}"
                    )
                    log.add("changed", ref, sentence, Topic.SYSCTL, 1 if one.ifindex else 0)


def _changed_settings(old: IpSettings | None, new: IpSettings) -> Iterator[tuple[str, tuple[int, int]]]:
    for field in ("forwarding", "rp_filter", "proxy") if old is not None else ():
        before, after = int(getattr(old, field)), int(getattr(new, field))
        if before != after:
            yield field, (before, after)


def _sysctl(one: IpSettings, field: str, net: NetState) -> str:
    """Return the name of a sysctl (Documentation/networking/ip-sysctl.rst)."""
    if (one.family, one.ifindex, field) == (4, 0, "forwarding"):
        return "net.ipv4.ip_forward"
    link = net.links.get(one.ifindex)
    name = link.name if link else "all"
    field = {"proxy": "proxy_arp" if one.family == 4 else "proxy_ndp"}.get(field, field)
    return f"net.ipv{one.family}.conf.{name}.{field}"


def compare_listeners(log: ChangeList) -> None:
    """Report ports of namespaces on which processes began or ceased to listen."""
    old, new = (_listeners(side.snapshot, side.host) for side in (log.old, log.new))
    for ns in [ns for ns in new if ns in old]:
        ref, where = namespace_ref(ns), log.label(ns)
        for text in missing_in(new[ns], old[ns]):
            log.add("removed", ref, f"no process in {where} listens on {text} any more", Topic.SERVICE)
        for text in missing_in(old[ns], new[ns]):
            log.add("added", ref, f"a process in {where} listens on {text}", Topic.SERVICE)


# The first port that the kernel assigns by default (ip_local_port_range): services of the host that listen on
# such a port have another one after each start. Docker's DNS in containers as well.
_EPHEMERAL = 32768
_DOCKER_DNS = "127.0.0.11"


def _listeners(snapshot: Snapshot, host: int) -> dict[int, list[str]]:
    """Return the listening ports as text by namespace; old files have only the host's."""
    found = dict(snapshot.listeners)
    if host not in found and snapshot.host.listening:
        found[host] = snapshot.host.listening
    return {
        ns: sorted(
            {
                _listener(one) for one in ports
                if one.address != _DOCKER_DNS and (one.port < _EPHEMERAL or ns != host)
            }
        )
        for ns, ports in found.items()
    }  # fmt: skip


def _listener(one: Listener) -> str:
    return f"{one.l4_proto} {end_text(one.address, one.port)}"
