"""What tuning changes of links beside what rtnetlink tells: their offloads one by one, and RPS."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

from core.collect import netns, sysfs
from core.collect.ethtool import read_features
from core.collect.netlink import GENERIC, Netlink
from core.collect.netns import NamespaceGone
from core.model import LinkTuning, Namespace, NetState

_NONE = ((), ())


def read_tuning(
    namespaces: Mapping[int, Namespace], nets: Mapping[int, NetState]
) -> dict[int, dict[int, LinkTuning]]:
    """Of the links in `nets`, by inode and ifindex; what the kernel does not tell is empty, and namespaces
    that vanished, or may not be entered, are left out."""
    found = {}
    for inode, net in nets.items():
        with suppress(NamespaceGone, OSError), netns.entered(netns.entry_of(namespaces[inode]), inode):
            found[inode] = _read(net)
    return found


def _read(net: NetState) -> dict[int, LinkTuning]:
    """Of the namespace that this thread is in."""
    features: Mapping[int, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    with suppress(OSError), Netlink(GENERIC) as sock:
        features = read_features(sock)
    steering: Mapping[int, tuple[str, ...]] = {}
    with suppress(OSError), sysfs.opened_sysfs() as root:
        steering = {ifindex: _rps_cpus(root, link.name) for ifindex, link in net.links.items()}
    return {
        ifindex: LinkTuning(*features.get(ifindex, _NONE), steering.get(ifindex, ())) for ifindex in net.links
    }


def _rps_cpus(root: int, name: str) -> tuple[str, ...]:
    """The masks of a link's receive queues; none on a kernel without RPS."""
    try:
        queues = os.open(f"class/net/{name}/queues", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
        try:
            count = sum(one.startswith("rx-") for one in os.listdir(queues))
            return tuple(sysfs.read_text(queues, f"rx-{number}/rps_cpus") for number in range(count))
        finally:
            os.close(queues)
    except OSError:
        return ()
