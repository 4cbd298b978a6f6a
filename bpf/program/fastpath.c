/* SPDX-License-Identifier: GPL-2.0-only */
/* The fast path, at TC ingress of containers' links and of uplinks. Conntrack is the authority, the flow maps are a cache of
 * what it said; what is not found there, not plain, or not allowed goes to the kernel unchanged, with a counted reason. */

#define TO_KERNEL (-1) /* TCX_NEXT and TC_ACT_UNSPEC */

#define ENDS_BEFORE (1U << 16) /* bytes: repeated, or late */
#define ENDS_AFTER (1U << 20)  /* bytes under way */
#define BEGIN_MOST 1024      /* flows without conntrack that a link may begin within `recheck` */
#define YOUNG_PART 128       /* of the table: what a container has of its half */
#define YOUNG_PARTS (YOUNG / 2 / YOUNG_PART)
#define JUST_ASKED 1 /* jiffies: no time for conntrack to forget, so that short connections need not ask */
#define HOP_LIMIT_DIFFERENCE 0xfeff /* one less in the low byte of a word, in network order */
static s64 (*csum_update)(void *, u32) = (void *)BPF_FUNC_csum_update; /* its BCC declaration has a 16-bit sum */

/* The length of the largest packet that a frame makes on the wire, from the IP header on. */
INLINE u32 wire_length(struct __sk_buff *skb, const struct packet *packet)
{
	return skb->gso_size ? skb->gso_size + packet->headers : packet->l3_length;
}

/* Whether all that was read of a flow is of this packet's flow: where the cache is full, the kernel may give the memory of a
 * flow to another one at any moment. It writes that from its start on, the tag first; so the tag is read last. */
INLINE bool is_still(const struct flow *flow, const struct packet *packet)
{
	asm volatile("" ::: "memory");
	return *(const volatile u32 *)&flow->tag == tag_of(packet);
}

INLINE int rewrite_and_go(
	struct __sk_buff *skb, const struct packet *packet, const struct config *config, const struct flow *flow
)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	u32 out = flow->out_ifindex;
	u8 action = flow->action, rewrite = flow->rewrite;
	if (!rewrite) {
		if (RARE(!is_still(flow, packet)))
			return TO_KERNEL;
	} else {
		struct flow read;
		if (data + ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct udphdr) > end &&
		    (packet->family != AF_INET ||
		     data + ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr) > end))
			return TO_KERNEL;
		read.rewrite = rewrite; /* all of it, whatever is used: what isn't set the verifier doesn't let us keep */
		__builtin_memcpy(read.eth_out, flow->eth_out, 12);
		read.addr_diff = flow->addr_diff;
		read.port_diff = flow->port_diff;
		read.new_ports = flow->new_ports;
		copy_address6(read.new_src, flow->new_src);
		copy_address6(read.new_dst, flow->new_dst);
		if (RARE(!is_still(flow, packet)))
			return TO_KERNEL;
		if (rewrite & (REWRITE_L3 | REWRITE_MACS)) {
			u32 *eth = data;
			eth[0] = read.eth_out[0];
			eth[1] = read.eth_out[1];
			eth[2] = read.eth_out[2];
		}
		if (packet->family == AF_INET) {
			struct iphdr *ip = data + ETH_HLEN;
			u32 *ports = (void *)(ip + 1);
			if ((void *)(ports + 1) > end)
				return TO_KERNEL;
			rewrite_ipv4(ip, &read);
			*ports = read.new_ports;
			if (action == ACTION_REDIRECT && !(config->flags & KEEP_PRIORITY))
				skb->priority = TOS_PRIORITIES >> ((packet->tos & 0x1e) * 2) & 15;
		} else {
			struct ipv6hdr *ip = data + ETH_HLEN;
			u32 *ports = (void *)(ip + 1);
			if (RARE(packet->jumbo))
				ports = (void *)(ip + 1) + sizeof(struct jumbo);
			if ((void *)(ports + 1) > end)
				return TO_KERNEL;
			rewrite_ipv6(ip, &read);
			*ports = read.new_ports;
		}
		if (rewrite & (REWRITE_ADDRESS | REWRITE_PORT))
			fix_l4(skb, packet, read.addr_diff, read.port_diff, rewrite);
		/* The hop limit is in no checksum of IPv6, but in the sum of the frame that a card may have given. */
		if (packet->family == AF_INET6 && rewrite & REWRITE_L3)
			csum_update(skb, HOP_LIMIT_DIFFERENCE);
	}
	if (action == ACTION_PEER)
		return bpf_redirect_peer(out, 0);
	return bpf_redirect(out, 0);
}

