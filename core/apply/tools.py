"""Running the system's tools for a change."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Sequence

_SECONDS = 20.0


def run_holding_lock(words: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a tool with `text` as its input. Raises OSError where it cannot be run or does not end in time.

    The tool inherits the writers' lock, the one descriptor that we leave inheritable: killed while it runs,
    we hold the lock until it has ended too, and no undo can overtake it.
    """
    try:
        return subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            close_fds=False,
        )
    except FileNotFoundError as error:
        raise OSError(errno.ENOPKG, f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, f"{words[0]} did not end within {_SECONDS:.0f} s") from error
