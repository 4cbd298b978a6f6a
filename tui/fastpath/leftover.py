"""What a fast path leaves whose processes were both killed: found, and put right."""

from __future__ import annotations

import os

from bpf import restore, runtime
from tui.errors import CommandError

WOULD_PUT_RIGHT = "puts right what a killed fast path left: settings, and the marks of its connections"


def is_there() -> bool:
    """Whether anything is left that nobody is about to put right."""
    if runtime.remembered() is None:
        return False
    try:
        lock = runtime.lock()
    except (runtime.Taken, OSError):
        return False
    _unlock(lock)
    return True


def put_right() -> str:
    """Put it right, and say so; "" where nothing was left. Raises CommandError."""
    if runtime.remembered() is None:
        return ""
    try:
        lock = runtime.lock()
    except runtime.Taken:
        return ""  # it runs
    except OSError as error:
        raise CommandError(f"what the fast path left cannot be put right: {error.strerror}") from error
    try:
        handed = restore.restore()
    except OSError as error:
        raise CommandError(f"what the fast path left cannot be put right: {error.strerror}") from error
    finally:
        _unlock(lock)
    return f"put right what a killed fast path left: settings, and the marks of {handed or 0} connections"


def _unlock(lock: int) -> None:
    runtime.unlock()
    os.close(lock)