INLINE u32 slot_of(u32 ifindex)
{
	struct link *link = links.lookup(&ifindex);
	return link ? link->slot : 0;
}

/* Whether this frame comes as the frames of a flow do: by the same link, with the same MAC addresses. */
INLINE bool comes_as_known(const struct flow *flow, struct __sk_buff *skb, const u32 *eth)
{
	return flow->in_ifindex == skb->ifindex &&
		!((flow->eth_in[0] ^ eth[0]) | (flow->eth_in[1] ^ eth[1]) | (flow->eth_in[2] ^ eth[2]));
}

/* Whether what is known of a flow still holds, and this frame comes as its frames do. Nothing is of generation 0, a pause. */
INLINE bool holds(
	const struct flow *flow, struct __sk_buff *skb, const struct config *config, const u32 *eth, u32 now
)
{
	return flow->epoch == (u16)config->epoch && flow->generation == config->generation &&
		now - flow->checked < config->recheck && flow->action >= ACTION_KERNEL && comes_as_known(flow, skb, eth);
}

/* The kernel counts the jumbo header, though no packet on the wire has it, where it routes (skb_gso_validate_network_len). */
INLINE bool is_too_large(struct __sk_buff *skb, const struct packet *packet, const struct flow *flow)
{
	u32 length = wire_length(skb, packet);
	if (RARE(packet->jumbo) && flow->rewrite & REWRITE_L3)
		length += packet->jumbo;
	return length > flow->mtu;
}

INLINE bool is_used_up(const struct packet *packet, const struct flow *flow)
{
	return flow->rewrite & REWRITE_L3 && packet->ttl <= 1;
}

/* What a packet of TCP acknowledges, and where its data ends. */
INLINE void note_numbers(struct flow *flow, const struct packet *packet)
{
	flow->acked = packet->ack;
	flow->end = end_of(packet);
}

INLINE void tally(struct flow *flow, const struct packet *packet, u32 now)
{
	flow->last_seen = now;
	note_numbers(flow, packet);
	lock_xadd(&flow->packets, 1);
	lock_xadd(&flow->bytes, packet->l3_length);
}

/* Packets of a flow that take the kernel's path, for whatever reason, count for that as well. */
INLINE void note_passed_on(struct flow *flow, struct __sk_buff *skb, const struct packet *packet, const u32 *eth)
{
	if (flow && comes_as_known(flow, skb, eth))
		note_numbers(flow, packet);
}

/* Where the table of fixed size has a connection in this direction, by a few bits of it. Containers have a part each: what
 * one of them sends does not overwrite what is known of others. */
INLINE struct young *find_young(const struct packet *packet, const struct link *link, u32 *tag)
{
	u64 mixed = (u64)(packet->src[0] ^ packet->src[1] ^ packet->src[2] ^ packet->src[3]) << 32 |
		(packet->dst[0] ^ packet->dst[1] ^ packet->dst[2] ^ packet->dst[3]);
	mixed = (mixed ^ packet->ports * 0x9e3779b97f4a7c15ULL) * 0xc2b2ae3d27d4eb4fULL;
	u32 index = mixed >> 52;
	*tag = mixed | 1;
	if (link->flags & LINK_CONTAINER)
		index = YOUNG / 2 + (link->slot % YOUNG_PARTS) * YOUNG_PART + index % YOUNG_PART;
	return young.lookup(&index);
}

/* Whether a packet is the first that carries data of its connection in this direction, or conntrack was asked about it
 * within the same jiffy. */
