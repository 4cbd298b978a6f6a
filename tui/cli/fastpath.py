"""Run `vnet-tui accelerate` and `vnet-tui fastpath`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from bpf.btf import CONNTRACK_MODULE, load_module
from bpf.rpc import TIMEOUT
from core.model import FastPath, Requirement
from core.model.fastpath import FAST
from core.text import quoted, safe
from core.topology import Topology
from tui.cli.console import agrees, require_rights
from tui.cli.fastpath_agent import read_fast_path
from tui.cli.fastpath_session import FastPathSession, ask
from tui.command import CommandError
from tui.services import FastPathPreview
from tui.views.fast_targets import BridgeChoice, all_choices, choice_named
from tui.views.fastpath import COST_IS, ENDS_WITH, ranked, tunnel_text


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code. Raises CommandError."""
    session = FastPathSession(tied=False)
    if options.command == "fastpath":
        return check(session, options.json) if options.action == "check" else status(options.json)
    if options.capture or options.release:
        return _capture(options)
    if not options.targets and not options.off and options.strict is None:
        raise CommandError("can't accelerate: no bridge or network is named. Try: vnet-tui accelerate all")
    if not options.dry_run:
        require_rights(to="turn the fast path on or off", or_try=", or add --dry-run to see the changes")
    return _switch(session, options)


def _capture(options: argparse.Namespace) -> int:
    do, address = ("capture", options.capture) if options.capture else ("release", options.release)
    if options.targets or options.off:
        raise CommandError(
            f"can't {do} {safe(address)}: --{do} takes neither networks nor --off. "
            f"Try: vnet-tui accelerate --{do} {quoted(address)}"
        )
    require_rights(to=f"{do} an address")
    was = ask({"do": "status"})["captured"] if options.release else ()
    answer = ask({"do": do, "address": address})
    print(describe_capture(options.release, was, answer["captured"]))
    return 0


def describe_capture(released: str, was: Sequence[str], captured: Sequence[str]) -> str:
    """Describe the captured addresses, and whether a released one was captured."""
    words = f"captured (left to the kernel, so that tcpdump sees it): {', '.join(map(safe, captured))}"
    words = words if captured else "no address is captured"
    if released and set(was) == set(captured):
        return f"{safe(released)} was not captured, nothing changed; {words}"
    return words


def _switch(session: FastPathSession, options: argparse.Namespace) -> int:
    topology = session.read_topology()
    fast = session.status()
    if options.off and fast.state == "hidden":
        raise CommandError("can't read the state of the fast path: only root may. Try: run it with sudo")
    if options.off and not fast.is_running:
        print("nothing to do: nothing is accelerated here")
        return 0
    if options.strict is not None and not options.targets and not fast.is_running:
        option = "--strict" if options.strict else "--no-strict"
        raise CommandError(
            f"can't set {option}: nothing is accelerated here. Try: vnet-tui accelerate NETWORK {option}"
        )
    if options.off and fast.state == "silent":
        return _end_silent(session, options)
    words = options.targets or list(fast.targets)
    choices = _choices(words, topology, options.off)
    preview = session.preview(choices, not options.off, topology, options.strict)
    _print(preview)
    if preview.refused:
        return 1
    if not preview.can_be_done or options.dry_run:
        return 0
    if not options.yes and not agrees("Apply?"):
        return 0
    print(session.perform(preview, lambda words: print(words, flush=True)))
    return 0


def _end_silent(session: FastPathSession, options: argparse.Namespace) -> int:
    print("The fast path's process doesn't answer. It will be killed, and its settings cleaned up.")
    if options.dry_run or not (options.yes or agrees("Apply?")):
        return 0
    print(session.end_silent())
    return 0


def _choices(words: Sequence[str], topology: Topology, off: bool) -> tuple[BridgeChoice, ...]:
    """Resolve names to targets. Raises CommandError.

    Targets that don't exist any more can still be turned off.
    """
    found = []
    for word in words:
        choice = choice_named(topology, word)
        if choice is None and not off:
            known = ", ".join(safe(one.target) for one in all_choices(topology) if one.target)
            raise CommandError(
                f'can\'t accelerate "{safe(word)}": there is no bridge or network of that name'
                + (f". Try: {known}" if known else "")
            )
        found.append(choice or BridgeChoice(safe(word), word, "", frozenset({word})))
    return tuple(found)


def _print(preview: FastPathPreview) -> None:
    for words in preview.nothing:
        print(words)
    if preview.refused:
        title = preview.title[0].lower() + preview.title[1:]
        print(f"can't {title}: this machine doesn't meet the requirements")
        for words in preview.refused:
            print(f"  - {words}")
        return
    if not preview.changes:
        return
    print(f"{preview.title}:")
    for words in preview.changes:
        print(f"  - {words}")
    if preview.links:
        print(f"    {', '.join(preview.links)}")
    for words in preview.notes:
        print(f"  note: {words}")


SCHEMA = 1
_STATES = {
    "off": "off: the kernel forwards everything",
    "on": "on",
    "paused": "paused: the kernel forwards everything. Reasons:",
    "changing": "changing: the rules have just changed; the kernel forwards until they are stable",
    "hidden": "unknown: only root may ask. Try: sudo vnet-tui fastpath status",
    "unknown": "unknown",
    "silent": "its process doesn't answer: within two seconds the kernel forwards everything",
}
_MEASURING = 0.5  # seconds in which the cost of a packet is measured


