"""Run `vnet-tui trace`: print each link that a packet passes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict

from core.capture import CaptureError
from core.capture.targets import find_flow, is_flow
from core.model import Part
from core.probe.path import hops, path_mtu
from core.probe.verify import request_of
from core.text import safe
from core.topology import Topology
from tui.cli.show import CODES, Output, painted
from tui.cli.why import answered, printable
from tui.command import CommandError
from tui.probing import flow_document, probe_document, traced, verified
from tui.views.answers import verification_lines
from tui.views.packet_path import PathLine, flow_lines, hop_lines, mtu_lines, path_lines, probe_function_lines

SCHEMA = 1
_PARTS = frozenset({Part.LINKS, Part.CONTAINERS, Part.OVS, Part.CONNTRACK})
_WIDTH = 120


def run(options: argparse.Namespace) -> int:
    """Trace one packet, or a flow; returns 1 if it isn't answered, or none seen.

    Raises CommandError."""
    if options.b is None:
        return _run_flow(options)
    if is_flow(options.a) or options.seconds:
        raise CommandError("can't trace this: a flow has no receiver, and --for is for flows. Try: --help")
    topology, answer = answered(options)
    found = verified(topology, answer, options.functions)
    request = request_of(topology, answer.question)
    mtu = path_mtu(request) if options.mtu else None
    routers = hops(request) if options.hops else None
    output = Output.of(sys.stdout, options.json)
    if options.json:
        more = {"path_mtu": asdict(mtu) if mtu else None, "hops": [asdict(one) for one in routers or ()]}
        document = {"schema": SCHEMA, **probe_document(topology, found), **more}
        output.stream.write(json.dumps(document) + "\n")
        return int(found.result.outcome != "answered")
    width = output.width or _WIDTH
    functions = probe_function_lines(topology, found.result)
    lines = [*path_lines(topology, found.result, width), *functions, [], *verification_lines(found, width)]
    lines += mtu_lines(topology, mtu) if mtu else []
    lines += hop_lines(routers) if routers is not None else []
    _print(lines, output)
    return int(found.result.outcome != "answered")


def _print(lines: Iterable[PathLine], output: Output) -> None:
    for line in lines:
        pieces = (painted(text, CODES.get(tone, ""), output) for text, tone in line)
        output.stream.write(printable("".join(pieces).rstrip(), output) + "\n")


def _run_flow(options: argparse.Namespace) -> int:
    """Trace a flow; returns 1 if no packet was seen, 2 if it isn't a flow.

    Raises CommandError."""
    if not is_flow(options.a):
        words = f"can't trace {safe(options.a)}: there is no receiver, and it isn't a flow"
        print(f"vnet-tui: {words}. Try: vnet-tui trace {safe(options.a)} outside", file=sys.stderr)
        return 2
    if options.source or options.port or options.mtu or options.hops:
        raise CommandError(
            "can't trace a flow with these options: it takes only --for, --functions, --json. Try: --help"
        )
    from core.collect.snapshot import read_snapshot
    from core.probe.flow_trace import SECONDS
    from tui.cli.capture import missing_rights

    if why := missing_rights("trace a flow"):
        raise CommandError(why)
    topology = Topology(read_snapshot(_PARTS))
    try:
        ns, entry = find_flow(topology, options.a, "trace")
    except CaptureError as error:
        raise CommandError(str(error)) from None
    found, notes = traced(topology, ns, entry, options.seconds or SECONDS, functions=options.functions)
    output = Output.of(sys.stdout, options.json)
    if options.json:
        document = {"schema": SCHEMA, **flow_document(topology, found, notes)}
        output.stream.write(json.dumps(document) + "\n")
    else:
        _print(flow_lines(topology, found, output.width or _WIDTH, notes), output)
    return int(not found.packets)
