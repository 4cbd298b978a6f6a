"""The machine itself: its name, kernel, forwarding settings, and what this process may do."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from core.collect.listeners import read_listeners
from core.collect.netns import HOST_PATH
from core.collect.nsfile import inode_of
from core.model import NAMESPACE_KINDS, Host

# Bit numbers of linux/capability.h, for the capabilities that reading needs.
_CAPABILITIES = {
    "CAP_NET_ADMIN": 12,  # nftables and conntrack, nsids
    "CAP_SYS_PTRACE": 19,  # other users' /proc/PID/ns and /proc/PID/fd
    "CAP_SYS_ADMIN": 21,  # setns(2)
}

_SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.bridge.bridge-nf-call-iptables",
    "net.bridge.bridge-nf-call-ip6tables",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_acct",
)


def read_host(listeners: bool = True) -> Host:
    """Read them afresh; sysctls that this kernel does not have are left out, and who listens if not asked."""
    return Host(
        hostname=socket.gethostname(),
        kernel=os.uname().release,
        netns=inode_of(HOST_PATH),
        namespaces=_own_namespaces(),
        missing_capabilities=missing_capabilities(),
        sysctls=_sysctls(),
        listening=read_listeners() if listeners else (),
        cpus=_online_cpus(),
    )


def missing_capabilities() -> tuple[str, ...]:
    """Those of the capabilities needed for reading that this process lacks (capabilities(7))."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)
    return tuple(name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1)


def _own_namespaces() -> dict[str, int]:
    """The host's namespaces are those of the first process in sight, our own where it may not be read."""
    found = {}
    for kind in NAMESPACE_KINDS:
        for process in ("1", "self"):
            try:
                found[kind] = inode_of(f"/proc/{process}/ns/{kind}")
                break
            except OSError:
                continue
    return found | {"net": inode_of(HOST_PATH)}


def _online_cpus() -> str:
    """The same in every namespace, unlike what sysfs tells of links."""
    try:
        return Path("/sys/devices/system/cpu/online").read_text().strip()
    except OSError:
        return ""


def _sysctls() -> dict[str, str]:
    values = {}
    for name in _SYSCTLS:
        try:
            with open(f"/proc/sys/{name.replace('.', '/')}") as file:
                values[name] = file.read().strip()
        except OSError:
            continue
    return values | _forwarding_alone(values)


def _forwarding_alone(values: dict[str, str]) -> dict[str, str]:
    """The links that forward although the host does not: its own setting, once changed, overwrites theirs."""
    found = {}
    for family, name in (("ipv4", "net.ipv4.ip_forward"), ("ipv6", "net.ipv6.conf.all.forwarding")):
        if values.get(name) != "0":
            continue
        for path in Path(f"/proc/sys/net/{family}/conf").glob("*/forwarding"):
            with suppress(OSError):
                if (value := path.read_text().strip()) != "0":
                    found[f"net.{family}.conf.{path.parent.name.replace('.', '/')}.forwarding"] = value
    return found
