/* SPDX-License-Identifier: GPL-2.0-only */
/* Count dropped packets by reason: raw tracepoint kfree_skb (include/trace/events/skb.h), whose arguments are the
 * packet, the address of the code that drops it, the reason (since Linux 5.17) and the receiving socket (since 6.11).
 * bpf/drops.py has the same structures. */
#include <uapi/linux/bpf.h>
#include "kernel_memory.h"

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ /* as in the packet */
#define ETH_P_IP 0x0008
#define ETH_P_IPV6 0xdd86
#else
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#endif
#define CONSUMED 1 /* SKB_NOT_DROPPED_YET, SKB_CONSUMED: not dropped */
#define NOT_SPECIFIED 2
#define SUBSYSTEM 16 /* bits below it number the reasons of a subsystem, 0 is the core */
#define HEADERS 64

struct address {
	u32 words[4]; /* IPv4: in the first */
};

/* A namespace and an address of a container that it reaches by its own links; address 0: there are such. */
struct owner_key {
	u32 ns;
	u32 family;
	struct address address;
};

struct drop_key {
	u64 location;
	u32 reason;
	u32 ns;
	u32 ifindex;
	u32 ends; /* what `address` is: 0 none, 1 the destination, 2 the source; its family in the second byte */
	struct address address; /* of a container, if the map `owners` has it */
};

/* A dropped packet: its headers from the network header on, of which `length` bytes belong to it. */
struct dropped {
	u64 at; /* ns since boot */
	struct drop_key key;
	u32 length;
	u32 protocol;
	u8 headers[HEADERS];
};

BPF_TABLE("percpu_hash", struct drop_key, u64, drops, 1); /* bpf/drops.py sets the sizes of the maps */
BPF_TABLE("percpu_array", u32, u64, uncounted, 1);
BPF_TABLE("hash", struct owner_key, u32, owners, 1);
#define PAGE_SIZE 4096
BPF_RINGBUF_OUTPUT(packets, 8);

/* Where a packet was when it was dropped. */
struct place {
	u32 ns;
	u32 ifindex;
	u32 protocol;
	u64 network; /* address of its network header */
};

/* Find namespace and interface: from the device, else from the socket, else from the route. */
INLINE void find_place(u64 skb, u64 receiver, struct place *place)
{
	u64 dev = pointer_at(skb + SKB_DEV);
	u64 from;

	place->ns = dev ? inode_of(pointer_at(dev + DEV_NET)) : 0;
	if (place->ns) {
		place->ifindex = word_at(dev + DEV_IFINDEX);
		return;
	}
	place->ifindex = word_at(skb + SKB_IIF);
	from = receiver ? receiver : pointer_at(skb + SKB_SK);
	place->ns = from ? inode_of(pointer_at(from + SOCK_NET)) : 0;
	from = place->ns ? 0 : pointer_at(skb + SKB_DST) & ~1ULL;
	dev = from ? pointer_at(from + DST_DEV) : 0;
	if (dev)
		place->ns = inode_of(pointer_at(dev + DEV_NET));
}

INLINE void find_headers(u64 skb, struct place *place)
{
	place->protocol = short_at(skb + SKB_PROTOCOL);
	place->network = pointer_at(skb + SKB_HEAD) + short_at(skb + SKB_NETWORK_HEADER);
}

/* Find the container that the packet comes from or goes to, in a namespace with links to containers. */
INLINE void find_owner(const struct place *place, struct drop_key *key)
{
	struct owner_key owner = { .ns = place->ns };
	struct address ends[2] = {};
	u32 end;

	if (!owners.lookup(&owner))
		return;
	if (place->protocol == ETH_P_IP) {
		u32 words[2] = {};

		bpf_probe_read_kernel(words, sizeof(words), (void *)(place->network + 12));
		ends[0].words[0] = words[0];
		ends[1].words[0] = words[1];
		owner.family = 4;
	} else if (place->protocol == ETH_P_IPV6) {
		bpf_probe_read_kernel(ends, sizeof(ends), (void *)(place->network + 8));
		owner.family = 6;
	} else {
		return;
	}
	owner.address = ends[1];
	end = 1;
	if (!owners.lookup(&owner)) {
		owner.address = ends[0];
		end = 2;
		if (!owners.lookup(&owner))
			return;
	}
	key->address = owner.address;
	key->ends = end | owner.family << 8;
}

/* Return whether this is a dropped packet of a network, and not the normal end of a buffer. */
INLINE int is_drop(u64 skb, u32 reason, const struct place *place)
{
	if (reason <= CONSUMED)
		return 0;
	/* Buffers of netlink and UNIX sockets end here as well; they have no device and no IP protocol. */
	return place->protocol != 0 && (reason != NOT_SPECIFIED || (place->ns && pointer_at(skb + SKB_DEV)));
}

INLINE int describe(struct bpf_raw_tracepoint_args *ctx, struct place *place, struct drop_key *key)
{
	u64 skb = ctx->args[0];
	u32 reason = ctx->args[2];

	if (reason <= CONSUMED)
		return 0;
	find_place(skb, HAS_RECEIVER ? ctx->args[3] : 0, place);
	find_headers(skb, place);
	if (!is_drop(skb, reason, place))
		return 0;
	key->location = ctx->args[1];
	key->reason = reason;
	key->ns = place->ns;
	key->ifindex = place->ifindex;
	find_owner(place, key);
	return 1;
}

int count_drop(struct bpf_raw_tracepoint_args *ctx)
{
	struct place place = {};
	struct drop_key key = {};
	u64 one = 1, *count;
	u32 first = 0;

	if (!describe(ctx, &place, &key))
		return 0;
	count = drops.lookup(&key);
	if (count) {
		*count += 1;
		return 0;
	}
	if (!drops.update(&key, &one))
		return 0;
	count = uncounted.lookup(&first);
	if (count)
		*count += 1;
	return 0;
}

int report_drop(struct bpf_raw_tracepoint_args *ctx)
{
	struct place place = {};
	struct dropped dropped = {};

	if (!describe(ctx, &place, &dropped.key))
		return 0;
	dropped.at = bpf_ktime_get_boot_ns();
	dropped.length = word_at(ctx->args[0] + SKB_LEN);
	dropped.protocol = place.protocol;
	bpf_probe_read_kernel(dropped.headers, HEADERS, (void *)place.network);
	packets.ringbuf_output(&dropped, sizeof(dropped), 0);
	return 0;
}
