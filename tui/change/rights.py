"""What keeps a change from being made, in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.apply.engine import EngineError
from core.apply.guard import GuardError
from core.apply.lock import Busy
from core.apply.state import StateError
from core.collect.host import missing_capabilities
from tui.errors import CommandError


@contextmanager
def in_words() -> Iterator[None]:
    """Turn what keeps a change from being made into CommandError."""
    try:
        yield
    except (Busy, StateError, EngineError, GuardError) as error:
        raise CommandError(str(error)) from error


def require_rights() -> None:
    """Raises CommandError where this process lacks what changing networks needs (capabilities(7))."""
    lacking = [name for name in missing_capabilities() if name != "CAP_SYS_PTRACE"]
    if lacking:
        raise CommandError(
            f"changing networks needs {' and '.join(lacking)}, which this process lacks; "
            "nothing was changed: run it with sudo (--dry-run prints the commands without)"
        )
