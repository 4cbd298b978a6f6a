"""Tune links: largest packets, offloads, and receive packet steering."""

from __future__ import annotations

import shlex
import struct
from dataclasses import dataclass, replace

from core.collect import offloads
from core.collect.offloads import ethtool_family
from core.netlink.client import GENERIC, NLA_NESTED, Netlink, attribute
from core.operations.base import LinkOperation
from core.operations.executor import Executor, inside
from core.operations.values import HOST, NetnsTarget, recorded
from core.text import quoted

# linux/ethtool_netlink_generated.h
_FEATURES_SET = 12
_HEADER, _HEADER_INDEX, _HEADER_FLAGS, _OMIT_REPLY = 1, 1, 3, 2
_WANTED, _BITSET_BITS, _BITS_BIT, _BIT_NAME, _BIT_VALUE = 3, 3, 1, 2, 3


@recorded()
@dataclass(frozen=True, slots=True)
class SetSizes(LinkOperation):
    """Set the largest packet sizes of a link, in bytes, in one message.

    The names are those of ip-link(8): "gso_max_size", "gro_max_size", "gso_ipv4_max_size" and
    "gro_ipv4_max_size". `before` is in the same order. A small gso_max_size also sets that of IPv4
    (netif_set_gso_max_size); in one message each gets its own value.
    """

    name: str
    sizes: tuple[tuple[str, int], ...]
    before: tuple[tuple[str, int], ...]
    place: NetnsTarget = HOST

    def command(self) -> str:
        words = " ".join(f"{word} {size}" for word, size in self.sizes)
        return self.place.ip(f"link set dev {quoted(self.name)} {words}")

    def inverse(self) -> tuple[SetSizes, ...]:
        return (replace(self, sizes=self.before, before=self.sizes),)

    def describe(self) -> str:
        most = max(size for _, size in self.sizes)
        return f"set the largest packets of {self.name} in {self.place} to {most} bytes"

    def execute(self, executor: Executor) -> None:
        from core.operations.rtnetlink import set_link

        index = executor.index(self.place, self.name)
        with executor.rtnetlink(self.place) as iproute:
            set_link(iproute, index, [(f"IFLA_{word.upper()}", size) for word, size in self.sizes])


@recorded()
@dataclass(frozen=True, slots=True)
class SetOffloads(LinkOperation):
    """Switch offloads of a link on or off (ethtool(8), -K).

    The names are the kernel's ("tx-tcp-segmentation", ...). `before` is in the same order.
    """

    name: str
    features: tuple[tuple[str, bool], ...]
    before: tuple[tuple[str, bool], ...]
    place: NetnsTarget = HOST

    def command(self) -> str:
        words = " ".join(f"{name} {'on' if on else 'off'}" for name, on in self.features)
        return self.place.inside(f"ethtool -K {quoted(self.name)} {words}")

    def inverse(self) -> tuple[SetOffloads, ...]:
        return (replace(self, features=self.before, before=self.features),)

    def describe(self) -> str:
        words = ", ".join(f"{name} {'on' if on else 'off'}" for name, on in self.features)
        return f"switch offloads of {self.name} in {self.place}: {words}"

    def execute(self, executor: Executor) -> None:
        index = executor.index(self.place, self.name)
        with inside(self.place), Netlink(GENERIC) as sock:
            sock.request(ethtool_family(), self._request(index))

    def _request(self, index: int) -> bytes:
        """Return ETHTOOL_MSG_FEATURES_SET for these features.

        It leaves other features as they are.
        """
        header = attribute(_HEADER_INDEX, struct.pack("=I", index))
        header += attribute(_HEADER_FLAGS, struct.pack("=I", _OMIT_REPLY))
        bits = b"".join(_nest(_BITS_BIT, _bit(name, on)) for name, on in self.features)
        wanted = _nest(_WANTED, _nest(_BITSET_BITS, bits))
        return struct.pack("=BBH", _FEATURES_SET, 1, 0) + _nest(_HEADER, header) + wanted


def _bit(name: str, on: bool) -> bytes:
    return attribute(_BIT_NAME, name.encode() + b"\0") + (attribute(_BIT_VALUE, b"") if on else b"")


def _nest(kind: int, content: bytes) -> bytes:
    return attribute(kind | NLA_NESTED, content)


@recorded()
@dataclass(frozen=True, slots=True)
class SetSteering(LinkOperation):
    """Set the CPUs of one receive queue (RPS), as a mask in the format of the kernel."""

    name: str
    queue: int
    cpus: str
    before: str
    place: NetnsTarget = HOST

    @property
    def path(self) -> str:
        """Return the path of the file from the root of sysfs."""
        return f"class/net/{self.name}/queues/rx-{self.queue}/rps_cpus"

    def command(self) -> str:
        words = f"echo {self.cpus} > {shlex.quote(f'/sys/{self.path}')}"
        if self.place == HOST:
            return f"echo {self.cpus} > {quoted(f'/sys/{self.path}')}"
        if self.place.name:  # ip-netns(8) mounts a /sys of that namespace for the command
            return self.place.inside(f"sh -c {quoted(words)}")
        mounted = f"mount -t sysfs sysfs /sys && {words}"
        return self.place.inside(f"unshare -m sh -c {quoted(mounted)}")

    def inverse(self) -> tuple[SetSteering, ...]:
        return (replace(self, cpus=self.before, before=self.cpus),)

    def describe(self) -> str:
        return f"set the CPUs of receive queue {self.queue} of {self.name} in {self.place} to {self.cpus}"

    def execute(self, executor: Executor) -> None:
        with inside(self.place), offloads.opened_sysfs() as root:
            try:
                offloads.write_text(root, self.path, self.cpus)
            except FileNotFoundError:
                raise LookupError(f"there is no link {self.name} in {self.place}") from None
