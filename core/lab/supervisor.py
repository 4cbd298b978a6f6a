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
import sys
import time
from contextlib import suppress
from pathlib import Path

from core.lab import blueprint, builder, hosts_builder, inject
from core.lab.blueprint import CONTAINERS, READY, LabSettings
from core.lab.containers import NAMESPACES, BuildError, has_ipv6, ip, lines_for_host, run, start

_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/netfilter/nf_conntrack_acct": "1",
    "net/netfilter/nf_conntrack_timestamp": "1",
}
_HANGUP_SECONDS = 3.0
_MOVED_ADDRESS, _MOVED_BETWEEN = "172.18.0.100/32", ("web1", "web2")


def main() -> int:
    """Build the lab, print READY, and wait for the end of standard input."""
    settings = LabSettings(**json.loads(sys.argv[1]))
    try:
        _build(settings)
    except (BuildError, inject.FaultError, OSError) as error:
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
            ip([f"addr replace {_MOVED_ADDRESS} dev eth0"], holder)
            ip([f"addr del {_MOVED_ADDRESS} dev eth0"], other)
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
    os.unshare(NAMESPACES | os.CLONE_NEWNET)
    socket.sethostname(hosts_builder.hostname(settings) if settings.ranges else blueprint.HOSTNAME)
    Path("/proc/self/comm").write_text("lab")
    builder.make_mounts_private()
    builder.mount_empty_run()
    builder.mount("proc", "/proc", "proc")
    if settings.ranges:
        hosts_builder.build(settings, _print_step)
        _set_sysctls()
    else:
        _build_single(settings)


def _build_single(settings: LabSettings) -> None:
    _print_step("namespaces")
    ip([f"netns add {name}" for name in builder.netns_names()])
    if not settings.healthy:
        _start_sidecars_of_old_containers(settings)
    _print_step("bridges, veth pairs, addresses, routes")
    _links(settings.healthy)
    _print_step("packet filter and NAT")
    run(["nft", "-f", "-"], builder.ruleset(has_ipv6(), settings.healthy))
    _set_sysctls()
    _print_step("containers and their traffic")
    for container in CONTAINERS:
        if settings.healthy or not container.joins_old:
            start(container, settings)
    _extra_namespaces(settings.namespaces)
    for name in settings.faults:
        _print_step(f"fault {name}")
        inject.inject(name, settings)


def _set_sysctls() -> None:
    for name, value in _SYSCTLS.items():
        if has_ipv6() or "ipv6" not in name:
            Path("/proc/sys", name).write_text(value)


def _start_sidecars_of_old_containers(settings: LabSettings) -> None:
    # The joined namespace loses its name to a new one, as when a container is recreated.
    for container in CONTAINERS:
        if container.joins_old:
            ip(["link set lo up"], container.joins)
            start(container, settings)
            ip([f"netns del {container.joins}", f"netns add {container.joins}"])


def _links(healthy: bool) -> None:
    ip(lines_for_host(builder.host_batch(healthy)))
    for container in CONTAINERS:
        if container.own_netns and container.name != blueprint.INTERNET:
            ip(lines_for_host(builder.container_batch(container)), container.name)
    ip(lines_for_host(builder.internet_batch()), blueprint.INTERNET)


def _extra_namespaces(count: int) -> None:
    names = [f"extra{number:03}" for number in range(count)]
    ip([f"netns add {name}" for name in names])
    ip([line for name in names for line in builder.extra_host_batch(name)])
    for number, name in enumerate(names):
        ip(builder.extra_batch(number), name)


def _print_step(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
