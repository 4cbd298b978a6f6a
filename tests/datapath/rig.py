"""Run the program on single packets, in a throw-away host, attached to no link."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bpf import layout, maps, syscall
from bpf.clock import Clock
from bpf.layout import VERDICTS
from bpf.maps import possible_cpus
from tests.support.host import ThrowawayHost

_MAP_UPDATE_BATCH = 26

REDIRECT, TO_KERNEL = 7, 0xFFFFFFFF
GATEWAY, CLIENT, SERVER, ROUTER = (
    "02:00:00:00:00:01",
    "02:00:00:00:00:02",
    "02:00:00:00:00:03",
    "02:00:00:00:00:04",
)
_CONTEXT = 192  # sizeof(struct __sk_buff)
_IFINDEX_AT, _GSO_SEGS_AT, _GSO_SIZE_AT = 40, 164, 176
_INDEX = struct.Struct("=I")


@dataclass(frozen=True)
class Outcome:
    """Hold what the program did with a packet."""

    verdict: str
    result: int
    packet: bytes


class Rig:
    """Load the program and fill its maps; `links` are ifindexes by name."""

    def __init__(self, host: ThrowawayHost, flows: int = 1024) -> None:
        self.host = host
        self.loaded = maps.load(flows)
        self.clock = Clock()
        self.config = np.zeros(1, layout.CONFIG)
        self.reset()
        self.links: dict[str, int] = {}
        self.read_links()

    def reset(self) -> None:
        """Empty all maps; set a lease, a generation and timeouts longer than any test."""
        for name, each in maps.map_specs(1).items():
            if each.kind in (syscall.MAP_HASH, syscall.MAP_LRU_HASH):
                for key in syscall.keys(self.loaded.maps[name], each.key.itemsize):
                    syscall.delete(self.loaded.maps[name], key)
        self.config[:] = 0
        self.config["deadline"] = self.clock.now() + 1000 * self.clock.hz
        self.config["recheck"] = 1000 * self.clock.hz
        self.config["epoch"] = self.config["generation"] = 1
        self.config["mark_shift"] = 24
        self.config["tcp_timeout"], self.config["udp_timeout"] = 432_000_000, 120_000
        self.config["tcp_unanswered"] = 300_000
        self.configure()

    def read_links(self) -> None:
        """Read the links' ifindexes."""
        self.links = {link["ifname"]: link["ifindex"] for link in self.host.json("ip -j link")}

    def close(self) -> None:
        """Unload the program."""
        self.loaded.close()
        self.clock.close()

    def jiffies(self, ago: float = 0) -> int:
        """Return the time `ago` seconds in the past, as flows store it."""
        return int(self.clock.now() - ago * self.clock.hz) & 0xFFFFFFFF

    def configure(self, **fields: int) -> None:
        """Set fields of the configuration."""
        for name, value in fields.items():
            self.config[name] = value
        self.put("config", _INDEX.pack(0), self.config)

    def put(self, name: str, key: bytes | np.ndarray, value: np.ndarray) -> None:
        """Set an entry of a map."""
        raw = key if isinstance(key, bytes) else key.tobytes()
        syscall.update(self.loaded.maps[name], raw, value.tobytes())

    def port(
        self, name: str, flags: int, l3: str = "", mac: str = GATEWAY, mtu: int = 1500, slot: int = 1
    ) -> None:
        """Add a link to the map `links`."""
        row = np.zeros(1, layout.LINK)
        row["l3_ifindex"], row["flags"], row["slot"] = self.links[l3 or name], flags, slot
        row["mac"], row["mtu"] = mac_bytes(mac), mtu
        self.put("links", _INDEX.pack(self.links[name]), row)

    def owner(self, name: str, address: str, mac: str) -> None:
        """Allow a source address on a port."""
        value = np.zeros(1, layout.OWNER)
        value["mac"] = mac_bytes(mac)
        self.put("owners", address_key(address, self.links[name]), value)

    def behind(self, bridge: str, mac: str, port: str, flags: int = layout.MAC_PEER, mtu: int = 1500) -> None:
        """Set the port of a MAC address."""
        key = np.zeros(1, layout.MAC_KEY)
        key["bridge"], key["mac"] = self.links[bridge], mac_bytes(mac)
        value = np.zeros(1, layout.MAC_VALUE)
        value["ifindex"], value["flags"], value["mtu"] = self.links[port], flags, mtu
        self.put("macs", key, value)

    def capture(self, address: str) -> None:
        """Leave an address to the kernel."""
        self.put("captured", address_key(address, 0), np.ones(1, "u4"))
        self.configure(flags=int(self.config["flags"][0]) | layout.HAS_CAPTURES)

    def flow(self, packet: Packet, link: str, new: Packet | None = None, **fields: int) -> None:
        """Store a flow that turns `packet` into `new`, as if it had been learned."""
        new = packet if new is None else new
        row = np.zeros(1, layout.FLOW)
        row["epoch"], row["in_ifindex"] = self.config["epoch"], self.links[link]
        row["generation"] = self.config["generation"]
        row["out_ifindex"], row["mtu"], row["action"] = self.links[link], 1500, layout.ACTION_REDIRECT
        row["checked"] = self.jiffies()
        row["eth_in"] = np.frombuffer(bytes(packet)[:12], np.uint8)
        row["eth_out"] = np.frombuffer(bytes(new)[:12], np.uint8)
        old_net, new_net = packet.payload, new.payload
        for name, address in (("new_src", new_net.src), ("new_dst", new_net.dst)):
            row[name] = np.frombuffer(ipaddress.ip_address(address).packed.ljust(16, b"\0"), np.uint8)
        row["new_sport"], row["new_dport"] = new_net.payload.sport, new_net.payload.dport
        addresses = address_words(old_net), address_words(new_net)
        row["addr_diff"] = difference(*addresses)
        ports = (port_words(old_net), port_words(new_net))
        row["port_diff"] = difference(*ports)
        routed = bytes(packet)[:12] != bytes(new)[:12]
        row["rewrite"] = (
            routed * layout.REWRITE_L3
            | (addresses[0] != addresses[1]) * layout.REWRITE_ADDRESS
            | (ports[0] != ports[1]) * layout.REWRITE_PORT
        )
        row["tag"] = tag_of(flow_key(packet))
        for name, value in fields.items():
            row[name] = value
        self.put("flows6" if IPv6 in packet else "flows4", flow_key(packet), row)

    def flow_of(self, packet: Packet) -> np.void | None:
        """Return the flow of a packet from the cache."""
        name = "flows6" if IPv6 in packet else "flows4"
        found = syscall.lookup(self.loaded.maps[name], flow_key(packet).tobytes(), layout.FLOW.itemsize)
        return None if found is None else np.frombuffer(found, layout.FLOW)[0]

    def run(self, packet: Packet | bytes, link: str, gso_size: int = 0) -> Outcome:
        """Run the program on a packet that enters by `link`."""
        before = self.counted()
        done = syscall.test_run(self.loaded.program, bytes(packet), 1, self.context(link, gso_size))
        counted = self.counted() - before
        (number,) = np.flatnonzero(counted)
        return Outcome(VERDICTS[number].name, done.result, done.packet)

    def context(self, link: str, gso_size: int = 0) -> bytes:
        """Return the struct __sk_buff of a packet that enters by `link`."""
        context = bytearray(_CONTEXT)
        _INDEX.pack_into(context, _IFINDEX_AT, self.links[link])
        _INDEX.pack_into(context, _GSO_SIZE_AT, gso_size)
        return bytes(context)

    def learn(self, packet: Packet, link: str) -> Outcome:
        """Run a packet of an unknown connection: TCP's first data is only noted."""
        if TCP in packet:
            assert self.run(packet, link).verdict == "YOUNG"
        return self.run(packet, link)

    def run_after_a_jiffy(self, packet: Packet, link: str) -> Outcome:
        """Run a packet once conntrack may be asked again about a young connection."""
        began = self.clock.now()
        while self.clock.now() == began:
            pass
        return self.run(packet, link)

    def run_just_after(self, prepare: Callable[[], object], packet: Packet, link: str) -> Outcome:
        """Prepare, then run the packet; repeat until at most a jiffy is between the two."""
        while True:
            began = self.clock.now()
            prepare()
            outcome = self.run(packet, link)
            if self.clock.now() - began <= 1:
                return outcome

    def track(self, packet: Packet, translated: Packet) -> None:
        """Create a conntrack entry for a TCP packet in original direction."""
        old, new = packet.payload, translated.payload
        self.host.run(
            f"conntrack -I -p tcp -s {old.src} -d {old.dst} --sport {old.sport} --dport {old.dport}"
            f" -r {new.dst} -q {new.src} --reply-port-src {new.dport} --reply-port-dst {new.sport}"
            " -t 1000 -u ASSURED,SEEN_REPLY --state ESTABLISHED"
        )

    def counted(self) -> np.ndarray:
        """Return all packets so far, by verdict."""
        total = np.zeros(layout.COUNTERS, np.int64)
        for slot in range(4):
            size = layout.SLOT_COUNTERS.itemsize * possible_cpus()
            raw = syscall.lookup(self.loaded.maps["counters"], _INDEX.pack(slot), size)
            assert raw is not None
            total += np.frombuffer(raw, np.uint64).reshape(-1, layout.COUNTERS).sum(0).astype(np.int64)
        return total


