"""Asking a person on the terminal."""

from __future__ import annotations

import select
import sys


def is_person() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def agreed(question: str, seconds: float | None = None) -> bool:
    """Whether the answer is yes; no answer within `seconds`, and the end of input, is no."""
    print(f"{question} [y/N] ", end="", flush=True)
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    answer = sys.stdin.readline() if ready else ""
    if not answer.endswith("\n"):
        print()
    return answer.strip().casefold() in ("y", "yes")
