"""Run `vnet-tui why`: whether A can reach B, and what stops it."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.model import Part, Ref, Snapshot
from core.reach import Answer, Hop, UnknownEndpoint, ask, why
from core.reach.question import addresses
from core.topology import Topology
from tui.cli.show import CODES, Output, painted
from tui.command import CommandError, load
from tui.views.answers import answer_lines, verification_lines
from tui.views.formatting import ascii_only

if TYPE_CHECKING:
    from core.probe.verify import Verification

PARTS = (Part.LINKS, Part.CONTAINERS, Part.OVS, Part.FIREWALL, Part.CONNTRACK, Part.LISTENERS)
SCHEMA = 1
_WIDTH = 100  # of output that isn't a terminal


def run(options: argparse.Namespace) -> int:
    """Answer a question; returns 1 if B can't be reached. Raises CommandError."""
    topology, answer = answered(options)
    probed = _probe(options, topology, answer) if options.probe else None
    output = Output.of(sys.stdout, options.json)
    if options.json:
        more = {"probe": probed[1]} if probed else {}
        output.stream.write(json.dumps({**document(answer), **more}) + "\n")
    else:
        _print(answer, output, probed[0] if probed else None)
    if options.fix:
        return _repair(options, answer)
    return int(answer.verdict == "stop")


def read(options: argparse.Namespace, *more: Part) -> Snapshot:
    """Read the host, or the file of `--from`. Raises CommandError."""
    if options.source:
        return load(Path(options.source))
    from core.collect.snapshot import read_snapshot

    return read_snapshot({*PARTS, *more})


def answered(options: argparse.Namespace) -> tuple[Topology, Answer]:
    """Read the host, and answer the question in the options. Raises CommandError."""
    topology = Topology(read(options, Part.OVS_FLOWS))
    try:
        return topology, why(topology, ask(topology, options.a, options.b, options.port))
    except UnknownEndpoint as error:
        raise CommandError(str(error)) from None


def _probe(
    options: argparse.Namespace, topology: Topology, answer: Answer
) -> tuple[Verification, dict[str, Any]] | None:
    """Verify the answer with a probe.

    Returns None for a target without address. Raises CommandError.
    """
    if options.source:
        raise CommandError("can't send a probe: a file isn't a host. Try: the same without --probe")
    if not addresses(topology, answer.question)[1]:
        return None
    from tui.probing import probe_document, verified

    found = verified(topology, answer)
    return found, probe_document(topology, found)


def _print(answer: Answer, output: Output, probed: Verification | None) -> None:
    width = output.width or _WIDTH
    found = verification_lines(probed, width) if probed else ()
    answer = replace(answer, sentence=probed.conclusion) if probed and probed.conclusion else answer
    for line in (*answer_lines(answer, width), *([[]] if probed else []), *found):
        pieces = (painted(text, CODES.get(tone, ""), output) for text, tone in line)
        output.stream.write(printable("".join(pieces).rstrip(), output) + "\n")


def printable(text: str, output: Output) -> str:
    """Return the text, with ASCII marks where the output isn't UTF-8."""
    return text if (output.stream.encoding or "").lower().startswith("utf") else ascii_only(text)


def document(answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON; docs/json.md has the schema."""
    question = answer.question
    return {
        "schema": SCHEMA,
        "from": question.source.name,
        "to": question.target.name,
        "protocol": question.l4_proto,
        "port": question.port or None,
        "verdict": answer.verdict,
        "sentence": answer.sentence,
        "mtu": answer.mtu or None,
        "there": [_hop(hop) for hop in answer.there],
        "back": [_hop(hop) for hop in answer.back],
        "cause": _hop(answer.cause) if answer.cause else None,
    }


def _hop(hop: Hop) -> dict[str, Any]:
    fix = hop.fix
    return {
        "kind": hop.kind,
        "namespace": hop.place,
        "verdict": hop.verdict,
        "text": hop.text,
        "evidence": list(hop.evidence),
        "ref": _ref(hop.ref),
        "fix": {"sentence": fix.sentence, "command": fix.command} if fix else None,
    }


def _ref(ref: Ref | None) -> dict[str, Any] | None:
    return {"kind": ref.kind, "key": list(ref.key)} if ref else None


def _repair(options: argparse.Namespace, answer: Answer) -> int:
    fix = answer.cause.fix if answer.cause else None
    if fix is None or not fix.steps:
        reason = (
            "nothing has to be repaired" if answer.cause is None else "vnet-tui has no repair for this cause"
        )
        raise CommandError(f"can't repair this: {reason}. Try: vnet-tui doctor")
    from tui.cli.repair import apply_fix

    return apply_fix(options, fix)
