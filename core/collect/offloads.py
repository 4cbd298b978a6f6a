"""Read offloads by ethtool's netlink interface (Linux 5.7), and RPS from sysfs."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache

from core.model import LinkTuning, Namespace, NetState
from core.netlink import netns
from core.netlink.client import GENERIC, Netlink, attribute, attribute_list, attributes, text, u16, u32
from core.netlink.netns import NamespaceGone

_CTRL_ID, _CTRL_GETFAMILY = 0x10, 3
_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2
_STRSET_GET, _FEATURES_GET = 1, 11
_NESTED = 0x8000
_HEADER, _HEADER_IFINDEX, _HEADER_FLAGS = 1, 1, 3
_COMPACT = 1
_FEATURES_CHANGEABLE, _FEATURES_WANTED, _FEATURES_ACTIVE, _BITSET_VALUE = 2, 3, 4, 4
_STRINGSETS, _STRINGSET, _STRINGSET_ID, _STRINGSET_STRINGS = 2, 1, 1, 3
_STRING_INDEX, _STRING_VALUE = 1, 2
_FEATURE_NAMES = 4  # ETH_SS_FEATURES

# Features that `ethtool -K` switches together, with its short names; others keep the kernel's names.
_GROUPS = {
    "rx-checksum": "rx-checksumming",
    "tx-checksum-ipv4": "tx-checksumming",
    "tx-checksum-ip-generic": "tx-checksumming",
    "tx-checksum-ipv6": "tx-checksumming",
    "tx-checksum-fcoe-crc": "tx-checksumming",
    "tx-checksum-sctp": "tx-checksumming",
    "tx-scatter-gather": "sg",
    "tx-scatter-gather-fraglist": "sg",
    "tx-tcp-segmentation": "tso",
    "tx-tcp-ecn-segmentation": "tso",
    "tx-tcp-mangleid-segmentation": "tso",
    "tx-tcp6-segmentation": "tso",
    "tx-tcp-accecn-segmentation": "tso",
    "tx-generic-segmentation": "gso",
    "rx-gro": "gro",
    "rx-lro": "lro",
    "rx-vlan-hw-parse": "rxvlan",
    "tx-vlan-hw-insert": "txvlan",
    "rx-ntuple-filter": "ntuple",
    "rx-hashing": "rxhash",
}


def read_offloads(sock: Netlink) -> dict[int, tuple[str, ...]]:
    """Return the active offloads by ifindex, for a socket of protocol GENERIC."""
    return {
        ifindex: offload_names(_bits(features, _FEATURES_ACTIVE), _feature_names())
        for ifindex, features in _dump_features(sock)
    }


def read_features(sock: Netlink) -> dict[int, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the kernel's names of changeable and of wanted offloads, by ifindex."""
    return {
        ifindex: (
            _names_of_bits(_bits(features, _FEATURES_CHANGEABLE)),
            _names_of_bits(_bits(features, _FEATURES_WANTED)),
        )
        for ifindex, features in _dump_features(sock)
    }


def _dump_features(sock: Netlink) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Yield the ifindex and the attributes of ETHTOOL_MSG_FEATURES_GET for each link."""
    family = ethtool_family()
    if not family:
        return
    flags = attribute(_HEADER_FLAGS, struct.pack("=I", _COMPACT))
    request = _genl(_FEATURES_GET) + attribute(_HEADER | _NESTED, flags)
    for message in sock.dump(family, request):
        features = attributes(message.payload, 4)
        yield u32(attributes(features[_HEADER])[_HEADER_IFINDEX]), features


def _bits(features: dict[int, bytes], which: int) -> bytes:
    return attributes(features[which])[_BITSET_VALUE]


@lru_cache(maxsize=256)
def _names_of_bits(bits: bytes) -> tuple[str, ...]:
    """Return the kernel's names of the features whose bits are set."""
    numbers = struct.unpack(f"={len(bits) // 4}I", bits)
    return tuple(name for i, name in enumerate(_feature_names()) if name and _is_set(numbers, i))


