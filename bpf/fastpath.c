/* SPDX-License-Identifier: GPL-2.0-only */
/* The fast path, at TC ingress of containers' links and of uplinks. Conntrack is the authority, the flow maps are a cache of
 * what it said; what is not found there, not plain, or not allowed goes to the kernel unchanged, with a counted reason. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include "conntrack.h"
#include "packet.h"
#include "rewrite.h"
#include "types.h"

#define TO_KERNEL (-1) /* TCX_NEXT and TC_ACT_UNSPEC */

static u64 (*jiffies64)(void) = (void *)118; /* the kernel puts it in place of the call; a clock would be one */
static long (*redirect_peer)(u32, u64) = (void *)155;
#define HOP_LIMIT_DIFFERENCE 0xfeff /* one less in the low byte of a word, in network order */
static s64 (*csum_update)(void *, u32) = (void *)40; /* its BCC declaration has a 16-bit sum */

BPF_ARRAY(config, struct config, 1);
BPF_PERCPU_ARRAY(counters, struct slot_counters, 1);
BPF_PERCPU_ARRAY(scratch, struct learned, 2);
BPF_HASH(ports, u32, struct port, 1);
BPF_TABLE("hash", struct owner_key, u64, owners, 1);
BPF_TABLE("hash", struct mac_key, struct mac_value, macs, 1);
BPF_TABLE("hash", struct owner_key, u32, captured, 1);
BPF_TABLE("lru_hash", struct key4, struct flow, flows4, 1);
BPF_TABLE("lru_hash", struct key6, struct flow, flows6, 1);

INLINE void count(u32 slot, u32 verdict)
{
	struct slot_counters *slot_counters = counters.lookup(&slot);
	u64 index = verdict & (COUNTERS - 1);
	asm volatile("" : "+r"(index)); /* else the bound is known to the compiler, and not to the verifier */
	if (slot_counters)
		slot_counters->packets[index & (COUNTERS - 1)]++;
}

INLINE struct key4 key4_of(const struct packet *packet)
{
	struct key4 key;
	key.words[0] = packet->addresses;
	key.words[1] = packet->ports | (u64)packet->l4_proto << 32;
	return key;
}

INLINE struct key6 key6_of(const struct packet *packet)
{
	struct key6 key;
	__builtin_memcpy(key.src, packet->src, 16);
	__builtin_memcpy(key.dst, packet->dst, 16);
	key.word = packet->ports | (u64)packet->l4_proto << 32;
	return key;
}

INLINE struct flow *find(const struct packet *packet)
{
	if (packet->family == AF_INET) {
		struct key4 key = key4_of(packet);
		return flows4.lookup(&key);
	}
	struct key6 key = key6_of(packet);
	return flows6.lookup(&key);
}

INLINE void store(const struct packet *packet, struct flow *flow)
{
	if (packet->family == AF_INET) {
		struct key4 key = key4_of(packet);
		flows4.update(&key, flow);
	} else {
		struct key6 key = key6_of(packet);
		flows6.update(&key, flow);
	}
}

/* A FIN, RST or SYN: this direction and the other one belong to the kernel from here on. */
INLINE void hand_back(struct packet *packet)
{
	struct flow *flow = find(packet);
	if (!flow || flow->action == ACTION_NONE)
		return;
	flow->action = ACTION_NONE;
	struct packet other = {.family = packet->family, .l4_proto = packet->l4_proto};
	__builtin_memcpy(other.src, flow->new_dst, 16);
	__builtin_memcpy(other.dst, flow->new_src, 16);
	other.addresses = flow->new_dst[0] | (u64)flow->new_src[0] << 32;
	other.ports = flow->new_dport | (u32)flow->new_sport << 16;
	flow = find(&other);
	if (flow)
		flow->action = ACTION_NONE;
}

INLINE bool is_captured(const struct packet *packet)
{
	struct owner_key key = {.family = packet->family};
	__builtin_memcpy(key.address, packet->src, 16);
	if (captured.lookup(&key))
		return true;
	__builtin_memcpy(key.address, packet->dst, 16);
	return captured.lookup(&key);
}

/* Whether the container on that port may send from this address and this MAC. */
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

