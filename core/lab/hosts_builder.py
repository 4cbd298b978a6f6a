"""Build one of several lab hosts, or their underlay, in the lab's first process."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from core.lab import builder, hosts
from core.lab.blueprint import UPLINK, LabSettings
from core.lab.containers import BuildError, ip, run, start

FRR_FOLDER = Path("/usr/lib/frr")
FRR_DAEMONS = ("mgmtd", "zebra", "bgpd")  # in the order of their start; older versions have no mgmtd
_FRR_RUN = Path("/run/frr")
_FRR_SECONDS = 10.0


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
    start(hosts.internet(len(settings.ranges)), settings)


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
    for folder in (Path("/etc/frr"), Path("/var/lib/frr"), _FRR_RUN):
        if folder == _FRR_RUN:
            folder.mkdir()
        elif folder.is_dir():
            builder.mount("none", str(folder), "tmpfs")
        else:
            continue
        folder.chmod(0o755)
        shutil.chown(folder, "frr", "frr")
    for name in ("vtysh.conf", "frr.conf"):
        Path("/etc/frr", name).touch()
    for name in FRR_DAEMONS:
        if (FRR_FOLDER / name).exists():
            _start_daemon(name)


def _start_daemon(name: str) -> None:
    argv = [str(FRR_FOLDER / name), "-d", "-A", "127.0.0.1", "--log", f"file:{_FRR_RUN}/log"]
    null = subprocess.DEVNULL  # the daemon keeps them open
    done = subprocess.run(argv, stdin=null, stdout=null, stderr=null, check=False)
    end = time.monotonic() + _FRR_SECONDS
    while not done.returncode and not (_FRR_RUN / f"{name}.vty").exists() and time.monotonic() < end:
        time.sleep(0.01)
    if not (_FRR_RUN / f"{name}.vty").exists():
        raise BuildError(f"FRRouting's {name} doesn't start. Try: {' '.join(argv)}")
