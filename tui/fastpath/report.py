"""`vnet-tui fastpath status` and `check`: for people as tables, for scripts as JSON (docs/json.md)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from bpf.btf import NAME, load_module
from bpf.rpc import PATIENCE
from core.model import FastPath, Requirement
from core.model.fastpath import FAST
from core.text import safe
from tui.fastpath.session import FastSession
from tui.fastpath.standing import read_fast_path
from tui.present.fastpath import COST_IS, ENDS_WITH

SCHEMA = 1
_STATES = {
    "off": "off: the kernel forwards everything",
    "on": "on",
    "paused": "paused: the kernel forwards everything, because",
    "changing": "changing: the rules have just changed, the kernel forwards until they stand still",
    "hidden": "not known, only root may ask: sudo vnet-tui fastpath status",
    "unknown": "not known",
    "silent": "its process does not answer: once its lease is over, the kernel forwards everything",
}
_MEASURING = 0.5  # seconds in which the cost of a packet is measured


def status(as_json: bool) -> int:
    """How it stands; asking for what a packet costs takes half a second."""
    found = read_fast_path(measure=True, flows=True, patience=PATIENCE)
    if found.is_running:
        time.sleep(_MEASURING)
        found = read_fast_path(measure=True, flows=True, patience=PATIENCE)
    if as_json:
        print(json.dumps(document(found), indent=2))
        return 0
    for line in lines(found):
        print(line)
    return 0


def document(fast: FastPath) -> dict[str, Any]:
    """The JSON document."""
    return {
        "schema": SCHEMA,
        "state": fast.state,
        "reasons": list(fast.reasons),
        "targets": list(fast.targets),
        "unknown": list(fast.unknown),
        "bridges": list(fast.bridges),
        "refused": dict(fast.refused),
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
    """The same for people."""
    yield f"fast path: {_STATES[fast.state]}"
    for reason in fast.reasons:
        yield f"  - {safe(reason)}"
    if fast.left:
        yield "a fast path that was killed has left settings behind: vnet-tui recover puts them right"
    if fast.state in ("off", "silent", "hidden"):
        return
    yield f"targets:   {_listed(fast.targets)}"
    if fast.unknown:
        yield f"not there: {_listed(fast.unknown)} (accelerated as soon as there is a bridge of that name)"
    yield f"bridges:   {_listed(fast.bridges) or 'none with containers yet'}"
    if fast.captured:
        yield f"captured:  {_listed(fast.captured)} (left to the kernel, where tcpdump sees them)"
    for name, why in fast.refused.items():
        yield f"left out:  {safe(name)}: {safe(why)}"
    if fast.strict:
        yield "strict:    yes (paused where a rule is about invalid packets)"
    if fast.tied:
        yield f"ends:      {ENDS_WITH}"
    yield f"flows:     {fast.flows or 0} of {fast.flows_limit or 0}"
    cost = (
        f"{fast.ns_per_packet:.0f} ns a packet ({COST_IS})"
        if fast.ns_per_packet
        else "too few packets came by while it was measured"
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
    yield f"{'packets':>14}  what became of them"
    for name, count in ranked(fast.verdicts):
        mark = "" if name == FAST else "to the kernel: "
        yield f"{count:>14,}  {mark}{fast.words.get(name, name)}"


def ranked(verdicts: Any) -> list[tuple[str, int]]:
    """Verdicts with their packets: the fast path's own first, then by number."""
    return sorted(verdicts.items(), key=lambda pair: (pair[0] != FAST, -pair[1]))


def _links(fast: FastPath) -> Iterator[str]:
    width = max((len(safe(one.name)) for one in fast.ports), default=4)
    yield f"{'link':{width}}  {'role':9}  {'fast':>14}  {'kernel':>14}  most often to the kernel because"
    for one in fast.ports:
        by_fast = one.verdicts.get(FAST, 0)
        rest = [pair for pair in ranked(one.verdicts) if pair[0] != FAST]
        why = fast.words.get(rest[0][0], rest[0][0]) if rest else ""
        kernel = sum(count for _, count in rest)
        yield f"{safe(one.name):{width}}  {one.role:9}  {by_fast:>14,}  {kernel:>14,}  {why}".rstrip()


def check(session: FastSession, as_json: bool) -> int:
    """What it needs; 1 where something is missing without which it stays off. Loads the module nf_conntrack
    where it is not loaded: what it has can't be told otherwise."""
    if load_module():
        print(f"vnet-tui: loaded the kernel module {NAME}", file=sys.stderr)
    found = session.requirements()
    usable = all(one.met for one in found if one.needed)
    if as_json:
        told = [
            {"name": one.name, "met": one.met, "needed": one.needed, "found": one.found,
             "follows": "" if one.met else one.follows, "try": "" if one.met else one.try_}
            for one in found
        ]  # fmt: skip
        print(json.dumps({"schema": SCHEMA, "usable": usable, "requirements": told}, indent=2))
        return 0 if usable else 1
    for one in found:
        print("\n".join(_requirement(one)))
    print("the fast path can be turned on" if usable else "the fast path cannot be turned on here")
    return 0 if usable else 1


def _requirement(one: Requirement) -> Iterator[str]:
    yield f"{'yes' if one.met else 'NO ' if one.needed else 'no '}  {one.name}: {safe(one.found)}"
    if not one.met:
        yield f"       {one.follows}"
        yield f"       try: {one.try_}"
