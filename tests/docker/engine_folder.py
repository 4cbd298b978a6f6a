"""Create the folder of a test's container engine, and remove all of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.support.waiting import PATIENCE, wait_until

PREFIX = "vnet-engine-"
_START_SECONDS = PATIENCE


class EngineFolder:
    """Hold the folder of an engine in the namespace of that name.

    Its lock ends with this process; `teardown` is a command that removes what only the engine can find.
    """

    def __init__(self, namespace: str, teardown: Callable[[Path], Sequence[str]] | None = None) -> None:
        self.namespace = namespace
        with _one_at_a_time():
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            self._lock = _locked(self.folder)
        self._processes: list[subprocess.Popen[bytes]] = []
        (self.folder / "netns").write_text(namespace)
        (self.folder / "teardown").write_text(json.dumps(teardown(self.folder) if teardown else []))

    def start(self, ready: Callable[[], object], program: str, *words: str) -> None:
        """Start a daemon in the namespace and wait until `ready()`.

        Raises AssertionError with the end of its log.
        """
        log = self.folder / f"{program}.log"
        with log.open("ab") as output:
            daemon = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.namespace}", program, *words],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._processes.append(daemon)
        deadline = time.monotonic() + _START_SECONDS
        while not ready():
            if daemon.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-3000:]
                raise AssertionError(f"{program} did not start (exit code {daemon.poll()}):\n{tail}")
            time.sleep(0.05)

    def reload(self) -> None:
        """Have the last started daemon reload its configuration."""
        self._processes[-1].send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Stop the daemons, the last one first."""
        while self._processes:
            daemon = self._processes.pop()
            daemon.terminate()
            try:
                daemon.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def close(self) -> None:
        """Stop the daemons and remove all their processes, mounts, cgroups and files."""
        self.stop()
        _remove(self.folder)
        os.close(self._lock)


def remove_stale() -> None:
    """Remove remains of killed runs: folders without a lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            with _one_at_a_time():
                lock = _locked(folder)
        except OSError:
            continue
        name = folder / "netns"
        namespace = name.read_text() if name.exists() else ""
        _remove(folder)
        if namespace:
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
        os.close(lock)


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Create and lock a folder in one step, so that another run doesn't remove it."""
    with (Path(tempfile.gettempdir()) / "vnet-engines.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _locked(folder: Path) -> int:
    """Lock the folder for this process; the lock ends with the process."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove(folder: Path) -> None:
    """Kill the processes of the engine in `folder`; remove mounts, cgroups, files."""
    teardown = folder / "teardown"
    if teardown.exists() and (words := json.loads(teardown.read_text() or "[]")):
        subprocess.run(words, check=False, capture_output=True, timeout=PATIENCE)
    wait_until(lambda: not _kill(folder), f"the end of all processes of {folder}")
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
    for name in (folder.name, "libpod_parent"):
        _remove_empty_cgroups(name)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_empty_cgroups(name: str) -> None:
    """Remove the cgroup of that name in each hierarchy.

    Groups with processes stay.
    """
    root = Path("/sys/fs/cgroup")
    for parent in [*root.glob(name), *root.glob(f"*/{name}")]:
        for path, _, _ in os.walk(parent, topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()


def _kill(folder: Path) -> bool:
    """Kill processes with the folder in command line or cgroup; return if any."""
    found = list(_processes_of(folder))
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


def _processes_of(folder: Path) -> Iterator[int]:
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            owned = (
                f"{folder}/".encode() in (proc / "cmdline").read_bytes()
                or f"/{folder.name}/" in (proc / "cgroup").read_text()
            )
            zombie = "\nState:\tZ" in (proc / "status").read_text()
        except OSError:
            continue
        if owned and not zombie:
            yield int(proc.name)
