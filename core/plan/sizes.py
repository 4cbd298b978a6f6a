"""The largest packets of links: what the kernel tells of them, and what sets them."""

from __future__ import annotations

from collections.abc import Iterator

from core.model import Link
from core.ops import Place, SetSizes

# Bytes: what every link takes, what is taken where no size is given, and the kernel's own limit
# (GSO_LEGACY_MAX_SIZE and GSO_MAX_SIZE of linux/netdevice.h).
PLAIN_SIZE, USUAL_SIZE, LARGEST_SIZE = 65536, 262144, 524280
# ip-link(8)'s words, in the order in which the kernel takes them, and the field of PacketSizes of each.
_WORDS = {
    "gso_max_size": "gso",
    "gro_max_size": "gro",
    "gso_ipv4_max_size": "gso_ipv4",
    "gro_ipv4_max_size": "gro_ipv4",
}


def can_grow(link: Link) -> bool:
    """Whether its device allows larger packets than every link does."""
    return link.sizes.tso > PLAIN_SIZE


def sizes_of(link: Link) -> tuple[tuple[str, int], ...]:
    """The sizes that the kernel tells, by ip-link(8)'s words: those of IPv4 are there since Linux 6.3."""
    every = ((word, getattr(link.sizes, field)) for word, field in _WORDS.items())
    return tuple((word, size) for word, size in every if size)


def resize(link: Link, size: int, place: Place) -> Iterator[SetSizes]:
    """What gives a link this size, or the most that its device allows; nothing where it is so."""
    held = sizes_of(link)
    wanted = tuple((word, min(size, max(PLAIN_SIZE, link.sizes.tso))) for word, _ in held)
    if wanted != held:
        yield SetSizes(link.name, wanted, held, place)
