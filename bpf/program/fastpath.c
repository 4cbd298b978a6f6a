/* SPDX-License-Identifier: GPL-2.0-only */
/* The fast path, at TC ingress of containers' links and of uplinks. Conntrack is the authority, and the flow maps cache
 * its answers. Packets that aren't found there, aren't plain, or aren't allowed go to the kernel unchanged, with a
 * counted verdict. */

#define ENDS_BEFORE (1U << 16) /* bytes: repeated or late */
#define ENDS_AFTER (1U << 20)  /* bytes in flight */
#define BEGIN_MOST 1024      /* untracked flows that a link may begin within `recheck` */
#define YOUNG_PART 128       /* entries that a container has in its half of the table */
#define YOUNG_PARTS (YOUNG / 2 / YOUNG_PART)
#define JUST_ASKED 1 /* jiffies: short connections need no other request */
#define HOP_LIMIT_DIFFERENCE 0xfeff /* one less in the low byte of a word, in network order */
static s64 (*csum_update)(void *, u32) = (void *)BPF_FUNC_csum_update; /* BCC declares it with a 16-bit sum */

INLINE int rewrite_and_redirect(
	struct __sk_buff *skb, const struct packet *packet, const struct config *config, const struct flow *flow
)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	u32 out = flow->out_ifindex;
	u8 action = flow->action, rewrite = flow->rewrite;
	if (!rewrite) {
		if (RARE(!is_same_flow(flow, packet)))
			return TO_KERNEL;
		if (action == ACTION_TUNNEL && config->flags & HAS_TUNNELS) {
			int result = encapsulate(skb, packet, config, flow);
			if (result != TO_KERNEL)
				return result;
			skb->tc_index = TO_TUNNEL;
		}
	} else {
		struct flow read;
		if (data + ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct udphdr) > end &&
		    (packet->family != AF_INET ||
		     data + ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr) > end))
			return TO_KERNEL;
		read.rewrite = rewrite; /* copy all of it: the verifier rejects uninitialized parts */
		__builtin_memcpy(read.eth_out, flow->eth_out, 12);
		read.addr_diff = flow->addr_diff;
		read.port_diff = flow->port_diff;
		read.new_ports = flow->new_ports;
		copy_address6(read.new_src, flow->new_src);
		copy_address6(read.new_dst, flow->new_dst);
		if (RARE(!is_same_flow(flow, packet)))
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
			if (action >= ACTION_REDIRECT && !(config->flags & KEEP_PRIORITY))
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
		/* IPv6 has no checksum over the hop limit, but the NIC's sum of the frame includes it. */
		if (packet->family == AF_INET6 && rewrite & REWRITE_L3)
			csum_update(skb, HOP_LIMIT_DIFFERENCE);
	}
	if (action == ACTION_PEER)
		return bpf_redirect_peer(out, 0);
	return bpf_redirect(out, 0);
}

/* Find a connection's entry in the array `young` by a hash. Each container has its own part, so that its packets don't
 * overwrite other entries. */
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

/* Return whether this is the first packet with data of its connection in this direction, or conntrack was asked about
 * it within the same jiffy. */
INLINE bool is_first_data(const struct packet *packet, const struct link *link, u32 now)
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

/* Return whether a connection sent data a while ago without a reply through the program: the host itself may answer. */
INLINE bool has_no_reply(const struct packet *packet, const struct config *config, const struct link *link, u32 now)
{
	u32 tag;
	struct young *seen = find_young(packet, link, &tag);
	return seen && seen->tag == tag && now - seen->asked > config->recheck / 16;
}

/* Return whether one more untracked flow may begin at a link. Their number a second is limited, as a container could
 * create any number, and each takes the memory of an idle flow. */
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

/* Check a packet before anything is stored about it: otherwise a sender with ever new addresses or ports could empty
 * the tables. */
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

/* Return whether a new flow leads to or comes from a captured address after translation; if so, the kernel forwards
 * both directions. */
