"""Names and sizes of what a person keeps: recordings and bundles."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from core.files import WriteError, write_whole
from core.text import safe
from tui.command import CommandError

LOOK_FIRST = "it holds addresses and names, look before you send it"


def free_path(what: str, hostname: str, ending: str) -> Path:
    """Where a new file goes, in `output_folder`, named by host and time."""
    folder = output_folder()
    host = re.sub(r"[^A-Za-z0-9.-]", "_", hostname)[:64].lstrip(".") or "host"
    stem = f"vnet-{what}-{host}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = folder / f"{stem}{ending}", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}{ending}"
    return path


def save(path: Path, content: bytes) -> str:
    """Write a dump or a bundle for its owner alone; what was written, in words. Raises CommandError."""
    try:
        replaced = write_whole(path, content)
    except WriteError as error:
        raise CommandError(str(error)) from None
    instead = ", in place of the file that was there" if replaced else ""
    return f"wrote {told(path)}, {size_of(len(content))}{instead}"


def output_folder() -> Path:
    """The present folder, or the home folder where that cannot be written to."""
    return next((each for each in (Path.cwd(), Path.home()) if os.access(each, os.W_OK)), Path("/tmp"))


def told(path: Path) -> str:
    """The path as a person would type it here, harmless to print."""
    return safe(path.name if path.parent in (Path(), Path.cwd()) else str(path))


def size_of(size: int) -> str:
    """Bytes for a person: "812 B", "1.2 MB"."""
    if size < 1000:
        return f"{size} B"
    number = float(size)
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 999.5 or unit == "GB":
            break
    return f"{number:.3g} {unit}"


def span_of(seconds: float) -> str:
    """Minutes and seconds: "1:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
