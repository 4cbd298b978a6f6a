"""The traps of `tests.kernel.hostile`, set by a user on a machine."""

from __future__ import annotations

import os
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
    """A user's trap, and its folder."""
    with TemporaryDirectory(prefix="vnet-hostile-") as folder:
        os.chown(folder, user, user)
        Path(folder).chmod(0o755)
        words = machine.words(
            *_SETPRIV, f"--reuid={user}", sys.executable, "-P", hostile.__file__, kind, folder
        )
        with subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                assert process.stdout.readline() == "ready\n"
                yield Path(folder)
            finally:
                process.kill()
                os.close(os.open(f"{folder}/fifo", os.O_RDWR))  # lets go who waits for it all the same