INLINE void fill_fib(struct bpf_fib_lookup *fib, const struct packet *packet, u32 ifindex)
{
	fib->family = packet->family;
	fib->l4_protocol = packet->l4_proto;
	fib->sport = SPORT(packet);
	fib->dport = DPORT(packet);
	fib->ifindex = ifindex;
	fib->tot_len = 1; /* asks for the MTU of the way, without being too long for any */
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
	case BPF_FIB_LKUP_RET_NOT_FWDED:
		return V_LOCAL;
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

/* The port of `bridge` behind which that MAC address sits becomes the way out. */
INLINE bool go_to_port(struct flow *flow, u32 bridge, const u8 *mac, const struct port *from, bool *isolated)
{
	struct mac_key key = {.bridge = bridge};
	__builtin_memcpy(key.mac, mac, ETH_ALEN);
	struct mac_value *to = macs.lookup(&key);
	if (!to)
		return false;
	flow->out_ifindex = to->ifindex;
	flow->action = to->flags & MAC_PEER ? ACTION_PEER : ACTION_REDIRECT;
	if (!flow->mtu || to->mtu < flow->mtu)
		flow->mtu = to->mtu;
	*isolated = from->flags & PORT_ISOLATED && to->flags & MAC_ISOLATED;
	return true;
}

/* Whether the translation changes the destination's address. */
INLINE bool is_sent_elsewhere(const struct packet *packet, const struct flow *flow)
{
	u32 moved = flow->new_dst[0] ^ packet->dst[0];
	if (packet->family == AF_INET6)
		moved |= (flow->new_dst[1] ^ packet->dst[1]) | (flow->new_dst[2] ^ packet->dst[2]) |
			(flow->new_dst[3] ^ packet->dst[3]);
	return moved;
}

/* The way out of a frame that the bridge would switch. */
INLINE enum verdict find_bridged(
	struct __sk_buff *skb, const struct packet *packet, const struct port *port, const u32 *eth, struct flow *flow
)
{
	if (is_sent_elsewhere(packet, flow))
		return V_BRIDGED_DNAT;
	bool isolated = false;
	flow->mtu = 0;
	if (!go_to_port(flow, port->l3_ifindex, (const u8 *)eth, port, &isolated) || flow->out_ifindex == skb->ifindex)
		return V_NO_PORT;
	if (isolated)
		return V_ISOLATED;
	__builtin_memcpy(flow->eth_out, eth, 12);
	return V_FAST;
}

/* What a route allows: of IPv4, the lookup tells only the link's MTU, where the kernel heeds the route's as well. */
INLINE u16 route_mtu(const struct bpf_fib_lookup *fib, const struct config *config)
{
	u32 mtu = fib->mtu_result;
	return config->route_mtu && config->route_mtu < mtu ? config->route_mtu : mtu;
}

/* Whether what the destination sends back leaves by the link that the packet came in on, as the host would route it; if
 * so to the very neighbour that sent it, the other direction may be learned as well. */
INLINE bool is_way_back(
	struct __sk_buff *skb, const struct packet *packet, const struct port *port, const struct config *config, u32 out_l3,
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
	if (found == BPF_FIB_LKUP_RET_SUCCESS && sender == hop)
		learned->back_mtu = route_mtu(&fib, config);
	return (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH) &&
		fib.ifindex == port->l3_ifindex;
}

/* The way out of a packet that the host would route: by its destination after translation and its source before it. */
INLINE enum verdict find_routed(
	struct __sk_buff *skb, const struct packet *packet, const struct port *port, const struct config *config,
	const u32 *eth, struct learned *learned
)
{
	struct flow *flow = &learned->flow;
	struct bpf_fib_lookup fib = {};
	bool isolated;
	fill_fib(&fib, packet, port->l3_ifindex);
	__builtin_memcpy(fib.ipv6_dst, flow->new_dst, 16);
	fib.dport = flow->new_dport;
	enum verdict verdict = fib_verdict(bpf_fib_lookup(skb, &fib, sizeof(fib), 0));
	if (verdict != V_FAST)
		return verdict;
	flow->mtu = route_mtu(&fib, config);
	__builtin_memcpy(flow->eth_out, fib.dmac, ETH_ALEN);
	/* br_netfilter translates before the bridge decides: what leaves by the bridge that it came in on is still switched,
	 * see br_nf_pre_routing_finish(). */
	if (port->flags & PORT_IPTABLES && fib.ifindex == port->l3_ifindex && is_sent_elsewhere(packet, flow)) {
		__builtin_memcpy((u8 *)flow->eth_out + ETH_ALEN, (const u8 *)eth + ETH_ALEN, ETH_ALEN);
		flow->rewrite |= REWRITE_MACS;
	} else {
		__builtin_memcpy((u8 *)flow->eth_out + ETH_ALEN, fib.smac, ETH_ALEN);
		flow->rewrite |= REWRITE_L3;
	}
	if (!go_to_port(flow, fib.ifindex, fib.dmac, port, &isolated)) {
		if (config->flags & HAS_MULTIPATH)
			return V_MULTIPATH;
		flow->out_ifindex = fib.ifindex;
		flow->action = ACTION_REDIRECT;
	}
	if (!(port->flags & PORT_CONTAINER) && !is_way_back(skb, packet, port, config, fib.ifindex, eth, learned))
		return V_SOURCE;
	return V_FAST;
}

/* What a rewriting changes, as checksum differences (RFC 1624). */
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
		flow->addr_diff = bpf_csum_diff(old, sizeof(old), new, sizeof(new), 0);
	}
	old[0] = packet->ports;
	new[0] = flow->new_ports;
	if (old[0] != new[0]) {
		flow->rewrite |= REWRITE_PORT;
		flow->port_diff = bpf_csum_diff(old, 4, new, 4, 0);
	}
}

