"""Whether a thing that a step makes is there, and ours: an undo must not take away somebody else's."""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from pathlib import Path

from core.apply.engine import EngineError
from core.apply.execute.docker import is_connected, network_named
from core.apply.execute.namespaces import DIRECTORY
from core.apply.kernel import Kernel
from core.collect.netns import NamespaceGone
from core.ops import (
    CreateBridge,
    CreateNamespace,
    CreateVeth,
    DockerConnect,
    DockerCreateNetwork,
    JoinNamespace,
    Operation,
    SetLink,
)

# Seconds that a request which was cut off may take until Docker has done it.
_IN_FLIGHT = 1.0


def in_the_way(step: Operation, kernel: Kernel) -> None:
    """Raise FileExistsError, before the step is begun, where what it would make is there already.

    Afterwards it could not always be told whose it is: a link gets its tag a moment after it is made.
    """
    there = False
    match step:
        case CreateNamespace() | JoinNamespace():
            there = Path(DIRECTORY, step.name).exists()
        case CreateBridge() | CreateVeth():
            there = _alias(step, kernel) is not None
        case DockerCreateNetwork():
            there = network_named(step.name, kernel) is not None
        case DockerConnect():
            there = is_connected(step, kernel)
    if there:
        raise FileExistsError(errno.EEXIST, "it is there already")


def without_doubt(steps: tuple[Operation, ...], kernel: Kernel) -> tuple[Operation, ...]:
    """The steps that were begun, without the last one where that was cut off before it made anything: what
    is there then is somebody else's."""
    return steps[:-1] if steps and not _may_be_ours(steps[-1], kernel) else steps


def left_of(step: Operation, kernel: Kernel, was_cut_off: bool) -> Operation:
    """What is left to do of a step of an undo, after what a kill before may have left: a name without its
    namespace, or, where this very step `was_cut_off`, a link without its tag."""
    match step:
        case CreateNamespace() | JoinNamespace():
            _drop_empty_name(Path(DIRECTORY, step.name))
        case CreateBridge() | CreateVeth() if was_cut_off and _alias(step, kernel) == "":
            return SetLink(step.name, "alias", step.alias, "", step.place)
    return step


def _drop_empty_name(path: Path) -> None:
    """Remove the file of a name on which no namespace is mounted."""
    with suppress(FileNotFoundError):
        if path.stat().st_dev == path.parent.stat().st_dev:
            path.unlink()


def _may_be_ours(last: Operation, kernel: Kernel) -> bool:
    match last:
        case CreateBridge() | CreateVeth() if last.alias:
            return _alias(last, kernel) in ("", last.alias)
        case DockerCreateNetwork():
            try:
                return _awaited(last, kernel)
            except EngineError:
                return True
        case _:
            return True


def _alias(step: CreateBridge | CreateVeth, kernel: Kernel) -> str | None:
    """The alias of the link that has the step's name, None where there is no such link."""
    try:
        return kernel.alias(step.place, step.name)
    except (LookupError, NamespaceGone):
        return None


def _awaited(step: DockerCreateNetwork, kernel: Kernel) -> bool:
    """Whether Docker has the network and it carries its labels, now or once a request in flight has ended."""
    deadline = time.monotonic() + _IN_FLIGHT
    while (found := network_named(step.name, kernel)) is None and time.monotonic() < deadline:
        time.sleep(_IN_FLIGHT / 20)
    return found is not None and dict(step.labels).items() <= (found.get("Labels") or {}).items()
