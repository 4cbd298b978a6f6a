/* SPDX-License-Identifier: GPL-2.0-only */
/* Remember the outer headers of VXLAN tunnels (RFC 7348) between two looks of the kernel.
 *
 * The program doesn't decide where a packet to another host goes, nor which host may send one. It watches the kernel do
 * so with one packet of a flow, and repeats that for at most `recheck`, within the same epoch and generation:
 *
 *   sending     observe_sent() sees the packet at the uplink's egress, after the kernel's forwarding table, routes, rules
 *               and translation, marked by the program at the container; encapsulate() writes the same headers before
 *               the flow's next packets.
 *   receiving   decapsulate() marks a packet at the uplink's ingress; if accept_inlet() sees the mark at the tunnel's
 *               ingress, the kernel's rules accepted the packet's outer addresses for this flow, and decapsulate() removes
 *               the headers of the flow's next packets.
 *
 * Only what is plain: an IPv4 header without options or fragments, a UDP checksum of zero, VXLAN without extensions. The
 * inner packet isn't changed. Everything else goes to the tunnel as before. */

#define VXLAN_VALID 0x08000000 /* the VNI is valid, everything else is zero */
#define INNER_AT (OUTER_SIZE + ETH_HLEN)
#define ECN 3 /* the bits of RFC 3168 */
#define NOT_TUNNELLED (-2)
#define TO_TUNNEL 0x766e /* tc_index of a packet that the fast path gave to a tunnel; no socket can set it */
/* Flags of bpf_skb_adjust_room(); the UAPI headers of older distributions lack the last two. */
#define DECAP_L3_IPV6 (1ULL << 8)
#define NO_CSUM_RESET (1ULL << 5)
#define ENCAPSULATE \
	(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | \
	 BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_ENCAP_L2((u64)ETH_HLEN) | NO_CSUM_RESET)
#define DECAPSULATE4 NO_CSUM_RESET
#define DECAPSULATE6 (NO_CSUM_RESET | DECAP_L3_IPV6)

/* What follows the outer Ethernet header. */
struct vxlan_headers {
	struct iphdr ip;
	struct udphdr udp;
	u32 flags, vni;
};

/* Return the key of a flow's outer headers. */
INLINE struct key6 inner_key(const struct packet *packet)
{
	struct key6 key = {};
	if (packet->family == AF_INET) {
		key.src[0] = packet->addresses;
		key.dst[0] = packet->addresses >> 32;
	} else {
		__builtin_memcpy(key.src, packet->src, 16);
		__builtin_memcpy(key.dst, packet->dst, 16);
	}
	key.word = packet->ports | (u64)packet->l4_proto << 32;
	return key;
}

/* Make the headers of the packet inside addressable if it has them. Not more: TCP and GRO merge packets without a
 * copy only while none of their data is behind the headers. */
INLINE void reach_inner(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	u32 reachable = skb->data_end - skb->data, wanted = INNER_AT + sizeof(struct tcphdr);
	bool is_ipv6 = data + INNER_AT <= end && *(u16 *)(data + INNER_AT - 2) == __builtin_bswap16(ETH_P_IPV6);
	wanted += is_ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	if (RARE(reachable < wanted && reachable < skb->len))
		bpf_skb_pull_data(skb, skb->len < wanted ? skb->len : wanted);
}

/* Return whether these are the headers of a VXLAN packet without options and extensions. */
INLINE bool is_vxlan(const struct vxlan_headers *outer)
{
	return *(const u8 *)&outer->ip == 0x45 && outer->ip.protocol == IPPROTO_UDP &&
		outer->flags == __builtin_bswap32(VXLAN_VALID);
}

/* Return whether the lengths of the outer headers are those of a frame of `size` bytes, and nothing is unusual. The
 * lengths of a frame that is to be segmented don't matter: the segments get their own. */
INLINE bool is_plain(const struct vxlan_headers *outer, u32 size)
{
	return outer->udp.check == 0 && !(outer->ip.frag_off & __builtin_bswap16(FRAGMENT_BITS)) &&
		(!size || (outer->ip.tot_len == __builtin_bswap16(size - ETH_HLEN) &&
			   outer->udp.len == __builtin_bswap16(size - ETH_HLEN - sizeof(struct iphdr))));
}

