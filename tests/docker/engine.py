"""A real Docker Engine inside a throw-away host namespace: starting it, and leaving nothing of it behind."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.conftest import ThrowawayHost

PREFIX = "vnet-docker-"
IMAGE = "busybox:local"
BUSYBOX = "/usr/bin/busybox"
SUBNET_GATEWAY = "10.200.0.1/24"
START_SECONDS = 30.0


def wait_until(true: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Wait until `true()` holds; fail the test, saying `what` did not come, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.02)


class DockerHost:
    """dockerd and a containerd of its own in the network namespace `host`, with an image `busybox:local`.

    `socket` is the Engine API's path, `url` the same for DOCKER_HOST; `host` the ThrowawayHost it lives in.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = _locked(self.folder)
        self.host = ThrowawayHost()
        (self.folder / "netns").write_text(self.host.name)
        self.socket = str(self.folder / "docker.sock")
        self.url = f"unix://{self.socket}"
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def namespace(self) -> str:
        """The name under /run/netns of the namespace that plays the host."""
        return self.host.name

    @property
    def inode(self) -> int:
        """The inode of that namespace."""
        return self.host.inode

    def run(self, *words: str, check: bool = True) -> str:
        """Run `docker WORDS...` against this engine and return what it printed, without the last newline."""
        done = subprocess.run(
            ["docker", "-H", self.url, *words], capture_output=True, text=True, check=False, timeout=60
        )
        if check and done.returncode:
            raise AssertionError(f"docker {' '.join(words)}: {done.stderr or done.stdout}")
        return done.stdout.rstrip("\n")

    def container(self, name: str, *options: str, command: str = "sleep 100000") -> str:
        """Run a container that sleeps (`docker run -d --name NAME OPTIONS busybox:local`); its id."""
        return self.run(
            "run", "-d", "--stop-signal", "KILL", "--name", name, *options, IMAGE, *command.split()
        )

    def pid(self, name: str) -> int:
        """The first process of a running container, as the engine tells it."""
        return int(self.run("inspect", "-f", "{{.State.Pid}}", name))

    def start(self) -> None:
        """Start containerd and dockerd; AssertionError with the log's end if they do not come to answer."""
        containerd = self.folder / "containerd.sock"
        self._spawn("containerd", "--config", str(self._containerd_config(containerd)))
        self._await("containerd", containerd.exists)
        self._spawn(
            "dockerd", "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec",
            "--pidfile", f"{self.folder}/docker.pid", "-H", self.url, "--containerd", str(containerd),
            "--config-file", str(self._dockerd_config()), "--bip", SUBNET_GATEWAY,
            "--cgroup-parent", f"/{self.folder.name}", "--exec-opt", "native.cgroupdriver=cgroupfs",
        )  # fmt: skip
        self._await("dockerd", lambda: self.run("version", check=False).count("Version:") > 1)

    def stop(self) -> None:
        """Stop dockerd and containerd, as `systemctl stop docker` does; containers stop with it."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def import_image(self) -> None:
        """Make the image `busybox:local` from the machine's static busybox."""
        subprocess.run(
            ["docker", "-H", self.url, "import", "-", IMAGE],
            input=_busybox_image(), check=True, capture_output=True,
        )  # fmt: skip

    def remove_containers(self) -> None:
        """Remove every container and every network that is not the engine's own."""
        if ids := self.run("ps", "-aq").split():
            self.run("rm", "-f", "-v", *ids)
        if ids := self.run("network", "ls", "-q", "--filter", "type=custom").split():
            self.run("network", "rm", *ids)

    def close(self) -> None:
        """Stop the engine and remove everything that it made."""
        if self._processes and self._processes[-1].poll() is None:
            ids = self.run("ps", "-aq", check=False).split()
            self.run("rm", "-f", "-v", *ids, check=False) if ids else None
        self.stop()
        _remove(self.folder)
        self.host.close()
        os.close(self._lock)

    def _spawn(self, *words: str) -> None:
        log = (self.folder / f"{words[0]}.log").open("ab")
        self._processes.append(
            subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.host.name}", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )
        log.close()

    def _await(self, program: str, ready: Callable[[], object]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            code = self._processes[-1].poll()
            if code is not None or time.monotonic() > deadline:
                log = (self.folder / f"{program}.log").read_text(errors="replace")[-3000:]
                raise AssertionError(f"{program} did not start (exit code {code}); its log ends:\n{log}")
            time.sleep(0.05)

    def _containerd_config(self, socket: Path) -> Path:
        path = self.folder / "containerd.toml"
        path.write_text(
            "version = 2\n"
            f'root = "{self.folder}/containerd-root"\nstate = "{self.folder}/containerd-state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{socket}"\n'
        )
        return path

    def _dockerd_config(self) -> Path:
        path = self.folder / "daemon.json"
        path.write_text("{}\n")
        return path


def remove_stale() -> None:
    """Remove what earlier runs left that were killed: folders whose lock nobody holds any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            lock = _locked(folder)
        except OSError:
            continue
        name = folder / "netns"
        namespace = name.read_text() if name.exists() else ""
        _remove(folder)
        if namespace:
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
        os.close(lock)


def _locked(folder: Path) -> int:
    """Take the folder for this process; the lock ends with the process, however that ends."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove(folder: Path) -> None:
    """End the processes of the engine that lives in `folder`, then remove its mounts, cgroups and files."""
    wait_until(lambda: not _kill(folder), f"the end of all processes of {folder}")
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)
    for parent in [
        *Path("/sys/fs/cgroup").glob(folder.name),
        *Path("/sys/fs/cgroup").glob(f"*/{folder.name}"),
    ]:
        for path, _, _ in os.walk(parent, topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()
    shutil.rmtree(folder, ignore_errors=True)


def _kill(folder: Path) -> bool:
    """Kill every process that names the folder in its command line or cgroup; says whether there was one."""
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


def _busybox_image() -> bytes:
    """A root file system in a tar archive: busybox and a link for each of its applets."""
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        for applet in applets:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            if applet != "busybox":
                tar.addfile(link)
    return archive.getvalue()
