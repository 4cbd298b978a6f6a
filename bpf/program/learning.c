/* SPDX-License-Identifier: GPL-2.0-only */
/* Learn a flow: check the sender, ask conntrack, find the egress; and learn the other direction with it.
 *
 * A flow depends on the following. Either each packet is compared with it, or each change raises the epoch (all flows
 * are learned again) or begins a generation (all connections pass the rules again, and all flows are learned again).
 *
 *    each packet      addresses, ports, protocol: the key of the map
 *                     the link that it enters by, and both MAC addresses: has_same_source()
 *                     its size and time to live: is_too_large(), is_ttl_expired()
 *                     the lease, `recheck`, the epoch: decide(), is_valid()
 *    learning         the conntrack entry: zone 0, confirmed, answered, open, not offloaded, no helper or policy: ct_check()
 *                     its tuples, which define the translation
 *                     its mark: this direction's 4 bits are the generation; the others, if rules match them, are unchanged
 *    epoch            the egress: route, link, neighbour, port of the bridge, MTU
 *                     the reverse path: is_reverse_path()
 *                     addresses that are captured
 *    generation       the rules, and the elements of sets that they look up
 *                     names, groups and masters of links; routes, routing rules, forwarding, rp_filter: bpf/hostwatch.py
 *                     addresses and MAC addresses of containers, and their ports: bpf/reconcile.py
 *
 * Frames that a bridge forwards without any rule (LINK_L2) depend on each packet and the epoch only. */

INLINE bool is_captured(const struct packet *packet)
{
	struct owner_key key = {.family = packet->family};
	__builtin_memcpy(key.address, packet->src, 16);
	if (captured.lookup(&key))
		return true;
	__builtin_memcpy(key.address, packet->dst, 16);
	return captured.lookup(&key);
}

/* Return whether the container on that port may send from this address and this MAC. */
INLINE bool is_own_source(struct __sk_buff *skb, const struct packet *packet, const u32 *eth)
{
	struct owner_key key = {.ifindex = skb->ifindex, .family = packet->family};
	__builtin_memcpy(key.address, packet->src, 16);
	u64 *mac = owners.lookup(&key);
	u64 source = 0;
	if (!mac)
		return false;
	__builtin_memcpy(&source, (const u8 *)eth + ETH_ALEN, ETH_ALEN);
	return *mac == source;
}

/* Compute what rewriting changes, as checksum differences (RFC 1624). */
INLINE void find_differences(const struct packet *packet, struct flow *flow)
{
	u32 old[8], new[8];
	u32 changed = 0;
	__builtin_memcpy(old, packet->src, 16);
	__builtin_memcpy(old + 4, packet->dst, 16);
	__builtin_memcpy(new, flow->new_src, 16);
	__builtin_memcpy(new + 4, flow->new_dst, 16);
#pragma unroll
	for (int i = 0; i < 8; i++)
		changed |= old[i] ^ new[i];
	if (changed) {
		flow->rewrite |= REWRITE_ADDRESS;
		flow->addr_diff = fold(bpf_csum_diff(old, sizeof(old), new, sizeof(new), 0));
	}
	old[0] = packet->ports;
	new[0] = flow->new_ports;
	if (old[0] != new[0]) {
		flow->rewrite |= REWRITE_PORT;
		flow->port_diff = fold(bpf_csum_diff(old, 4, new, 4, 0));
	}
}

/* Collect everything about a new flow; any verdict except FAST leaves the packet to the kernel. The sender was checked
 * before. */
INLINE enum verdict learn(
	struct __sk_buff *skb, const struct packet *packet, const struct config *config, const struct link *link,
	const u32 *eth, struct learned *learned
)
{
	struct flow *flow = &learned->flow;
	bool routed = !__builtin_memcmp(eth, link->mac, ETH_ALEN);
	enum verdict asked = V_FAST;
	if (!routed && !(link->flags & LINK_BRIDGED))
		return V_OTHER_HOST;
	if (!routed && link->flags & LINK_L2) {
		__builtin_memcpy(flow->new_src, packet->src, 16);
		__builtin_memcpy(flow->new_dst, packet->dst, 16);
		flow->new_ports = packet->ports;
		learned->known |= KNOWN_BOTH_WAYS;
	} else {
		if (!routed && !passes_iptables(link, packet))
			return V_OTHER_HOST;
		asked = ask_conntrack(skb, packet, config, learned);
		/* Packets for the host itself, for example its proxy of published ports, pass no rule that marks them. */
		if (asked != V_FAST && !(asked == V_GENERATION && routed))
			return asked;
	}
	enum verdict verdict = routed ? find_routed(skb, packet, link, config, eth, learned, asked)
				      : find_bridged(skb, packet, link, eth, flow);
	if (verdict == V_FAST)
		find_differences(packet, flow);
	return verdict;
}

