"""Sizes, offloads and steering of links: by rtnetlink(7), ethtool's netlink and sysfs."""

from __future__ import annotations

import struct

from core.apply import route
from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel, inside
from core.collect import offloads
from core.collect.offloads import ethtool_family
from core.netlink.client import GENERIC, NLA_NESTED, Netlink, attribute
from core.operations import SetOffloads, SetSizes, SetSteering

# linux/ethtool_netlink_generated.h
_FEATURES_SET = 12
_HEADER, _HEADER_INDEX, _HEADER_FLAGS, _OMIT_REPLY = 1, 1, 3, 2
_WANTED, _BITSET_BITS, _BITS_BIT, _BIT_NAME, _BIT_VALUE = 3, 3, 1, 2, 3


@execute.register
def _(operation: SetSizes, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.name)
    kernel.request(operation.place, route.set_sizes(index, operation.sizes))


@execute.register
def _(operation: SetOffloads, kernel: Kernel) -> None:
    index = kernel.index(operation.place, operation.name)
    with inside(operation.place), Netlink(GENERIC) as sock:
        sock.request(ethtool_family(), _features(index, operation.features))


def _features(index: int, features: tuple[tuple[str, bool], ...]) -> bytes:
    """ETHTOOL_MSG_FEATURES_SET: the features named, and whether they are wanted; others stay."""
    header = route.u32_attribute(_HEADER_INDEX, index) + route.u32_attribute(_HEADER_FLAGS, _OMIT_REPLY)
    bits = b"".join(_nest(_BITS_BIT, _bit(name, on)) for name, on in features)
    wanted = _nest(_WANTED, _nest(_BITSET_BITS, bits))
    return struct.pack("=BBH", _FEATURES_SET, 1, 0) + _nest(_HEADER, header) + wanted


def _bit(name: str, on: bool) -> bytes:
    return attribute(_BIT_NAME, name.encode() + b"\0") + (attribute(_BIT_VALUE, b"") if on else b"")


def _nest(kind: int, content: bytes) -> bytes:
    return attribute(kind | NLA_NESTED, content)


@execute.register
def _(operation: SetSteering, kernel: Kernel) -> None:
    with inside(operation.place), offloads.opened_sysfs() as root:
        try:
            offloads.write_text(root, operation.path, operation.cpus)
        except FileNotFoundError:
            raise LookupError(f"there is no link {operation.name} in {operation.place}") from None