/* All that a new flow needs to know; any verdict but FAST leaves the packet to the kernel. */
INLINE enum verdict learn(
	struct __sk_buff *skb, const struct packet *packet, const struct config *config, const struct port *port,
	const u32 *eth, struct learned *learned
)
{
	struct flow *flow = &learned->flow;
	bool routed = !__builtin_memcmp(eth, port->mac, ETH_ALEN);
	if (!routed && !(port->flags & PORT_BRIDGED))
		return V_OTHER_HOST;
	if (config->flags & HAS_CAPTURES && is_captured(packet))
		return V_CAPTURED;
	if (port->flags & PORT_CONTAINER && !is_own_source(skb, packet, eth))
		return V_SOURCE;
	if (!routed && port->flags & PORT_L2) {
		__builtin_memcpy(flow->new_src, packet->src, 16);
		__builtin_memcpy(flow->new_dst, packet->dst, 16);
		flow->new_ports = packet->ports;
		learned->known = KNOWN_BOTH_WAYS;
	} else {
		if (!routed && !(port->flags & PORT_IPTABLES))
			return V_OTHER_HOST;
		enum verdict asked = ask_conntrack(skb, packet, config, learned);
		if (asked != V_FAST)
			return asked;
	}
	enum verdict verdict = routed ? find_routed(skb, packet, port, config, eth, learned)
				      : find_bridged(skb, packet, port, eth, flow);
	if (verdict == V_FAST)
		find_differences(packet, flow);
	return verdict;
}

/* Verdicts that the next packet of the flow would get as well: kept, so that it need not ask again at once. */
INLINE bool is_lasting(enum verdict verdict)
{
	return verdict == V_LOCAL || verdict == V_SOURCE || verdict == V_NO_PORT || verdict == V_HELPER ||
		verdict == V_ISOLATED || verdict == V_CAPTURED || verdict == V_TUNNEL || verdict == V_MULTIPATH;
}

/* MAC addresses of a frame that goes the other way. */
INLINE void swap_macs(u32 *to, const u32 *from)
{
	to[0] = from[1] >> 16 | from[2] << 16;
	to[1] = from[2] >> 16 | from[0] << 16;
	to[2] = from[0] >> 16 | from[1] << 16;
}

/* A flow is known: so is what comes back, if the rules let that through and it comes in as expected. */
INLINE void learn_way_back(
	const struct packet *packet, const struct config *config, const struct port *port, const struct learned *learned
)
{
	const struct flow *flow = &learned->flow;
	u32 one = 1, in = flow->out_ifindex;
	struct packet answer = {.family = packet->family, .l4_proto = packet->l4_proto};
	struct port *from = ports.lookup(&in);
	struct learned *room = scratch.lookup(&one);
	if (!from || !room || !learned->back_mtu)
		return;
	struct flow *back = &room->flow;
	__builtin_memset(back, 0, sizeof(*back));
	if (from->flags & PORT_CONTAINER) {
		struct owner_key key = {.ifindex = in, .family = packet->family};
		__builtin_memcpy(key.address, flow->new_dst, 16);
		if (!owners.lookup(&key))
			return;
	}
	swap_macs(back->eth_in, flow->eth_out);
	swap_macs(back->eth_out, flow->eth_in);
	back->in_ifindex = in;
	back->out_ifindex = port->flags & PORT_CONTAINER ? flow->in_ifindex : port->l3_ifindex;
	back->slot = from->slot;
	back->epoch = flow->epoch;
	back->checked = flow->checked;
	back->first_seen = flow->checked;
	back->last_seen = flow->checked;
	back->mtu = learned->back_mtu;
	back->action = port->flags & PORT_PEER ? ACTION_PEER : ACTION_REDIRECT;
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
	if (packet->family == AF_INET) {
		struct key4 key = key4_of(&answer);
		flows4.insert(&key, back);
	} else {
		struct key6 key = key6_of(&answer);
		flows6.insert(&key, back);
	}
}