/* Return whether conntrack tracks packets with these MAC addresses: not frames that a bridge forwards without rules. */
INLINE bool is_tracked(const struct link *link, const u32 *eth)
{
	return !(link->flags & LINK_L2) || !__builtin_memcmp(eth, link->mac, ETH_ALEN);
}

/* Return whether the flow's next packet would get the same verdict, which is then stored, so that it isn't computed
 * again. Only for connections: a container can send frames with any addresses, and would fill the cache. */
INLINE bool is_lasting(enum verdict verdict)
{
	return verdict == V_LOCAL || verdict == V_REVERSE_PATH || verdict == V_NO_PORT || verdict == V_HELPER ||
		verdict == V_ISOLATED || verdict == V_TUNNEL || verdict == V_MULTIPATH || verdict == V_WAY_OUT;
}

/* Swap the MAC addresses, for a frame of the other direction. */
INLINE void swap_macs(u32 *to, const u32 *from)
{
	to[0] = from[1] >> 16 | from[2] << 16;
	to[1] = from[2] >> 16 | from[0] << 16;
	to[2] = from[0] >> 16 | from[1] << 16;
}

/* Learn the other direction of a flow, if the rules accept it and it enters as expected. */
INLINE void learn_reverse(
	const struct packet *packet, const struct link *link, struct learned *learned
)
{
	const struct flow *flow = &learned->flow;
	struct flow *back = &learned->back;
	u32 in = flow->out_ifindex;
	struct packet answer = {.family = packet->family, .l4_proto = packet->l4_proto};
	struct link *from = links.lookup(&in);
	if (!from || from->flags & LINK_OUT || link->flags & LINK_IN_ONLY || !back->mtu)
		return;
	if (from->flags & LINK_CONTAINER) {
		struct owner_key key = {.ifindex = in, .family = packet->family};
		__builtin_memcpy(key.address, flow->new_dst, 16);
		if (!owners.lookup(&key))
			return;
	}
	swap_macs(back->eth_in, flow->eth_out);
	swap_macs(back->eth_out, flow->eth_in);
	back->in_ifindex = in;
	back->out_ifindex = link->flags & LINK_CONTAINER ? flow->in_ifindex : link->l3_ifindex;
	back->slot = from->slot;
	back->generation = flow->generation;
	back->ct_mark = flow->ct_mark;
	back->mark_is = flow->mark_is;
	back->acked = packet->seq;
	back->end = packet->ack;
	back->epoch = flow->epoch;
	back->checked = flow->checked;
	back->first_seen = flow->checked;
	back->last_seen = flow->checked - 1; /* no packet yet */
	back->action = link->flags & LINK_PEER ? ACTION_PEER : ACTION_REDIRECT;
	back->rewrite = flow->rewrite;
	back->addr_diff = ~flow->addr_diff;
	back->port_diff = ~flow->port_diff;
	__builtin_memcpy(back->new_src, packet->dst, 16);
	__builtin_memcpy(back->new_dst, packet->src, 16);
	back->new_ports = packet->ports >> 16 | packet->ports << 16;
	__builtin_memcpy(answer.src, flow->new_dst, 16);
	__builtin_memcpy(answer.dst, flow->new_src, 16);
	answer.addresses = flow->new_dst[0] | (u64)flow->new_src[0] << 32;
	answer.ports = flow->new_ports >> 16 | flow->new_ports << 16;
	back->tag = tag_of(&answer);
	if (packet->family == AF_INET) {
		struct key4 key = key4_of(&answer);
		flows4.insert(&key, back);
	} else {
		struct key6 key = key6_of(&answer);
		flows6.insert(&key, back);
	}
}

/* Return whether a TCP connection has unacknowledged data: the kernel gives it a shorter timeout. It is alive if either
 * side acknowledged something since conntrack was asked last (`agreed`), if it has no data under way, as in a
 * keepalive, or if it is new. The other direction is checked again at its next packet. */
INLINE bool is_unanswered(
	const struct packet *packet, const struct config *config, const struct flow *old, struct flow *flow
)
{
	struct flow *other;
	if (packet->l4_proto != IPPROTO_TCP || !old || old->action < ACTION_PEER)
		return false;
	other = find_reverse(packet, old);
	if (!other)
		return false;
	flow->agreed = packet->ack + other->acked;
	bool has_data = packet->l3_length > packet->headers || (s32)(packet->seq - other->acked) > 0;
	if (!has_data || flow->agreed != old->agreed)
		return false;
	other->epoch = config->epoch - 1;
	return true;
}

