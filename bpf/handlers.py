"""Answer the requests of the control socket.

The answer to "status":

- `state`: "on", "paused" (`reasons` say why) or "changing" (rules are being read)
- `strict`, `tied`: as requested at the start
- `targets`: names that were requested; `unknown`: those that match no bridge now; `bridges`: those they match
- `refused`: links and bridges by name that the kernel forwards for, with the reason
- `tunnels`: tunnels of accelerated containers to other hosts by name, with the reason why the kernel writes
  and removes the outer headers of each of their packets, or ""
- `generation` (0: nothing is forwarded), `mark_mask`, `epoch`: as the program has them
- `captured`: addresses whose traffic the kernel forwards
- `traced`: those of them for which only traces in progress want that
- `program`, `maps`: BPF ids
- `ports`: `ifindex`, `name`, `role` ("container", "tunnel", "uplink"), and packets by verdict without zeros
- `verdicts`: their sums
- `flows_limit`: capacity of the flow cache
- `flows`: number of flows in it, if requested
- `ns_per_packet`: run time of the program as the kernel measures it, if requested; null until it was measured
"""

from __future__ import annotations

import ipaddress
import os
import struct
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bpf import layout, syscall
from bpf.build import CompileError
from bpf.connections import field_mask
from bpf.exemptions import MAX_TRACE, Exemptions
from bpf.generation_chain import GenerationChain
from bpf.layout import VERDICTS
from bpf.maps import Loaded, Maps, possible_cpus, reload
from bpf.ports import LinkRow
from bpf.reconcile import Reconciler
from bpf.rpc import Answer, refusal


class DaemonState(Protocol):
    """Describe what the handlers use of bpf.daemon.Daemon."""

    tied: bool
    loaded: Loaded
    maps: Maps
    reconciler: Reconciler
    generations: GenerationChain
    cost: PacketCost
    exemptions: Exemptions

    def rules_changed(self) -> None:
        """Pause until the rules have been read again."""

    def stop(self) -> None:
        """End the daemon."""


_RUN_TIME, _RUN_COUNT = 192, 200  # struct bpf_prog_info
_IDLE_AFTER = 10.0  # seconds without a request
_MIN_PACKETS = 100


@dataclass(slots=True)
class PacketCost:
    """Measure what a packet costs, with the kernel's bpf_stats.

    They are on only while a client asks for them, as counting has a cost as well.
    """

    _switch: int | None = None
    _asked_at: float = 0.0
    _before: tuple[int, int] = (0, 0)

    def measure(self, program: int) -> float | None:
        """Return nanoseconds per packet since the first call.

        None until _MIN_PACKETS were counted: the first packets find the CPU's caches empty.
        """
        self._asked_at = time.monotonic()
        if self._switch is None:
            self._switch = syscall.enable_run_stats()
            self._before = _runs(program)
            return None
        duration, count = (now - then for now, then in zip(_runs(program), self._before, strict=True))
        return duration / count if count >= _MIN_PACKETS else None

    def stop_if_idle(self) -> None:
        """Stop counting when no client has asked for a while."""
        if self._switch is not None and time.monotonic() - self._asked_at > _IDLE_AFTER:
            os.close(self._switch)
            self._switch = None


def _runs(program: int) -> tuple[int, int]:
    """Return the program's run time in nanoseconds and its number of runs."""
    info = syscall.object_info(program, _RUN_COUNT + 8)
    return struct.unpack_from("=QQ", info, _RUN_TIME)


def status(daemon: DaemonState, measure: bool = False, flows: bool = False) -> dict[str, Any]:
    """Return the status answer described above."""
    descriptors, maps, reconciler = daemon.loaded.maps, daemon.maps, daemon.reconciler
    links = [
        _link(descriptors["counters"], maps.slots.get(link.ifindex, 0), link) for link in maps.links.values()
    ]
    found: dict[str, Any] = {
        "ok": True,
        "pid": os.getpid(),
        "targets": reconciler.targets,
        "unknown": list(reconciler.unknown),
        "state": "paused"
        if daemon.generations.reasons
        else "on"
        if maps.config["generation"]
        else "changing",
        "reasons": list(daemon.generations.reasons),
        "strict": daemon.generations.strict,
        "tied": daemon.tied,
        "generation": int(maps.config["generation"]),
        "mark_mask": field_mask(),
        "epoch": int(maps.config["epoch"]),
        "captured": maps.captured,
        "traced": daemon.exemptions.traced,
        "bridges": sorted(
            {
                _name(daemon, link.l3_ifindex)
                for link in maps.links.values()
                if link.flags & layout.LINK_CONTAINER
            }
        ),
        "refused": reconciler.refused,
        "tunnels": {_name(daemon, ifindex): "; ".join(maps.tunnel_reasons) for ifindex in maps.tunnels},
        "program": syscall.object_id(reconciler.attachments.program),
        "maps": {name: syscall.object_id(descriptor) for name, descriptor in descriptors.items()},
        "ports": links,
        "verdicts": _total(links, verdicts(descriptors["counters"], 0)),
        "flows_limit": sum(syscall.max_entries(descriptors[name]) for name in ("flows4", "flows6")),
    }
    if flows:
        found["flows"] = _count_flows(descriptors)
    if measure:
        found["ns_per_packet"] = daemon.cost.measure(reconciler.attachments.program)
    return found