@lru_cache(maxsize=256)
def offload_names(bits: bytes, feature_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return ethtool's names of the features whose bits are set, groups first.

    `bits` are 32-bit words in host order.
    """
    numbers = struct.unpack(f"={len(bits) // 4}I", bits)
    active = [name for i, name in enumerate(feature_names) if _is_set(numbers, i)]
    groups = dict.fromkeys(_GROUPS[name] for name in _GROUPS if name in active)
    return (*groups, *(name for name in active if name and name not in _GROUPS))


def _is_set(numbers: Sequence[int], index: int) -> bool:
    return index // 32 < len(numbers) and bool(numbers[index // 32] >> (index % 32) & 1)


@cache
def ethtool_family() -> int:
    """Return the number of ethtool's generic netlink family, 0 if the kernel has none."""
    request = _genl(_CTRL_GETFAMILY) + attribute(_CTRL_ATTR_FAMILY_NAME, b"ethtool\0")
    with Netlink(GENERIC) as sock:
        try:
            answer = sock.request(_CTRL_ID, request)[0]
        except OSError:
            return 0
    return u16(attributes(answer.payload, 4)[_CTRL_ATTR_FAMILY_ID])


@cache
def _feature_names() -> tuple[str, ...]:
    """Return the kernel's names of all features by bit number."""
    wanted = attribute(_STRINGSET | _NESTED, attribute(_STRINGSET_ID, struct.pack("=I", _FEATURE_NAMES)))
    request = (
        _genl(_STRSET_GET) + attribute(_HEADER | _NESTED, b"") + attribute(_STRINGSETS | _NESTED, wanted)
    )
    with Netlink(GENERIC) as sock:
        answer = attributes(sock.request(ethtool_family(), request)[0].payload, 4)
    stringset = attributes(attributes(answer[_STRINGSETS])[_STRINGSET])
    strings = [attributes(value) for _, value in attribute_list(stringset[_STRINGSET_STRINGS])]
    return tuple(
        text(string[_STRING_VALUE]) for string in sorted(strings, key=lambda s: u32(s[_STRING_INDEX]))
    )


def _genl(command: int) -> bytes:
    return struct.pack("=BBH", command, 1, 0)


_NONE = ((), ())


def read_tuning(
    namespaces: Mapping[int, Namespace], nets: Mapping[int, NetState]
) -> dict[int, dict[int, LinkTuning]]:
    """Return the tuning of the links in `nets` by inode and ifindex.

    What this kernel doesn't report is empty. Namespaces that no longer exist or can't be entered are left
    out.
    """
    found = {}
    for inode, net in nets.items():
        with suppress(NamespaceGone, OSError), netns.entered(netns.entry_of(namespaces[inode]), inode):
            found[inode] = _read(net)
    return found


def _read(net: NetState) -> dict[int, LinkTuning]:
    """Read the tuning of the links of the thread's namespace."""
    features: Mapping[int, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    with suppress(OSError), Netlink(GENERIC) as sock:
        features = read_features(sock)
    steering: Mapping[int, tuple[str, ...]] = {}
    with suppress(OSError), opened_sysfs() as root:
        steering = {ifindex: _rps_cpus(root, link.name) for ifindex, link in net.links.items()}
    return {
        ifindex: LinkTuning(*features.get(ifindex, _NONE), steering.get(ifindex, ())) for ifindex in net.links
    }


def _rps_cpus(root: int, name: str) -> tuple[str, ...]:
    """Return the RPS masks of a link's receive queues; empty on a kernel without RPS."""
    try:
        queues = os.open(f"class/net/{name}/queues", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
        try:
            count = sum(one.startswith("rx-") for one in os.listdir(queues))
            return tuple(read_text(queues, f"rx-{number}/rps_cpus") for number in range(count))
        finally:
            os.close(queues)
    except OSError:
        return ()


# asm-generic/unistd.h and linux/mount.h
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _CMD_CREATE = 1, 6
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def opened_sysfs() -> Iterator[int]:
    """Mount a sysfs of the thread's network namespace; yield its root's descriptor.

    /sys always shows the links of the namespace in which it was mounted. Raises OSError: ENOSYS before Linux
    5.2, EPERM without CAP_SYS_ADMIN.
    """
    context = _call(_FSOPEN, b"sysfs", ctypes.c_uint(_CLOEXEC))
    try:
        _call(_FSCONFIG, context, ctypes.c_uint(_CMD_CREATE), None, None, 0)
        root = _call(_FSMOUNT, context, ctypes.c_uint(_CLOEXEC), ctypes.c_uint(0))
    finally:
        os.close(context)
    try:
        yield root
    finally:
        os.close(root)


def read_text(root: int, path: str) -> str:
    """Return the content of a file, stripped. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
    with open(descriptor, encoding="ascii") as file:
        return file.read().strip()


def write_text(root: int, path: str, text: str) -> None:
    """Write a file with one write(2). Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=root)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)


def _call(*arguments: object) -> int:
    result: int = _libc.syscall(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
