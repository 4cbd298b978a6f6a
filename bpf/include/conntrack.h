/* SPDX-License-Identifier: GPL-2.0-only */
/* Ask the kernel's connection tracking. Offsets into its structures (NF_CONN_*) come from the running kernel's BTF. Its
 * functions are compiled as calls of invented helper numbers, which are replaced before the program is loaded: see
 * bpf/build.py. */
#ifndef VNET_CONNTRACK_H
#define VNET_CONNTRACK_H
#include "packet.h"

/* include/uapi/linux/netfilter/nf_conntrack_common.h */
#define IPS_SEEN_REPLY (1 << 1)
#define IPS_ASSURED (1 << 2)
#define IPS_CONFIRMED (1 << 3)
#define IPS_SEQ_ADJUST (1 << 6)
#define IPS_DYING (1 << 9)
#define IPS_FIXED_TIMEOUT (1 << 10)
#define IPS_UNTRACKED (1 << 12)
#define IPS_HELPER (1 << 13)
#define IPS_OFFLOAD (1 << 14)
#define IP_CT_TCP_FLAG_BE_LIBERAL 8
#define IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED 16
#define TCP_CONNTRACK_ESTABLISHED 3

/* struct bpf_ct_opts of net/netfilter/nf_conntrack_bpf.c in its first form (12 bytes), which all kernels accept. */
struct ct_options {
	s32 netns_id;
	s32 error;
	u8 l4_proto;
	u8 direction;
	u8 reserved[2];
};

struct nf_conn;
static struct nf_conn *(*ct_lookup)(struct __sk_buff *, struct bpf_sock_tuple *, u32, struct ct_options *, u32) =
	(void *)KFUNC_bpf_skb_ct_lookup;
static void (*ct_release)(struct nf_conn *) = (void *)KFUNC_bpf_ct_release;
static int (*ct_change_timeout)(struct nf_conn *, u32) = (void *)KFUNC_bpf_ct_change_timeout;

#define CT_U8(ct, offset) (*(volatile u8 *)((void *)(ct) + (offset)))
#define CT_U16(ct, offset) (*(volatile u16 *)((void *)(ct) + (offset)))
#define CT_U32(ct, offset) (*(volatile u32 *)((void *)(ct) + (offset)))
#define CT_TUPLE(direction) (NF_CONN_TUPLEHASH + (direction) * TUPLE_HASH_SIZE + TUPLE_HASH_TUPLE)

/* Read the addresses and ports that a packet has when it leaves; `tuple` is that of the other direction. */
INLINE void ct_translation(struct nf_conn *ct, u32 tuple, struct flow *flow)
{
	flow->new_src[0] = CT_U32(ct, tuple + TUPLE_DST);
	flow->new_dst[0] = CT_U32(ct, tuple + TUPLE_SRC);
	flow->new_sport = CT_U16(ct, tuple + TUPLE_DPORT);
	flow->new_dport = CT_U16(ct, tuple + TUPLE_SPORT);
}

INLINE void ct_translation6(struct nf_conn *ct, u32 tuple, struct flow *flow)
{
#pragma unroll
	for (int i = 1; i < 4; i++) {
		flow->new_src[i] = CT_U32(ct, tuple + TUPLE_DST + 4 * i);
		flow->new_dst[i] = CT_U32(ct, tuple + TUPLE_SRC + 4 * i);
	}
}

/* Return whether a connection has a helper (that of an expectation has no IPS_HELPER) or a timeout policy. */
INLINE bool has_extension(struct nf_conn *ct)
{
	void *extensions = *(void *volatile *)((void *)ct + NF_CONN_EXT);
	return extensions && (CT_U8(extensions, NF_CT_EXT_HELPER) || CT_U8(extensions, NF_CT_EXT_TIMEOUT));
}

/* Check whether conntrack accepts a TCP connection that it doesn't see the middle of. If it still waits for an
 * acknowledgement that the fast path forwarded, it would give a silent connection only
 * nf_conntrack_tcp_timeout_unacknowledged. */
INLINE enum verdict ct_check_tcp(struct nf_conn *ct, struct learned *learned)
{
	u8 one = CT_U8(ct, NF_CONN_TCP_FLAGS), other = CT_U8(ct, NF_CONN_TCP_FLAGS + TCP_SEEN_SIZE);
	if (!(one & other & IP_CT_TCP_FLAG_BE_LIBERAL))
		return V_YOUNG;
	if ((one | other) & IP_CT_TCP_FLAG_DATA_UNACKNOWLEDGED && !(learned->known & KNOWN_UNANSWERED))
		learned->known |= KNOWN_OUTDATED;
	return V_FAST;
}

