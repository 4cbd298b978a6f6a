"""Find why a fast path that was turned on doesn't forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from core.model import Link, Ref, link_ref, namespace_ref, network_ref
from core.model.finding import Finding, Severity
from core.topology import Topology

_STATUS = "see `vnet-tui fastpath status`"
_OFF = "vnet-tui accelerate --off"
_ALL = "all"


def inactive(topology: Topology, found: Sequence[Finding]) -> Iterator[Finding]:
    """Find what keeps the fast path from forwarding; `found` are the other findings.

    There are none if it was never turned on, or if its state couldn't be read.
    """
    health, host = topology.snapshot.fast_path, namespace_ref(topology.host)
    networks = tuple(_networks(topology, health.targets))
    if health.left:
        sentence = "A killed fast path left settings behind; the kernel forwards everything."
        yield _finding(host, "left behind", sentence, advice="run: vnet-tui recover")
    if health.state == "paused":
        why = health.reasons[0] if health.reasons else "no reason is known"
        more = f" (and {len(health.reasons) - 1} more)" if len(health.reasons) > 1 else ""
        sentence = f"The fast path is paused, so the kernel forwards everything: {why}{more}."
        advice = f"change what the reason names; to turn it off, run: {_OFF}"
        yield _finding(host, "paused", sentence, health.reasons, networks, advice)
    elif health.state == "silent":
        sentence = "The fast path's process doesn't answer, so the kernel forwards everything."
        advice = f"end it, and turn it on again; run: {_OFF}"
        yield _finding(host, "doesn't answer", sentence, (), networks, advice)
    elif health.state == "off" and health.targets:
        sentence = f"The agent can't turn the fast path on for {', '.join(health.targets)}."
        advice = "run: vnet-tui fastpath check"
        yield _finding(host, "can't start", sentence, health.reasons, networks, advice)
    elif health.state == "on":
        yield from _left_out(topology, found)
        if health.unknown:
            sentence = (
                f"The fast path waits for {', '.join(health.unknown)}: no bridge or network has that name."
            )
            yield _finding(host, "no such network", sentence, advice=_STATUS, severity="info")


def _left_out(topology: Topology, found: Sequence[Finding]) -> Iterator[Finding]:
    """Find links that the kernel forwards for, one finding per reason.

    A link with a finding of its own, such as one that is down, is left out for that.
    """
    health = topology.snapshot.fast_path
    net = topology.snapshot.nets.get(topology.host)
    links = {link.name: link for link in net.links.values()} if net else {}
    known = {ref for one in found if one.severity != "info" for ref in (one.ref, *one.related)}
    by_reason: dict[str, list[Link]] = {}
    for name, reason in health.refused.items():
        link = links.get(name)
        if link is not None and link.admin_up and link_ref(link.key) not in known:
            by_reason.setdefault(reason, []).append(link)
    # Who accelerates all networks doesn't expect that each can be.
    severity: Severity = "info" if _ALL in health.targets else "warn"
    for reason, refused in by_reason.items():
        refs = tuple(link_ref(link.key) for link in refused)
        names = ", ".join(link.name for link in refused)
        sentence = f"The fast path leaves the packets of {names} to the kernel: {reason}."
        yield _finding(refs[0], "left to the kernel", sentence, (), refs[1:], _STATUS, severity)


def _networks(topology: Topology, targets: Sequence[str]) -> Iterator[Ref]:
    return (network_ref(one.id) for one in topology.networks if {one.name, one.bridge} & set(targets))


def _finding(
    ref: Ref, short: str, sentence: str, evidence: tuple[str, ...] = (), related: tuple[Ref, ...] = (),
    advice: str = "", severity: Severity = "warn",
) -> Finding:  # fmt: skip
    return Finding("fast path", ref, f"fast path {short}", sentence, severity, related, advice, evidence)
