/* SPDX-License-Identifier: GPL-2.0-only */
/* Parse a packet: each header is checked before it is used; a packet that isn't plain gets a verdict and goes to the
 * kernel. */
#ifndef VNET_PACKET_H
#define VNET_PACKET_H
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include "types.h"

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif
#define FRAGMENT_BITS 0x3fff /* more fragments, and the offset: RFC 791 */
#define INLINE static __always_inline
/* Moves code that known flows don't need out of the way, so that their instructions are contiguous. */
#define RARE(condition) __builtin_expect(!!(condition), 0)

/* The result of parsing. Wide members are written and read as a whole: a load of two smaller stores stalls the CPU. */
struct packet {
	u64 addresses; /* IPv4: source and destination, as in the header */
	u32 src[4], dst[4]; /* IPv6; IPv4 in the first, once widen()ed */
	u32 ports; /* source and destination, as in the header */
	u8 family; /* AF_* */
	u8 l4_proto;
	u8 tos;
	u8 ttl;
	u16 l4_offset;
	u16 headers; /* bytes from the start of the IP header to the payload, as on the wire */
	u8 jumbo;    /* IPv6: bytes of the hop-by-hop header of a frame of more than 64 KB */
	u32 l3_length;
	u32 seq, ack; /* TCP, in host order; 0 for UDP */
	u8 closes; /* FIN, RST or SYN: the kernel forwards this flow again */
	u8 opens;  /* SYN without FIN and RST */
	u8 ends;   /* FIN or RST that conntrack accepts: tcp_valid_flags of net/netfilter/nf_conntrack_proto_tcp.c */
	u8 resets; /* RST that conntrack accepts */
};

