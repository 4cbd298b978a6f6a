"""Send the probe of an answer, or trace a flow, and return the result as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from core.drops import DropsUnavailable
from core.flows import ConntrackEntry
from core.model.probe import (
    DropObserver,
    FlowTrace,
    FunctionCall,
    FunctionFilter,
    FunctionObserver,
    Sighting,
)
from core.probe.run import ProbeError
from core.probe.verify import Verification, verify
from core.reach import Answer
from core.topology import Topology
from tui.command import CommandError
from tui.views.packet_path import flow_sentence


def verified(topology: Topology, answer: Answer, functions: bool = False) -> Verification:
    """Send the probe of an answer. Raises CommandError.

    With `functions` the kernel functions that it passes are recorded."""
    calls = _function_observer() if functions else None
    try:
        with _command_errors():
            return verify(topology, answer, drop_observer(), calls)
    except DropsUnavailable:
        with _command_errors():
            return verify(topology, answer, functions=calls)


@contextmanager
def _command_errors() -> Iterator[None]:
    try:
        yield
    except ProbeError as error:
        raise CommandError(str(error)) from None


def _function_observer() -> FunctionObserver:
    """Return what observes kernel functions, or raises CommandError."""
    from bpf.functions import FunctionsUnavailable, observe_functions

    @contextmanager
    def observe(wanted: FunctionFilter) -> Iterator[Callable[[], Sequence[FunctionCall]]]:
        try:
            with observe_functions(wanted) as read:
                yield read
        except FunctionsUnavailable as error:
            raise CommandError(str(error)) from None

    return observe


def drop_observer() -> DropObserver | None:
    """Return what observes the kernel's drop reasons, None without BCC."""
    try:
        from bpf.drop_observer import observe_drops
    except ImportError:
        return None
    return observe_drops


def traced(
    topology: Topology,
    ns: int,
    entry: ConntrackEntry,
    seconds: float,
    stopped: Callable[[], bool] = lambda: False,
    functions: bool = False,
) -> tuple[FlowTrace, tuple[str, ...]]:
    """Trace a flow that exists; return what was seen, and notes. Raises CommandError.

    Meanwhile the fast path leaves the flow to the kernel, so that every link sees it."""
    from core.probe.flow_trace import request_of_flow, trace_flow
    from tui.cli.capture_fastpath import traced_by_kernel

    calls = _function_observer() if functions else None
    with _command_errors():
        request = replace(request_of_flow(topology, ns, entry, seconds), functions=calls)
        with traced_by_kernel([request.original.src], request.seconds) as note:
            found = trace_flow(request, stopped)
    return found, (note,) if note else ()


def flow_document(topology: Topology, found: FlowTrace, notes: Sequence[str]) -> dict[str, Any]:
    """Return the trace of a flow as JSON; docs/json.md has the schema."""
    request = found.request
    return {
        "flow": {
            "namespace": topology.label(request.ns),
            "original": asdict(request.original),
            "reply": asdict(request.reply),
        },
        "seconds": found.seconds,
        "counts": {direction: found.counts.get(direction, 0) for direction in ("original", "reply")},
        "closed": found.closed,
        "gone": found.gone,
        "sentence": flow_sentence(found),
        "notes": [*notes, *(problem.sentence for problem in found.problems)],
        "packets": [
            {
                "direction": one.direction,
                "sightings": _sightings(topology, one.sightings),
                "functions": [_call(topology, call) for call in one.functions],
            }
            for one in found.packets
        ],
    }


def probe_document(topology: Topology, found: Verification) -> dict[str, Any]:
    """Return a probe as JSON; docs/json.md has the schema."""
    result = found.result
    return {
        "outcome": result.outcome,
        "agrees": found.agrees,
        "sentence": found.sentence,
        "notes": list(found.notes),
        "rtt": result.rtt,
        "arrived": result.arrived,
        "sightings": _sightings(topology, result.sightings),
        "steps": [{**asdict(step), "namespace": topology.label(step.ns)} for step in result.steps],
        "drops": [asdict(drop) for drop in result.drops],
        "functions": [{"role": role, **_call(topology, call)} for role, call in result.functions],
    }


def _call(topology: Topology, call: FunctionCall) -> dict[str, Any]:
    link = topology.snapshot.link((call.ns, call.ifindex))
    place = {"ns": call.ns, "ifindex": call.ifindex, "name": link.name if link else ""}
    namespace = topology.label(call.ns) if call.ns else ""
    return {"at": call.at, "function": call.function, "namespace": namespace, "link": place}


def _sightings(topology: Topology, sightings: Sequence[Sighting]) -> list[dict[str, Any]]:
    return [
        _sighting(topology, one, sightings[number - 1] if number else None)
        for number, one in enumerate(sightings)
    ]


def _sighting(topology: Topology, one: Sighting, before: Sighting | None) -> dict[str, Any]:
    link = topology.snapshot.link(one.link)
    found = asdict(one)
    found["link"] = {"ns": one.link.ns, "ifindex": one.link.ifindex, "name": link.name if link else ""}
    changed = one.changes(before) if before is not None and before.role == one.role else ()
    return {"namespace": topology.label(one.link.ns), **found, "changes": list(changed)}
