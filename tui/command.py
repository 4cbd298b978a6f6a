"""Provide the commands' error type, and read and write the user's files."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.model import FastFlows, Snapshot


class CommandError(Exception):
    """A command can't be done; the text is for the user."""


def require_terminal() -> None:
    """Raise CommandError where the dashboard can't be drawn."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError("can't open the dashboard: it needs a terminal. Try: vnet-tui show")
    if os.environ.get("TERM") == "dumb":  # it would wait for answers of the terminal, and ignore keys
        raise CommandError(
            "can't open the dashboard: with TERM=dumb the terminal can't move its cursor. "
            "Try: vnet-tui show, or TERM=xterm-256color if it can"
        )


def load(path: Path) -> Snapshot:
    """Return the snapshot in a dump file.

    Raises CommandError.
    """
    return load_with_fast_flows(path)[0]


def load_with_fast_flows(path: Path) -> tuple[Snapshot, FastFlows | None]:
    """Read a dump or bundle: the snapshot, and the fast path's counters or None.

    Raises CommandError.
    """
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
        raise unreadable(path, error) from None
    except CorruptFile as error:
        if is_recording(path):
            raise CommandError(
                f"can't read {name} as a dump: it is a recording. Try: vnet-tui replay {name}"
            ) from None
        raise CommandError(f"can't read {name}: {safe(str(error))}") from None


def unreadable(path: Path | str, error: OSError) -> CommandError:
    """Return the error of a file that the user named and that can't be read."""
    from core.text import safe

    is_denied = isinstance(error, PermissionError) and os.geteuid() != 0
    remedy = ". Try: run it with sudo" if is_denied else ""
    return CommandError(f"can't read {safe(str(path))}: {error.strerror or error}{remedy}")


def is_recording(path: Path) -> bool:
    """Return whether the file begins like a recording."""
    from core.recording.frames import MAGIC

    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


CHECK_FIRST = "it contains addresses and names, so check it before you send it"


def free_path(what: str, hostname: str, ending: str) -> Path:
    """Return the path of a new file in `output_folder`, named by host and time."""
    folder = output_folder()
    host = re.sub(r"[^A-Za-z0-9.-]", "_", hostname)[:64].lstrip(".") or "host"
    stem = f"vnet-{what}-{host}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = folder / f"{stem}{ending}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{ending}"
    return path


def save(path: Path, content: bytes) -> str:
    """Write a file that only its owner can read; returns a sentence about it.

    Raises CommandError.
    """
    from core.files import WriteError, write_whole

    try:
        replaced = write_whole(path, content)
    except WriteError as error:
        raise CommandError(str(error)) from None
    instead = ", in place of the file that was there" if replaced else ""
    return f"wrote {display_path(path)}, {size_of(len(content))}{instead}"


def output_folder() -> Path:
    """Return the current folder, or the home folder if that isn't writable."""
    return next((each for each in (Path.cwd(), Path.home()) if os.access(each, os.W_OK)), Path("/tmp"))


def display_path(path: Path) -> str:
    """Return the path as a user would type it here, safe to print."""
    from core.text import safe

    return safe(path.name if path.parent in (Path(), Path.cwd()) else str(path))


def size_of(size: int) -> str:
    """Format bytes: "812 B", "1.2 MB"."""
    if size < 1000:
        return f"{size} B"
    number = float(size)
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 999.5 or unit == "GB":
            break
    return f"{number:.3g} {unit}"


def span_of(seconds: float) -> str:
    """Format minutes and seconds: "1:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
