"""Run `vnet-tui doctor`: print what is wrong, mute or repair it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from core.diagnose import Finding, findings, findings_by_id
from core.export.objects import finding_document
from core.model import Part, Snapshot
from core.muted import muted_ids, set_muted
from core.state import StateError
from core.text import safe, split_commands
from core.topology import Topology
from tui.cli.show import CODES, Output, painted, print_problems
from tui.cli.why import printable, read
from tui.command import CommandError
from tui.views.formatting import wrapped

SCHEMA = 1
_WIDTH = 100
_MARKS = {"bad": "✗", "warn": "!", "info": "i"}
_TONES = {"bad": "bad", "warn": "warn", "info": "accent"}
_TOPICS = ("namespaces", "links", "nat", "conntrack", "containers", "networks")


def run(options: argparse.Namespace) -> int:
    """Print the findings; returns 1 if something is wrong. Raises CommandError."""
    topology = Topology(_read(options))
    found = list(findings_by_id(topology, findings(topology)).items())
    if options.mute or options.unmute:
        try:
            return _mute(options, found)
        except StateError as error:
            raise CommandError(str(error)) from None
    silent = _muted()
    if options.fix:
        return _repair(options, found)
    shown = [(name, one) for name, one in found if options.all or name not in silent]
    output = Output.of(sys.stdout, options.json)
    if options.json:
        _print_json(found, silent, output)
    else:
        _print(shown, len(found) - len(shown), output)
        print_problems(topology, _TOPICS)
    return int(any(one.severity != "info" for name, one in found if name not in silent))


def _read(options: argparse.Namespace) -> Snapshot:
    """Read the host with its health, or the file of `--from`. Raises CommandError."""
    snapshot = read(options, Part.FRR)
    if options.source:
        return snapshot
    from tui.cli.diagnosis import with_health

    return with_health(snapshot)


def _muted() -> frozenset[str]:
    """Return the ids of muted findings, none if the state directory can't be used."""
    try:
        return muted_ids()
    except StateError:
        return frozenset()


def _print(found: Sequence[tuple[str, Finding]], muted: int, output: Output) -> None:
    width = (output.width or _WIDTH) - 9
    for name, one in found:
        mark = printable(_MARKS[one.severity], output)
        for number, part in enumerate(wrapped(safe(one.sentence), width)):
            start = f"{painted(mark, CODES[_TONES[one.severity]], output)} {name} " if not number else " " * 9
            output.stream.write(f"{start}{part}\n")
        for text, tone in _more(name, one):
            for part in wrapped(safe(text), width):
                output.stream.write(" " * 9 + painted(part, CODES.get(tone, ""), output) + "\n")
    output.stream.write(_summary(found, muted) + "\n")


def _more(name: str, one: Finding) -> list[tuple[str, str]]:
    """Return the evidence and the advice of a finding."""
    lines = [(text, "dim") for text in one.evidence]
    advice, commands = split_commands(one.advice)
    if advice:
        lines.append((f"Try: {advice}", "accent"))
    lines += [(command, "accent") for command in commands]
    if one.fix is not None and one.fix.steps:
        lines.append((f"Repair: vnet-tui doctor --fix {name}", "accent"))
    return lines


def _summary(found: Sequence[tuple[str, Finding]], muted: int) -> str:
    counts = [(sum(one.severity == each for _, one in found), word) for each, word in _WORDS]
    parts = [f"{count} {word}{'s' * (count != 1 and word != 'info')}" for count, word in counts if count]
    parts += [f"{muted} muted (vnet-tui doctor --all shows them)"] if muted else []
    return ", ".join(parts) if parts else _HEALTHY


_HEALTHY = (
    "Nothing is wrong.\nNot checked: services on ports that aren't published. Try: vnet-tui why A B --port N"
)
_WORDS = (("bad", "problem"), ("warn", "warning"), ("info", "info"))


def _print_json(found: Sequence[tuple[str, Finding]], silent: frozenset[str], output: Output) -> None:
    items: list[dict[str, Any]] = [
        {"id": name, "muted": name in silent, **finding_document(one)} for name, one in found
    ]
    output.stream.write(json.dumps({"schema": SCHEMA, "findings": items}) + "\n")


def _mute(options: argparse.Namespace, found: Sequence[tuple[str, Finding]]) -> int:
    """Mute findings, or show muted ones again."""
    known = {name for name, _ in found} | muted_ids()
    wanted = [*options.mute, *options.unmute]
    if unknown := [name for name in wanted if name not in known]:
        verb = "mute" if unknown[0] in options.mute else "unmute"
        raise CommandError(
            f'can\'t {verb} "{safe(unknown[0])}": there is no finding with that id. Try: vnet-tui doctor'
        )
    set_muted((muted_ids() | set(options.mute)) - set(options.unmute))
    print(f"muted: {' '.join(options.mute)}" if options.mute else f"shown again: {' '.join(options.unmute)}")
    return 0


def _repair(options: argparse.Namespace, found: Sequence[tuple[str, Finding]]) -> int:
    one = dict(found).get(options.fix)
    if one is None:
        raise CommandError(
            f'can\'t repair "{safe(options.fix)}": there is no finding with that id. Try: vnet-tui doctor'
        )
    if one.fix is None or not one.fix.steps:
        advice = split_commands(one.advice)[0]
        remedy = f". Try: {safe(advice)}" if advice else ""
        raise CommandError(f"can't repair {options.fix}: vnet-tui has no repair for it{remedy}")
    from tui.cli.repair import apply_fix

    return apply_fix(options, one.fix)
