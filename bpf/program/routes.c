/* SPDX-License-Identifier: GPL-2.0-only */
/* Find the egress of a packet: by the bridge, or by the routes. */

INLINE void fill_fib(struct bpf_fib_lookup *fib, const struct packet *packet, u32 ifindex)
{
	fib->family = packet->family;
	fib->l4_protocol = packet->l4_proto;
	fib->sport = SPORT(packet);
	fib->dport = DPORT(packet);
	fib->ifindex = ifindex;
	fib->tot_len = 1; /* returns the route's MTU; never too long for it */
	if (packet->family == AF_INET)
		fib->tos = packet->tos & 0x1c;
	else
		fib->flowinfo = 0;
	__builtin_memcpy(fib->ipv6_src, packet->src, 16);
	__builtin_memcpy(fib->ipv6_dst, packet->dst, 16);
}

INLINE enum verdict fib_verdict(long found)
{
	switch (found) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		return V_FAST;
	case BPF_FIB_LKUP_RET_NOT_FWDED: /* a local address, or no route at all: not distinguished */
		return V_LOCAL;
	case BPF_FIB_LKUP_RET_BLACKHOLE:
		return V_BLACKHOLE;
	case BPF_FIB_LKUP_RET_UNREACHABLE:
		return V_UNREACHABLE;
	case BPF_FIB_LKUP_RET_PROHIBIT:
		return V_PROHIBIT;
	case BPF_FIB_LKUP_RET_FWD_DISABLED:
		return V_FORWARDING_OFF;
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
		return V_TUNNEL;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return V_NO_NEIGHBOUR;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return V_MTU;
	default:
		return V_NO_ROUTE;
	}
}

/* Set the egress to the port of `bridge` that has this MAC address. */
INLINE bool set_port(struct flow *flow, u32 bridge, const u8 *mac, const struct link *from, bool *isolated)
{
	struct mac_key key = {.bridge = bridge};
	__builtin_memcpy(key.mac, mac, ETH_ALEN);
	struct mac_value *to = macs.lookup(&key);
	if (!to)
		return false;
	flow->out_ifindex = to->ifindex;
	flow->action = to->flags & MAC_PEER ? ACTION_PEER : to->flags & MAC_TUNNEL ? ACTION_TUNNEL : ACTION_REDIRECT;
	if (!flow->mtu || to->mtu < flow->mtu)
		flow->mtu = to->mtu;
	*isolated = from->flags & LINK_ISOLATED && to->flags & MAC_ISOLATED;
	return true;
}

/* Return whether the translation changes the destination's address. */
INLINE bool is_destination_translated(const struct packet *packet, const struct flow *flow)
{
	u32 moved = flow->new_dst[0] ^ packet->dst[0];
	if (packet->family == AF_INET6)
		moved |= (flow->new_dst[1] ^ packet->dst[1]) | (flow->new_dst[2] ^ packet->dst[2]) |
			(flow->new_dst[3] ^ packet->dst[3]);
	return moved;
}

/* Return whether br_netfilter passes this family's bridged packets to iptables. */
INLINE bool passes_iptables(const struct link *link, const struct packet *packet)
{
	return link->flags & (packet->family == AF_INET ? LINK_IPTABLES : LINK_IP6TABLES);
}

/* Find the egress of a frame that the bridge would forward. */
INLINE enum verdict find_bridged(
	struct __sk_buff *skb, const struct packet *packet, const struct link *link, const u32 *eth, struct flow *flow
)
{
	if (is_destination_translated(packet, flow))
		return V_BRIDGED_DNAT;
	bool isolated = false;
	flow->mtu = 0;
	if (!set_port(flow, link->l3_ifindex, (const u8 *)eth, link, &isolated) || flow->out_ifindex == skb->ifindex)
		return V_NO_PORT;
	if (isolated)
		return V_ISOLATED;
	__builtin_memcpy(flow->eth_out, eth, 12);
	return V_FAST;
}

/* Return the MTU of a route. For IPv4 the lookup returns only the link's, while the kernel uses the route's as well. */
INLINE u16 route_mtu(const struct bpf_fib_lookup *fib, const struct config *config)
{
	u32 mtu = fib->mtu_result;
	return config->route_mtu && config->route_mtu < mtu ? config->route_mtu : mtu;
}

