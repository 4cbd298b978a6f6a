"""`vnet-tui accelerate` and `vnet-tui fastpath`: what changes is said first; exit codes as of every
command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from core.collect.host import missing_capabilities
from core.text import safe
from core.topology import Topology
from tui.accelerator import Preview
from tui.change.ask import agreed, is_person
from tui.errors import CommandError
from tui.fastpath import report
from tui.fastpath.session import FastSession, ask
from tui.present.fast_targets import Choice, every, named


def run(options: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the exit code. Raises CommandError."""
    session = FastSession(tied=False)
    if options.command == "fastpath":
        return (
            report.check(session, options.json) if options.action == "check" else report.status(options.json)
        )
    if options.capture or options.release:
        return _capture(options)
    if not options.targets and not options.off and options.strict is None:
        raise CommandError("say what to accelerate: a bridge, a network, or all; --off ends it")
    if not options.dry_run:
        require_rights("turning the fast path on or off", "; --dry-run only says what would change")
    return _switch(session, options)


def require_rights(what: str, more: str = "") -> None:
    """Raises CommandError where this process lacks what that needs (capabilities(7))."""
    if lacking := [name for name in missing_capabilities() if name != "CAP_SYS_PTRACE"]:
        words = f"{what} needs {' and '.join(lacking)}, which this process lacks"
        raise CommandError(f"{words}; nothing was changed: run it with sudo{more}")


def _capture(options: argparse.Namespace) -> int:
    if options.targets or options.off:
        raise CommandError("--capture and --release stand alone")
    require_rights("--capture or --release")
    do = "capture" if options.capture else "release"
    was = ask({"do": "status"})["captured"] if options.release else ()
    answer = ask({"do": do, "address": options.capture or options.release})
    print(told_of_capture(options.release, was, answer["captured"]))
    return 0


def told_of_capture(released: str, was: Sequence[str], captured: Sequence[str]) -> str:
    """What is captured now, and whether what was released had been."""
    words = f"captured, left to the kernel where tcpdump sees it: {', '.join(map(safe, captured))}"
    words = words if captured else "no address is captured now: the fast path carries them all"
    if released and set(was) == set(captured):
        return f"{safe(released)} was not captured, nothing changed; {words}"
    return words


def _switch(session: FastSession, options: argparse.Namespace) -> int:
    topology = session.look()
    fast = session.status()
    if options.off and fast.state == "hidden":
        raise CommandError("can't ask whether anything is accelerated: only root may. Try: sudo vnet-tui ...")
    if options.off and not fast.is_running:
        print("nothing to do: nothing is accelerated here")
        return 0
    if options.strict is not None and not options.targets and not fast.is_running:
        raise CommandError(
            "nothing is accelerated here: name what --strict is for: vnet-tui accelerate NETWORK --strict"
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
    if not options.yes and not _agreed():
        return 0
    print(session.perform(preview, lambda words: print(words, flush=True)))
    return 0


def _end_silent(session: FastSession, options: argparse.Namespace) -> int:
    print("The process of the fast path does not answer: it is killed, and what it leaves is put right.")
    if options.dry_run or not (options.yes or _agreed()):
        return 0
    print(session.end_silent())
    return 0


def _choices(words: Sequence[str], topology: Topology, off: bool) -> tuple[Choice, ...]:
    """What the names mean. What is not there any more can be turned off all the same. Raises CommandError."""
    found = []
    for word in words:
        choice = named(topology, word)
        if choice is None and not off:
            known = " ".join(safe(one.target) for one in every(topology) if one.target) or "none"
            raise CommandError(
                f"there is no bridge or network {safe(word)}; these can be accelerated: {known}"
            )
        found.append(choice or Choice(safe(word), word, "", frozenset({word})))
    return tuple(found)


def _agreed() -> bool:
    sys.stdout.flush()
    if not is_person():
        raise CommandError("nothing was changed: there is nobody to ask; say --yes to have it done")
    return agreed("Do it?")


def _print(preview: Preview) -> None:
    for words in preview.nothing:
        print(words)
    if preview.refused:
        print(f"{preview.title}: not possible on this machine")
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
