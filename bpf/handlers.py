"""What the control socket's requests do and are answered."""

from __future__ import annotations

import ipaddress
import os
import struct
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bpf import layout, loader, syscall
from bpf.ct_marks import field_mask
from bpf.generation_chain import Gate
from bpf.maps import Tables, possible_cpus
from bpf.ports import LinkRow
from bpf.reconcile import View
from bpf.rpc import Answer
from bpf.verdicts import VERDICTS

# The status answer: what is accelerated, and what the program counted.
#
# `state` is "on", "paused" (`reasons` say why) or "changing" (the rules do, for a moment); `strict` as
# asked for. `targets` are the names asked for, `unknown` those that mean no bridge now, `bridges` what they
# mean, `refused` links or bridges by name that are left to the kernel, with the reason. `generation` (0:
# nothing is forwarded), `mark_mask` and `epoch` are as the program has them; `captured` addresses stay with
# the kernel. `program` and `maps` are BPF ids. Each of `ports` has `ifindex`, `name`, `role` ("container",
# "uplink") and its packets by verdict (bpf/verdicts.h, zeros left out); `verdicts` are their sums.
# `flows_limit` is how many flows the cache has room for; on request: `flows`, how many it holds, and
# `ns_per_packet`, what the program takes as the kernel counts it, null until something was counted.


class State(Protocol):
    """What the handlers read and change of the daemon, bpf.daemon.Holder."""

    tied: bool
    loaded: loader.Loaded
    tables: Tables
    view: View
    gate: Gate
    cost: Cost

    def rules_changed(self) -> None:
        """Pause until the rules have been read again."""

    def finish(self) -> None:
        """End the daemon."""


_RUN_TIME, _RUN_COUNT = 192, 200  # struct bpf_prog_info
_MEASURED_FOR = 10.0  # seconds after which nobody asking means that nobody looks
_ENOUGH = 100  # packets


@dataclass(slots=True)
class Cost:
    """What a packet costs, as the kernel counts it (bpf_stats): only while it is asked for, for counting
    costs too."""

    _switch: int | None = None
    _asked: float = 0.0
    _before: tuple[int, int] = (0, 0)

    def ask(self, program: int) -> float | None:
        """Nanoseconds a packet since it was asked for first; None until enough were counted: the first ones
        find nothing in the CPU's caches."""
        self._asked = time.monotonic()
        if self._switch is None:
            self._switch = syscall.enable_run_stats()
            self._before = _runs(program)
            return None
        took, count = (now - then for now, then in zip(_runs(program), self._before, strict=True))
        return took / count if count >= _ENOUGH else None

    def rest(self) -> None:
        """Stop counting when nobody has asked for a while."""
        if self._switch is not None and time.monotonic() - self._asked > _MEASURED_FOR:
            os.close(self._switch)
            self._switch = None


def _runs(program: int) -> tuple[int, int]:
    """Nanoseconds that the program ran, and how often."""
    told = syscall.info(program, _RUN_COUNT + 8)
    return struct.unpack_from("=QQ", told, _RUN_TIME)


def status(holder: State, measure: bool = False, flows: bool = False) -> dict[str, Any]:
    """Everything but the flows themselves."""
    maps, tables, view = holder.loaded.maps, holder.tables, holder.view
    links = [
        _link(maps["counters"], tables.slots.get(link.ifindex, 0), link) for link in tables.links.values()
    ]
    found: dict[str, Any] = {
        "ok": True,
        "pid": os.getpid(),
        "targets": view.targets,
        "unknown": list(view.unknown),
        "state": "paused" if holder.gate.reasons else "on" if tables.config["generation"] else "changing",
        "reasons": list(holder.gate.reasons),
        "strict": holder.gate.strict,
        "tied": holder.tied,
        "generation": int(tables.config["generation"]),
        "mark_mask": field_mask(),
        "epoch": int(tables.config["epoch"]),
        "captured": tables.captured,
        "bridges": sorted(
            {_name(holder, link.l3_ifindex) for link in tables.links.values() if link.flags & 2}
        ),
        "refused": view.refused,
        "program": syscall.id_of(view.attachments.program),
        "maps": {name: syscall.id_of(descriptor) for name, descriptor in maps.items()},
        "ports": links,
        "verdicts": _total(links, verdicts(maps["counters"], 0)),
        "flows_limit": sum(syscall.room_of(maps[name]) for name in ("flows4", "flows6")),
    }
    if flows:
        found["flows"] = _count_flows(maps)
    if measure:
        found["ns_per_packet"] = holder.cost.ask(view.attachments.program)
    return found


