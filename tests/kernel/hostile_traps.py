"""Set the traps of `tests.kernel.hostile` as a user of a machine."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.kernel import hostile
from tests.support.machine import Machine

_SETPRIV = ("setpriv", "--regid=1234", "--clear-groups", "--pdeathsig", "KILL")


@contextmanager
def trap(machine: Machine, kind: str, user: int = 1234) -> Iterator[Path]:
    """Set a trap as a user; yield its folder."""
    with TemporaryDirectory(prefix="vnet-hostile-") as folder:
        os.chown(folder, user, user)
        Path(folder).chmod(0o755)
        _copy_fuse(Path(folder, "device"))
        command = machine.words(
            *_SETPRIV, f"--reuid={user}", sys.executable, "-P", hostile.__file__, kind, folder
        )
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n"
                yield Path(folder)
            finally:
                process.kill()
                # Releases a process that waits for it nevertheless.
                os.close(os.open(f"{folder}/fifo", os.O_RDWR))


def _copy_fuse(path: Path) -> None:
    """Make a node of /dev/fuse that every user may open; without udev only root may open the original."""
    device = Path("/dev/fuse")
    if device.exists():
        os.mknod(path, stat.S_IFCHR, device.stat().st_rdev)
        path.chmod(0o666)
