"""What turning the fast path on or off changes, in words and on which links, before it is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from bpf import attachments, build, layout
from bpf.attachments import NO_FOREIGN, Foreign
from bpf.btf import CONNTRACK_MODULE, module_state
from bpf.connections import field_mask
from bpf.hostwatch import read_sysctl
from bpf.link_state import engine_networks, find_bridges
from bpf.ports import MapContents, map_contents
from bpf.preconditions import Preconditions, read_preconditions
from bpf.reconcile import Observer
from bpf.requirements import requirements, unmet
from core.model import FastPath, Requirement
from core.model.fastpath import ALL
from core.text import safe
from core.topology import Topology
from tui.changer import Preview
from tui.present.fast_targets import Choice, added, is_covered, removed

_MASK = f"0x{field_mask():08x}"


def preview(
    choices: Sequence[Choice],
    on: bool,
    topology: Topology,
    fast: FastPath,
    tied: bool,
    strict: bool | None = None,
) -> Preview:
    """What would change; `tied` where it ends with the program that asks; `strict` as in
    tui/changer.py."""
    wanted = [one for one in choices if one.target and _is_on(one, fast, on) != on]
    label = ", ".join(one.label for one in wanted or choices)
    title = f"{'Accelerate' if on else 'Stop accelerating'} {label}"
    nothing = [f"{one.label}: {one.nothing}" for one in choices if one.nothing]
    nothing += [
        f"{one.label}: it is {'accelerated already' if on else 'not accelerated'}"
        for one in choices
        if one.target and one not in wanted
    ]
    strict = fast.strict if strict is None else strict
    if not wanted and on and fast.is_running and strict != fast.strict:
        notes = tuple(_invalid_notes(read_preconditions(), strict))
        return Preview("Fast path", fast.targets, (_becomes(strict),), notes=notes, strict=strict)
    if not wanted:
        return Preview(title, fast.targets, nothing=tuple(nothing), strict=fast.strict)
    after = added(wanted, fast) if on else removed(wanted, fast, topology)
    if on and not fast.is_running and (lacking := unmet(requirements())):
        return Preview(title, after, refused=tuple(map(in_words, lacking)), nothing=tuple(nothing))
    return _whole(title, after, fast, tied, tuple(nothing), strict)


def _is_on(choice: Choice, fast: FastPath, on: bool) -> bool:
    """Whether it is accelerated; of all of them to be turned off, whether any is."""
    return is_covered(choice, fast) or (choice.target == ALL and not on and fast.is_running)


def in_words(lacking: Requirement) -> str:
    """A requirement that is not met, as a sentence."""
    return f"needs {lacking.name}, but {lacking.found}: {lacking.follows}. Try: {lacking.try_}"


def _whole(
    title: str, after: tuple[str, ...], fast: FastPath, tied: bool, nothing: tuple[str, ...], strict: bool
) -> Preview:
    observer = Observer()
    try:
        observer.read_host()
        before, _ = _attached(observer, fast.targets, NO_FOREIGN)
        foreign = attachments.foreign_programs(
            ifindex for ifindex in observer.links if ifindex not in before.links
        )
        then, meant = _attached(observer, after, foreign)
    finally:
        observer.close()
    more, fewer = _by_role(then, before.links), _by_role(before, then.links)
    if not after:
        changes = _ends(len(fewer))
    elif fast.is_running:
        changes = [_moves(len(more), len(fewer))]
    else:
        changes = [_on_links(len(more)), *_begins(tied)]
    if after and strict != fast.strict:
        changes.append(_becomes(strict))
    refused = [f"{safe(name)} is left to the kernel: {why}" for name, why in then.refused.items()]
    notes = [*_notes(meant, not fast.is_running, strict), *refused] if after and (more or not fewer) else []
    return Preview(title, after, tuple(changes), more or fewer, tuple(notes), (), nothing, strict)


def _becomes(strict: bool) -> str:
    if strict:
        return (
            "All that is accelerated becomes strict: where a rule is about packets that conntrack calls "
            "invalid, the kernel forwards everything."
        )
    return "Nothing is strict any more: rules about packets that conntrack calls invalid don't pause it."


def _attached(observer: Observer, names: Iterable[str], foreign: Foreign) -> tuple[MapContents, set[int]]:
    """The links that the program would sit on for these targets, and the bridges that they mean."""
    names = tuple(names)
    if not names:
        return MapContents(), set()
    meant, unknown = find_bridges(names, observer.links, {})
    if unknown:
        meant, _ = find_bridges(names, observer.links, engine_networks())
    return map_contents(observer.link_state(meant, foreign), meant), meant


def _by_role(found: MapContents, without: Iterable[int]) -> tuple[str, ...]:
    """Links and what they are, containers' first."""
    left = set(without)
    links = [link for ifindex, link in found.links.items() if ifindex not in left]
    links.sort(key=lambda link: (not link.flags & layout.LINK_CONTAINER, link.name))
    return tuple(
        safe(f"{link.name} ({'container' if link.flags & layout.LINK_CONTAINER else 'uplink'})")
        for link in links
    )


