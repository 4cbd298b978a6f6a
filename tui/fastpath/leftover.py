"""What a fast path leaves whose processes were both killed: found, and put right."""

from __future__ import annotations

import os

from bpf import runfile
from bpf.runfile import clean_up
from tui.errors import CommandError

WOULD_PUT_RIGHT = "puts right what a killed fast path left: settings, and the marks of its connections"


def is_there() -> bool:
    """Whether anything is left that nobody is about to put right."""
    if runfile.remembered() is None:
        return False
    try:
        lock = runfile.lock()
    except (runfile.Taken, OSError):
        return False
    _unlock(lock)
    return True


def put_right() -> str:
    """Put it right, and say so; "" where nothing was left. Raises CommandError."""
    if runfile.remembered() is None:
        return ""
    try:
        lock = runfile.lock()
    except runfile.Taken:
        return ""  # it runs
    except OSError as error:
        raise CommandError(f"what the fast path left cannot be put right: {error.strerror}") from error
    try:
        handed = clean_up()
    except OSError as error:
        raise CommandError(f"what the fast path left cannot be put right: {error.strerror}") from error
    finally:
        _unlock(lock)
    return f"put right what a killed fast path left: settings, and the marks of {handed or 0} connections"


def _unlock(lock: int) -> None:
    runfile.unlock()
    os.close(lock)