/* Return the folded sum of an IPv4 header without options: 0xffff if its checksum is correct (RFC 1071). */
INLINE u32 header_sum(const struct iphdr *ip)
{
	const u16 *words = (const u16 *)ip;
	u32 sum = 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Return the low bits of the sequence number after a TCP packet's data. */
INLINE u16 end_of(const struct packet *packet)
{
	return packet->seq + packet->l3_length - packet->headers - packet->jumbo;
}

/* Write IPv4 addresses in the form of IPv6, for everything that is done once per flow. */
INLINE void widen(struct packet *packet)
{
	if (packet->family != AF_INET)
		return;
	__builtin_memset(packet->src, 0, 16);
	__builtin_memset(packet->dst, 0, 16);
	packet->src[0] = packet->addresses;
	packet->dst[0] = packet->addresses >> 32;
}

#define SPORT(packet) ((u16)(packet)->ports)
#define DPORT(packet) ((u16)((packet)->ports >> 16))

/* Parse TCP or UDP; `left` is the length after the IP header. */
INLINE enum verdict parse_l4(void *l4, void *end, u32 left, u16 l3_header, struct packet *packet)
{
	if (packet->l4_proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;
		if (RARE((void *)(tcp + 1) > end))
			return V_MALFORMED;
		u32 header = tcp->doff * 4;
		if (RARE(header < sizeof(*tcp) || header > left))
			return V_MALFORMED;
		packet->ports = *(u32 *)tcp;
		packet->ack = __builtin_bswap32(tcp->ack_seq);
		packet->seq = __builtin_bswap32(tcp->seq);
		packet->headers = l3_header + header;
		packet->closes = tcp->syn | tcp->fin | tcp->rst;
		packet->opens = tcp->syn && !tcp->fin && !tcp->rst;
		packet->ends = !tcp->syn && (tcp->rst ? !tcp->fin && !tcp->urg : tcp->ack);
		packet->resets = packet->ends && tcp->rst;
		return RARE(packet->closes || !tcp->ack) ? V_TCP_FLAGS : V_FAST;
	}
	if (packet->l4_proto == IPPROTO_UDP) {
		struct udphdr *udp = l4;
		if (RARE((void *)(udp + 1) > end))
			return V_MALFORMED;
		packet->ports = *(u32 *)udp;
		packet->seq = packet->ack = 0;
		packet->headers = l3_header + sizeof(*udp);
		u32 length = __builtin_bswap16(udp->len);
		return RARE(length < sizeof(*udp) || length > left) ? V_MALFORMED : V_FAST;
	}
	return V_PROTOCOL;
}

/* Parse IPv4; `size` is the frame's length after the Ethernet header. A frame over 64 KB (BIG TCP) has 0 in the
 * header's length. */
INLINE enum verdict parse_ipv4(void *data, void *end, u32 size, bool gso, struct packet *packet)
{
	struct iphdr *ip = data;
	if (RARE((void *)(ip + 1) > end || ip->version != 4))
		return V_MALFORMED;
	if (RARE(ip->ihl != 5))
		return ip->ihl < 5 ? V_MALFORMED : V_OPTIONS;
	if (RARE(header_sum(ip) != 0xffff))
		return V_MALFORMED;
	u32 total = __builtin_bswap16(ip->tot_len);
	if (RARE(!total && gso))
		total = size;
	if (RARE(total < sizeof(*ip) || total > size))
		return V_MALFORMED;
	if (RARE(ip->frag_off & __builtin_bswap16(FRAGMENT_BITS)))
		return V_FRAGMENT;
	packet->l4_proto = ip->protocol;
	packet->tos = ip->tos;
	packet->ttl = ip->ttl;
	packet->addresses = *(u64 *)&ip->saddr;
	packet->l3_length = total;
	packet->l4_offset = ETH_HLEN + sizeof(*ip);
	return parse_l4(ip + 1, end, total - sizeof(*ip), sizeof(*ip), packet);
}

/* The hop-by-hop header of a BIG TCP frame of more than 64 KB until it is segmented (RFC 2675; struct hop_jumbo_hdr of
 * net/ipv6.h). It is never sent. */
struct jumbo {
	u8 nexthdr, header_length, type, length;
	u32 payload;
};

#define MAX_PAYLOAD 0xffff /* limit of the IPv6 header's field */

INLINE bool is_jumbo(const struct jumbo *jumbo, u32 payload)
{
	return jumbo->nexthdr == IPPROTO_TCP && !jumbo->header_length && jumbo->type == 0xc2 && jumbo->length == 4 &&
		__builtin_bswap32(jumbo->payload) == payload && payload > MAX_PAYLOAD;
}

INLINE enum verdict parse_ipv6(void *data, void *end, u32 size, bool gso, struct packet *packet)
{
	struct ipv6hdr *ip = data;
	if (RARE((void *)(ip + 1) > end || ip->version != 6))
		return V_MALFORMED;
	u32 payload = __builtin_bswap16(ip->payload_len);
	if (RARE(!payload && gso && size > MAX_PAYLOAD + sizeof(*ip)))
		payload = size - sizeof(*ip);
	if (RARE(payload + sizeof(*ip) > size))
		return V_MALFORMED;
	if (RARE(ip->nexthdr == IPPROTO_FRAGMENT))
		return V_FRAGMENT;
	u32 extra = 0;
	packet->l4_proto = ip->nexthdr;
	if (RARE(ip->nexthdr == IPPROTO_HOPOPTS && gso && !ip->payload_len)) {
		const struct jumbo *jumbo = (void *)(ip + 1);
		if ((void *)(jumbo + 1) > end || !is_jumbo(jumbo, payload))
			return V_OPTIONS;
		extra = sizeof(*jumbo);
		packet->l4_proto = jumbo->nexthdr;
	}
	if (RARE((!extra && ip->nexthdr == IPPROTO_HOPOPTS) || ip->nexthdr == IPPROTO_ROUTING ||
		 ip->nexthdr == IPPROTO_DSTOPTS))
		return V_OPTIONS;
	packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	packet->ttl = ip->hop_limit;
	__builtin_memcpy(packet->src, &ip->saddr, 16);
	__builtin_memcpy(packet->dst, &ip->daddr, 16);
	packet->l3_length = payload + sizeof(*ip);
	packet->l4_offset = ETH_HLEN + sizeof(*ip) + extra;
	packet->jumbo = extra;
	return parse_l4((void *)(ip + 1) + extra, end, payload - extra, sizeof(*ip), packet);
}
#endif