/* Return whether the rules saw the current mark of a connection's entry. They did if it is the same as before they
 * accepted the connection: it is stored, our bits of the mark are cleared, and the connection passes the rules once
 * more. */
INLINE bool is_mark_seen(const struct config *config, const struct flow *old, const struct flow *flow)
{
	return !(config->flags & READS_CT_MARKS) ||
		(old && old->mark_is >= MARK_CLEARED && old->ct_mark == flow->ct_mark);
}

/* Learn a flow again, and store the result; `old` is the known flow, or NULL:
 *
 *   returned                       `old` becomes
 *   CACHE_FULL, OTHER_HOST         unchanged: an unauthorized sender must not change another's flow
 *   a verdict that lasts           a flow with that verdict (ACTION_KERNEL) and the same counters
 *   any other verdict              released (ACTION_NONE): the next packet asks again; for YOUNG, conntrack is made liberal
 *   GENERATION, if the rules       released with the mark stored; the connection has to pass the rules once more
 *     didn't see the ct mark
 *   ROUTE_CHANGED                  released: the kernel first decides about the translation
 *   FAST                           the new flow with the same counters; the other direction is learned if unknown
 *   NOT_ASSURED of a flow that     as with FAST, but the kernel sees this packet, so that a young UDP flow becomes
 *     was FAST                       assured
 *
 * store() may give the memory of `old` to other flows: it isn't read afterwards. */
INLINE enum verdict relearn(
	struct __sk_buff *skb, const struct packet *packet, const struct config *config, const struct link *link,
	const u32 *eth, struct flow *old, u32 generation, u32 now
)
{
	u32 zero = 0;
	struct learned *learned = scratch.lookup(&zero);
	if (!learned)
		return V_CACHE_FULL;
	struct flow *flow = &learned->flow;
	bool was_fast = old && old->action >= ACTION_PEER;
	__builtin_memset(learned, 0, sizeof(*learned));
	__builtin_memcpy(flow->eth_in, eth, 12);
	flow->tag = tag_of(packet);
	flow->in_ifindex = skb->ifindex;
	flow->slot = link->slot;
	flow->epoch = config->epoch;
	flow->generation = generation;
	flow->acked = packet->ack;
	flow->end = end_of(packet);
	learned->known = is_unanswered(packet, config, old, flow) ? KNOWN_UNANSWERED : 0;
	learned->back.mtu = link->mtu;
	flow->checked = now;
	flow->first_seen = now;
	flow->last_seen = now;
	enum verdict verdict = learn(skb, packet, config, link, eth, learned);
	if (verdict == V_YOUNG || learned->known & KNOWN_OUTDATED)
		want(WANT_LIBERAL, packet);
	if (old && verdict == V_OTHER_HOST)
		return verdict;
	if (verdict != V_FAST) {
		if (old) {
			old->action = ACTION_NONE;
			if (verdict == V_GENERATION && old->mark_is == MARK_NOTED)
				old->mark_is = MARK_CLEARED;
		}
		if (!is_lasting(verdict) || !is_tracked(link, eth))
			return verdict;
		flow->action = ACTION_KERNEL;
		flow->verdict = verdict;
	}
	flow->mark_is = MARK_SEEN;
	if (verdict == V_FAST && is_tracked(link, eth) && !is_mark_seen(config, old, flow)) {
		want(WANT_RULES, packet);
		flow->action = ACTION_NONE;
		flow->mark_is = MARK_NOTED;
		verdict = V_GENERATION;
	}
	if (old) {
		if (verdict == V_FAST && was_fast && old->rewrite & REWRITE_ADDRESS &&
		    old->out_ifindex != flow->out_ifindex) {
			old->action = ACTION_NONE;
			return V_ROUTE_CHANGED;
		}
		flow->packets = old->packets;
		flow->bytes = old->bytes;
		flow->first_seen = old->first_seen;
		flow->last_seen = old->last_seen;
	}
	store(packet, flow);
	if (verdict == V_FAST && learned->known & KNOWN_BOTH_WAYS && !(flow->rewrite & REWRITE_MACS))
		learn_reverse(packet, link, learned);
	if (verdict == V_FAST && learned->known & KNOWN_UNASSURED && was_fast)
		return V_NOT_ASSURED;
	return verdict;
}