INLINE u32 tunnel_of(const struct vxlan_headers *outer)
{
	struct tunnel_key key = {.vni = outer->vni, .port = outer->udp.dest};
	u32 *ifindex = tunnels.lookup(&key);
	return ifindex ? *ifindex : 0;
}

/* Parse the packet inside; FAST if it is plain. */
INLINE enum verdict parse_inner(struct __sk_buff *skb, void *data, void *end, struct packet *packet)
{
	u16 protocol = *(u16 *)(data + INNER_AT - 2);
	u32 size = skb->len - INNER_AT;
	__builtin_memset(packet, 0, sizeof(*packet));
	if (protocol == __builtin_bswap16(ETH_P_IP)) {
		packet->family = AF_INET;
		return parse_ipv4(data + INNER_AT, end, size, skb->gso_size, packet);
	}
	if (protocol == __builtin_bswap16(ETH_P_IPV6)) {
		packet->family = AF_INET6;
		return parse_ipv6(data + INNER_AT, end, size, skb->gso_size, packet);
	}
	return V_NOT_IP;
}

/* Return the word of the IPv4 header with DF, which the outer header may copy. */
INLINE u16 fragment_word(const void *ip, const struct packet *packet)
{
	return packet->family == AF_INET ? ((const struct iphdr *)ip)->frag_off : 0;
}

/* Return whether what was seen at `checked` may still be repeated. */
INLINE bool is_current(u32 checked, u16 epoch, u8 generation, const struct config *config, u32 now)
{
	return epoch == (u16)config->epoch && generation == config->generation && now - checked < config->recheck;
}

/* Return whether the inner packet is like those that these headers were made for. */
INLINE bool is_like(const struct outer *outer, const void *ip, const struct packet *packet)
{
	return outer->tos == packet->tos && outer->ttl == packet->ttl && outer->fragment == fragment_word(ip, packet);
}

/* Store the headers without what differs between packets; the IPv4 checksum is the sum of the rest. */
INLINE void copy_headers(struct outer *outer, const void *frame)
{
	struct vxlan_headers *kept = (void *)outer->headers + ETH_HLEN;
	__builtin_memcpy(outer->headers, frame, OUTER_SIZE);
	kept->ip.tot_len = 0;
	kept->ip.id = 0;
	kept->ip.check = 0;
	kept->udp.len = 0;
	kept->ip.check = header_sum(&kept->ip);
}

/* Watch the packets that the kernel sends, at an uplink's egress. Those from tunnels have no input link, as
 * skb_scrub_packet() cleared it; those that this program encapsulated have one. Any user of the host may send a packet
 * that looks like a tunnel's, but not with the mark. */
int observe_sent(struct __sk_buff *skb)
{
	if (skb->tc_index != TO_TUNNEL)
		return TO_KERNEL;
	skb->tc_index = 0;
	u32 zero = 0, now = bpf_jiffies64();
	struct config *config_now = config.lookup(&zero);
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct packet packet;
	if (skb->ingress_ifindex || skb->vlan_present || skb->protocol != __builtin_bswap16(ETH_P_IP) || !config_now ||
	    !(config_now->flags & HAS_TUNNELS) || data + INNER_AT > end || !is_vxlan(data + ETH_HLEN) ||
	    !is_plain(data + ETH_HLEN, 0))
		return TO_KERNEL;
	reach_inner(skb);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + INNER_AT > end || parse_inner(skb, data, end, &packet) != V_FAST)
		return TO_KERNEL;
	u32 tunnel = tunnel_of(data + ETH_HLEN);
	struct flow *flow = find(&packet);
	if (!flow || !tunnel || flow->action != ACTION_TUNNEL || flow->rewrite || flow->out_ifindex != tunnel ||
	    !has_same_macs(flow, data + OUTER_SIZE) ||
	    !is_current(flow->checked, flow->epoch, flow->generation, config_now, now) || !is_same_flow(flow, &packet))
		return TO_KERNEL;
	struct key6 key = inner_key(&packet);
	struct outer outer = {
		.tag = tag_of(&packet), .checked = now, .tunnel = tunnel, .uplink = skb->ifindex,
		.epoch = config_now->epoch, .generation = config_now->generation, .tos = packet.tos, .ttl = packet.ttl,
		.fragment = fragment_word(data + INNER_AT, &packet), .size = wire_length(skb, &packet),
	};
	struct outer *before = outers.lookup(&key);
	/* Until the next look, packets of the largest size that it passed may follow: the path's MTU isn't known here. */
	if (before && is_current(before->checked, before->epoch, before->generation, config_now, now) &&
	    before->uplink == outer.uplink && is_like(before, data + INNER_AT, &packet) && before->size > outer.size &&
	    is_same_flow(before, &packet))
		outer.size = before->size;
	copy_headers(&outer, data);
	outers.update(&key, &outer);
	return TO_KERNEL;
}