def _on_links(count: int) -> str:
    return (
        f"A BPF program is attached to the ingress of {_links(count)}{' (below)' if count else ''}, and to "
        "those that join later. What it does not handle goes on to the kernel unchanged, but for a FIN or "
        "RST far from what its connection has acknowledged, which is dropped."
    )


def _links(count: int) -> str:
    return f"{count} link{'' if count == 1 else 's'}"


def _begins(tied: bool) -> list[str]:
    return [*_loads(), *_held(tied)]


def _loads() -> Iterator[str]:
    if module_state().loadable:
        yield f"The kernel module {CONNTRACK_MODULE} (connection tracking) is loaded, and stays loaded."


def _held(tied: bool) -> list[str]:
    end = "with the dashboard" if tied else "by `vnet-tui accelerate --off`"
    return [
        "Nobody verifies checksums and TCP windows of the packets that it forwards, as with nftables' own "
        "flowtables; conntrack goes on to check all other connections.",
        f"Bits {_MASK} of the ct mark say which rules a connection has passed; they are cleared at the end.",
        "A chain of its own writes them, in the nftables table inet vnet_fastpath, behind every filter; the "
        "kernel removes the table when its process ends.",
        "One process runs it and a second one watches that: if the first is killed, the fast path stops and "
        f"the second puts everything back. Otherwise it ends {end}.",
    ]


def _moves(more: int, fewer: int) -> str:
    if not more and not fewer:
        return "No link is concerned now."
    if more:
        return f"The program is attached to {_links(more)} more."
    return f"The program is taken off {_links(fewer)}; their connections go on through the kernel."


def _ends(count: int) -> list[str]:
    return [
        f"The program is taken off {_links(count)}; connections go on through the kernel.",
        f"The table inet vnet_fastpath and bits {_MASK} of the ct mark go.",
    ]


def _invalid_notes(found: Preconditions, strict: bool) -> Iterator[str]:
    rules = "; ".join(map(safe, found.invalid))
    if rules and strict:
        yield f"All of it would be paused now, for it is strict: {rules}"
    elif rules:
        yield (
            f"These rules are about invalid packets, and would not see those that it forwards: {rules}. "
            "Strict (--strict, in the dashboard s) pauses it instead."
        )


def _notes(bridges: set[int], begins: bool, strict: bool) -> Iterable[str]:
    """What to know before."""
    found = read_preconditions()
    if found.reasons:
        reasons = "; ".join(map(safe, found.reasons))
        yield f"It would be paused now, and the kernel forward everything: {reasons}"
    yield from _invalid_notes(found, strict)
    with suppress(build.CompileError):
        if begins and not build.is_compiled():
            yield "The program is compiled for this kernel first, which takes a second or two, once."
    if read_sysctl("net.ipv4.ip_forward") == "0":
        yield "net.ipv4.ip_forward is 0: nothing is routed, only traffic within a bridge can be accelerated."
    yield (
        "tcpdump no longer sees accelerated packets on every link, and counters of rules and of conntrack "
        "miss them; `vnet-tui accelerate --capture ADDRESS` leaves those of an address to the kernel."
    )
    if not bridges:
        yield "There is no bridge to accelerate yet."
