"""Helpers of all commands: their error, opening files, and whether a terminal is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.model import FastFlows, Snapshot


class CommandError(Exception):
    """A command can't be done; the text is for the user."""


def need_a_terminal() -> None:
    """Raise CommandError where the dashboard can't be drawn."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError("the dashboard needs a terminal; `vnet-tui show` prints into pipes and files")
    if os.environ.get("TERM") == "dumb":  # it would wait for answers that never come, with the keys taken
        raise CommandError(
            "cannot draw the dashboard: TERM=dumb says that this terminal cannot move its cursor; "
            "try TERM=xterm-256color if it can, or `vnet-tui show`, which prints text"
        )


def load(path: Path) -> Snapshot:
    """The snapshot in a dump file; raises CommandError."""
    return load_whole(path)[0]


def load_whole(path: Path) -> tuple[Snapshot, FastFlows | None]:
    """The snapshot in a dump file, and what the fast path had counted, where it is a bundle that tells;
    raises CommandError."""
    from core.files import MAX_BYTES
    from core.serialize import CorruptFile, unpack_both
    from core.text import safe

    name = safe(str(path))
    try:
        if path.is_fifo():
            print(f"vnet-tui: waiting for what is written into the pipe {name}", file=sys.stderr)
        with path.open("rb") as file:
            return unpack_both(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise CommandError(f"cannot read {name}: {error.strerror}") from None
    except CorruptFile as error:
        if is_recording(path):
            raise CommandError(f"{name} is a recording: vnet-tui replay {name} opens it") from None
        raise CommandError(f"cannot read {name}: {safe(str(error))}") from None


def is_recording(path: Path) -> bool:
    """Whether the file begins as a recording does."""
    from core.recording.frames import MAGIC

    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