INLINE bool is_first(const struct packet *packet, const struct link *link, u32 now)
{
	u32 tag;
	struct young *seen = find_young(packet, link, &tag);
	if (!seen)
		return false;
	bool is_known = seen->tag == tag && seen->asked != now;
	seen->asked = seen->tag == tag ? now : now - 1;
	seen->tag = tag;
	return !is_known;
}

/* Whether a connection sent data a while ago, and got none back that came by us: what answers may be the host itself. */
INLINE bool is_unlearned(const struct packet *packet, const struct config *config, const struct link *link, u32 now)
{
	u32 tag;
	struct young *seen = find_young(packet, link, &tag);
	return seen && seen->tag == tag && now - seen->asked > config->recheck / 16;
}

/* Whether one more flow that conntrack knows nothing of may begin at a link: so many a second, for nothing else limits how many
 * a container makes, and each takes the room of somebody's flow that is idle. */
INLINE bool may_begin(struct link *link, const struct config *config, u32 now)
{
	if (now - link->begun_since >= config->recheck) {
		link->begun_since = now;
		link->begun = 0;
	}
	if (link->begun >= BEGIN_MOST)
		return false;
	link->begun++;
	return true;
}

/* What must hold before anything is noted of a packet that no flow is known for: else whoever sends many with ever other
 * addresses or ports empties the tables for all others. */
INLINE enum verdict check_sender(
	struct __sk_buff *skb, const struct packet *packet, const struct config *config, struct link *link, const u32 *eth,
	struct flow *flow, u32 now
)
{
	if (link->flags & LINK_CONTAINER && !is_own_source(skb, packet, eth))
		return V_SOURCE;
	if (config->flags & HAS_CAPTURES && is_captured(packet)) {
		if (flow)
			flow->action = ACTION_NONE;
		return V_CAPTURED;
	}
	if (!flow && !is_tracked(link, eth) && !may_begin(link, config, now))
		return V_CACHE_FULL;
	return V_FAST;
}

/* Whether a flow that was learned just now leads to or comes from an address that is captured, by its translation: it is the
 * kernel's then, both ways. */
INLINE bool is_translated_to_captured(const struct packet *packet, struct flow *flow)
{
	struct packet translated = {.family = packet->family};
	struct flow *other;
	__builtin_memcpy(translated.src, flow->new_src, 16);
	__builtin_memcpy(translated.dst, flow->new_dst, 16);
	if (!is_captured(&translated))
		return false;
	flow->action = ACTION_NONE;
	other = find_other(packet, flow);
	if (other)
		other->action = ACTION_NONE;
	return true;
}

/* The packet is plain: forward it by its flow, learning that first where need be. */
INLINE enum verdict decide(
	struct __sk_buff *skb, struct packet *packet, const struct config *config, const u32 *eth, struct flow **found,
	u32 *slot
)
{
	u64 now = bpf_jiffies64(); /* no call: the kernel puts a load there */
	struct flow *flow = find(packet);
	if (RARE(now > config->deadline)) {
		*slot = slot_of(skb->ifindex);
		note_passed_on(flow, skb, packet, eth);
		return V_LEASE;
	}
	if (RARE(!flow || !holds(flow, skb, config, eth, now))) {
		u32 ifindex = skb->ifindex, generation = config->generation;
		struct link *link = links.lookup(&ifindex);
		if (!link)
			return V_PORT;
		*slot = link->slot;
		note_passed_on(flow, skb, packet, eth);
		if (!generation)
			return V_PAUSED;
		widen(packet);
		/* What carries no data cannot wait for an answer, and the handshake's end is no reason to ask yet. */
		if (!flow && packet->l4_proto == IPPROTO_TCP && packet->l3_length == packet->headers &&
		    !is_unlearned(packet, config, link, now))
			return V_NO_DATA;
		enum verdict verdict = check_sender(skb, packet, config, link, eth, flow, now);
		if (verdict != V_FAST)
			return verdict;
		/* Short connections, that carry data once, gain nothing by being asked for. */
		if (packet->l4_proto == IPPROTO_TCP && is_tracked(link, eth) &&
		    (!flow || (flow->action == ACTION_NONE && !flow->packets)) && is_first(packet, link, now))
			return V_YOUNG;
		verdict = relearn(skb, packet, config, link, eth, flow, generation, now);
		if (verdict != V_FAST)
			return verdict;
		flow = find(packet);
		if (!flow)
			return V_CACHE_FULL;
		if (config->flags & HAS_CAPTURES && is_translated_to_captured(packet, flow))
			return V_CAPTURED;
	}
	*slot = flow->slot;
	if (RARE(flow->action < ACTION_PEER)) /* without a verdict: another CPU handed it back just now */
		return flow->action == ACTION_KERNEL ? flow->verdict : V_CLOSING;
	if (RARE(is_too_large(skb, packet, flow)))
		return V_MTU;
	if (RARE(is_used_up(packet, flow)))
		return V_TTL;
	tally(flow, packet, now);
	*found = flow;
	return V_FAST;
}