/* Check whether an entry may be forwarded: confirmed, assured, open, plain, and accepted in this direction by the rules
 * of the current generation. UDP is assured only after two seconds: a reply is enough here, but see relearn(). */
INLINE enum verdict ct_check(
	struct nf_conn *ct, u32 direction, u8 l4_proto, const struct config *config, struct learned *learned
)
{
	u32 status = CT_U32(ct, NF_CONN_STATUS);
	u32 mark = CT_U32(ct, NF_CONN_MARK), marks = mark >> config->mark_shift;
	u8 generation = learned->flow.generation;
	if (!(status & IPS_CONFIRMED) || status & (IPS_DYING | IPS_UNTRACKED))
		return V_NO_CONNTRACK;
	if (!(status & IPS_ASSURED)) {
		if (l4_proto == IPPROTO_TCP || !(status & IPS_SEEN_REPLY))
			return V_NOT_ASSURED;
		learned->known |= KNOWN_UNASSURED;
	}
	if (status & (IPS_SEQ_ADJUST | IPS_HELPER | IPS_FIXED_TIMEOUT | IPS_OFFLOAD) || has_extension(ct))
		return V_HELPER;
	if (l4_proto == IPPROTO_TCP && CT_U8(ct, NF_CONN_TCP_STATE) != TCP_CONNTRACK_ESTABLISHED)
		return V_CLOSING;
	if ((marks >> (4 * direction) & 15) != generation)
		return V_GENERATION;
	learned->flow.ct_mark = mark & ~(0xff << config->mark_shift);
	if ((marks >> (4 - 4 * direction) & 15) == generation)
		learned->known |= KNOWN_BOTH_WAYS;
	return l4_proto == IPPROTO_TCP ? ct_check_tcp(ct, learned) : V_FAST;
}

/* Find the entry of a packet after widen(), or NULL; the caller releases it. `options` returns the direction. */
INLINE struct nf_conn *ct_find(struct __sk_buff *skb, const struct packet *packet, struct ct_options *options)
{
	struct bpf_sock_tuple tuple = {};
	if (packet->family == AF_INET6) {
		__builtin_memcpy(tuple.ipv6.saddr, packet->src, 16);
		__builtin_memcpy(tuple.ipv6.daddr, packet->dst, 16);
		tuple.ipv6.sport = SPORT(packet);
		tuple.ipv6.dport = DPORT(packet);
		return ct_lookup(skb, &tuple, sizeof(tuple.ipv6), options, sizeof(*options));
	}
	tuple.ipv4.saddr = packet->src[0];
	tuple.ipv4.daddr = packet->dst[0];
	tuple.ipv4.sport = SPORT(packet);
	tuple.ipv4.dport = DPORT(packet);
	return ct_lookup(skb, &tuple, sizeof(tuple.ipv4), options, sizeof(*options));
}

/* Return whether conntrack still has the connection of a packet. */
INLINE bool ct_knows(struct __sk_buff *skb, const struct packet *packet)
{
	struct ct_options options = {.netns_id = -1, .l4_proto = packet->l4_proto};
	struct nf_conn *ct = ct_find(skb, packet, &options);
	if (ct)
		ct_release(ct);
	return ct;
}

/* Return conntrack's verdict on a packet. If it is FAST, `learned` has the translation and the entry's timer is
 * renewed. */
INLINE enum verdict ask_conntrack(
	struct __sk_buff *skb, const struct packet *packet, const struct config *config, struct learned *learned
)
{
	struct flow *flow = &learned->flow;
	struct ct_options options = {.netns_id = -1, .l4_proto = packet->l4_proto};
	bool ipv6 = packet->family == AF_INET6;
	struct nf_conn *ct = ct_find(skb, packet, &options);
	if (!ct)
		return V_NO_CONNTRACK;
	u32 reply = options.direction & 1;
	enum verdict verdict = ct_check(ct, reply, packet->l4_proto, config, learned);
	/* A register that may hold one of two offsets can't address a kernel structure: use a branch for each. */
	if (reply)
		ct_translation(ct, CT_TUPLE(0), flow);
	else
		ct_translation(ct, CT_TUPLE(1), flow);
	if (ipv6) {
		if (reply)
			ct_translation6(ct, CT_TUPLE(0), flow);
		else
			ct_translation6(ct, CT_TUPLE(1), flow);
	}
	if (verdict == V_FAST && !(learned->known & KNOWN_UNASSURED))
		ct_change_timeout(ct, packet->l4_proto != IPPROTO_TCP         ? config->udp_timeout
				      : learned->known & KNOWN_UNANSWERED ? config->tcp_unanswered
									  : config->tcp_timeout);
	ct_release(ct);
	return verdict;
}
#endif