/* Return whether the host would route replies to the link that the packet entered by. If they go to the neighbour that
 * sent it, the other direction may be learned as well. */
INLINE bool is_reverse_path(
	struct __sk_buff *skb, const struct packet *packet, const struct link *link, const struct config *config, u32 out_l3,
	const u32 *eth, struct learned *learned
)
{
	struct flow *flow = &learned->flow;
	struct bpf_fib_lookup fib = {};
	fill_fib(&fib, packet, out_l3);
	__builtin_memcpy(fib.ipv6_src, flow->new_dst, 16);
	__builtin_memcpy(fib.ipv6_dst, packet->src, 16);
	fib.sport = flow->new_dport;
	fib.dport = SPORT(packet);
	long found = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	u64 sender = 0, hop = 0;
	__builtin_memcpy(&sender, (const u8 *)eth + ETH_ALEN, ETH_ALEN);
	__builtin_memcpy(&hop, fib.dmac, ETH_ALEN);
	if (found == BPF_FIB_LKUP_RET_SUCCESS && sender == hop && !(link->flags & LINK_CONTAINER))
		learned->back.mtu = route_mtu(&fib, config);
	return (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH) &&
		fib.ifindex == link->l3_ifindex;
}

/* Find the egress of a packet that the host would route: by its translated destination and its original source. `asked`
 * is conntrack's verdict: if it is GENERATION, it is returned unless the packet is for the host itself. */
INLINE enum verdict find_routed(
	struct __sk_buff *skb, const struct packet *packet, const struct link *link, const struct config *config,
	const u32 *eth, struct learned *learned, enum verdict asked
)
{
	struct flow *flow = &learned->flow;
	struct bpf_fib_lookup fib = {};
	bool isolated = false;
	if (config->flags & ROUTES_BY_PACKET)
		return V_MULTIPATH;
	fill_fib(&fib, packet, link->l3_ifindex);
	__builtin_memcpy(fib.ipv6_dst, flow->new_dst, 16);
	fib.dport = flow->new_dport;
	enum verdict verdict = fib_verdict(bpf_fib_lookup(skb, &fib, sizeof(fib), 0));
	if (asked != V_FAST && verdict != V_LOCAL)
		return asked;
	if (verdict != V_FAST)
		return verdict;
	flow->mtu = route_mtu(&fib, config);
	__builtin_memcpy(flow->eth_out, fib.dmac, ETH_ALEN);
	/* br_netfilter translates before the bridge decides: a packet that leaves by the bridge it entered is still
	 * bridged, see br_nf_pre_routing_finish(). */
	if (passes_iptables(link, packet) && fib.ifindex == link->l3_ifindex && is_destination_translated(packet, flow)) {
		__builtin_memcpy((u8 *)flow->eth_out + ETH_ALEN, (const u8 *)eth + ETH_ALEN, ETH_ALEN);
		flow->rewrite |= REWRITE_MACS;
	} else {
		__builtin_memcpy((u8 *)flow->eth_out + ETH_ALEN, fib.smac, ETH_ALEN);
		flow->rewrite |= REWRITE_L3;
	}
	if (!set_port(flow, fib.ifindex, fib.dmac, link, &isolated)) {
		/* A packet from outside is for an accelerated container, or the kernel forwards it. */
		if (!(link->flags & LINK_CONTAINER))
			return V_NO_PORT;
		u32 out = fib.ifindex;
		struct link *to = links.lookup(&out);
		if (!to || to->flags & LINK_IN_ONLY)
			return V_WAY_OUT;
		if (config->flags & HAS_MULTIPATH)
			return V_MULTIPATH;
		flow->out_ifindex = fib.ifindex;
		flow->action = ACTION_REDIRECT;
	}
	if (flow->rewrite & REWRITE_MACS) {
		if (isolated)
			return V_ISOLATED;
		if (flow->out_ifindex == skb->ifindex) /* depends on the port's hairpin mode */
			return V_BRIDGED_DNAT;
	}
	if (!is_reverse_path(skb, packet, link, config, fib.ifindex, eth, learned))
		return V_REVERSE_PATH;
	return V_FAST;
}
