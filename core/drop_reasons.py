"""Explain the kernel's reasons for dropping packets, and say what to try.

Names are those of enum skb_drop_reason (include/net/dropreason-core.h) without "SKB_DROP_REASON_"; kernels
before and after 6.18 have some others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

# "fault": something is wrong if it goes on. "rule": somebody asked for it. "normal": it happens on every
# host. "unclear": the kernel gives no reason.
DropKind = Literal["fault", "rule", "normal", "unclear"]


@dataclass(frozen=True, slots=True)
class DropReason:
    """A reason: its kind, what it means, and what to try ("" if nothing is to do)."""

    kind: DropKind
    meaning: str
    advice: str = ""


_RULES = "see which rule counts: `vnet-tui show nat`, `nft -a list ruleset`, `iptables -nvL`"
_SOCKETS = "see who listens where: `ss -lntup` in the container"
_CHECKSUM = "compare a capture at both ends; turn off checksum offload: `ethtool -K LINK tx off`"
_PEER = "a broken or hostile sender: capture it with `tcpdump -ni LINK`"
_QUEUE = "see its queue: `tc -s qdisc show dev LINK`; make it longer, or send less"
_BPF = "list the programs: `bpftool net show`, `tc filter show dev LINK ingress`"
_NEIGHBOUR = "see `ip neigh show dev LINK`: the address must be on this link, and its owner must be up"
_MEMORY = "see `free -h` and `sysctl net.ipv4.tcp_mem net.ipv4.udp_mem`"
_VXLAN = "compare `ip -d link show` of both VXLAN ends"
_TCP_KEYS = "both ends need the same TCP-MD5 or TCP-AO keys"

_FAULTS: Mapping[str, tuple[str, str]] = {
    "NO_SOCKET": ("no process listens on this port or address", _SOCKETS),
    "SOCKET_RCVBUFF": (
        "the receiver's socket buffer is full: its process reads too slowly",
        "make the process faster, or its buffer larger: `sysctl net.core.rmem_max`",
    ),
    "SOCKET_BACKLOG": (
        "the socket's backlog is full: its process reads too slowly",
        "make the process faster, or its buffer larger: `sysctl net.ipv4.tcp_rmem`",
    ),
    "PKT_TOO_SMALL": ("the packet is shorter than its headers say", _PEER),
    "TCP_CSUM": ("the TCP checksum is wrong", _CHECKSUM),
    "UDP_CSUM": ("the UDP checksum is wrong", _CHECKSUM),
    "IP_CSUM": ("the checksum of the IP header is wrong", _CHECKSUM),
    "ICMP_CSUM": ("the ICMP checksum is wrong", _CHECKSUM),
    "SKB_CSUM": ("the checksum can't be computed or is wrong", _CHECKSUM),
    "IP_INHDR": ("the IP header is invalid", _PEER),
    "IP_RPFILTER": (
        "the way back to the source leaves by another link (reverse path filter)",
        "correct the route: `ip route get SOURCE`; or for asymmetric routes `sysctl -w "
        "net.ipv4.conf.LINK.rp_filter=2`",
    ),
    "UNICAST_IN_L2_MULTICAST": ("a packet for one host came in a broadcast or multicast frame", _PEER),
    "XFRM_POLICY": ("no IPsec policy allows it", "see `ip xfrm policy` and `ip xfrm state`"),
    "IP_NOPROTO": ("nothing here handles its IP protocol", "load the protocol's module, or don't send it"),
    "PROTO_MEM": ("the protocol's memory limit is reached", _MEMORY),
    "NOMEM": ("the kernel had no memory for it", _MEMORY),
    "PFMEMALLOC": ("the kernel keeps its last memory for other packets", _MEMORY),
    "TCP_AUTH_HDR": ("its TCP authentication options are invalid", _TCP_KEYS),
    "TCP_MD5NOTFOUND": ("the TCP-MD5 signature is missing", _TCP_KEYS),
    "TCP_MD5UNEXPECTED": ("there is a TCP-MD5 signature, but no key for it", _TCP_KEYS),
    "TCP_MD5FAILURE": ("the TCP-MD5 signature is wrong", _TCP_KEYS),
    "TCP_AONOTFOUND": ("the TCP-AO signature is missing", _TCP_KEYS),
    "TCP_AOUNEXPECTED": ("there is a TCP-AO signature, but no key for it", _TCP_KEYS),
    "TCP_AOKEYNOTFOUND": ("the key of the TCP-AO signature is unknown", _TCP_KEYS),
    "TCP_AOFAILURE": ("the TCP-AO signature is wrong", _TCP_KEYS),
    "TCP_LISTEN_OVERFLOW": (
        "the listening socket's queue is full: connections arrive faster than they are accepted",
        "raise the backlog of listen(2) and `sysctl net.core.somaxconn`; see `ss -lnt`",
    ),
    "TCP_OFO_QUEUE_PRUNE": ("TCP's out-of-order queue is full", _MEMORY),
    "TCP_MINTTL": ("its TTL is below the socket's IP_MINTTL", "raise the sender's TTL, or lower the limit"),
    "IP_OUTNOROUTES": (
        "there is no route to the destination",
        "see `ip route get DESTINATION` in this namespace; add the route, or a default route",
    ),
    "IP_INNOROUTES": (
        "there is no route to the destination of a received packet",
        "see `ip route get DESTINATION from SOURCE iif LINK` and `sysctl net.ipv4.ip_forward`",
    ),
    "IP_INADDRERRORS": (
        "its destination isn't an address of this host, and forwarding is off",
        "see `sysctl net.ipv4.conf.LINK.forwarding`; if it should forward: `sysctl -w net.ipv4.ip_forward=1`",
    ),
    "IP_LOCAL_SOURCE": (
        "its source is an address of this host: an address exists twice, or a route leads back",
        "see `ip addr` and `ip route`; for intended loops `sysctl net.ipv4.conf.LINK.accept_local=1`",
    ),
    "IP_INVALID_SOURCE": ("its source address is invalid", _PEER),
    "IP_LOCALNET": (
        "an address of 127.0.0.0/8 came over a link",
        "if that is intended: `sysctl -w net.ipv4.conf.LINK.route_localnet=1`",
    ),
    "IP_INVALID_DEST": ("its destination address is invalid", _PEER),
    "PKT_TOO_BIG": (
        "it is larger than the next link's MTU and must not be fragmented",
        "use the same MTU on the whole path: `ip link show`; allow ICMP for path MTU discovery",
    ),
    "NEIGH_CREATEFAIL": ("the neighbour table is full", "raise `sysctl net.ipv4.neigh.default.gc_thresh3`"),
    "NEIGH_FAILED": ("the destination or gateway doesn't answer ARP or NDP", _NEIGHBOUR),
    "NEIGH_QUEUEFULL": ("it waited for an answer to ARP or NDP that doesn't come", _NEIGHBOUR),
    "NEIGH_DEAD": ("the neighbour entry was deleted meanwhile", _NEIGHBOUR),
    "NEIGH_HH_FILLFAIL": ("the link couldn't write the neighbour's address", _NEIGHBOUR),
    "QDISC_DROP": (
        "the link's queue refuses it: it is full, or the link or its veth peer is down",
        "see `ip link show LINK` and `tc -s qdisc show dev LINK`",
    ),
    "QDISC_OVERLIMIT": ("the link's queue is over its limit", _QUEUE),
    "QDISC_CONGESTED": ("the queue drops to signal congestion", _QUEUE),
    "CAKE_FLOOD": ("the queue drops a flow that floods it", _QUEUE),
    "FQ_BAND_LIMIT": ("too many packets of one band in the queue fq", _QUEUE),
    "FQ_HORIZON_LIMIT": ("its send time is too far in the future for the queue fq", _QUEUE),
    "FQ_FLOW_LIMIT": ("too many packets of one flow in the queue fq", _QUEUE),
    "DUALPI2_STEP_DROP": ("the queue dualpi2 drops to signal congestion", _QUEUE),
    "CPU_BACKLOG": (
        "a CPU's queue of received packets is full",
        "raise `sysctl net.core.netdev_max_backlog`, or spread the load with RPS: `vnet-tui tune`",
    ),
    "FULL_RING": (
        "the receiver's ring is full: it reads too slowly",
        "give the receiver more CPU, or a longer queue: `ip link set LINK txqueuelen 10000`",
    ),
    "DEV_READY": (
        "the link, or its veth peer, is down or being deleted",
        "see `ip link show LINK`; set both ends up: `ip link set LINK up`",
    ),
    "DEV_HDR": ("the link's header is invalid", _PEER),
    "HDR_TRUNC": ("it is cut off within its headers", _PEER),
    "SKB_GSO_SEG": ("it couldn't be segmented", "turn off offloads: `ethtool -K LINK tso off gso off`"),
    "SKB_UCOPY_FAULT": ("the process's memory couldn't be read or written", "see the process's own log"),
    "TAP_TXFILTER": ("the tap link's receive filter excludes it", "see the virtual machine's MAC addresses"),
    "INVALID_PROTO": ("its protocol numbers are invalid", _PEER),
    "FRAG_REASM_TIMEOUT": (
        "other fragments of the packet didn't arrive in time",
        "look for loss on the path, or avoid fragments by the right MTU",
    ),
    "FRAG_TOO_FAR": ("its fragments are too far apart", "look for loss or reordering on the path"),
    "IPV6_BAD_EXTHDR": ("its IPv6 extension header is invalid", _PEER),
    "IPV6_NDISC_FRAG": ("a neighbour discovery message is fragmented", _PEER),
    "IPV6_NDISC_HOP_LIMIT": ("a neighbour discovery message comes from another link", _PEER),
    "IPV6_NDISC_BAD_CODE": ("a neighbour discovery message is invalid", _PEER),
    "IPV6_NDISC_BAD_OPTIONS": ("a neighbour discovery message has invalid options", _PEER),
    "VXLAN_INVALID_HDR": ("its VXLAN header is invalid", _VXLAN),
    "VXLAN_VNI_NOT_FOUND": ("no VXLAN link here has its VNI", _VXLAN),
    "VXLAN_ENTRY_EXISTS": ("a VXLAN forwarding entry contradicts its source", _VXLAN),
    "MAC_INVALID_SOURCE": ("its source MAC address is invalid", _PEER),
    "NO_TX_TARGET": (
        "no link may send it: the bridge's other ports are down, blocked, isolated or of another VLAN",
        "see `bridge -d link show`, `bridge vlan show` and `bridge fdb show`",
    ),
    "IP_TUNNEL_ECN": ("its tunnel and inner headers contradict each other (ECN)", _PEER),
    "TUNNEL_TXINFO": ("the tunnel has no destination for it", "see `ip -d link show LINK`"),
    "LOCAL_MAC": (
        "its source MAC address is one of this host: a duplicate MAC, or a loop",
        "see `ip -br link` for equal MACs, and the bridge for a loop",
    ),
    "BRIDGE_INGRESS_STP_STATE": (
        "the bridge port doesn't forward: spanning tree blocks it, or it still listens or learns",
        "see `bridge -d link show dev LINK`; look for a loop; without one set `ip link set BRIDGE type "
        "bridge stp_state 0`, or wait 30 s",
    ),
    "RECURSION_LIMIT": ("it passed too many links: tunnels or bridges form a loop", "see `ip -d link show`"),
    "TC_RECLASSIFY_LOOP": ("tc filters form a loop", _BPF),
    "TC_CHAIN_NOTFOUND": ("a tc filter jumps to a chain that doesn't exist", _BPF),
    "TC_COOKIE_ERROR": ("tc lost a packet's state", _BPF),
    "PSP_INPUT": ("PSP, the encryption of its connection, refuses it", "see the connection's PSP keys"),
    "PSP_OUTPUT": ("PSP, the encryption of its connection, refuses it", "see the connection's PSP keys"),
}  # fmt: skip
_RULE_DROPS: Mapping[str, tuple[str, str]] = {
    "NETFILTER_DROP": ("a firewall rule or a chain's policy drops it (nft, iptables)", _RULES),
    "SOCKET_FILTER": ("the socket's own filter excludes it, as with tcpdump or a DHCP client", ""),
    "BPF_CGROUP_EGRESS": ("a BPF program of the sender's control group drops it", _BPF),
    "XDP": ("an XDP program drops it", _BPF),
    "TC_INGRESS": ("a tc filter or BPF program drops it at ingress", _BPF),
    "TC_EGRESS": ("a tc filter or BPF program drops it at egress", _BPF),
    "SECURITY_HOOK": ("a security module drops it (SELinux, AppArmor)", "see its log: `ausearch -m avc`"),
    "TAP_FILTER": ("a filter of the tap link excludes it", ""),
    "ARP_PVLAN_DISABLE": ("proxy ARP isn't allowed back to the same link", ""),
    "OVS_DROP_EXPLICIT": ("an Open vSwitch flow drops it", "see `ovs-appctl dpctl/dump-flows`"),
    "OVS_DROP_LAST_ACTION": ("no action of its Open vSwitch flow forwards it", "see `ovs-ofctl dump-flows`"),
}  # fmt: skip
_NORMAL: Mapping[str, str] = {
    "SOCKET_CLOSE": "it waited at a socket that was closed",
    "QUEUE_PURGE": "it waited in a queue that was emptied",
    "PACKET_SOCK_ERROR": "a packet capture had no room for its copy",
    "UNIX_DISCONNECT": "it waited at a UNIX socket that was disconnected",
    "UNIX_SKIP_OOB": "out-of-band data of a UNIX socket was skipped",
    "OTHERHOST": "it is for another host, and was seen by a link in promiscuous mode or by flooding",
    "UNHANDLED_PROTO": "nothing here handles its EtherType, such as LLDP",
    "IPV6DISABLED": "IPv6 is off on this link",
    "MAC_IEEE_MAC_CONTROL": "it is a control frame between switches",
    "DUP_FRAG": "it repeats a fragment",
    "IPV6_NDISC_NS_OTHERHOST": "it asks for another host's address",
    "TCP_FLAGS": "its TCP flags don't fit the connection's state",
    "TCP_ABORT_ON_DATA": "data arrived after the process had closed the connection",
    "TCP_ZEROWINDOW": "data arrived while the receiver's window was closed",
    "TCP_OLD_DATA": "it repeats data that had arrived (retransmission)",
    "TCP_OVERWINDOW": "its data is beyond the receiver's window",
    "TCP_OFOMERGE": "its data had arrived out of order before",
    "TCP_OFO_DROP": "TCP's out-of-order queue drops its end for newer data",
    "TCP_RFC7323_PAWS": "its timestamp is older than the last one (PAWS)",
    "TCP_RFC7323_PAWS_ACK": "an acknowledgement's timestamp is older than the last one (PAWS)",
    "TCP_RFC7323_TW_PAWS": "its timestamp is too old for a connection that has ended (PAWS)",
    "TCP_RFC7323_TSECR": "it echoes a timestamp that was never sent",
    "TCP_OLD_SEQUENCE": "it repeats data that had arrived (retransmission)",
    "TCP_INVALID_SEQUENCE": "its sequence number is outside of the window",
    "TCP_INVALID_END_SEQUENCE": "its end is outside of the window",
    "TCP_INVALID_ACK_SEQUENCE": "it acknowledges what wasn't sent",
    "TCP_RESET": "it is a reset that ended a connection",
    "TCP_INVALID_SYN": "a SYN within an established connection",
    "TCP_CLOSE": "its connection has been closed",
    "TCP_FASTOPEN": "a repeated SYN of TCP Fast Open",
    "TCP_OLD_ACK": "it acknowledges what had been acknowledged",
    "TCP_TOO_OLD_ACK": "it acknowledges much too old data",
    "TCP_ACK_UNSENT_DATA": "it acknowledges what wasn't sent",
    "CAN_RX_INVALID_FRAME": "an invalid CAN frame",
    "CANFD_RX_INVALID_FRAME": "an invalid CAN FD frame",
    "CANXL_RX_INVALID_FRAME": "an invalid CAN XL frame",
}
NO_REASON = "NOT_SPECIFIED"
_UNCLEAR: Mapping[str, tuple[str, str]] = {
    NO_REASON: (
        "the kernel gives no reason: the function shows the place",
        "look the function up in the kernel's source, or trace the packet: `vnet-tui drops --packets`",
    ),
}

REASONS: Mapping[str, DropReason] = {
    **{name: DropReason("fault", *texts) for name, texts in _FAULTS.items()},
    **{name: DropReason("rule", *texts) for name, texts in _RULE_DROPS.items()},
    **{name: DropReason("normal", meaning) for name, meaning in _NORMAL.items()},
    **{name: DropReason("unclear", *texts) for name, texts in _UNCLEAR.items()},
}
_PORT_MTU = DropReason(
    "fault", "it is larger than the MTU of the bridge port", "use the same MTU on all ports: `ip -br link`"
)
_NO_PORT = DropReason(
    "unclear",
    "the bridge has no port that it may leave by: ports are isolated, blocked or of another VLAN",
    "see `bridge -d link show` and `bridge vlan show`",
)
_MULTICAST = DropReason("normal", "a multicast packet of a group that nothing here has joined")
# Functions that drop without a reason (NOT_SPECIFIED), by the beginning of their names.
_FUNCTIONS: Mapping[str, DropReason] = {
    "br_dev_queue_push_xmit": _PORT_MTU,
    "br_nf_dev_queue_xmit": _PORT_MTU,
    "dev_forward_skb": DropReason(
        "fault",
        "the veth peer doesn't take it: it is larger than the peer's MTU, or the peer is down",
        "use the same MTU on both ends, and set both up: `ip link show`",
    ),
    "allowed_ingress": DropReason(
        "fault",
        "the bridge port isn't a member of its VLAN",
        "see `bridge vlan show`; `bridge vlan add dev LINK vid VLAN`",
    ),
    "br_forward": _NO_PORT,
    "br_flood": _NO_PORT,
    "br_handle_frame": _NO_PORT,
    "ip6_forward": DropReason(
        "unclear", "IPv6 doesn't forward it", "see `sysctl net.ipv6.conf.all.forwarding`, its route"
    ),
    "ip_forward": DropReason(
        "unclear", "IPv4 doesn't forward it: TTL, route or policy", "see `ip route get DESTINATION`"
    ),
    "ip6_mc_input": _MULTICAST,
    "ip_mc_": _MULTICAST,
    "ip_rcv_finish_core": DropReason(
        "normal", "IPv4 has no route for it: mostly multicast of groups that nothing here has joined"
    ),
    "ip6_rcv_core": DropReason("normal", "IPv6 isn't ready on this link, or refuses its addresses"),
    "arp_": DropReason("normal", "an ARP message that isn't for this host"),
    "icmp": DropReason("normal", "an ICMP message that nothing here waits for"),
    "ndisc": DropReason("normal", "a neighbour discovery message that isn't for this host"),
    "igmp": DropReason("normal", "a message about multicast groups was handled"),
    "mld": DropReason("normal", "a message about multicast groups was handled"),
}
# Reasons that mean something else in one function: a ping with a raw socket has its own copy of each answer.
_SPECIAL: Mapping[tuple[str, str], DropReason] = {
    ("NO_SOCKET", "ping_rcv"): DropReason("normal", "an ICMP answer of which raw sockets got a copy"),
}
_UNKNOWN = DropReason("fault", "this version of vnet-tui doesn't know the reason", "look its name up in "
                      "include/net/dropreason-core.h of the kernel")  # fmt: skip


def explain(reason: str, function: str = "") -> DropReason:
    """Return the explanation of a reason; of the function if there is no reason."""
    found = _SPECIAL.get((reason, function)) or REASONS.get(reason, _UNKNOWN)
    if found.kind != "unclear":
        return found
    bare = function.lstrip("_")
    return next((each for name, each in _FUNCTIONS.items() if bare.startswith(name)), found)
