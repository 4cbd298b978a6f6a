"""Read the host.

That is its name, kernel, CPUs, forwarding settings, names of its peers, and the capabilities that this
process lacks.
"""

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

# Bit numbers in linux/capability.h of the capabilities that reading needs.
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
    """Read the host.

    Without the sysctls that this kernel lacks; without listening sockets if `listeners` is False.
    """
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
    """Return the capabilities that this process lacks for reading (capabilities(7))."""
    effective = effective_capabilities()
    return tuple(name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1)


def effective_capabilities() -> int:
    """Return this process's effective capabilities as bits, by their numbers."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)


def _own_namespaces() -> dict[str, int]:
    """Return the namespaces of process 1, or of this process if they can't be read."""
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
    """Return the online CPUs as a list such as "0-3,6"; psutil has their number only."""
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
    return values | _link_forwarding(values)


def _link_forwarding(values: dict[str, str]) -> dict[str, str]:
    """Return the settings of links that forward while the host doesn't.

    A change of the host's setting overwrites them.
    """
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
# Enables reverse DNS for foreign addresses, which shows the DNS servers who connects to this host.
REVERSE_DNS = "VNET_REVERSE_DNS"
_MAX_ANSWERS = 4096
_MAX_QUERIES = 16  # a call


def read_hosts(path: Path = HOSTS) -> dict[bytes, str]:
    """Read the first name of each address in a hosts file, by its 16 bytes.

    Loopback addresses are left out.
    """
    names: dict[bytes, str] = {}
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            words = line.partition("#")[0].split()
            if len(words) >= 2 and not words[0].startswith(("127.", "::1", "fe00::", "ff0")):
                with suppress(ValueError):
                    names.setdefault(address_bytes(words[0]), words[1])
    return names


class PeerNames:
    """Look up names of foreign addresses in the hosts file and, optionally, in DNS.

    With `reverse`, reverse DNS is queried on a separate thread, once for each address. Without it nothing
    leaves the host.
    """

    def __init__(self, path: Path = HOSTS, reverse: bool | None = None) -> None:
        self._path, self._stamp = path, -1
        self._hosts: dict[bytes, str] = {}
        self._answers: dict[bytes, str] = {}
        self.reverse = os.environ.get(REVERSE_DNS) == "1" if reverse is None else reverse
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def all_names(self) -> Mapping[bytes, str]:
        """Return all names known now, by address."""
        with suppress(OSError):
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._hosts, self._stamp = read_hosts(self._path), stamp
        if not self._answers:
            return self._hosts
        return {raw: name for raw, name in dict(self._answers).items() if name} | self._hosts

    def query(self, addresses: Iterable[bytes]) -> None:
        """Query the names of some addresses if reverse DNS is enabled. Returns at once."""
        if not self.reverse:
            return
        if len(self._answers) > _MAX_ANSWERS:
            self._answers.clear()
        fresh = [raw for raw in addresses if raw not in self._answers and raw not in self._hosts]
        for raw in fresh[:_MAX_QUERIES]:
            self._answers[raw] = ""
            self._queue.put(raw)
        if fresh and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._resolve, name="reverse-dns", daemon=True)
            self._thread.start()

    def _resolve(self) -> None:
        while True:
            try:
                raw = self._queue.get_nowait()
            except Empty:
                return
            with suppress(OSError, UnicodeError):
                self._answers[raw] = socket.gethostbyaddr(address_text(raw))[0]
