"""Run `vnet-tui trace`: send one packet, and print each link that it passes."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from core.probe.path import hops, path_mtu
from core.probe.verify import request_of
from tui.cli.show import CODES, Output, painted
from tui.cli.why import answered, printable
from tui.probing import probe_document, verified
from tui.views.answers import verification_lines
from tui.views.packet_path import hop_lines, mtu_lines, path_lines

SCHEMA = 1
_WIDTH = 120


def run(options: argparse.Namespace) -> int:
    """Trace one packet; returns 1 if it isn't answered. Raises CommandError."""
    topology, answer = answered(options)
    found = verified(topology, answer)
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
    lines = [*path_lines(topology, found.result, width), [], *verification_lines(found, width)]
    lines += mtu_lines(topology, mtu) if mtu else []
    lines += hop_lines(routers) if routers is not None else []
    for line in lines:
        pieces = (painted(text, CODES.get(tone, ""), output) for text, tone in line)
        output.stream.write(printable("".join(pieces).rstrip(), output) + "\n")
    return int(found.result.outcome != "answered")
