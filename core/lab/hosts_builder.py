"""Build one of several lab hosts, or their underlay, in the lab's first process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from core.lab import builder, hosts
from core.lab.blueprint import UPLINK, LabSettings
from core.lab.containers import BuildError, ip, run, start

_FRR_FOLDERS = ("/usr/lib/frr", "/usr/libexec/frr")  # of Debian, Fedora
_FRR_DAEMONS = ("mgmtd", "zebra", "bgpd")  # in the order of their start; older versions have no mgmtd
_FRR_RUN = Path("/run/frr")
_FRR_SECONDS = 10.0
_ETCD_SECONDS = 20.0


def hostname(settings: LabSettings) -> str:
    """Return the name of a host, or of the underlay."""
    return hosts.hostname(settings.host) if settings.host else hosts.UNDERLAY


def build(settings: LabSettings, progress: Callable[[str], None]) -> None:
    """Build the host or the underlay in this process's namespaces. Raises BuildError."""
    if not settings.host:
        progress("underlay")
        _build_underlay(settings)
        return
    progress("links")
    _connect(settings)
    own = hosts.containers(settings.host, settings.ranges)
    ip([f"netns add {container.name}" for container in own])
    if settings.frr:
        progress("FRRouting")
        _start_frr()
    progress("containers and their traffic")
    for container in own:
        ip(["link set lo up"], container.name)
        start(container, settings)  # its clients begin when its network exists


def _build_underlay(settings: LabSettings) -> None:
    ip(
        [
            "link set lo up",
            f"link add {hosts.UNDERLAY} type bridge",
            *(f"addr add {address} dev {hosts.UNDERLAY}" for address in hosts.UNDERLAY_ADDRESSES),
            f"link set {hosts.UNDERLAY} up",
        ]
    )
    if settings.etcd:
        _start_etcd()
    start(hosts.internet(len(settings.ranges)), settings)


def _start_etcd() -> None:
    """Start etcd with its data in memory, and wait until it listens."""
    argv = [
        "etcd", "--data-dir=/run/etcd", f"--listen-client-urls={hosts.ETCD}", "--unsafe-no-fsync",
        f"--advertise-client-urls={hosts.ETCD}", "--log-level=error", "--listen-peer-urls=http://127.0.0.1:2380",
    ]  # fmt: skip
    null = subprocess.DEVNULL
    process = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null)
    end = time.monotonic() + _ETCD_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with suppress(OSError), socket.create_connection((hosts.GATEWAY, 2379), timeout=1):
            return
        time.sleep(0.02)
    raise BuildError(f"etcd doesn't start. Try: {' '.join(argv)}")


def _connect(settings: LabSettings) -> None:
    """Connect the host to the underlay by its uplink."""
    port = hosts.hostname(settings.host)
    lines = (
        # Process 1 is this one, whose network namespace gets the other end.
        f"link add {port} type veth peer name {UPLINK} netns 1",
        f"link set {port} master {hosts.UNDERLAY} up",
    )
    run(["nsenter", f"--net=/proc/1/fd/{settings.underlay}", "ip", "-batch", "-"], "\n".join(lines))
    os.close(settings.underlay)  # an open one would keep the underlay alive
    ip(
        [
            "link set lo up",
            f"addr add {hosts.underlay_address(settings.host)}/24 dev {UPLINK}",
            f"link set {UPLINK} up",
            f"route add default via {hosts.GATEWAY}",
        ]
    )


def _start_frr() -> None:
    """Start FRRouting's daemons with files of their own, and wait until they answer."""
    _FRR_RUN.mkdir()
    for folder in ("/etc/frr", "/var/lib/frr", "/var/tmp"):  # daemons leave files in /var/tmp
        if Path(folder).is_dir():
            builder.mount("none", folder, "tmpfs")
    for path in (Path("/etc/frr"), Path("/var/lib/frr"), _FRR_RUN):
        if path.is_dir():
            path.chmod(0o755)
            shutil.chown(path, "frr", "frr")
    for name in ("vtysh.conf", "frr.conf"):
        Path("/etc/frr", name).touch()
    for program in frr_daemons():
        _start_daemon(program)


def frr_daemons() -> list[Path]:
    """Return the programs of FRRouting that a host runs; none if one is missing."""
    for folder in map(Path, _FRR_FOLDERS):
        found = [folder / name for name in _FRR_DAEMONS if (folder / name).exists()]
        if {"zebra", "bgpd"} <= {program.name for program in found}:
            return found
    return []


def _start_daemon(program: Path) -> None:
    argv = [str(program), "-d", "-A", "127.0.0.1", "--log", f"file:{_FRR_RUN}/log"]
    null = subprocess.DEVNULL  # the daemon keeps them open
    done = subprocess.run(argv, stdin=null, stdout=null, stderr=null, check=False)
    end = time.monotonic() + _FRR_SECONDS
    socket = _FRR_RUN / f"{program.name}.vty"
    while not done.returncode and not socket.exists() and time.monotonic() < end:
        time.sleep(0.01)
    if not socket.exists():
        raise BuildError(f"FRRouting's {program.name} doesn't start. Try: {' '.join(argv)}")
