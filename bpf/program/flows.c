/* SPDX-License-Identifier: GPL-2.0-only */
/* Compare packets with known flows, and count them. */

#define TO_KERNEL (-1) /* TCX_NEXT and TC_ACT_UNSPEC */

/* Return the length of the largest packet of a frame on the wire, from the IP header on. */
INLINE u32 wire_length(struct __sk_buff *skb, const struct packet *packet)
{
	return skb->gso_size ? skb->gso_size + packet->headers : packet->l3_length;
}

/* Return whether everything read from a flow, or what else is stored about it, belongs to this packet's flow: if the
 * cache is full, the kernel may reuse the memory of an entry at any moment. It writes the new one from its start, the tag
 * first, so the tag is read last. */
INLINE bool is_same_flow(const void *entry, const struct packet *packet)
{
	asm volatile("" ::: "memory");
	return *(const volatile u32 *)entry == tag_of(packet);
}

INLINE u32 slot_of(u32 ifindex)
{
	struct link *link = links.lookup(&ifindex);
	return link ? link->slot : 0;
}

/* Return whether a frame has the MAC addresses of the flow's. */
INLINE bool has_same_macs(const struct flow *flow, const u32 *eth)
{
	return !((flow->eth_in[0] ^ eth[0]) | (flow->eth_in[1] ^ eth[1]) | (flow->eth_in[2] ^ eth[2]));
}

/* Return whether a frame of this link is from the flow's, with its MAC addresses. */
INLINE bool has_same_source(const struct flow *flow, u32 ifindex, const u32 *eth)
{
	return flow->in_ifindex == ifindex && has_same_macs(flow, eth);
}

/* Return whether a flow is valid for this frame. No flow has generation 0, a pause. */
INLINE bool is_valid(
	const struct flow *flow, u32 ifindex, const struct config *config, const u32 *eth, u32 now
)
{
	return flow->epoch == (u16)config->epoch && flow->generation == config->generation &&
		now - flow->checked < config->recheck && flow->action >= ACTION_KERNEL && has_same_source(flow, ifindex, eth);
}

/* Compare with the MTU. When routing, the kernel counts the jumbo header, which is never sent
 * (skb_gso_validate_network_len). */
INLINE bool is_too_large(struct __sk_buff *skb, const struct packet *packet, const struct flow *flow)
{
	u32 length = wire_length(skb, packet);
	if (RARE(packet->jumbo) && flow->rewrite & REWRITE_L3)
		length += packet->jumbo;
	return length > flow->mtu;
}

INLINE bool is_ttl_expired(const struct packet *packet, const struct flow *flow)
{
	return flow->rewrite & REWRITE_L3 && packet->ttl <= 1;
}

/* Store what a TCP packet acknowledges, and where its data ends. */
INLINE void note_tcp_numbers(struct flow *flow, const struct packet *packet)
{
	flow->acked = packet->ack;
	flow->end = end_of(packet);
}

INLINE void count_packet(struct flow *flow, const struct packet *packet, u32 now)
{
	flow->last_seen = now;
	note_tcp_numbers(flow, packet);
	lock_xadd(&flow->packets, 1);
	lock_xadd(&flow->bytes, packet->l3_length);
}

/* Store the numbers of packets that the kernel forwards, too. */
INLINE void note_kernel_packet(struct flow *flow, struct __sk_buff *skb, const struct packet *packet, const u32 *eth)
{
	if (flow && has_same_source(flow, skb->ifindex, eth))
		note_tcp_numbers(flow, packet);
}
