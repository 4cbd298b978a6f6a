/* SPDX-License-Identifier: GPL-2.0-only */
/* What the maps hold. bpf/layout.py has the same as numpy dtypes; the compiler checks each offset against it. */
#ifndef VNET_TYPES_H
#define VNET_TYPES_H

enum verdict {
#define VERDICT(name, words) V_##name,
#include "verdicts.h"
#undef VERDICT
	VERDICTS,
};

#define COUNTERS 64 /* room for verdicts; a power of two, so that an index can be masked */

/* The one entry of the map `config`. */
struct config {
	u64 deadline;    /* jiffies: after it, nothing is forwarded (the lease) */
	u64 recheck;     /* jiffies after which a flow asks conntrack again */
	u32 epoch;       /* raised with every change of rules, routes, links or neighbours */
	u32 generation;  /* of the rules, 1..15; 0: paused */
	u32 mark_shift;  /* of the original direction's 4 bits in the ct mark; the reply's are the next 4 */
	u32 tcp_timeout; /* ms, as nf_conntrack_tcp_timeout_established */
	u32 udp_timeout; /* ms, as nf_conntrack_udp_timeout_stream */
	u32 flags;       /* HAS_* */
	u32 route_mtu;   /* the smallest MTU that a route of the host names; 0: none does. bpf_fib_lookup does not tell it */
	u32 tcp_unanswered; /* ms, as nf_conntrack_tcp_timeout_unacknowledged */
};
#define HAS_CAPTURES 1   /* look up the map `captured` */
#define HAS_MULTIPATH 2  /* routes with several next hops exist: leave what goes out of the host to the kernel */
#define READS_CT_MARKS 4 /* rules look at bits of the ct mark that are not ours */
#define KEEP_PRIORITY 8  /* net.ipv4.ip_forward_update_priority is 0 */
#define ROUTES_BY_PACKET 16 /* routes or rules ask for the type of service or the like: what is routed is the kernel's */

/* A link on which the program runs: the map `links`, by ifindex. */
struct link {
	u32 l3_ifindex; /* the bridge it is a port of, or itself */
	u32 slot;       /* its row of the map `counters` */
	u32 flags;      /* LINK_* */
	u8 mac[6];      /* of l3_ifindex */
	u16 mtu;        /* of what may go out here to the container; 0 for uplinks: the route says it */
	u32 begun;       /* flows without conntrack that began here since then (jiffies): the program's own count */
	u32 begun_since;
};
#define LINK_BRIDGED 1   /* port of a bridge */
#define LINK_CONTAINER 2 /* sources are checked against the map `owners` */
#define LINK_ISOLATED 4
#define LINK_L2 8        /* same-bridge traffic passes neither conntrack nor any rule: forward it by MAC alone */
/* Same-bridge traffic of IPv4, of IPv6 passes conntrack (br_netfilter): admit it as routed traffic is. */
#define LINK_IPTABLES 16
#define LINK_IP6TABLES 256
#define LINK_PEER 32     /* as MAC_PEER */
#define LINK_OUT 64      /* the program does not run on it, packets may leave by it */
#define LINK_IN_ONLY 128 /* nothing leaves by it: others look at what does */

/* Who may send from where: the map `owners`; the value is the MAC address. */
struct owner_key {
	u32 ifindex;
	u32 family;
	u32 address[4]; /* IPv4 in the first */
};

/* Where a MAC address sits behind a bridge: the map `macs`. */
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
#define MAC_PEER 1 /* a veth whose other end is in another namespace: go right there */
#define MAC_ISOLATED 2

/* Built from whole words, see struct packet. */
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

/* A flow, one direction of a connection: the maps `flows4` and `flows6`, by the tuple as its packets arrive. Two cache lines:
 * the first is all that a bridged packet needs. The tag stands first: see is_still(). */
