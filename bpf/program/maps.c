/* SPDX-License-Identifier: GPL-2.0-only */
/* Define the maps; find, store and release flows. First of the parts that bpf/build.py concatenates: BCC finds maps
 * only in its main text. */
#include <uapi/linux/bpf.h>
#include <uapi/linux/pkt_cls.h>
#include "conntrack.h"
#include "packet.h"
#include "rewrite.h"
#include "types.h"

BPF_TABLE("array", u32, struct config, config, 1);
BPF_TABLE("percpu_array", u32, struct slot_counters, counters, 1);
BPF_TABLE("percpu_array", u32, struct learned, scratch, 1);
BPF_HASH(links, u32, struct link, 1);
BPF_TABLE("hash", struct owner_key, u64, owners, 1);
BPF_TABLE("hash", struct mac_key, struct mac_value, macs, 1);
BPF_TABLE("hash", struct owner_key, u32, captured, 1);
BPF_TABLE("lru_hash", struct key4, struct flow, flows4, 1);
BPF_TABLE("lru_hash", struct key6, struct flow, flows6, 1);
BPF_TABLE("hash", struct tunnel_key, u32, tunnels, 1);
BPF_TABLE("lru_hash", struct key6, struct outer, outers, 1);
BPF_TABLE("lru_hash", struct key6, struct inlet, inlets, 1);
#define PAGE_SIZE 4096 /* bpf/maps.py sets the sizes of the maps */
BPF_RINGBUF_OUTPUT(wanted, 8);
BPF_TABLE("array", u32, struct young, young, YOUNG);

INLINE void count(u32 slot, u32 verdict)
{
	struct slot_counters *slot_counters = counters.lookup(&slot);
	u64 index = verdict & (COUNTERS - 1);
	asm volatile("" : "+r"(index)); /* without this the compiler knows the bound, but not the verifier */
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

/* Return a hash that distinguishes flows which may reuse each other's memory: see is_same_flow(). */
INLINE u32 tag_of(const struct packet *packet)
{
	u64 word = packet->ports | (u64)packet->l4_proto << 32;
	u64 addresses = packet->family == AF_INET ? packet->addresses : (u64)packet->src[3] << 32 | packet->dst[3];
	u64 mixed = addresses ^ word * 0x9e3779b97f4a7c15ULL;
	return mixed >> 32 ^ mixed;
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

/* Return the other direction of a flow, or NULL. */
INLINE struct flow *find_reverse(const struct packet *packet, const struct flow *flow)
{
	struct packet other = {.family = packet->family, .l4_proto = packet->l4_proto};
	__builtin_memcpy(other.src, flow->new_dst, 16);
	__builtin_memcpy(other.dst, flow->new_src, 16);
	other.addresses = flow->new_dst[0] | (u64)flow->new_src[0] << 32;
	other.ports = flow->new_dport | (u32)flow->new_sport << 16;
	return find(&other);
}

/* Let the kernel forward a flow after a FIN, RST or SYN: this direction (ACTION_NONE, ACTION_RESET) and the other one. */
INLINE void release(struct flow *flow, struct flow *other, u8 action)
{
	flow->action = action;
	flow->last_seen = bpf_jiffies64();
	if (other)
		other->action = ACTION_NONE;
}

/* Send the daemon a request about the connection of a packet after widen(). */
INLINE void want(u32 what, const struct packet *packet)
{
	struct want *said = wanted.ringbuf_reserve(sizeof(*said));
	if (!said)
		return; /* the next packet sends it again */
	said->what = what;
	said->family = packet->family;
	__builtin_memcpy(said->src, packet->src, 16);
	__builtin_memcpy(said->dst, packet->dst, 16);
	said->sport = SPORT(packet);
	said->dport = DPORT(packet);
	said->l4_proto = packet->l4_proto;
	__builtin_memset(said->pad, 0, sizeof(said->pad));
	wanted.ringbuf_submit(said, 0);
}