INLINE bool is_translated_to_captured(const struct packet *packet, struct flow *flow)
{
	struct packet translated = {.family = packet->family};
	struct flow *other;
	__builtin_memcpy(translated.src, flow->new_src, 16);
	__builtin_memcpy(translated.dst, flow->new_dst, 16);
	if (!is_captured(&translated))
		return false;
	flow->action = ACTION_NONE;
	other = find_reverse(packet, flow);
	if (other)
		other->action = ACTION_NONE;
	return true;
}

/* Decide about a plain packet: find its flow, or learn it. */
INLINE enum verdict decide(
	struct __sk_buff *skb, struct packet *packet, const struct config *config, const u32 *eth, struct flow **found,
	u32 *slot
)
{
	u64 now = bpf_jiffies64(); /* no call: the kernel inlines a load */
	struct flow *flow = find(packet);
	if (RARE(now > config->deadline)) {
		*slot = slot_of(skb->ifindex);
		note_kernel_packet(flow, skb, packet, eth);
		return V_LEASE;
	}
	if (RARE(!flow || !is_valid(flow, skb->ifindex, config, eth, now))) {
		u32 ifindex = skb->ifindex, generation = config->generation;
		struct link *link = links.lookup(&ifindex);
		if (!link)
			return V_PORT;
		*slot = link->slot;
		note_kernel_packet(flow, skb, packet, eth);
		if (!generation)
			return V_PAUSED;
		widen(packet);
		/* A packet without data can't wait for a reply, and the end of the handshake is no reason to ask. */
		if (!flow && packet->l4_proto == IPPROTO_TCP && packet->l3_length == packet->headers &&
		    !has_no_reply(packet, config, link, now))
			return V_NO_DATA;
		enum verdict verdict = check_sender(skb, packet, config, link, eth, flow, now);
		if (verdict != V_FAST)
			return verdict;
		/* Short connections, which send data once, gain nothing. */
		if (packet->l4_proto == IPPROTO_TCP && is_tracked(link, eth) &&
		    (!flow || (flow->action == ACTION_NONE && !flow->packets)) && is_first_data(packet, link, now))
			return V_YOUNG;
		verdict = relearn(skb, packet, config, link, eth, flow, generation, now);
		if (verdict != V_FAST && verdict != V_NOT_ASSURED)
			return verdict;
		flow = find(packet);
		if (!flow)
			return verdict == V_FAST ? V_CACHE_FULL : verdict;
		if (config->flags & HAS_CAPTURES && is_translated_to_captured(packet, flow))
			return V_CAPTURED;
		if (verdict != V_FAST)
			return verdict;
	}
	*slot = flow->slot;
	if (RARE(flow->action < ACTION_PEER)) /* without a verdict: another CPU released it just now */
		return flow->action == ACTION_KERNEL ? flow->verdict : V_CLOSING;
	if (RARE(is_too_large(skb, packet, flow)))
		return V_MTU;
	if (RARE(is_ttl_expired(packet, flow)))
		return V_TTL;
	count_packet(flow, packet, now);
	*found = flow;
	return V_FAST;
}

/* Make headers addressable. The NIC may have left them outside of a program's reach. No more than these are pulled: TCP
 * keeps its payload separate, and pulling it copies the packet's head. */
INLINE void pull_headers(struct __sk_buff *skb, bool ipv6)
{
	u32 wanted = ETH_HLEN + sizeof(struct tcphdr) +
		(ipv6 ? sizeof(struct ipv6hdr) + sizeof(struct jumbo) : sizeof(struct iphdr));
	u32 reach = skb->data_end - skb->data;
	if (RARE(reach < wanted && reach < skb->len))
		bpf_skb_pull_data(skb, skb->len < wanted ? skb->len : wanted);
}

/* Return whether a FIN or RST is far from the other side's acknowledgements: an attacker who knows only addresses and
 * ports has to guess its number. Conntrack rejects such packets, but is liberal about connections it doesn't see the
 * middle of (tcp_in_window(), nf_conntrack_proto_tcp.c). It also rejects a RST before the acknowledged number, which
 * the other side ignores (TCP_CONNTRACK_CLOSE, "invalid rst"). */
INLINE bool is_outside(const struct packet *packet, const struct flow *other)
{
	u32 before = packet->resets ? 0 : ENDS_BEFORE;
	return packet->seq - other->acked + before > before + ENDS_AFTER;
}

