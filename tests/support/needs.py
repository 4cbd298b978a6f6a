"""Try what tests need of the machine, once per need.

The answer is "" or what is missing, as text.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable
from ctypes.util import find_library
from functools import cache
from pathlib import Path

from bpf import syscall
from bpf.requirements import requirements, unmet
from tests.support import kernel_parts

_ROOT = Path(__file__).parents[2]
# Bit numbers of linux/capability.h.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_SYS_PTRACE": 19}
# From a chroot, nsenter leads to the machine's own files. A private /run keeps the name to this process.
_TRY_NAMESPACES = (
    "if [ $(stat -c %d:%i /) != $(nsenter --mount=/proc/self/ns/mnt stat -c %d:%i /) ]; then "
    "echo 'this is a chroot' >&2; exit 1; fi && "
    "mount -t tmpfs none /run && ip netns add try && ip -n try link add br0 type bridge && "
    "ip -n try link add veth1 type veth peer name veth2"
)
_RETURN_0 = bytes.fromhex("b700000000000000 9500000000000000")  # r0 = 0; exit
# Words before a command by which root runs it as a user without rights.
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
_TOOLS = {
    "bpftool": "bpftool", "busybox": "busybox-static", "conntrack": "conntrack", "containerd": "docker.io",
    "docker": "docker-cli", "dockerd": "docker.io", "etcd": "etcd-server", "etcdctl": "etcd-client",
    "ethtool": "ethtool", "gobgp": "gobgpd", "ip": "iproute2",
    "iperf3": "iperf3", "iptables": "iptables", "nft": "nftables",
    "ovs-vswitchd": "openvswitch-switch", "ovsdb-server": "openvswitch-switch", "ping": "iputils-ping",
    "podman": "podman", "runc": "runc", "setpriv": "util-linux", "sysctl": "procps",
    "systemd-analyze": "systemd", "tcpdump": "tcpdump", "vtysh": "frr",
}  # fmt: skip
FRR_FOLDERS = ("/usr/lib/frr", "/usr/libexec/frr")  # of Debian, Fedora
_NEWER_DOCKER = "docker>="
_HOST_TOOLS = ("nft", "iptables", "conntrack", "ethtool", "ping", "sysctl")

# Needs by the fixtures that a test uses, and by the beginning of its path below tests/.
BY_FIXTURE = {
    "docker_engine": ("docker",),
    "podman_engine": ("podman",),
    "loaded_rig": ("fastpath",),
    "machine": _HOST_TOOLS,
    "shared": _HOST_TOOLS,
    "switch": ("ovs-vswitchd", "ovsdb-server"),
}
BY_PATH = {
    "docker/": _HOST_TOOLS,
    "docker/test_accelerate": ("fastpath", "bpftool"),
    "docker/test_docker_group": ("nobody",),
    "docker/test_fastpath": ("fastpath", "bpftool"),
    "docker/test_flows_screen": ("fastpath", "bpftool"),
    "datapath/": ("fastpath",),
    "kernel/": _HOST_TOOLS,
    "kernels/": (*_HOST_TOOLS, "fastpath", "bpftool"),
    "kernel/test_accelerate": ("fastpath", "bpftool"),
    "kernel/test_drops": ("bcc",),
    "kernel/test_ovs_network": ("ovs-vswitchd", "ovsdb-server", "busybox"),
    "kernel/test_overlay_etcd": ("etcd", "etcdctl"),
    "kernel/test_fastpath": ("fastpath", "bpftool"),
    "kernel/test_show_unprivileged": ("nobody",),
}


def needs_of(path: str, fixtures: Collection[str]) -> list[str]:
    """Return the needs of a test, by its path below tests/ and its fixtures."""
    found: dict[str, None] = {}
    for start, names in BY_PATH.items():
        if path.startswith(start):
            found |= dict.fromkeys(names)
    for fixture, names in BY_FIXTURE.items():
        if fixture in fixtures:
            found |= dict.fromkeys(names)
    return list(found)


def docker_from(version: str) -> str:
    """Return the need of a Docker Engine of at least this version, such as "28.0"."""
    return f"{_NEWER_DOCKER}{version}"


@cache
def lacking(need: str) -> str:
    """Return what is missing for a need, "" if nothing is.

    A need without a probe is a program.
    """
    if need in kernel_parts.PARTS:
        return kernel_parts.lacking(need)
    if need.startswith(_NEWER_DOCKER):
        return _older_docker(need.removeprefix(_NEWER_DOCKER))
    probe = _PROBES.get(need)
    return probe() if probe else _no_programs([need])


def first_lacking(needs: Iterable[str]) -> str:
    """Return what is missing for the first need that is not met."""
    return next((why for why in map(lacking, needs) if why), "")


def _root() -> str:
    """Check for root that may create namespaces and read those of other processes."""
    if os.geteuid():
        return "root (sudo make test)"
    status = Path("/proc/self/status").read_text().splitlines()
    held = int(next(line for line in status if line.startswith("CapEff:")).split()[1], 16)
    absent = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if absent:
        return f"{_listed(absent)} (run as root on a host or in a VM)"
    return _no_programs(["ip"]) or _no_namespaces()


def _no_namespaces() -> str:
    words = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", _TRY_NAMESPACES]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"network namespaces: {_last_line(done.stderr)}" if done.returncode else ""


def _bcc() -> str:
    return "" if find_library("bcc") else "BCC (apt install python3-bpfcc)"


def _fastpath() -> str:
    """Check for a kernel with BPF, and for what `vnet-tui fastpath check` wants."""
    try:
        os.close(syscall.load_program(syscall.PROG_SCHED_CLS, _RETURN_0, "try"))
    except (OSError, syscall.Rejected) as error:
        return f"BPF: {error}"
    for one in unmet(requirements()):
        return f"{one.name}: {one.found} (vnet-tui fastpath check)"
    return ""


def _docker() -> str:
    return _no_programs(["dockerd", "docker", "containerd", "runc", "busybox"]) or _no_cgroups()


def _older_docker(version: str) -> str:
    """Compare the engine's version; without an engine, another need says so."""
    if not (dockerd := _found("dockerd")):
        return ""
    said = subprocess.run([dockerd, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    there = tuple(map(int, found.groups())) if found else ()
    return "" if there >= tuple(map(int, version.split("."))) else f"Docker {version} or newer"


def _frr() -> str:
    """Check for FRRouting's daemons, which aren't on PATH."""
    if any(Path(folder, "bgpd").exists() for folder in FRR_FOLDERS):
        return _no_programs(["vtysh"])
    return "FRRouting's bgpd (apt install frr)"


def _podman() -> str:
    return _no_programs(["podman", "busybox"]) or _no_cgroups()


def _no_cgroups() -> str:
    """Check that cgroups can be created; in many containers they are read-only."""
    top = Path("/sys/fs/cgroup")
    return "" if os.access(top, os.W_OK) else f"cgroups that can be written: {top} is read-only"


def _nobody() -> str:
    """Check that other users can read this checkout.

    Commands that drop root's rights run from it.
    """
    if os.geteuid():
        return ""
    words = [*AS_NOBODY, sys.executable, "-c", "import tui.cli"]
    done = subprocess.run(words, cwd=_ROOT, capture_output=True, check=False)
    return f"a checkout that other users can read: {_ROOT} is not" if done.returncode else ""


def _no_programs(names: Iterable[str]) -> str:
    absent = [name for name in names if not _found(name)]
    packages = dict.fromkeys(_TOOLS.get(name, name) for name in absent)
    return f"{_listed(absent)} (apt install {' '.join(packages)})" if absent else ""


def _found(program: str) -> str | None:
    """Find a program; ordinary users often have no sbin folders in their PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


_PROBES: dict[str, Callable[[], str]] = {
    "root": _root, "nobody": _nobody, "bcc": _bcc, "fastpath": _fastpath, "docker": _docker,
    "podman": _podman, "frr": _frr,
}  # fmt: skip
