"""Operations that tune how a link handles packets: their sizes, offloads, and who takes them over."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from core.operations.target import HOST, NetnsTarget
from core.text import quoted


@dataclass(frozen=True, slots=True)
class SetSizes:
    """Set the largest packets of a link, all at once: pairs of ip-link(8)'s word ("gso_max_size",
    "gro_max_size", "gso_ipv4_max_size", "gro_ipv4_max_size") and bytes; `before` in the same order.

    A small gso_max_size sets that of IPv4 as well (netif_set_gso_max_size): in one message, and in this
    order, each has its own value in the end.
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
        return f"have {self.name} in {self.place} take packets of up to {most} bytes"


@dataclass(frozen=True, slots=True)
class SetOffloads:
    """Switch offloads of a link: pairs of the kernel's name ("tx-tcp-segmentation", ...) and whether it is
    wanted on; `before` in the same order (ethtool(8), -K)."""

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


@dataclass(frozen=True, slots=True)
class SetSteering:
    """Set the CPUs that take over the packets of one receive queue (RPS), a mask as the kernel writes it."""

    name: str
    queue: int
    cpus: str
    before: str
    place: NetnsTarget = HOST

    @property
    def path(self) -> str:
        """The file in sysfs, from its root."""
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
        return f"have the CPUs {self.cpus} take over what {self.name} in {self.place} receives"
