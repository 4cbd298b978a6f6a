"""Convert blocks of a TPACKET_V3 ring to pcapng, many packets at once."""

from __future__ import annotations

import struct
from collections.abc import Callable

from core.capture.packets import PacketTuple, tuple_of
from core.capture.pcapng import (
    ETHERNET,
    FLAGS,
    LENGTH,
    OUTGOING,
    OVERHEAD,
    PACKET_HEADER,
    PADDING,
    RAW_IP,
    comment_option,
)

# struct tpacket_block_desc: num_pkts, offset_to_first_pkt; struct tpacket3_hdr and sll_pkttype of the
# struct sockaddr_ll behind it (linux/if_packet.h).
_BLOCK = struct.Struct("=12xII")
_HEADER = struct.Struct("=6I2HIIH20xB")
_VLAN_VALID, _VLAN_TPID_VALID = 1 << 4, 1 << 6
_VLAN = struct.Struct("!HH")
_DOT1Q = 0x8100
_PACKET_BLOCK = 6
_SECOND = 1_000_000_000
# Protocol, addresses and ports of an IPv4 header without options, and of an IPv6 header.
_IPV4_KEY, _IPV6_KEY = struct.Struct("=9xB2x12s"), struct.Struct("=6xBx36s")
_IPV4_TYPE, _IPV6_TYPE = b"\x08\x00", b"\x86\xdd"
_WITH_PORTS = frozenset({6, 17, 132})
_MOST_COMMENTS = 1 << 16
_MOST_TRIES = 5  # to complete a comment: a server may accept a connection after its first packets

# (time in nanoseconds, packet block)
Record = tuple[int, bytes]
# Returns the comment of a packet by its tuple, and whether it is final.
Commenter = Callable[[PacketTuple], tuple[str, bool]]
Key = tuple[int, bytes]


class Encoder:
    """Encode the packets of one interface; the comment of a flow is made once.

    `accepts` decides by packet and length, in addition to the socket's filter. On loopback the kernel shows
    each packet twice; `only_incoming` leaves out the sent one."""

    def __init__(
        self,
        number: int,
        link_type: int,
        commenter: Commenter | None,
        only_incoming: bool = False,
    ) -> None:
        self.number, self.link_type, self.only_incoming = number, link_type, only_incoming
        self.accepts: Callable[[bytes, int], bool] | None = None
        self.new_flows = False  # whether a flow got a comment that later readings may complete
        self._commenter = commenter
        self._comments: dict[Key, bytes] = {}
        self._unfinished: set[Key] = set()
        self._made: dict[Key, tuple[int, str]] = {}  # tries, and the longest text

    def renew(self, all_comments: bool = False) -> None:
        """Make comments that weren't final, or all, again."""
        if all_comments:
            self._comments.clear()
            self._made.clear()
        for key in self._unfinished:
            self._comments.pop(key, None)
        self._unfinished.clear()

    def encode(self, block: bytes) -> list[Record]:
        """Return the packets of a block of the ring as pcapng blocks."""
        records: list[Record] = []
        count, offset = _BLOCK.unpack_from(block)
        unpack, pack, length_of, number = _HEADER.unpack_from, PACKET_HEADER.pack, LENGTH.pack, self.number
        accepts, comments, keyed = self.accepts, self._comments, self._commenter is not None
        for _ in range(count):
            following, sec, nsec, captured, length, status, mac, _, _, tci, tpid, kind = unpack(block, offset)
            start = offset + mac
            offset += following
            data = block[start : start + captured]
            if status & _VLAN_VALID:  # the kernel keeps the outer tag beside the packet
                tpid = tpid if status & _VLAN_TPID_VALID else _DOT1Q
                data = data[:12] + _VLAN.pack(tpid, tci) + data[12:]
                captured, length = captured + 4, length + 4
            if (kind == OUTGOING and self.only_incoming) or (accepts and not accepts(data, length)):
                continue
            comment = b""
            if keyed and (key := self._key(data)) is not None:
                comment = comments[key] if key in comments else self._make_comment(key, data)
            at = sec * _SECOND + nsec
            tail = FLAGS[kind]
            padding = PADDING[captured & 3]
            size = OVERHEAD + captured + len(padding) + len(comment) + len(tail)
            head = pack(_PACKET_BLOCK, size, number, at >> 32, at & 0xFFFFFFFF, captured, length)
            records.append((at, b"".join((head, data, padding, comment, tail, length_of(size)))))
        return records

    def _key(self, data: bytes) -> Key | None:
        """Return what identifies a packet's flow and direction, None without an IP header."""
        kind, at = data[12:14], 14
        if self.link_type == RAW_IP:
            kind, at = (_IPV4_TYPE if data[:1] < b"\x60" else _IPV6_TYPE), 0
        if kind == _IPV4_TYPE and len(data) >= at + 24 and data[at] == 0x45:
            found: Key = _IPV4_KEY.unpack_from(data, at)
            if found[0] in _WITH_PORTS and not (data[at + 6] & 0x1F or data[at + 7]):
                return found
        elif kind == _IPV6_TYPE and len(data) >= at + 44 and data[at + 6] in _WITH_PORTS:
            return _IPV6_KEY.unpack_from(data, at)
        return self._rare_key(data)

    def _rare_key(self, data: bytes) -> Key | None:
        ends = tuple_of(self.link_type, data)
        if ends is None:
            return None
        return ends.l4_proto, b"%b%b%d %d" % (ends.src, ends.dst, ends.sport, ends.dport)

    def _make_comment(self, key: Key, data: bytes) -> bytes:
        ends = tuple_of(self.link_type, data)
        if ends is None or self._commenter is None:
            return b""
        if len(self._comments) >= _MOST_COMMENTS:
            self.renew(all_comments=True)
        text, is_final = self._commenter(ends)
        tries, before = self._made.get(key, (0, ""))
        tries, text = tries + 1, max(text, before, key=len)  # a socket may be gone by now
        self._made[key] = tries, text
        if not is_final and tries <= _MOST_TRIES:
            self.new_flows = True
            self._unfinished.add(key)
        self._comments[key] = comment = comment_option(text)
        return comment


LINK_TYPES = {
    1: ETHERNET, 772: ETHERNET,  # ARPHRD_ETHER, ARPHRD_LOOPBACK of linux/if_arp.h
    768: RAW_IP, 769: RAW_IP, 776: RAW_IP, 778: RAW_IP, 823: RAW_IP, 65534: RAW_IP,  # tunnels, ARPHRD_NONE
}  # fmt: skip
