"""Run a program in a small machine, to check that nothing is left.

The machine has its own pid, mount and net namespaces. Usage: `python -m tests.kernel.lab_sandbox SCENARIO
HOSTS`, with the number of the lab's hosts; prints the results as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.lab import Lab
from core.lab.hosts_lab import HostsLab
from tests.support.waiting import PATIENCE, eventually

_UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--mount", "--net", "--kill-child"]
_REAPING = ["sh", "-c", '"$@"; exit $?', "sh"]  # as pid 1, a shell reaps the orphans
_FOLDERS = ("/tmp", "/dev/shm", "/run", "/var/tmp")
_LAUNCHER = """
import sys, time
from tests.kernel.lab_sandbox import make_lab
with make_lab(int(sys.argv[1]), lambda text: print(text, flush=True)):
    print("up", flush=True)
    time.sleep(600)
"""


def make_lab(hosts: int, progress: Callable[[str], None] | None = None) -> Lab | HostsLab:
    """Return a lab with that number of hosts."""
    return Lab(progress=progress) if hosts == 1 else HostsLab(hosts, progress=progress)


def run_scenario(scenario: str, hosts: int = 1) -> dict[str, Any]:
    """Run a scenario in a sandbox and return its results."""
    done = subprocess.run(
        [*_UNSHARE, *_REAPING, sys.executable, "-m", "tests.kernel.lab_sandbox", scenario, str(hosts)],
        capture_output=True, text=True, check=False, timeout=2 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def visible_state() -> dict[str, list[str]]:
    """Return everything visible that a lab could leave."""
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            processes.append((folder / "comm").read_text().strip())
    return {
        "namespaces": _namespaces(),
        "names": sorted(os.listdir("/run/netns")) if Path("/run/netns").is_dir() else [],
        "mounts": sorted(mount for mount in _mounts() if "/vnet-engine-" not in mount),
        "processes": sorted(processes),
        "files": sorted(name for folder in _FOLDERS for name in os.listdir(folder)),
        "links": sorted(line.split(":")[0] for line in Path("/proc/net/dev").read_text().splitlines()),
    }


def _namespaces() -> list[str]:
    """Return the output of lsns(8).

    It fails if a namespace vanishes meanwhile; then it is repeated.
    """
    for _ in range(5):
        lsns = subprocess.run(["lsns", "-n", "-o", "TYPE,NS"], capture_output=True, text=True, check=False)
        if not lsns.returncode:
            break
        time.sleep(0.2)
    lsns.check_returncode()
    return sorted(line.strip() for line in lsns.stdout.splitlines())


def _mounts() -> list[str]:
    """Return mount points, without those of other tests' engines, which come and go."""
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def orderly(hosts: int) -> dict[str, Any]:
    """Start a lab and end it."""
    before = visible_state()
    with make_lab(hosts):
        during = visible_state()
    return {"before": before, "during": during, "after": visible_state()}


def killed(hosts: int, until: str = "up") -> dict[str, Any]:
    """Start a lab after its launcher was killed.

    SIGKILL is sent after the launcher printed `until`.
    """
    before = visible_state()
    launcher = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, str(hosts)], stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    for line in launcher.stdout:
        if line.startswith(until):
            break
    during = visible_state()
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    eventually(lambda: visible_state() == before)
    after = visible_state()
    with make_lab(hosts) as lab:
        host = lab if isinstance(lab, Lab) else lab.hosts[0]
        again = host.run_inside(["ip", "-n", "web1", "link", "show", "eth0"])
    return {"before": before, "during": during, "after": after, "again": again}


def killed_while_building(hosts: int) -> dict[str, Any]:
    """Kill the launcher while it builds the lab."""
    return killed(hosts, "packet filter" if hosts == 1 else "networks")


def _hide_tmp() -> None:
    """Mount an empty /tmp, /var/tmp and /dev/shm; a checkout in /tmp stays visible."""
    checkout = Path.cwd()
    here = os.open(checkout, os.O_PATH)
    subprocess.run(["mount", "-t", "tmpfs", "tmp", "/tmp"], check=True)
    if not checkout.exists():
        checkout.mkdir(parents=True)
        subprocess.run(
            ["mount", "-c", "--bind", f"/proc/self/fd/{here}", checkout], check=True, pass_fds=(here,)
        )
    os.close(here)
    for folder in ("/var/tmp", "/dev/shm"):
        subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)


def _hide_named_namespaces() -> None:
    """Mount an empty /run without the namespaces of other tests, which come and go."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - nsfs " in line:
            subprocess.run(["umount", "-l", line.split()[4]], check=False, capture_output=True)
    subprocess.run(["mount", "-t", "tmpfs", "run", "/run"], check=True)


def _main() -> None:
    _hide_tmp()
    _hide_named_namespaces()
    stdout = os.dup(1)
    os.dup2(2, 1)  # commands in the lab print elsewhere
    scenarios = {scenario.__name__: scenario for scenario in (orderly, killed, killed_while_building)}
    os.write(stdout, json.dumps(scenarios[sys.argv[1]](int(sys.argv[2]))).encode())


if __name__ == "__main__":
    _main()