def write_all(map_fd: int, keys: np.ndarray, values: np.ndarray) -> None:
    """Set many keys in one system call; both arrays are contiguous and equally long."""
    arrays = keys.ctypes.data, values.ctypes.data
    attributes = struct.pack("<QQQQIIQQ", 0, 0, *arrays, len(keys), map_fd, 0, 0)
    syscall.bpf(_MAP_UPDATE_BATCH, attributes)


def mac_bytes(text: str) -> np.ndarray:
    """Return the six bytes of a MAC address."""
    return np.frombuffer(bytes.fromhex(text.replace(":", "")), np.uint8)


def address_key(address: str, ifindex: int) -> np.ndarray:
    """Return a key of the maps `owners` and `captured`."""
    packed = ipaddress.ip_address(address)
    key = np.zeros(1, layout.OWNER_KEY)
    key["ifindex"], key["family"] = ifindex, 2 if packed.version == 4 else 10
    key["address"] = np.frombuffer(packed.packed.ljust(16, b"\0"), np.uint8)
    return key


def flow_key(packet: Packet) -> np.ndarray:
    """Return the key of a packet's flow."""
    net = packet.payload
    key = np.zeros(1, layout.KEY6 if IPv6 in packet else layout.KEY4)
    key["src"] = np.frombuffer(ipaddress.ip_address(net.src).packed, np.uint8)
    key["dst"] = np.frombuffer(ipaddress.ip_address(net.dst).packed, np.uint8)
    key["sport"], key["dport"] = net.payload.sport, net.payload.dport
    key["l4_proto"] = 6 if TCP in packet else 17
    return key


