"""The machine itself: its name, kernel, forwarding settings, and what this process may do."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from core.collect.sockets import read_listeners
from core.flows.describe import address_bytes, address_text
from core.model import NAMESPACE_KINDS, Host
from core.netlink.netns import HOST_PATH, inode_of

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


HOSTS = Path("/etc/hosts")
# Has the resolver asked for the names of foreign addresses: its servers then learn who looks at whom.
SWITCH = "VNET_REVERSE_DNS"
_MOST = 4096  # answers that are kept
_ASKED_AT_ONCE = 16


def read_hosts(path: Path = HOSTS) -> dict[bytes, str]:
    """The first name of each address in a hosts file, by its 16 bytes; loopback's are left out."""
    names: dict[bytes, str] = {}
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            words = line.partition("#")[0].split()
            if len(words) >= 2 and not words[0].startswith(("127.", "::1", "fe00::", "ff0")):
                with suppress(ValueError):
                    names.setdefault(address_bytes(words[0]), words[1])
    return names


class PeerNames:
    """What foreign addresses are called. `reverse` has the resolver asked too, on a thread of its own, each
    address once; without it nothing ever leaves the host."""

    def __init__(self, path: Path = HOSTS, reverse: bool | None = None) -> None:
        self._path, self._stamp = path, -1
        self._hosts: dict[bytes, str] = {}
        self._answers: dict[bytes, str] = {}
        self.reverse = os.environ.get(SWITCH) == "1" if reverse is None else reverse
        self._questions: SimpleQueue[bytes] = SimpleQueue()
        self._asking: threading.Thread | None = None

    def known(self) -> Mapping[bytes, str]:
        """All names that are known now."""
        with suppress(OSError):
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._hosts, self._stamp = read_hosts(self._path), stamp
        if not self._answers:
            return self._hosts
        return {raw: name for raw, name in dict(self._answers).items() if name} | self._hosts

    def ask(self, addresses: Iterable[bytes]) -> None:
        """Have the resolver asked for the names of some addresses, where that is wanted; returns at once."""
        if not self.reverse:
            return
        if len(self._answers) > _MOST:
            self._answers.clear()
        fresh = [raw for raw in addresses if raw not in self._answers and raw not in self._hosts]
        for raw in fresh[:_ASKED_AT_ONCE]:
            self._answers[raw] = ""
            self._questions.put(raw)
        if fresh and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._ask, name="reverse-dns", daemon=True)
            self._asking.start()

    def _ask(self) -> None:
        while True:
            try:
                raw = self._questions.get_nowait()
            except Empty:
                return
            with suppress(OSError, UnicodeError):
                self._answers[raw] = socket.gethostbyaddr(address_text(raw))[0]