/* The headers of a frame that a card delivered may lie outside what a program can address. No more than these are fetched:
 * TCP keeps its payload apart from them, and to move that copies the packet's head. */
INLINE void reach_headers(struct __sk_buff *skb, bool ipv6)
{
	u32 wanted = ETH_HLEN + sizeof(struct tcphdr) +
		(ipv6 ? sizeof(struct ipv6hdr) + sizeof(struct jumbo) : sizeof(struct iphdr));
	u32 reach = skb->data_end - skb->data;
	if (RARE(reach < wanted && reach < skb->len))
		bpf_skb_pull_data(skb, skb->len < wanted ? skb->len : wanted);
}

/* Whether a FIN or RST stands far from where the other side's acknowledgements are: whoever knows no more of a connection
 * than its addresses and ports guesses like that. Conntrack, left to itself, does not take such packets for the
 * connection's; it has to be liberal about one whose middle it does not see (tcp_in_window(), nf_conntrack_proto_tcp.c).
 * Nor does it take a RST before what is acknowledged, which the other side ignores (TCP_CONNTRACK_CLOSE, "invalid rst"). */
INLINE bool is_outside(const struct packet *packet, const struct flow *other)
{
	u32 before = packet->resets ? 0 : ENDS_BEFORE;
	return packet->seq - other->acked + before > before + ENDS_AFTER;
}

/* Whether a RST ends its connection for conntrack, had that seen all of it: it stands exactly where the other side's
 * acknowledgements are, or follows what this side sent last (TCP_CONNTRACK_CLOSE of nf_conntrack_tcp_packet()). After any
 * other one the connection may go on: its end answers a guessed one with an acknowledgement (RFC 5961). */
INLINE bool is_exact(const struct packet *packet, const struct flow *flow, const struct flow *other)
{
	return packet->seq == other->acked ||
		((u16)packet->seq == flow->end && (s32)(flow->last_seen - other->last_seen) >= 0);
}

/* Whether a RST stands behind all that its side has sent, so that it can't have ended the connection: what has not been
 * acknowledged is assumed to be less than 64 KiB, which holds while a connection is silent. */
INLINE bool is_beyond(const struct packet *packet, const struct flow *flow, const struct flow *other)
{
	u16 under_way = flow->end - (u16)other->acked;
	return (s32)(packet->seq - other->acked - under_way) > 0;
}

/* A packet that ends a connection is the kernel's, and so is the flow from here on: unless conntrack was made to forget the
 * connection since it was asked. The kernel would then send a FIN or RST on untranslated, so it goes as the flow says. */
