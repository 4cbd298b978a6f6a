"""The lab's first process: builds the lab in new namespaces; the lab ends with it.

It is pid 1 of a new pid namespace. When it ends, the kernel kills all other processes there, and removes
their namespaces, links and mounts. It ends at the end of its standard input, so when its launcher closes the
pipe or ends. Processes on a terminal get SIGHUP first.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from core.lab import blueprint, builder
from core.lab.blueprint import CONTAINERS, READY, LabContainer, LabSettings
from core.lab.builder import ruleset

_TRAFFIC = Path(__file__).with_name("traffic.py")
_NAMESPACES = os.CLONE_NEWNS | os.CLONE_NEWUTS | os.CLONE_NEWIPC
_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/netfilter/nf_conntrack_acct": "1",
    "net/netfilter/nf_conntrack_timestamp": "1",
}


_HANGUP_SECONDS = 3.0
_MOVED_ADDRESS, _MOVED_BETWEEN = "172.18.0.100/32", ("web1", "web2")


class BuildError(Exception):
    """A step of building the lab failed; the text says which and why."""


def main() -> int:
    """Build the lab, print READY, and wait for the end of standard input."""
    settings = LabSettings(**json.loads(sys.argv[1]))
    try:
        _build(settings)
    except (BuildError, OSError) as error:
        print(error, flush=True)
        return 1
    print(READY, flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps orphans
    _wait_for_end(settings.changes)
    _hang_up()
    return 0


def _wait_for_end(interval: float) -> None:
    """Wait for the end of standard input; move an address at each interval (0: never)."""
    holder, other = _MOVED_BETWEEN
    while not select.select([0], [], [], interval or None)[0]:
        with suppress(BuildError):  # the user may have removed a container
            _ip([f"addr replace {_MOVED_ADDRESS} dev eth0"], holder)
            _ip([f"addr del {_MOVED_ADDRESS} dev eth0"], other)
        holder, other = other, holder


def _hang_up() -> None:
    """Send SIGHUP to processes on terminals and wait until they restored them."""
    deadline, signalled = time.monotonic() + _HANGUP_SECONDS, set[int]()
    while (pids := _terminal_processes()) and time.monotonic() < deadline:
        for pid in pids - signalled:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
        signalled |= pids
        time.sleep(0.02)


def _terminal_processes() -> set[int]:
    """Return processes with a controlling terminal, but no zombies (proc_pid_stat(5))."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _parent, _group, _session, tty, *_ = stat.read_text().rpartition(")")[2].split()
            if tty != "0" and state != "Z":
                found.add(int(stat.parent.name))
    return found


def _build(settings: LabSettings) -> None:
    os.unshare(_NAMESPACES | os.CLONE_NEWNET)
    socket.sethostname(blueprint.HOSTNAME)
    Path("/proc/self/comm").write_text("lab")
    builder.make_mounts_private()
    builder.mount_empty_run()
    builder.mount("proc", "/proc", "proc")
    ipv6 = Path("/proc/sys/net/ipv6").is_dir()
    _print_step("namespaces")
    _ip([f"netns add {name}" for name in builder.netns_names()])
    _start_sidecars_of_old_containers(settings, ipv6)
    _print_step("bridges, veth pairs, addresses, routes")
    _links(ipv6)
    _print_step("packet filter and NAT")
    _run(["nft", "-f", "-"], ruleset(ipv6))
    for name, value in _SYSCTLS.items():
        if ipv6 or "ipv6" not in name:
            Path("/proc/sys", name).write_text(value)
    _print_step("containers and their traffic")
    for container in CONTAINERS:
        if not container.joins_old:
            _start(container, settings, ipv6)
    _extra_namespaces(settings.namespaces)


def _start_sidecars_of_old_containers(settings: LabSettings, ipv6: bool) -> None:
    # The joined namespace loses its name to a new one, as when a container is recreated.
    for container in CONTAINERS:
        if container.joins_old:
            _ip(["link set lo up"], container.joins)
            _start(container, settings, ipv6)
            _ip([f"netns del {container.joins}", f"netns add {container.joins}"])


def _links(ipv6: bool) -> None:
    _ip(_lines(builder.host_batch(), ipv6))
    for container in CONTAINERS:
        if container.own_netns and container.name != blueprint.INTERNET:
            _ip(_lines(builder.container_batch(container), ipv6), container.name)
    _ip(_lines(builder.internet_batch(), ipv6), blueprint.INTERNET)


def _extra_namespaces(count: int) -> None:
    names = [f"extra{number:03}" for number in range(count)]
    _ip([f"netns add {name}" for name in names])
    _ip([line for name in names for line in builder.extra_host_batch(name)])
    for number, name in enumerate(names):
        _ip(builder.extra_batch(number), name)


def _start(container: LabContainer, settings: LabSettings, ipv6: bool) -> None:
    """Start a container's process as pid 1 of a pid namespace, and wait for its exec."""
    failure_read, failure_write = os.pipe()  # closed by exec, or has the reason of a failure
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    os.unshare(os.CLONE_NEWPID)
    if os.fork() == 0:
        try:
            _exec_container(container, settings, ipv6)
        except BaseException as error:
            os.write(failure_write, f"{type(error).__name__}: {error}".encode())
        os._exit(127)
    os.setns(home, os.CLONE_NEWPID)
    os.close(home)
    os.close(failure_write)
    with os.fdopen(failure_read, "rb") as stream:
        if failure := stream.read():
            raise BuildError(f"the container {container.name} doesn't start: {failure.decode()}")


def _exec_container(container: LabContainer, settings: LabSettings, ipv6: bool) -> None:
    if not container.host_network:
        netns = os.open(f"/run/netns/{container.joins or container.name}", os.O_RDONLY | os.O_CLOEXEC)
        os.setns(netns, os.CLONE_NEWNET)
    os.unshare(_NAMESPACES)
    socket.sethostname(container.name)
    builder.make_mounts_private()
    builder.mount_empty_run()
    builder.mount("proc", "/proc", "proc")
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    jobs = [job for job in container.jobs if settings.traffic or job.startswith("serve-")]
    argv = [sys.executable, "-I", "-S", str(_TRAFFIC), container.command, *_lines(jobs, ipv6)]
    os.execve(sys.executable, argv, _environment(container))


def _environment(container: LabContainer) -> dict[str, str]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME": container.name}
    if container.joins:
        environment["VNET_NETWORK_MODE"] = f"container:{container.joins}"
    return environment


def _lines(lines: list[str], ipv6: bool) -> list[str]:
    return lines if ipv6 else builder.without_ipv6(lines)


def _ip(lines: list[str], netns: str = "") -> None:
    options = ["-n", netns] if netns else []
    if lines:
        _run(["ip", *options, "-batch", "-"], "\n".join(lines))


def _run(argv: list[str], script: str) -> None:
    try:
        done = subprocess.run(argv, input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"{argv[0]} isn't installed") from error
    if done.returncode:
        raise BuildError(f"`{' '.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")


def _print_step(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