def status(as_json: bool) -> int:
    """Print the state; measuring the cost of a packet takes half a second."""
    found = read_fast_path(measure=True, flows=True, patience=TIMEOUT)
    if found.is_running:
        time.sleep(_MEASURING)
        found = read_fast_path(measure=True, flows=True, patience=TIMEOUT)
    if as_json:
        print(json.dumps(document(found), indent=2))
        return 0
    for line in lines(found):
        print(line)
    return 0


def document(fast: FastPath) -> dict[str, Any]:
    """Return the fast path's state as a JSON document."""
    return {
        "schema": SCHEMA,
        "state": fast.state,
        "reasons": list(fast.reasons),
        "targets": list(fast.targets),
        "unknown": list(fast.unknown),
        "bridges": list(fast.bridges),
        "refused": dict(fast.refused),
        "tunnels": dict(fast.tunnels),
        "captured": list(fast.captured),
        "pid": fast.pid or None,
        "generation": fast.generation,
        "mark_mask": fast.mark_mask,
        "strict": fast.strict,
        "tied": fast.tied,
        "flows": fast.flows,
        "flows_limit": fast.flows_limit,
        "ns_per_packet": fast.ns_per_packet,
        "share": fast.share,
        "verdicts": {
            name: {"packets": count, "words": fast.words[name]} for name, count in fast.verdicts.items()
        },
        "links": [
            {"name": one.name, "ifindex": one.ifindex, "role": one.role, "verdicts": dict(one.verdicts)}
            for one in fast.ports
        ],
        "left_behind": fast.left,
    }


def lines(fast: FastPath) -> Iterator[str]:
    """Yield the fast path's state as text."""
    yield f"fast path: {_STATES[fast.state]}"
    for reason in fast.reasons:
        yield f"  - {safe(reason)}"
    if fast.left:
        yield "a killed fast path left settings behind. Try: vnet-tui recover"
    if fast.state in ("off", "silent", "hidden"):
        return
    yield f"targets:   {_listed(fast.targets)}"
    if fast.unknown:
        yield f"not there: {_listed(fast.unknown)} (accelerated once a bridge of that name exists)"
    yield f"bridges:   {_listed(fast.bridges) or 'none with containers yet'}"
    if fast.captured:
        yield f"captured:  {_listed(fast.captured)} (left to the kernel, so that tcpdump sees all packets)"
    for name, why in fast.refused.items():
        yield f"left out:  {safe(name)}: {safe(why)}"
    for name, why in fast.tunnels.items():
        yield f"tunnel:    {safe(name)}: {safe(tunnel_text(why))}"
    if fast.strict:
        yield "strict:    yes (paused while rules match on `ct state invalid`)"
    if fast.tied:
        yield f"ends:      {ENDS_WITH}"
    yield f"flows:     {fast.flows or 0} of {fast.flows_limit or 0}"
    cost = (
        f"{fast.ns_per_packet:.0f} ns a packet ({COST_IS})"
        if fast.ns_per_packet
        else "too few packets to measure"
    )
    yield f"cost:      {cost}"
    share = f", {fast.share:.1%} of them by the fast path" if fast.share is not None else ""
    yield f"packets:   {fast.packets}{share}"
    yield ""
    yield from _verdicts(fast)
    yield ""
    yield from _links(fast)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(safe, names))


def _verdicts(fast: FastPath) -> Iterator[str]:
    yield f"{'packets':>14}  verdict"
    for name, count in ranked(fast.verdicts):
        mark = "" if name == FAST else "to the kernel: "
        yield f"{count:>14,}  {mark}{fast.words.get(name, name)}"


def _links(fast: FastPath) -> Iterator[str]:
    width = max((len(safe(one.name)) for one in fast.ports), default=4)
    yield f"{'link':{width}}  {'role':9}  {'fast':>14}  {'kernel':>14}  most frequent reason for the kernel"
    for one in fast.ports:
        by_fast = one.verdicts.get(FAST, 0)
        rest = [pair for pair in ranked(one.verdicts) if pair[0] != FAST]
        why = fast.words.get(rest[0][0], rest[0][0]) if rest else ""
        kernel = sum(count for _, count in rest)
        yield f"{safe(one.name):{width}}  {one.role:9}  {by_fast:>14,}  {kernel:>14,}  {why}".rstrip()


def check(session: FastPathSession, as_json: bool) -> int:
    """Print requirements; returns 1 if one is missing without which it stays off.

    Loads the module nf_conntrack, which can't be examined otherwise.
    """
    if load_module():
        print(f"vnet-tui: loaded the kernel module {CONNTRACK_MODULE}", file=sys.stderr)
    found = session.requirements()
    usable = all(one.met for one in found if one.needed)
    if as_json:
        entries = [
            {"name": one.name, "met": one.met, "needed": one.needed, "found": one.found,
             "follows": "" if one.met else one.follows, "try": "" if one.met else one.try_}
            for one in found
        ]  # fmt: skip
        print(json.dumps({"schema": SCHEMA, "usable": usable, "requirements": entries}, indent=2))
        return 0 if usable else 1
    for one in found:
        print("\n".join(_requirement(one)))
    print("the fast path can be turned on" if usable else "the fast path can't be turned on here")
    return 0 if usable else 1


def _requirement(one: Requirement) -> Iterator[str]:
    yield f"{'yes' if one.met else 'NO ' if one.needed else 'no '}  {one.name}: {safe(one.found)}"
    if not one.met:
        yield f"       {one.follows}"
        yield f"       try: {one.try_}"