/* Send a packet to another host with the headers that the kernel used; TO_KERNEL if they aren't known. */
INLINE int encapsulate(
	struct __sk_buff *skb, const struct packet *packet, const struct config *config, const struct flow *flow
)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct key6 key = inner_key(packet);
	u32 size = skb->len + OUTER_SIZE, now = bpf_jiffies64();
	const struct outer *known = outers.lookup(&key);
	if (!known || data + ETH_HLEN + sizeof(struct iphdr) > end || size > MAX_PAYLOAD ||
	    !is_current(known->checked, known->epoch, known->generation, config, now) ||
	    known->tunnel != flow->out_ifindex || !is_like(known, data + ETH_HLEN, packet) ||
	    wire_length(skb, packet) > known->size)
		return TO_KERNEL;
	u64 headers[sizeof(known->headers) / 8];
	u32 uplink = known->uplink;
	__builtin_memcpy(headers, known->headers, sizeof(headers));
	if (!is_same_flow(known, packet) || !is_same_flow(flow, packet))
		return TO_KERNEL;
	if (bpf_skb_adjust_room(skb, OUTER_SIZE, BPF_ADJ_ROOM_MAC, ENCAPSULATE))
		return TO_KERNEL;
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + INNER_AT > end)
		return TC_ACT_SHOT; /* never: the headers were added to what the packet has */
	struct vxlan_headers *outer = data + ETH_HLEN;
	__builtin_memcpy(data + OUTER_SIZE, data, ETH_HLEN);
	__builtin_memcpy(data, headers, OUTER_SIZE);
	outer->ip.tot_len = __builtin_bswap16(size - ETH_HLEN);
	outer->ip.id = bpf_get_prandom_u32();
	outer->ip.check = ~fold(outer->ip.check + outer->ip.tot_len + outer->ip.id);
	outer->udp.len = __builtin_bswap16(size - ETH_HLEN - sizeof(struct iphdr));
	return bpf_redirect(uplink, 0);
}

/* Return whether these are the outer headers that were accepted, or are being decided about. */
INLINE bool is_from(const struct inlet *inlet, const struct vxlan_headers *outer, u32 uplink)
{
	return inlet->addresses == *(u64 *)&outer->ip.saddr && inlet->ports == *(u32 *)&outer->udp &&
		inlet->vni == outer->vni && inlet->uplink == uplink;
}

/* Mark a packet so that the program at the tunnel notices if the kernel accepts it. One packet of a flow at a time: a
 * later one with other addresses waits. */
INLINE void ask_kernel(
	struct __sk_buff *skb, const struct packet *packet, const struct config *config, const struct vxlan_headers *outer,
	u32 tunnel, const struct inlet *known, u32 now
)
{
	u32 ifindex = skb->ifindex;
	struct link *link = links.lookup(&ifindex);
	if (!link || link->flags & (LINK_CONTAINER | LINK_TUNNEL))
		return;
	if (known && is_current(known->checked, known->epoch, known->generation, config, now) &&
	    (known->is_accepted || now - known->checked < config->recheck / 16))
		return;
	struct key6 key = inner_key(packet);
	struct inlet inlet = {
		.tag = tag_of(packet), .checked = now, .tunnel = tunnel, .uplink = ifindex,
		.addresses = *(u64 *)&outer->ip.saddr, .ports = *(u32 *)&outer->udp, .vni = outer->vni,
		.epoch = config->epoch, .generation = config->generation, .mark = bpf_get_prandom_u32() | 1,
	};
	inlets.update(&key, &inlet);
	skb->tc_index = inlet.mark;
}