def address_words(net: Packet) -> bytes:
    """Return source and destination as they are on the wire."""
    return ipaddress.ip_address(net.src).packed + ipaddress.ip_address(net.dst).packed


def tag_of(keys: np.ndarray) -> np.ndarray:
    """Return the tags of flows with these keys, as tag_of() of program/maps.c."""
    words = keys.view(np.uint64).reshape(len(keys), -1)
    addresses = words[:, 0]
    if keys.dtype == layout.KEY6:
        addresses = words[:, 1] >> 32 << 32 | words[:, 3] >> 32
    mixed = addresses ^ words[:, -1] * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> 32 ^ mixed).astype(np.uint32)


def port_words(net: Packet) -> bytes:
    """Return the ports as they are on the wire."""
    return struct.pack(">HH", net.payload.sport, net.payload.dport)


def difference(old: bytes, new: bytes) -> int:
    """Return the checksum difference from `old` to `new`, in the machine's byte order."""
    total = sum(word ^ 0xFFFF for (word,) in struct.iter_unpack("=H", old))
    total += sum(word for (word,) in struct.iter_unpack("=H", new))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def plain(l4: str, family: int, payload: bytes = b"0123456789abcdef", **fields: str | int) -> Packet:
    """Build a packet from the client's container to its gateway's MAC.

    The fields src, dst, sport, dport, hops, flags, tos, eth_src and eth_dst replace the defaults.
    """
    ether = Ether(src=fields.get("eth_src", CLIENT), dst=fields.get("eth_dst", GATEWAY))
    hops = fields.get("hops", 64)
    tos = fields.get("tos", 0)
    if family == 4:
        usual = "10.1.0.2", "192.0.2.9"
        net = IP(src=fields.get("src", usual[0]), dst=fields.get("dst", usual[1]), ttl=hops, tos=tos, id=7)
    else:
        usual = "fd00:1::2", "2001:db8::9"
        net = IPv6(src=fields.get("src", usual[0]), dst=fields.get("dst", usual[1]), hlim=hops, tc=tos)
    ports = {"sport": fields.get("sport", 40000), "dport": fields.get("dport", 443)}
    l4_header = TCP(**ports, flags=fields.get("flags", "PA"), seq=1, ack=2) if l4 == "tcp" else UDP(**ports)
    return Ether(bytes(ether / net / l4_header / Raw(payload)))


def changed(packet: Packet, **fields: str | int) -> Packet:
    """Build the packet with other fields, all checksums computed by scapy."""
    made = packet.copy()
    net, l4 = made.payload, made.payload.payload
    made.src, made.dst = fields.get("eth_src", made.src), fields.get("eth_dst", made.dst)
    net.src, net.dst = fields.get("src", net.src), fields.get("dst", net.dst)
    l4.sport, l4.dport = fields.get("sport", l4.sport), fields.get("dport", l4.dport)
    if "hops" in fields:
        setattr(net, "ttl" if IP in made else "hlim", fields["hops"])
    if IP in made:
        del net.chksum
    del l4.chksum
    return Ether(bytes(made))