def _name(holder: State, ifindex: int) -> str:
    link = holder.view.links.get(ifindex)
    return link.name if link else str(ifindex)


def _link(counters: int, slot: int, link: LinkRow) -> dict[str, Any]:
    role = "container" if link.flags & layout.LINK_CONTAINER else "uplink"
    counted = verdicts(counters, slot)
    return {"ifindex": link.ifindex, "name": link.name, "role": role, "verdicts": counted}


def verdicts(counters: int, slot: int) -> dict[str, int]:
    """The packets of one row by verdict, without the zeros."""
    size = layout.SLOT_COUNTERS.itemsize * possible_cpus()
    found = syscall.lookup(counters, struct.pack("=I", slot), size) or bytes(size)
    sums = np.frombuffer(found, np.uint64).reshape(-1, layout.COUNTERS).sum(axis=0)
    return {verdict.name: int(sums[verdict.number]) for verdict in VERDICTS if sums[verdict.number]}


def _total(links: list[dict[str, Any]], elsewhere: dict[str, int]) -> dict[str, int]:
    """All links together, and what was counted `elsewhere`: row 0, packets whose link was not looked up."""
    sums = dict(elsewhere)
    for link in links:
        for name, count in link["verdicts"].items():
            sums[name] = sums.get(name, 0) + count
    return sums


def _count_flows(maps: dict[str, int]) -> int:
    return sum(
        len(syscall.read_all(maps[name], key, layout.FLOW, syscall.room_of(maps[name]))[0])
        for name, key in (("flows4", layout.KEY4), ("flows6", layout.KEY6))
    )


_AF = {4: 2, 6: 10}


def answer(holder: State, request: dict[str, Any]) -> Answer:
    """Do what is asked; see bpf/rpc.py."""
    match request.get("do"):
        case "status":
            return status(holder, measure=bool(request.get("measure")), flows=bool(request.get("flows")))
        case "maps":
            maps = {name: syscall.id_of(descriptor) for name, descriptor in holder.loaded.maps.items()}
            return {"ok": True, "pid": os.getpid(), "maps": maps}
        case "targets":
            holder.view.targets = [str(each) for each in request.get("targets", ())]
            _be_strict(holder, bool(request.get("strict", holder.gate.strict)))
            holder.view.note({None})
            holder.view.look()
            return {"ok": True, "unknown": list(holder.view.unknown)}
        case "capture" | "release" as what:
            return _capture(holder, str(request.get("address", "")), what == "capture")
        case "reload":
            return _reload(holder)
        case "off":
            holder.finish()
            return {"ok": True}
    return {"ok": False, "what": "the request was not understood", "why": "", "try": ""}


def _be_strict(holder: State, strict: bool) -> None:
    if strict != holder.gate.strict:
        holder.gate.strict = strict
        holder.gate.reasons = ()
        holder.rules_changed()


def _capture(holder: State, text: str, on: bool) -> Answer:
    """Have traffic of an address on the kernel's path, where a capture sees it; or no longer."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return {"ok": False, "what": "that is no address", "why": text, "try": "an IPv4 or IPv6 address"}
    holder.tables.capture(_AF[address.version], address.packed, on)
    return {"ok": True, "captured": holder.tables.captured}


def _reload(holder: State) -> Answer:
    try:
        program = loader.reload(holder.loaded)
    except (OSError, loader.CannotCompile, syscall.Rejected) as error:
        return {"ok": False, "what": "the program was not replaced", "why": str(error), "try": ""}
    holder.view.attachments.replace(program)
    holder.loaded.program = program
    return {"ok": True, "program": syscall.id_of(program)}