struct flow {
	u32 tag;       /* of its key: tag_of() */
	u32 last_seen; /* jiffies, the low 32 bits: they are only subtracted */
	u64 packets;
	u64 bytes;
	u32 checked;
	u32 acked; /* TCP: the acknowledgement that the last packet carried */
	u16 epoch; /* the low 16 bits: a flow asks again before they come round */
	u16 end;   /* TCP: the low 16 bits of the number after the last packet's data */
	u32 in_ifindex;
	u32 out_ifindex;
	u16 mtu;
	u8 action;      /* ACTION_* */
	union {
		u8 rewrite; /* REWRITE_* */
		u8 verdict; /* with ACTION_KERNEL: why */
	};
	u32 eth_in[3];  /* destination and source MAC, as they arrive */
	u16 slot;
	u8 generation; /* in which it was let through */
	u8 mark_is;    /* MARK_* */
	u32 eth_out[3]; /* as they leave */
	u16 addr_diff;  /* checksum difference of the addresses, folded */
	u16 port_diff;  /* and of the ports */
	union {
		struct {
			u16 new_sport, new_dport;
		};
		u32 new_ports;
	};
	u32 new_src[4], new_dst[4];
	u32 ct_mark; /* the bits of it that are not ours: see mark_is */
	u32 agreed;  /* TCP: the sum of both directions' `acked` when conntrack was asked last */
	u32 first_seen;
};
#define ACTION_NONE 0     /* handed back to the kernel: ask conntrack before anything else */
#define ACTION_RESET 1    /* the same, by a RST of this direction: see bpf/connections.py */
#define ACTION_KERNEL 2   /* belongs to the kernel: do not ask before `recheck` */
#define ACTION_PEER 3     /* bpf_redirect_peer */
#define ACTION_REDIRECT 4 /* bpf_redirect */
/* How far it is known that the rules saw `ct_mark`: the next steps are taken only where rules read bits that are not ours. */
#define MARK_UNKNOWN 0
#define MARK_NOTED 1   /* as found in the entry; the connection is to pass the rules once more */
#define MARK_CLEARED 2 /* the entry's record of having passed them is gone */
#define MARK_SEEN 3    /* it passed them after that, with the same mark */
#define REWRITE_L3 1      /* routed: time to live and MAC addresses */
#define REWRITE_ADDRESS 2
#define REWRITE_PORT 4
#define REWRITE_MACS 8    /* as REWRITE_L3, but it was bridged all the same: the time to live stays */

/* A flow while it is learned, and what is found out beside it: the one entry of the map `scratch`. */
struct learned {
	struct flow flow;
	struct flow back; /* the other direction; not learned with it where `mtu` is 0 */
	u32 known;        /* KNOWN_* */
	u32 pad;
};
#define KNOWN_BOTH_WAYS 1  /* the rules let the other direction through as well */
#define KNOWN_UNASSURED 2  /* answered UDP, but too young for conntrack to call it a stream */
#define KNOWN_UNANSWERED 4 /* TCP: data, and neither side acknowledged anything since conntrack was asked last */
#define KNOWN_OUTDATED 8   /* conntrack waits for an acknowledgement that it did not see */

/* A connection of which one packet with data was seen: the array `young`. */
struct young {
	u32 tag;
	u32 asked; /* jiffies */
};
#define YOUNG 8192

/* What the holder is to do for a connection: the ring buffer `wanted`. */
struct want {
	u32 what;      /* WANT_* */
	u32 family;    /* AF_* */
	u32 src[4], dst[4];
	u16 sport, dport;
	u8 l4_proto, pad[3];
};
#define WANT_LIBERAL 1   /* have conntrack neither mind nor wait for what it will not see of a TCP connection */
#define WANT_RULES 2   /* have its packets pass the rules once more: clear what says that they did */
#define WANT_CLOSE 3   /* a RST ended it: see bpf/connections.py */
#define WANT_RENEW 4   /* a RST that can't have ended it has conntrack forget it soon: see bpf/connections.py */

struct slot_counters {
	u64 packets[COUNTERS];
};
#endif
