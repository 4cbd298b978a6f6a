"""The state directory: where the journal and the writers' lock live."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from core.environment import roots_folder

_SYSTEMS = Path("/var/lib/vnet-tui")


class StateError(Exception):
    """The state directory cannot be used; the text says why and what to try."""


def state_directory() -> Path:
    """The directory ($VNET_STATE, else /var/lib/vnet-tui, else for who may not write there, and can change
    no more than Docker's networks, a person's own), made where it is missing. Raises StateError."""
    # Absolute, and so for the programs started from here, which work in other folders.
    path = Path(os.environ.get("VNET_STATE") or _usual()).absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(unusable(path, error)) from error
    if os.geteuid() == 0 and not roots_folder(str(path)):
        raise StateError(
            f"can't keep the journal in {path}: root would undo what another user wrote there. Try: set "
            "VNET_STATE to a folder that only root can write, as are those above it"
        )
    return path


def _usual() -> Path:
    if os.geteuid() == 0 or os.access(_SYSTEMS, os.W_OK):
        return _SYSTEMS
    # Where the XDG Base Directory Specification puts the state of one person's programs.
    told = os.environ.get("XDG_STATE_HOME", "")
    states = told if told.startswith("/") else f"{os.environ.get('HOME', '')}/.local/state"
    return Path(states, "vnet-tui")


def boot_id() -> str:
    """What tells this run of the machine from the others (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def unusable(path: Path, error: OSError) -> str:
    """What to tell a person about a state directory that cannot be written."""
    remedy = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "run it as root, such as with sudo, or "
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space or "
    return (
        f"nothing was changed: the journal cannot be written to {path} ({error.strerror}); "
        f"{remedy}set VNET_STATE to a directory that can be written"
    )


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