def _name(daemon: DaemonState, ifindex: int) -> str:
    link = daemon.reconciler.links.get(ifindex)
    return link.name if link else str(ifindex)


def _link(counters: int, slot: int, link: LinkRow) -> dict[str, Any]:
    role, counted = layout.role_of(link.flags), verdicts(counters, slot)
    return {"ifindex": link.ifindex, "name": link.name, "role": role, "verdicts": counted}


def verdicts(counters: int, slot: int) -> dict[str, int]:
    """Return one row's packets by verdict, without zeros."""
    size = layout.SLOT_COUNTERS.itemsize * possible_cpus()
    found = syscall.lookup(counters, struct.pack("=I", slot), size) or bytes(size)
    sums = np.frombuffer(found, np.uint64).reshape(-1, layout.COUNTERS).sum(axis=0)
    return {verdict.name: int(sums[verdict.number]) for verdict in VERDICTS if sums[verdict.number]}


def _total(links: list[dict[str, Any]], elsewhere: dict[str, int]) -> dict[str, int]:
    """Add up all links and `elsewhere` (row 0: packets whose link wasn't looked up)."""
    sums = dict(elsewhere)
    for link in links:
        for name, count in link["verdicts"].items():
            sums[name] = sums.get(name, 0) + count
    return sums


def _count_flows(maps: dict[str, int]) -> int:
    return sum(
        len(syscall.read_all(maps[name], key, layout.FLOW, syscall.max_entries(maps[name]))[0])
        for name, key in (("flows4", layout.KEY4), ("flows6", layout.KEY6))
    )


def handle(daemon: DaemonState, request: dict[str, Any]) -> Answer:
    """Execute a request (bpf/rpc.py) and return its answer."""
    match request.get("do"):
        case "status":
            return status(daemon, measure=bool(request.get("measure")), flows=bool(request.get("flows")))
        case "maps":
            maps = {name: syscall.object_id(descriptor) for name, descriptor in daemon.loaded.maps.items()}
            return {"ok": True, "pid": os.getpid(), "maps": maps}
        case "targets":
            daemon.reconciler.targets = [str(each) for each in request.get("targets", ())]
            _set_strict(daemon, bool(request.get("strict", daemon.generations.strict)))
            daemon.reconciler.mark_dirty({None})
            daemon.reconciler.reconcile()
            return {"ok": True, "unknown": list(daemon.reconciler.unknown)}
        case "capture" | "release" as do:
            return _capture(daemon, str(request.get("address", "")), do)
        case "trace":
            return _trace(daemon, request)
        case "untrace":
            daemon.exemptions.end_trace(str(request.get("holder", "")))
            return {"ok": True, "captured": daemon.maps.captured}
        case "reload":
            return _reload(daemon)
        case "off":
            daemon.stop()
            return {"ok": True}
    return refusal("can't answer the request", "it is unknown")


def _set_strict(daemon: DaemonState, strict: bool) -> None:
    if strict != daemon.generations.strict:
        daemon.generations.strict = strict
        daemon.generations.reasons = ()
        daemon.rules_changed()


def _capture(daemon: DaemonState, text: str, do: str) -> Answer:
    """Leave an address's traffic to the kernel, where a capture sees it, or no longer."""
    try:
        address = str(ipaddress.ip_address(text))
    except ValueError:
        return refusal(f"can't {do} {text}", "it isn't an IP address", "an address such as 10.9.0.3")
    daemon.exemptions.capture(address, do == "capture")
    return {"ok": True, "captured": daemon.maps.captured}


def _trace(daemon: DaemonState, request: dict[str, Any]) -> Answer:
    """Leave addresses to the kernel for some seconds, or until the trace ends."""
    try:
        addresses = [str(ipaddress.ip_address(str(one))) for one in request.get("addresses", ())]
        seconds = min(float(request.get("seconds", 0)), MAX_TRACE)
        daemon.exemptions.begin_trace(str(request.get("holder", "")), addresses, seconds)
    except (OSError, TypeError, ValueError) as error:
        return refusal("can't leave a flow to the kernel", error)
    return {"ok": True, "captured": daemon.maps.captured}


def _reload(daemon: DaemonState) -> Answer:
    try:
        program, observer = reload(daemon.loaded)
    except (OSError, CompileError, syscall.Rejected) as error:
        return refusal("can't replace the program", error)
    daemon.reconciler.attachments.replace(program)
    daemon.reconciler.observers.replace(observer)
    daemon.loaded.program, daemon.loaded.observer = program, observer
    return {"ok": True, "program": syscall.object_id(program)}
