"""Read the counters of wrong checksums of namespaces, from /proc/net/snmp."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from core.model import ChecksumErrors, Namespace
from core.netlink.netns import NamespaceGone, entered, entry_of

# /proc/net is that of a process's first thread, which stays in its own namespace.
_DIRECTORY = Path("/proc/thread-self/net")
# By protocol the counters of all packets, and of wrong ones. TCP's are of both families.
_ALL = {
    "tcp": ("TcpInSegs",),
    "udp": ("UdpInDatagrams", "UdpNoPorts", "UdpInErrors", "Udp6InDatagrams", "Udp6NoPorts", "Udp6InErrors"),
    "icmp": ("IcmpInMsgs", "Icmp6InMsgs"),
}
_WRONG = {
    "tcp": ("TcpInCsumErrors",),
    "udp": ("UdpInCsumErrors", "Udp6InCsumErrors"),
    "icmp": ("IcmpInCsumErrors", "Icmp6InCsumErrors"),
}
SECONDS = 1.0  # between two readings


def read_checksum_errors(
    namespaces: Mapping[int, Namespace], seconds: float = SECONDS
) -> dict[int, tuple[ChecksumErrors, ...]]:
    """Return the protocols with wrong checksums by namespace; others are left out.

    Only if there are any, it waits for some seconds and reads these again, to see whether it goes on.
    """
    before = _read(namespaces)
    if not before:
        return {}
    time.sleep(seconds)
    after = _read({inode: namespaces[inode] for inode in before})
    return {
        inode: tuple(
            ChecksumErrors(name, received, wrong, wrong - before[inode].get(name, (0, 0))[1], seconds)
            for name, (received, wrong) in found.items()
        )
        for inode, found in after.items()
    }


def _read(namespaces: Mapping[int, Namespace]) -> dict[int, dict[str, tuple[int, int]]]:
    """Return received and wrong packets by protocol, of namespaces with wrong ones."""
    result = {}
    for inode, namespace in namespaces.items():
        with suppress(NamespaceGone, OSError), entered(entry_of(namespace), inode):
            if found := wrong_of(_counters()):
                result[inode] = found
    return result


def wrong_of(counters: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return received and wrong packets by protocol, of protocols with wrong ones."""
    wrong = {name: sum(counters.get(one, 0) for one in names) for name, names in _WRONG.items()}
    return {
        name: (sum(counters.get(one, 0) for one in _ALL[name]), count)
        for name, count in wrong.items()
        if count
    }


def _counters() -> dict[str, int]:
    """Return the counters of the thread's namespace, such as "UdpInErrors"."""
    lines = (_DIRECTORY / "snmp").read_text().splitlines()
    found = {}
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        protocol, _, rest = names.partition(":")
        pairs = zip(rest.split(), values.split()[1:], strict=False)
        found.update({protocol + name: int(value) for name, value in pairs})
    with suppress(OSError):  # a kernel without IPv6
        for line in (_DIRECTORY / "snmp6").read_text().splitlines():
            name, value = line.split()
            found[name] = int(value)
    return found
