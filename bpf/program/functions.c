/* SPDX-License-Identifier: GPL-2.0-only */
/* Report the calls of kernel functions with the packets of one flow or probe: kprobe.multi (kernel/trace/bpf_trace.c).
 * The attach cookie says which function it is and which of its arguments is the packet. bpf/functions.py has the same
 * structures. */
#include <uapi/linux/bpf.h>
#include "kernel_memory.h"

#define TCP 6
#define UDP 17
/* The cookie: the number of the argument (bits 0-2), whether it is the address of a pointer to the packet (3), the number
 * of the argument with a drop reason (4-6), and the function (from 8 on). */
#define INDIRECT 8
#define REASON_SHIFT 4
#define FUNCTION_SHIFT 8
#define HEADERS 96

struct flow_key {
	u32 protocol;
	u16 sport; /* ICMP: the identifier; in network byte order */
	u16 dport;
	u8 src[16]; /* IPv4: the first four */
	u8 dst[16];
};

/* What the packets of a probe have in common; protocol 0: packets of the map `wanted` are reported instead. */
struct probe_mark {
	u32 protocol;
	u32 mark; /* TCP: the sequence number; else the first bytes of the payload */
	u32 acknowledged;
	u16 port; /* UDP: the destination port of an answer */
	u16 padding;
};

/* struct pt_regs as words; the numbers of those with arguments depend on the processor. */
struct registers {
	u64 words[18];
};

struct call {
	u64 at; /* ns since boot */
	u32 function;
	u32 ns;
	u32 ifindex;
	u32 linear; /* bytes from the network header on that are in one piece */
	u8 headers[HEADERS];
};

BPF_TABLE("hash", struct flow_key, u32, wanted, 1); /* bpf/functions.py sets the sizes of the maps */
BPF_TABLE("array", u32, struct probe_mark, probe, 1);
#define PAGE_SIZE 4096
BPF_RINGBUF_OUTPUT(calls, 8);

/* Read addresses and protocol; return the address of the transport header, 0 for a packet that isn't wanted anyway. */
INLINE u64 find_transport(u64 network, struct flow_key *key)
{
	u8 first = byte_at(network);

	if (first >> 4 == 4) {
		if (short_at(network + 6) & bpf_htons(0x1fff)) /* not the first fragment */
			return 0;
		key->protocol = byte_at(network + 9);
		bpf_probe_read_kernel(key->src, 4, (void *)(network + 12));
		bpf_probe_read_kernel(key->dst, 4, (void *)(network + 16));
		return network + (first & 15) * 4;
	}
	if (first >> 4 != 6)
		return 0;
	key->protocol = byte_at(network + 6);
	bpf_probe_read_kernel(key->src, 16, (void *)(network + 8));
	bpf_probe_read_kernel(key->dst, 16, (void *)(network + 24));
	return network + 40;
}

INLINE int is_of_flow(u64 transport, struct flow_key *key)
{
	if (key->protocol == TCP || key->protocol == UDP) {
		key->sport = short_at(transport);
		key->dport = short_at(transport + 2);
	} else {
		key->sport = short_at(transport + 4);
	}
	return wanted.lookup(key) != 0;
}

INLINE int is_of_probe(u64 transport, u32 protocol, const struct probe_mark *mark)
{
	if (protocol != mark->protocol)
		return 0;
	if (protocol == TCP)
		return word_at(transport + 4) == mark->mark || word_at(transport + 8) == mark->acknowledged;
	if (protocol == UDP && mark->port && short_at(transport + 2) == mark->port)
		return 1;
	return word_at(transport + 8) == mark->mark;
}

INLINE void find_place(u64 skb, struct call *call)
{
	u64 dev = pointer_at(skb + SKB_DEV);

	call->ns = dev ? inode_of(pointer_at(dev + DEV_NET)) : 0;
	call->ifindex = call->ns ? word_at(dev + DEV_IFINDEX) : 0;
}

/* Return one of three arguments. All are loaded before: the verifier wants constant offsets in the context. */
INLINE u64 choose(u32 number, u64 first, u64 second, u64 third)
{
	asm volatile("" : "+r"(first), "+r"(second), "+r"(third));
	return number == 3 ? third : number == 2 ? second : first;
}

int report_call(struct registers *ctx)
{
	u64 cookie = bpf_get_attach_cookie(ctx), skb, network, transport;
	struct flow_key key = {};
	struct probe_mark *mark;
	struct call call = {};
	u32 first = 0, start, end;
	u64 reason;

	reason = choose(cookie >> REASON_SHIFT & 7, CONSUMED + 1, ctx->words[SECOND_ARGUMENT], ctx->words[THIRD_ARGUMENT]);
	if ((u32)reason <= CONSUMED) /* the normal end, also of copies for packet sockets */
		return 0;
	skb = choose(cookie & 7, ctx->words[FIRST_ARGUMENT], ctx->words[SECOND_ARGUMENT], ctx->words[THIRD_ARGUMENT]);
	if (cookie & INDIRECT)
		skb = pointer_at(skb);
	mark = probe.lookup(&first);
	if (!skb || !mark)
		return 0;
	start = short_at(skb + SKB_NETWORK_HEADER);
	network = pointer_at(skb + SKB_HEAD) + start;
	transport = find_transport(network, &key);
	if (!transport)
		return 0;
	if (!(mark->protocol ? is_of_probe(transport, key.protocol, mark) : is_of_flow(transport, &key)))
		return 0;
	end = word_at(skb + SKB_TAIL);
	call.at = bpf_ktime_get_boot_ns();
	call.function = cookie >> FUNCTION_SHIFT;
	call.linear = end > start ? end - start : 0;
	find_place(skb, &call);
	bpf_probe_read_kernel(call.headers, HEADERS, (void *)network);
	calls.ringbuf_output(&call, sizeof(call), 0);
	return 0;
}