/* Note that the kernel accepted a packet's outer headers, when it arrives at the tunnel. */
INLINE void accept_inlet(struct __sk_buff *skb, const struct packet *packet, const struct config *config)
{
	struct key6 key = inner_key(packet);
	const struct inlet *known = inlets.lookup(&key);
	u32 now = bpf_jiffies64();
	if (!known || known->mark != skb->tc_index || known->tunnel != skb->ifindex)
		return;
	skb->tc_index = 0;
	if (!is_current(known->checked, known->epoch, known->generation, config, now))
		return;
	struct inlet accepted = *known;
	accepted.is_accepted = 1;
	if (is_same_flow(known, packet))
		inlets.update(&key, &accepted);
}

/* Remove the outer headers of a packet from another host, and send it to its container. Returns TO_KERNEL for one that
 * the kernel has to take to the tunnel, and NOT_TUNNELLED for all other packets. */
INLINE int decapsulate(struct __sk_buff *skb, const struct config *config)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct packet packet;
	u32 now = bpf_jiffies64(), uplink = skb->ifindex, eth[3];
	if (data + OUTER_SIZE > end || !is_vxlan(data + ETH_HLEN))
		return NOT_TUNNELLED;
	u32 tunnel = tunnel_of(data + ETH_HLEN);
	if (!tunnel)
		return NOT_TUNNELLED;
	reach_inner(skb);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	const struct vxlan_headers *outer = data + ETH_HLEN;
	if (data + INNER_AT > end || skb->gso_size || skb->pkt_type || !is_plain(outer, skb->len) ||
	    header_sum(&outer->ip) != 0xffff || parse_inner(skb, data, end, &packet) != V_FAST ||
	    packet.l3_length + INNER_AT != skb->len ||
	    (outer->ip.tos & ECN && (outer->ip.tos ^ packet.tos) & ECN) || bpf_jiffies64() > config->deadline)
		return TO_KERNEL;
	struct flow *flow = find(&packet);
	__builtin_memcpy(eth, data + OUTER_SIZE, 12);
	if (!flow || !is_valid(flow, tunnel, config, eth, now) || flow->rewrite || is_too_large(skb, &packet, flow) ||
	    (flow->action != ACTION_PEER && flow->action != ACTION_REDIRECT))
		return TO_KERNEL;
	struct key6 key = inner_key(&packet);
	const struct inlet *inlet = inlets.lookup(&key);
	if (!inlet || !inlet->is_accepted || inlet->tunnel != tunnel || !is_from(inlet, outer, uplink) ||
	    !is_current(inlet->checked, inlet->epoch, inlet->generation, config, now)) {
		ask_kernel(skb, &packet, config, outer, tunnel, inlet, now);
		return TO_KERNEL;
	}
	u32 out = flow->out_ifindex, slot = flow->slot;
	bool to_peer = flow->action == ACTION_PEER;
	u16 protocol = *(u16 *)(data + INNER_AT - 2);
	if (!is_same_flow(inlet, &packet) || !is_same_flow(flow, &packet) ||
	    bpf_skb_adjust_room(skb, -OUTER_SIZE, BPF_ADJ_ROOM_MAC, packet.family == AF_INET6 ? DECAPSULATE6 : DECAPSULATE4))
		return TO_KERNEL;
	/* The NIC's "correct" was about the outer checksum, unless it knows VXLAN: __skb_checksum_validate_needed(). */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + ETH_HLEN > end)
		return TC_ACT_SHOT; /* never: the inner packet is longer */
	__builtin_memcpy(data, eth, 12);
	*(u16 *)(data + 12) = protocol;
	count_packet(flow, &packet, now);
	count(slot, V_FAST);
	return to_peer ? bpf_redirect_peer(out, 0) : bpf_redirect(out, 0);
}
