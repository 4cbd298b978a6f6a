"""What ends a command early, in words."""

from __future__ import annotations


class CommandError(Exception):
    """What keeps a command from being done, in words for a person."""
