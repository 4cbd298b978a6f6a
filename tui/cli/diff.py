"""Run `vnet-tui diff`: print what changed between two moments."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress

from core.diff.compare import Difference
from core.model import Part, Snapshot
from core.text import safe
from tui.cli.console import print_json
from tui.command import CommandError
from tui.moments import NOW, Moment, clock_text, compared, moment_of, newest_file

SCHEMA = 1
DIFFERENT, FAILED = 1, 2  # exit statuses, as those of diff(1)
_NOT_COMPARED = (Part.CONNTRACK, Part.STATS)


def run(options: argparse.Namespace) -> int:
    """Print the differences; returns 0 without any, 1 with some, 2 after an error."""
    try:
        if options.source:
            raise CommandError(
                "can't run diff with --from: it takes files as arguments. Try: vnet-tui diff FILE now"
            )
        old = moment_of(options.old or _default(), read_now)
        new = old if options.old == options.new else moment_of(options.new, read_now)
        found = compared(old, new)
    except CommandError as error:
        print(f"vnet-tui: {error}", file=sys.stderr)
        return FAILED
    if options.json:
        print_json(_document(old, new, found))
    elif options.quiet:
        sys.stdout.write(f"{_count(found)}.\n" if found else "")
    else:
        _print(old, new, found)
    return DIFFERENT if found else 0


def read_now() -> Snapshot:
    """Read this host, without what isn't compared."""
    from core.collect.snapshot import PARTS, read_snapshot

    return read_snapshot(PARTS.difference(_NOT_COMPARED))


def _default() -> str:
    found = newest_file()
    if found is None:
        raise CommandError(
            "can't compare: you have no dump, bundle or recording here. Try: vnet-tui diff FILE, with a file "
            "from `vnet-tui dump`"
        )
    return str(found)


def _count(found: tuple[Difference, ...]) -> str:
    return f"{len(found)} difference{'s' * (len(found) != 1)}"


def _print(old: Moment, new: Moment, found: tuple[Difference, ...]) -> None:
    with suppress(AttributeError):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for note in _notes(old, new):
        print(f"vnet-tui: {note}", file=sys.stderr)
    if not found:
        sys.stdout.write("No difference.\n")
        return
    is_timed = any(one.at for one in found)
    order = "the newest first" if is_timed else "the likeliest suspects first"
    sys.stdout.write(f"{old.title} -> {new.title}\n{_count(found)}, {order}:\n")
    width = max(len(one.topic) for one in found)
    for one in found:
        at = f"{clock_text(one.at).partition(' ')[2]:<8}  " if is_timed else ""
        sys.stdout.write(f"  {at}{one.topic:<{width}}  {safe(one.sentence)}\n")


def _notes(old: Moment, new: Moment) -> list[str]:
    """Return sentences about what makes the comparison incomplete."""
    hosts = [one.snapshot.host.hostname for one in (old, new)]
    found = []
    if hosts[0] != hosts[1] and all(hosts):
        found.append(f"these are two hosts, {safe(hosts[0])} and {safe(hosts[1])}: items are matched by name")
    for one in (old, new):
        lacking = one.snapshot.host.missing_capabilities
        if lacking:
            root = "it was taken without root" if one.source != NOW else "Try: sudo vnet-tui diff"
            found.append(
                f"can't compare everything of {safe(one.source)}: {', '.join(lacking)} lacked. {root}"
            )
    return found


def _document(old: Moment, new: Moment, found: tuple[Difference, ...]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "from": _side(old),
        "to": _side(new),
        "differences": [
            {
                "topic": str(one.topic), "action": one.action, "sentence": one.sentence,
                "at": one.at or None, "ref": {"kind": one.ref.kind, "key": list(one.ref.key)},
            }
            for one in found
        ],
    }  # fmt: skip


def _side(one: Moment) -> dict[str, object]:
    host = one.snapshot.host
    return {"source": one.source, "taken_at": one.snapshot.taken_at, "hostname": host.hostname}
