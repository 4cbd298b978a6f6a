"""Start and stop the lab's containers, and run tools in the lab.

Only the lab's first process and `core.lab.inject` call these functions: both are in the lab's namespaces.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from core.lab import builder
from core.lab.blueprint import LabContainer, LabSettings

NAMESPACES = os.CLONE_NEWNS | os.CLONE_NEWUTS | os.CLONE_NEWIPC
_TRAFFIC = Path(__file__).with_name("traffic.py")
_STOP_SECONDS = 10.0


class BuildError(Exception):
    """A step of building the lab failed; the text says which and why."""


def start(container: LabContainer, settings: LabSettings, jobs: Sequence[str] = ()) -> None:
    """Start a container's process as pid 1 of a pid namespace, and wait for its exec.

    `jobs` replace its servers.
    """
    failure_read, failure_write = os.pipe()  # closed by exec, or has the reason of a failure
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    os.unshare(os.CLONE_NEWPID)
    if os.fork() == 0:
        try:
            _exec_container(container, _jobs(container, settings, jobs))
        except BaseException as error:
            os.write(failure_write, f"{type(error).__name__}: {error}".encode())
        os._exit(127)
    os.setns(home, os.CLONE_NEWPID)
    os.close(home)
    os.close(failure_write)
    with os.fdopen(failure_read, "rb") as stream:
        if failure := stream.read():
            raise BuildError(f"the container {container.name} doesn't start: {failure.decode()}")


def stop(container: LabContainer) -> None:
    """Kill a container's process and wait until it has ended."""
    deadline = time.monotonic() + _STOP_SECONDS
    while found := list(processes(container)):
        if time.monotonic() > deadline:
            raise BuildError(f"the container {container.name} doesn't end")
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def processes(container: LabContainer) -> Iterator[int]:
    """Yield the ids of processes with a container's command line and namespace."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is a zombie
            words = (folder / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode()
            if words == container.command and _is_in_namespace(folder, container):
                yield int(folder.name)


def _is_in_namespace(process: Path, container: LabContainer) -> bool:
    if not container.own_netns:
        return True
    return (process / "ns/net").stat().st_ino == Path("/run/netns", container.name).stat().st_ino


def _jobs(container: LabContainer, settings: LabSettings, servers: Sequence[str]) -> list[str]:
    own = [job for job in container.jobs if job.startswith("serve-")]
    clients = [job for job in container.jobs if job not in own and settings.traffic]
    return lines_for_host([*(servers or own), *clients])


def _exec_container(container: LabContainer, jobs: list[str]) -> None:
    if not container.host_network:
        netns = os.open(f"/run/netns/{container.joins or container.name}", os.O_RDONLY | os.O_CLOEXEC)
        os.setns(netns, os.CLONE_NEWNET)
    os.unshare(NAMESPACES)
    socket.sethostname(container.name)
    builder.make_mounts_private()
    builder.mount_empty_run()
    builder.mount("proc", "/proc", "proc")
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    argv = [sys.executable, "-I", "-S", str(_TRAFFIC), container.command, *jobs]
    os.execve(sys.executable, argv, _environment(container))


def _environment(container: LabContainer) -> dict[str, str]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME": container.name}
    if container.joins:
        environment["VNET_NETWORK_MODE"] = f"container:{container.joins}"
    return environment


def has_ipv6() -> bool:
    """Return whether the kernel has IPv6."""
    return Path("/proc/sys/net/ipv6").is_dir()


def lines_for_host(lines: list[str]) -> list[str]:
    """Return the lines, without those for IPv6 if the kernel has none."""
    return lines if has_ipv6() else builder.without_ipv6(lines)


def ip(lines: list[str], netns: str = "") -> None:
    """Run a batch of ip(8) in a namespace ("": the host's); raises BuildError."""
    options = ["-n", netns] if netns else []
    if lines:
        run(["ip", *options, "-batch", "-"], "\n".join(lines))


def run(argv: list[str], script: str = "") -> str:
    """Run a tool with `script` as input and return its output; raises BuildError."""
    try:
        done = subprocess.run(argv, input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"{argv[0]} isn't installed") from error
    if done.returncode:
        raise BuildError(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