/* Return whether a RST would end its connection for conntrack if that had seen all packets: its number is the one
 * acknowledged, or follows what this side sent last (TCP_CONNTRACK_CLOSE of nf_conntrack_tcp_packet()). After any other
 * RST the connection may continue: its peer answers a guessed one with an acknowledgement (RFC 5961). */
INLINE bool is_exact(const struct packet *packet, const struct flow *flow, const struct flow *other)
{
	return packet->seq == other->acked ||
		((u16)packet->seq == flow->end && (s32)(flow->last_seen - other->last_seen) >= 0);
}

/* Return whether a RST is beyond everything its side has sent, so that it can't have ended the connection. Less than 64
 * KiB are assumed to be unacknowledged, which is true while a connection is silent. */
INLINE bool is_beyond(const struct packet *packet, const struct flow *flow, const struct flow *other)
{
	u16 under_way = flow->end - (u16)other->acked;
	return (s32)(packet->seq - other->acked - under_way) > 0;
}

/* Leave a packet that ends a connection, and its flow, to the kernel. Exception: if the conntrack entry was deleted
 * since the last check, the kernel would forward a FIN or RST untranslated, so the flow's translation is used. */
INLINE enum verdict end_flow(
	struct __sk_buff *skb, struct packet *packet, const struct config *config, const u32 *eth, struct flow **found
)
{
	u64 now = bpf_jiffies64();
	struct flow *flow = find(packet);
	if (!flow)
		return V_TCP_FLAGS;
	struct flow *other = find_reverse(packet, flow);
	if (packet->ends && other && (flow->packets || other->packets) && is_outside(packet, other))
		return V_OUTSIDE;
	/* Conntrack doesn't accept invalid combinations of flags. */
	if (flow->action < ACTION_PEER || !has_same_source(flow, skb->ifindex, eth) || (!packet->ends && !packet->opens))
		return V_TCP_FLAGS;
	if (packet->ends && flow->rewrite & REWRITE_ADDRESS && (u32)now - flow->checked > JUST_ASKED &&
	    now <= config->deadline && is_valid(flow, skb->ifindex, config, eth, now) &&
	    !is_too_large(skb, packet, flow) && !is_ttl_expired(packet, flow)) {
		widen(packet);
		if (!ct_knows(skb, packet)) {
			count_packet(flow, packet, now);
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
	release(flow, other, is_over ? ACTION_RESET : ACTION_NONE);
	if (is_over) {
		widen(packet);
		want(WANT_CLOSE, packet);
	}
	return V_TCP_FLAGS;
}

/* Handle a packet of one family: instantiated twice, so that each has only its own branches. */
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
		if (RARE(skb->tc_index))
			accept_inlet(skb, &packet, config);
		/* Frames are padded to 60 bytes: the kernel trims the padding before it forwards. */
		if (RARE(skb->len > packet.l3_length + ETH_HLEN))
			bpf_skb_change_tail(skb, packet.l3_length + ETH_HLEN, 0);
		result = rewrite_and_redirect(skb, &packet, config, flow);
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
	pull_headers(skb, skb->protocol == __builtin_bswap16(ETH_P_IPV6));
	if (RARE(skb->vlan_present || skb->protocol == __builtin_bswap16(ETH_P_8021Q) ||
		 skb->protocol == __builtin_bswap16(ETH_P_8021AD))) {
		count(slot_of(skb->ifindex), V_VLAN);
		return TO_KERNEL;
	}
	if (skb->protocol == __builtin_bswap16(ETH_P_IP)) {
		int result = now->flags & HAS_TUNNELS ? decapsulate(skb, now) : NOT_TUNNELLED;
		if (result == TO_KERNEL)
			count(slot_of(skb->ifindex), V_TUNNELLED);
		return result == NOT_TUNNELLED ? handle(skb, now, AF_INET) : result;
	}
	if (skb->protocol == __builtin_bswap16(ETH_P_IPV6))
		return handle(skb, now, AF_INET6);
	count(slot_of(skb->ifindex), V_NOT_IP);
	return TO_KERNEL;
}