/* Asks anew what to do with a flow, and keeps the answer; `old` is what was known of it, or NULL. */
INLINE enum verdict relearn(
	struct __sk_buff *skb, const struct packet *packet, const struct config *config, const struct port *port,
	const u32 *eth, struct flow *old, u64 now
)
{
	u32 zero = 0;
	struct learned *learned = scratch.lookup(&zero);
	if (!learned)
		return V_CACHE_FULL;
	struct flow *flow = &learned->flow;
	__builtin_memset(learned, 0, sizeof(*learned));
	__builtin_memcpy(flow->eth_in, eth, 12);
	flow->in_ifindex = skb->ifindex;
	flow->slot = port->slot;
	flow->epoch = config->epoch;
	learned->back_mtu = port->mtu;
	flow->checked = now;
	flow->first_seen = now;
	flow->last_seen = now;
	enum verdict verdict = learn(skb, packet, config, port, eth, learned);
	/* Who may not send at all changes nothing about a flow of somebody else. */
	if (old && (verdict == V_SOURCE || verdict == V_OTHER_HOST))
		return verdict;
	if (verdict != V_FAST) {
		if (old)
			old->action = ACTION_NONE;
		if (!is_lasting(verdict))
			return verdict;
		flow->action = ACTION_KERNEL;
		flow->rewrite = verdict;
	}
	if (old) {
		if (verdict == V_FAST && old->action >= ACTION_PEER && old->rewrite & REWRITE_ADDRESS &&
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
		learn_way_back(packet, config, port, learned);
	/* Now and then the kernel sees a packet of a young UDP flow, so that it becomes a stream there as well. */
	if (verdict == V_FAST && learned->known & KNOWN_UNASSURED && old && old->action >= ACTION_PEER)
		return V_NOT_ASSURED;
	return verdict;
}

/* The length of the largest packet that a frame makes on the wire, from the IP header on. */
INLINE u32 wire_length(struct __sk_buff *skb, const struct packet *packet)
{
	return skb->gso_size ? skb->gso_size + packet->headers : packet->l3_length;
}

INLINE int rewrite_and_go(struct __sk_buff *skb, const struct packet *packet, struct flow *flow)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	u32 out = flow->out_ifindex;
	u8 action = flow->action, rewrite = flow->rewrite;
	if (rewrite) {
		if (data + ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct udphdr) > end &&
		    (packet->family != AF_INET ||
		     data + ETH_HLEN + sizeof(struct iphdr) + sizeof(struct udphdr) > end))
			return TO_KERNEL;
		if (rewrite & (REWRITE_L3 | REWRITE_MACS)) {
			u32 *eth = data;
			eth[0] = flow->eth_out[0];
			eth[1] = flow->eth_out[1];
			eth[2] = flow->eth_out[2];
		}
		if (packet->family == AF_INET) {
			struct iphdr *ip = data + ETH_HLEN;
			u32 *ports = (void *)(ip + 1);
			if ((void *)(ports + 1) > end)
				return TO_KERNEL;
			rewrite_ipv4(ip, flow);
			*ports = flow->new_ports;
			if (action == ACTION_REDIRECT)
				skb->priority = TOS_PRIORITIES >> ((packet->tos & 0x1e) * 2) & 15;
		} else {
			struct ipv6hdr *ip = data + ETH_HLEN;
			u32 *ports = (void *)(ip + 1);
			if ((void *)(ports + 1) > end)
				return TO_KERNEL;
			rewrite_ipv6(ip, flow);
			*ports = flow->new_ports;
		}
		if (rewrite & (REWRITE_ADDRESS | REWRITE_PORT))
			fix_l4(skb, packet, flow->addr_diff, flow->port_diff, rewrite);
		/* The hop limit is in no checksum of IPv6, but in the sum of the frame that a card may have given. */
		if (packet->family == AF_INET6 && rewrite & REWRITE_L3)
			csum_update(skb, HOP_LIMIT_DIFFERENCE);
	}
	if (action == ACTION_PEER)
		return redirect_peer(out, 0);
	return bpf_redirect(out, 0);
}

