/* SPDX-License-Identifier: GPL-2.0-only */
/* The structures of the maps. bpf/layout.py has the same as numpy dtypes; the compiler checks each offset against it. */
#ifndef VNET_TYPES_H
#define VNET_TYPES_H

enum verdict {
#define VERDICT(name, words) V_##name,
#include "verdicts.h"
#undef VERDICT
	VERDICTS,
};

#define COUNTERS 64 /* capacity for verdicts; a power of two, so that an index can be masked */

/* The one entry of the map `config`. */
struct config {
	u64 deadline;    /* jiffies: after it, nothing is forwarded (the lease) */
	u64 recheck;     /* jiffies after which a flow asks conntrack again */
	u32 epoch;       /* raised by every change of rules, routes, links or neighbours */
	u32 generation;  /* of the rules, 1..15; 0: paused */
	u32 mark_shift;  /* of the original direction's 4 bits in the ct mark; the reply's are the next 4 */
	u32 tcp_timeout; /* ms, as nf_conntrack_tcp_timeout_established */
	u32 udp_timeout; /* ms, as nf_conntrack_udp_timeout_stream */
	u32 flags;       /* HAS_* */
	u32 route_mtu;   /* the smallest MTU that a route of the host names, or 0; bpf_fib_lookup doesn't return it */
	u32 tcp_unanswered; /* ms, as nf_conntrack_tcp_timeout_unacknowledged */
};
#define HAS_CAPTURES 1   /* look up the map `captured` */
#define HAS_MULTIPATH 2  /* routes with several next hops exist: the kernel forwards packets that leave the host */
#define READS_CT_MARKS 4 /* rules match bits of the ct mark that are not ours */
#define KEEP_PRIORITY 8  /* net.ipv4.ip_forward_update_priority is 0 */
#define ROUTES_BY_PACKET 16 /* routes or rules depend on the type of service or similar: the kernel routes */
#define HAS_TUNNELS 32   /* outer headers of the tunnels in the map `tunnels` may be remembered */

/* A link on which the program runs: the map `links`, by ifindex. */
struct link {
	u32 l3_ifindex; /* its bridge, or itself */
	u32 slot;       /* row of the map `counters` */
	u32 flags;      /* LINK_* */
	u8 mac[6];      /* of l3_ifindex */
	u16 mtu;        /* of packets to the container; 0 for uplinks: the route has it */
	u32 begun;       /* untracked flows that began here since `begun_since` (jiffies) */
	u32 begun_since;
};
#define LINK_BRIDGED 1   /* port of a bridge */
#define LINK_CONTAINER 2 /* sources are checked against the map `owners` */
#define LINK_ISOLATED 4
#define LINK_L2 8        /* same-bridge traffic passes neither conntrack nor rules: forward by MAC only */
/* Same-bridge traffic of IPv4, or IPv6, passes conntrack (br_netfilter): admit it like routed traffic. */
#define LINK_IPTABLES 16
#define LINK_IP6TABLES 256
#define LINK_PEER 32     /* as MAC_PEER */
#define LINK_OUT 64      /* the program doesn't run on it, packets may leave by it */
#define LINK_IN_ONLY 128 /* nothing leaves by it: other programs process its egress */
#define LINK_TUNNEL 512  /* leads to other hosts */

/* Addresses that a port may send from: the map `owners`; the value is the MAC address. */
struct owner_key {
	u32 ifindex;
	u32 family;
	u32 address[4]; /* IPv4: the first */
};

/* The port of a MAC address on a bridge: the map `macs`. */
struct mac_key {
	u32 bridge;
	u8 mac[6];
	u8 pad[2];
};
struct mac_value {
	u32 ifindex;
	u16 flags; /* MAC_* */
	u16 mtu;
};
#define MAC_PEER 1 /* a veth whose peer is in another namespace: redirect to the peer */
#define MAC_ISOLATED 2
#define MAC_TUNNEL 4 /* behind a tunnel, at one host that its table names: not flooded */

/* Written in whole words, see struct packet. */
struct key4 {
	union {
		struct {
			u32 src, dst;
			u16 sport, dport;
			u8 l4_proto, pad[3];
		};
		u64 words[2];
	};
};

struct key6 {
	u32 src[4], dst[4];
	union {
		struct {
			u16 sport, dport;
			u8 l4_proto, pad[3];
		};
		u64 word;
	};
};

/* A flow, one direction of a connection: the maps `flows4` and `flows6`, by the tuple of its packets at ingress. Two
 * cache lines: a bridged packet needs only the first. The tag comes first: see is_same_flow(). */
