"""The few system calls that Python has no function for: mount(2) and umount2(2), and a /run of one's own."""

from __future__ import annotations

import ctypes
import os
import re
from contextlib import suppress
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# sys/mount.h
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2


def make_mounts_private() -> None:
    """From here on, no mount of this mount namespace shows in another, nor another's in this."""
    mount("none", "/", "", _MS_REC | _MS_PRIVATE)


def mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    """Mount a filesystem of that kind; raises OSError (mount(2))."""
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None), target)


def unmount(target: str) -> None:
    """Take off the topmost mount at `target` even while it is in use; raises OSError (umount2(2))."""
    _check(_libc.umount2(target.encode(), _MNT_DETACH), target)


def fresh_run() -> None:
    """Replace /run by an empty one, and let go of all namespaces that are mounted anywhere.

    So no engine's socket and no other namespace can be seen, and none is kept alive by our copy of its mount.
    """
    for target in reversed(_mount_points_to_drop()):
        with suppress(OSError):  # hidden under a later mount: out of reach already
            unmount(target)
    for folder in ("/run", "/var/run"):
        if not Path(folder).is_symlink():
            mount("run", folder, "tmpfs")


def _mount_points_to_drop() -> list[str]:
    # Fields of proc_pid_mountinfo(5): 4 the mount point, with octal escapes; the kind follows " - ".
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4])
        if point.startswith(("/run/", "/var/run/")) or right.startswith("nsfs "):
            found.append(point)
    return found


def _check(result: int, target: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)