INLINE enum verdict end_flow(
	struct __sk_buff *skb, struct packet *packet, const struct config *config, const u32 *eth, struct flow **found
)
{
	u64 now = bpf_jiffies64();
	struct flow *flow = find(packet);
	if (!flow)
		return V_TCP_FLAGS;
	struct flow *other = find_other(packet, flow);
	if (packet->ends && other && (flow->packets || other->packets) && is_outside(packet, other))
		return V_OUTSIDE;
	/* With flags that never stand together conntrack takes it for no packet of the connection. */
	if (flow->action < ACTION_PEER || !comes_as_known(flow, skb, eth) || (!packet->ends && !packet->opens))
		return V_TCP_FLAGS;
	if (packet->ends && flow->rewrite & REWRITE_ADDRESS && (u32)now - flow->checked > JUST_ASKED &&
	    now <= config->deadline && holds(flow, skb, config, eth, now) &&
	    !is_too_large(skb, packet, flow) && !is_used_up(packet, flow)) {
		widen(packet);
		if (!ct_knows(skb, packet)) {
			tally(flow, packet, now);
			*found = flow;
			return V_FAST;
		}
	}
	bool is_over = packet->resets && other && is_exact(packet, flow, other);
	if (packet->resets && other && !is_over && is_beyond(packet, flow, other)) {
		widen(packet);
		want(WANT_RENEW, packet);
		return V_TCP_FLAGS;
	}
	hand_back(flow, other, is_over ? ACTION_RESET : ACTION_NONE);
	if (is_over) {
		widen(packet);
		want(WANT_CLOSE, packet);
	}
	return V_TCP_FLAGS;
}

/* All of it for one family: instantiated twice, so that each has only its own branches. */
INLINE int handle(struct __sk_buff *skb, const struct config *config, u8 family)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	u32 eth[3], slot = 0, size = skb->len - ETH_HLEN;
	struct packet packet;
	struct flow *flow = NULL;
	enum verdict verdict;
	packet.family = family;
	packet.jumbo = 0;
	packet.closes = 0;
	packet.opens = 0;
	packet.ends = 0;
	packet.resets = 0;
	packet.seq = 0;
	packet.ack = 0;
	if (RARE(data + ETH_HLEN > end))
		return TO_KERNEL;
	eth[0] = ((u32 *)data)[0];
	eth[1] = ((u32 *)data)[1];
	eth[2] = ((u32 *)data)[2];
	if (family == AF_INET)
		verdict = parse_ipv4(data + ETH_HLEN, end, size, skb->gso_size, &packet);
	else
		verdict = parse_ipv6(data + ETH_HLEN, end, size, skb->gso_size, &packet);
	if (RARE(eth[0] & 1))
		verdict = V_MULTICAST;
	if (RARE(verdict != V_FAST)) {
		slot = slot_of(skb->ifindex);
		if (verdict == V_TCP_FLAGS && packet.closes)
			verdict = end_flow(skb, &packet, config, eth, &flow);
	} else {
		verdict = decide(skb, &packet, config, eth, &flow, &slot);
	}
	int result = RARE(verdict == V_OUTSIDE) ? TC_ACT_SHOT : TO_KERNEL;
	if (flow) {
		/* Frames are padded to 60 bytes: the kernel trims that off before it forwards. */
		if (RARE(skb->len > packet.l3_length + ETH_HLEN))
			bpf_skb_change_tail(skb, packet.l3_length + ETH_HLEN, 0);
		result = rewrite_and_go(skb, &packet, config, flow);
		if (RARE(result == TO_KERNEL))
			verdict = V_CACHE_FULL;
	}
	count(slot, verdict);
	return result;
}

int fastpath(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct config *now = config.lookup(&zero);
	if (RARE(!now))
		return TO_KERNEL;
	reach_headers(skb, skb->protocol == __builtin_bswap16(ETH_P_IPV6));
	if (RARE(skb->vlan_present || skb->protocol == __builtin_bswap16(ETH_P_8021Q) ||
		 skb->protocol == __builtin_bswap16(ETH_P_8021AD))) {
		count(slot_of(skb->ifindex), V_VLAN);
		return TO_KERNEL;
	}
	if (skb->protocol == __builtin_bswap16(ETH_P_IP))
		return handle(skb, now, AF_INET);
	if (skb->protocol == __builtin_bswap16(ETH_P_IPV6))
		return handle(skb, now, AF_INET6);
	count(slot_of(skb->ifindex), V_NOT_IP);
	return TO_KERNEL;
}