struct flow {
	u32 tag;       /* of its key: tag_of() */
	u32 last_seen; /* jiffies, low 32 bits: only differences are used */
	u64 packets;
	u64 bytes;
	u32 checked;
	u32 acked; /* TCP: acknowledgement number of the last packet */
	u16 epoch; /* low 16 bits: a flow is checked again before they wrap */
	u16 end;   /* TCP: low 16 bits of the sequence number after the last packet's data */
	u32 in_ifindex;
	u32 out_ifindex;
	u16 mtu;
	u8 action;      /* ACTION_* */
	union {
		u8 rewrite; /* REWRITE_* */
		u8 verdict; /* with ACTION_KERNEL: why */
	};
	u32 eth_in[3];  /* destination and source MAC at ingress */
	u16 slot;
	u8 generation; /* in which it was admitted */
	u8 mark_is;    /* MARK_* */
	u32 eth_out[3]; /* at egress */
	u16 addr_diff;  /* checksum difference of the addresses, folded */
	u16 port_diff;  /* of the ports */
	union {
		struct {
			u16 new_sport, new_dport;
		};
		u32 new_ports;
	};
	u32 new_src[4], new_dst[4];
	u32 ct_mark; /* bits that are not ours: see mark_is */
	u32 agreed;  /* TCP: sum of both directions' `acked` when conntrack was asked last */
	u32 first_seen;
};
#define ACTION_NONE 0     /* the kernel forwards: ask conntrack first */
#define ACTION_RESET 1    /* the same, after a RST of this direction: see bpf/connections.py */
#define ACTION_KERNEL 2   /* the kernel forwards: don't ask before `recheck` */
#define ACTION_PEER 3     /* bpf_redirect_peer */
#define ACTION_REDIRECT 4 /* bpf_redirect */
#define ACTION_TUNNEL 5   /* the same, or with outer headers to the uplink: program/tunnels.c */
/* Whether the rules saw `ct_mark`; these steps are needed only if rules match bits that are not ours. */
#define MARK_UNKNOWN 0
#define MARK_NOTED 1   /* read from the entry; the connection has to pass the rules once more */
#define MARK_CLEARED 2 /* our bits of the entry's mark are cleared */
#define MARK_SEEN 3    /* it passed the rules after that, with the same mark */
#define REWRITE_L3 1      /* routed: change time to live and MAC addresses */
#define REWRITE_ADDRESS 2
#define REWRITE_PORT 4
#define REWRITE_MACS 8    /* bridged after translation: like REWRITE_L3, but keep the time to live */

/* A flow while it is learned, and what is found out with it: the one entry of the map `scratch`. */
struct learned {
	struct flow flow;
	struct flow back; /* the other direction; not learned if `mtu` is 0 */
	u32 known;        /* KNOWN_* */
	u32 pad;
};
#define KNOWN_BOTH_WAYS 1  /* the rules accept the other direction as well */
#define KNOWN_UNASSURED 2  /* UDP with a reply, but too young to be assured */
#define KNOWN_UNANSWERED 4 /* TCP: unacknowledged data since conntrack was asked last */
#define KNOWN_OUTDATED 8   /* conntrack waits for an acknowledgement that it didn't see */

/* A connection that sent one packet with data: the array `young`. */
struct young {
	u32 tag;
	u32 asked; /* jiffies */
};
#define YOUNG 8192

/* A request to the daemon about a connection: the ring buffer `wanted`. */
struct want {
	u32 what;      /* WANT_* */
	u32 family;    /* AF_* */
	u32 src[4], dst[4];
	u16 sport, dport;
	u8 l4_proto, pad[3];
};
#define WANT_LIBERAL 1   /* make conntrack liberal about a TCP connection that it won't see the middle of */
#define WANT_RULES 2   /* clear its mark, so that it passes the rules once more */
#define WANT_CLOSE 3   /* a RST ended it: see bpf/connections.py */
#define WANT_RENEW 4   /* renew its timeout after a RST that can't have ended it: see bpf/connections.py */

/* A VXLAN link: the map `tunnels`; the value is its ifindex. Both as in the headers (RFC 7348). */
struct tunnel_key {
	u32 vni; /* with the reserved byte */
	u16 port;
	u16 pad;
};

/* What the kernel wrote before a flow's packets when it sent one to another host: the map `outers`, by the tuple inside.
 * The tag comes first: see is_same_flow(). */
#define OUTER_SIZE 50 /* Ethernet, IPv4, UDP, VXLAN */
struct outer {
	u32 tag;
	u32 checked; /* jiffies */
	u32 tunnel;  /* ifindex */
	u32 uplink;
	u16 epoch;
	u16 size; /* of the largest packet, from the inner IP header on */
	u16 fragment; /* the inner IPv4 header's word with DF */
	u8 generation;
	u8 tos;
	u8 ttl;
	u8 pad[7];
	u8 headers[OUTER_SIZE + 6];
};

/* The outer addresses with which the kernel accepts a flow's packets from another host: the map `inlets`, by the tuple
 * inside. */
struct inlet {
	u32 tag;
	u32 checked; /* jiffies */
	u32 tunnel;  /* ifindex */
	u32 uplink;
	u64 addresses; /* as in the outer header, like the following */
	u32 ports;
	u32 vni;
	u16 epoch;
	u16 mark; /* tc_index of a packet that the kernel is deciding about */
	u8 generation;
	u8 is_accepted;
	u8 pad[2];
};
#define OUTERS 16384

struct slot_counters {
	u64 packets[COUNTERS];
};
#endif