/* The packet is plain: forward it by its flow, learning that first where need be. */
INLINE enum verdict decide(
	struct __sk_buff *skb, struct packet *packet, const struct config *config, const u32 *eth, struct flow **found,
	u32 *slot
)
{
	u64 now = jiffies64();
	struct flow *flow = find(packet);
	if (now > config->deadline)
		return V_LEASE;
	bool known = flow && flow->epoch == config->epoch && now - flow->checked < config->recheck &&
		flow->in_ifindex == skb->ifindex && flow->action != ACTION_NONE &&
		!((flow->eth_in[0] ^ eth[0]) | (flow->eth_in[1] ^ eth[1]) | (flow->eth_in[2] ^ eth[2]));
	if (!known) {
		u32 ifindex = skb->ifindex;
		struct port *port = ports.lookup(&ifindex);
		if (!port)
			return V_PORT;
		*slot = port->slot;
		if (!config->generation)
			return V_PAUSED;
		/* What carries no data cannot wait for an answer, and the handshake's end is no reason to ask yet: the first
		 * data makes both directions known. */
		if (!flow && packet->l4_proto == IPPROTO_TCP && packet->l3_length == packet->headers)
			return V_NO_DATA;
		widen(packet);
		enum verdict verdict = relearn(skb, packet, config, port, eth, flow, now);
		if (verdict != V_FAST)
			return verdict;
		flow = find(packet);
		if (!flow)
			return V_CACHE_FULL;
	}
	*slot = flow->slot;
	if (flow->action < ACTION_PEER)
		return flow->rewrite;
	if (wire_length(skb, packet) > flow->mtu)
		return V_MTU;
	if (flow->rewrite & REWRITE_L3 && packet->ttl <= 1)
		return V_TTL;
	flow->last_seen = now;
	lock_xadd(&flow->packets, 1);
	lock_xadd(&flow->bytes, packet->l3_length);
	*found = flow;
	return V_FAST;
}

INLINE u32 slot_of(u32 ifindex)
{
	struct port *port = ports.lookup(&ifindex);
	return port ? port->slot : 0;
}

/* The first bytes of a frame that a card delivered may lie outside what a program can address. */
INLINE bool is_out_of_reach(struct __sk_buff *skb)
{
	u32 wanted = ETH_HLEN + sizeof(struct ipv6hdr) + sizeof(struct tcphdr);
	u32 reach = skb->data_end - skb->data;
	return reach < wanted && reach < skb->len;
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
	packet.closes = 0;
	if (data + ETH_HLEN > end)
		return TO_KERNEL;
	eth[0] = ((u32 *)data)[0];
	eth[1] = ((u32 *)data)[1];
	eth[2] = ((u32 *)data)[2];
	if (family == AF_INET)
		verdict = parse_ipv4(data + ETH_HLEN, end, size, skb->gso_size, &packet);
	else
		verdict = parse_ipv6(data + ETH_HLEN, end, size, skb->gso_size, &packet);
	if (eth[0] & 1)
		verdict = V_MULTICAST;
	if (verdict == V_FAST) {
		verdict = decide(skb, &packet, config, eth, &flow, &slot);
	} else {
		slot = slot_of(skb->ifindex);
		if (packet.closes)
			hand_back(&packet);
	}
	count(slot, verdict);
	if (verdict != V_FAST || !flow)
		return TO_KERNEL;
	/* Frames are padded to 60 bytes: the kernel trims that off before it forwards. */
	if (skb->len > packet.l3_length + ETH_HLEN)
		bpf_skb_change_tail(skb, packet.l3_length + ETH_HLEN, 0);
	return rewrite_and_go(skb, &packet, flow);
}

int fastpath(struct __sk_buff *skb)
{
	u32 zero = 0;
	struct config *now = config.lookup(&zero);
	if (!now)
		return TO_KERNEL;
	if (is_out_of_reach(skb))
		bpf_skb_pull_data(skb, skb->len < 74 ? skb->len : 74);
	if (skb->vlan_present || skb->protocol == __builtin_bswap16(ETH_P_8021Q) ||
	    skb->protocol == __builtin_bswap16(ETH_P_8021AD)) {
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
