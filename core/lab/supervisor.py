"""The lab's first process: builds the lab around itself, and ends it by ending.

It runs as pid 1 of a new pid namespace; when it ends, the kernel kills every process in there, and with the
processes go their namespaces, links and mounts. It ends when its standard input does, that is, when its
launcher closes the pipe or dies in whatever way; who is on a terminal then is asked to leave it first.
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
_OWN = os.CLONE_NEWNS | os.CLONE_NEWUTS | os.CLONE_NEWIPC
_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/netfilter/nf_conntrack_acct": "1",
    "net/netfilter/nf_conntrack_timestamp": "1",
}


_PARTING_SECONDS = 3.0
_FLOATING, _FLOATING_BETWEEN = "172.18.0.100/32", ("web1", "web2")


class BuildError(Exception):
    """A step of the building failed; says which and why."""


def main() -> int:
    """Build, say so on standard output, and stay until standard input ends."""
    settings = LabSettings(**json.loads(sys.argv[1]))
    try:
        _build(settings)
    except (BuildError, OSError) as error:
        print(error, flush=True)
        return 1
    print(READY, flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps orphans
    _stay(settings.changes)
    _hang_up()
    return 0


def _stay(changes: float) -> None:
    """Stay until standard input ends; where something is to change, an address moves to and fro meanwhile."""
    holder, other = _FLOATING_BETWEEN
    while not select.select([0], [], [], changes or None)[0]:
        with suppress(BuildError):  # whoever plays with the lab may have taken a container away
            _ip([f"addr replace {_FLOATING} dev eth0"], holder)
            _ip([f"addr del {_FLOATING} dev eth0"], other)
        holder, other = other, holder


def _hang_up() -> None:
    """Have who is on a terminal leave it as they found it, and give them a moment: a kill leaves no time."""
    deadline, asked = time.monotonic() + _PARTING_SECONDS, set[int]()
    while (guests := _on_terminals()) and time.monotonic() < deadline:
        for pid in guests - asked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
        asked |= guests
        time.sleep(0.02)


def _on_terminals() -> set[int]:
    """The processes in here with a controlling terminal, zombies aside (proc_pid_stat(5))."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _parent, _group, _session, tty, *_ = stat.read_text().rpartition(")")[2].split()
            if tty != "0" and state != "Z":
                found.add(int(stat.parent.name))
    return found


def _build(settings: LabSettings) -> None:
    os.unshare(_OWN | os.CLONE_NEWNET)
    socket.sethostname(blueprint.HOSTNAME)
    Path("/proc/self/comm").write_text("lab")
    builder.make_mounts_private()
    builder.fresh_run()
    builder.mount("proc", "/proc", "proc")
    ipv6 = Path("/proc/sys/net/ipv6").is_dir()
    _say("namespaces")
    _ip([f"netns add {name}" for name in builder.netns_names()])
    _leave_sidecars_behind(settings, ipv6)
    _say("bridges, veth pairs, addresses, routes")
    _links(ipv6)
    _say("packet filter and NAT")
    _run(["nft", "-f", "-"], ruleset(ipv6))
    for name, value in _SYSCTLS.items():
        if ipv6 or "ipv6" not in name:
            Path("/proc/sys", name).write_text(value)
    _say("containers and their traffic")
    for container in CONTAINERS:
        if not container.left_behind:
            _start(container, settings, ipv6)
    _extra_namespaces(settings.namespaces)


def _leave_sidecars_behind(settings: LabSettings, ipv6: bool) -> None:
    # The joined namespace loses its name and a new one takes it, as when a container is made anew.
    for container in CONTAINERS:
        if container.left_behind:
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
    """Start a container's process as pid 1 of its own pid namespace; return when it runs its program."""
    outcome, report = os.pipe()  # closed by exec, or carries the reason of a failure
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    os.unshare(os.CLONE_NEWPID)
    if os.fork() == 0:
        try:
            _become(container, settings, ipv6)
        except BaseException as error:
            os.write(report, f"{type(error).__name__}: {error}".encode())
        os._exit(127)
    os.setns(home, os.CLONE_NEWPID)
    os.close(home)
    os.close(report)
    with os.fdopen(outcome, "rb") as stream:
        if failure := stream.read():
            raise BuildError(f"container {container.name} did not start: {failure.decode()}")


def _become(container: LabContainer, settings: LabSettings, ipv6: bool) -> None:
    if not container.is_open:
        netns = os.open(f"/run/netns/{container.joins or container.name}", os.O_RDONLY | os.O_CLOEXEC)
        os.setns(netns, os.CLONE_NEWNET)
    os.unshare(_OWN)
    socket.sethostname(container.name)
    builder.make_mounts_private()
    builder.fresh_run()
    builder.mount("proc", "/proc", "proc")
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    jobs = [job for job in container.jobs if settings.traffic or job.startswith("serve-")]
    words = [sys.executable, "-I", "-S", str(_TRAFFIC), container.command, *_lines(jobs, ipv6)]
    os.execve(sys.executable, words, _environment(container))


def _environment(container: LabContainer) -> dict[str, str]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME": container.name}
    if container.joins:
        environment["VNET_NETWORK_MODE"] = f"container:{container.joins}"
    return environment


def _lines(lines: list[str], ipv6: bool) -> list[str]:
    return lines if ipv6 else builder.without_ipv6(lines)


def _ip(lines: list[str], netns: str = "") -> None:
    where = ["-n", netns] if netns else []
    if lines:
        _run(["ip", *where, "-batch", "-"], "\n".join(lines))


def _run(words: list[str], script: str) -> None:
    try:
        done = subprocess.run(words, input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"{words[0]} is not installed") from error
    if done.returncode:
        raise BuildError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
