/* SPDX-License-Identifier: GPL-2.0-only */
/* Rewrite a packet as its flow says, with checksum differences that were computed when the flow was learned. */
#ifndef VNET_REWRITE_H
#define VNET_REWRITE_H
#include "packet.h"

/* net/ipv4/route.c, ip_tos2prio: the kernel sets this priority on forwarded packets, four bits for each of TOS 0, 2, 4
 * ... */
#define TOS_PRIORITIES 0x4444666622220000ULL

/* Since Linux 6.16 (and in stable series) the helper needs this flag; older kernels refuse it. */
#define BPF_F_IPV6_IF_KNOWN (HAVE_BPF_F_IPV6 << 7)

INLINE u16 fold(u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Return the checksum of a header whose words changed by `difference` (RFC 1624). */
INLINE u16 adjusted(u16 check, u32 difference)
{
	u32 sum = (u16)~check;
	sum += (difference & 0xffff) + (difference >> 16);
	return ~fold(sum);
}

INLINE void rewrite_ipv4(struct iphdr *ip, const struct flow *flow)
{
	u16 check = ip->check;
	if (flow->rewrite & REWRITE_ADDRESS) {
		ip->saddr = flow->new_src[0];
		ip->daddr = flow->new_dst[0];
		check = adjusted(check, flow->addr_diff);
	}
	if (flow->rewrite & REWRITE_L3) {
		ip->ttl--;
		u32 sum = check + 1U; /* TTL is the high byte of its word: net/ipv4, ip_decrease_ttl() */
		check = sum + (sum >= 0xffff);
	}
	ip->check = check;
}

/* Copy eight bytes at a time: the compiler would copy the four-byte members of the kernel's structures one by one. */
typedef u64 __attribute__((may_alias)) half;
INLINE void copy_address6(void *to, const void *from)
{
	((half *)to)[0] = ((const half *)from)[0];
	((half *)to)[1] = ((const half *)from)[1];
}

INLINE void rewrite_ipv6(struct ipv6hdr *ip, const struct flow *flow)
{
	if (flow->rewrite & REWRITE_ADDRESS) {
		copy_address6(&ip->saddr, flow->new_src);
		copy_address6(&ip->daddr, flow->new_dst);
	}
	if (flow->rewrite & REWRITE_L3)
		ip->hop_limit--;
}

/* Update the transport checksum, last, as its helpers invalidate packet pointers. They handle checksums that the NIC
 * completes; only addresses belong to the pseudo header. */
INLINE void fix_l4(struct __sk_buff *skb, const struct packet *packet, u32 addr_diff, u32 port_diff, u8 rewrite)
{
	bool tcp = packet->l4_proto == IPPROTO_TCP;
	u32 offset = packet->l4_offset + (tcp ? __builtin_offsetof(struct tcphdr, check) : __builtin_offsetof(struct udphdr, check));
	u64 flags = tcp ? 0 : BPF_F_MARK_MANGLED_0;
	u64 family = packet->family == AF_INET6 ? BPF_F_IPV6_IF_KNOWN : 0;
	if (rewrite & REWRITE_ADDRESS)
		bpf_l4_csum_replace(skb, offset, 0, addr_diff, flags | BPF_F_PSEUDO_HDR | family);
	if (rewrite & REWRITE_PORT)
		bpf_l4_csum_replace(skb, offset, 0, port_diff, flags);
}
#endif
