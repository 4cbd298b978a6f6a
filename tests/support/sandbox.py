"""Give a process tree its own machine: links, names and processes."""

from __future__ import annotations

import subprocess
import tempfile

from tests.support.waiting import PATIENCE

# The propagation is private, so that no mount made inside shows outside, or the other way round.
UNSHARE = ("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc",
           "--kill-child")  # fmt: skip

# A new /run. Network namespaces mounted elsewhere are unmounted: even covered, they would be in the mount
# table.
_EMPTY_RUN = "umount -a -t nsfs 2>/dev/null; mount -t tmpfs none /run"
OWN_RUN = f"{_EMPTY_RUN} && mkdir /run/netns && ip link set lo up"

# A /sys that shows the links of the new network namespace, with the cgroups of the old one.
_OWN_SYS = (
    "mkdir /run/cgroup && mount --rbind /sys/fs/cgroup /run/cgroup && mount -t sysfs none /sys && "
    "mount --move /run/cgroup /sys/fs/cgroup && rmdir /run/cgroup"
)
# As process 1, the shell reaps orphans until its own child ends; its end then ends everything inside.
_OWN_TMPDIR = 'export TMPDIR="$0" && mount -t tmpfs -o mode=1777 none "$TMPDIR"'
_START = f'{OWN_RUN} && {_OWN_SYS} && {_OWN_TMPDIR} && "$@"; exit $?'


def sandboxed(scratch: str, *words: str) -> list[str]:
    """Return the command that runs `words` in a sandbox.

    The sandbox has its own network, mounts, PIDs, /run, /sys and TMPDIR. `scratch` is an empty directory, on
    which each sandbox mounts a file system in memory for temporary files.
    """
    return [*UNSHARE, "sh", "-c", _START, scratch, *words]


def alone(*words: str) -> list[str]:
    """Return the command that runs `words` with its own mounts and PIDs.

    It keeps the caller's network namespace, and no other is visible.
    """
    script = f'{_EMPTY_RUN} && exec "$0" "$@"'
    return ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", script, *words]


def works() -> bool:
    """Return whether this process may create a sandbox.

    It takes CAP_SYS_ADMIN, and a kernel with these namespaces.
    """
    try:
        words = sandboxed(tempfile.gettempdir(), "true")
        return not subprocess.run(words, capture_output=True, check=False, timeout=PATIENCE).returncode
    except OSError:
        return False
