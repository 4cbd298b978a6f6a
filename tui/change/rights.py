"""What keeps a change from being made, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from core.apply.engine import EngineError
from core.apply.guard import GuardError
from core.apply.state import Busy, StateError
from core.collect.host import missing_capabilities
from core.ops import DockerConnect, DockerCreateNetwork, DockerDisconnect, DockerRemoveNetwork, Operation
from tui.errors import CommandError

_BY_DOCKER = (DockerConnect, DockerCreateNetwork, DockerDisconnect, DockerRemoveNetwork)


@contextmanager
def in_words() -> Iterator[None]:
    """Turn what keeps a change from being made into CommandError."""
    try:
        yield
    except (Busy, StateError, EngineError, GuardError) as error:
        raise CommandError(str(error)) from error


def require_rights(steps: Iterable[Operation] | None = None) -> None:
    """Raises CommandError where this process lacks what changing networks needs (capabilities(7)), or what
    these steps need: those that Docker does need no more than a way to its socket."""
    if steps is not None and all(isinstance(step, _BY_DOCKER) for step in steps):
        return
    lacking = [name for name in missing_capabilities() if name != "CAP_SYS_PTRACE"]
    if lacking:
        raise CommandError(
            f"changing networks needs {' and '.join(lacking)}, which this process lacks; "
            "nothing was changed: run it with sudo (--dry-run prints the commands without)"
        )
