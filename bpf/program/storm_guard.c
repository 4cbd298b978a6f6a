/* SPDX-License-Identifier: GPL-2.0-only */
/* Limit broadcast, multicast and ARP frames that enter one bridge port, and frames to unknown receivers that leave by
 * it: a token bucket for each class. Two programs are filters at the port's ingress and egress, a third may take
 * over the limits at ingress in the NIC's driver (XDP). They stay until they or the port are deleted, and need no
 * process. bpf/storm_guard.py has the same structures. */
#include <uapi/linux/bpf.h>

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ /* as in the packet */
#define ETH_P_ARP 0x0608
#define ETH_P_8021Q 0x0081
#define ETH_P_8021AD 0xa888
#else
#define ETH_P_ARP 0x0806
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8
#endif
#define PACKET_BROADCAST 1 /* linux/if_packet.h */
#define PACKET_MULTICAST 2
#define BROADCAST_MAC 0xffffffffffffULL /* as_number() */
#define NEXT -1 /* TC_ACT_UNSPEC: further filters decide */
#define DROP 2 /* TC_ACT_SHOT */

enum class { BROADCAST, MULTICAST, ARP, UNKNOWN, CLASSES };

/* The bucket is empty while `start` + `passed` * `interval`, the time that the frames so far were due at the rate, is
 * `burst` or more after now. `start` grows while fewer frames come, so that at most one burst is saved up. Frames of
 * several processors may pass at once: each at most one too many. */
struct bucket {
	u64 interval; /* ns between frames at the rate */
	u64 burst; /* ns: the number of frames * `interval` */
	u64 start;
	u64 passed;
	u64 dropped;
	u64 last_drop; /* ns since boot, without suspended time */
};

/* The addresses that were seen last, which need no look-up; `is_full`: `macs` has room for no other one; `in_driver`:
 * limit_in_driver() limits what enters. */
struct seen {
	u64 source;
	u64 receiver;
	u64 is_full;
	u64 in_driver;
};

BPF_TABLE("array", u32, struct bucket, buckets, CLASSES);
BPF_TABLE("array", u32, struct seen, seen, 1);
BPF_TABLE("hash", u64, u8, macs, 1); /* senders behind the port; bpf/storm_guard.py sets the size */

struct frame {
	u8 receiver[6];
	u8 source[6];
	u16 protocol;
};

static u64 as_number(const u8 *mac)
{
	const u16 *words = (const u16 *)mac;

	return (u64)words[0] << 32 | (u64)words[1] << 16 | words[2];
}

static int take(u32 class)
{
	struct bucket *bucket = buckets.lookup(&class);
	u64 now, due;

	if (!bucket)
		return NEXT;
	now = bpf_ktime_get_ns();
	due = bucket->start + bucket->passed * bucket->interval;
	if (due < now) {
		bucket->start = now - bucket->passed * bucket->interval;
	} else if (due - now >= bucket->burst) {
		__sync_fetch_and_add(&bucket->dropped, 1);
		bucket->last_drop = now;
		return DROP;
	}
	__sync_fetch_and_add(&bucket->passed, 1);
	return NEXT;
}

/* Frames to 01:80:c2:00:00:0x control the link itself (STP, LLDP, LACP); a bridge doesn't forward them. */
static int is_link_local(const u8 *mac)
{
	return mac[0] == 0x01 && mac[1] == 0x80 && mac[2] == 0xc2 && !mac[3] && !mac[4] && mac[5] < 0x10;
}

static int is_limited_by_driver(void)
{
	u32 first = 0;
	struct seen *last = seen.lookup(&first);

	return last && last->in_driver;
}

static void learn(u64 source)
{
	struct seen *last;
	u32 first = 0;
	u8 known = 1;

	last = seen.lookup(&first);
	if (!last || last->source == source)
		return;
	if (!macs.lookup(&source) && macs.update(&source, &known))
		last->is_full = 1;
	last->source = source;
}

int limit_storms(struct __sk_buff *skb)
{
	struct frame *frame = (struct frame *)(unsigned long)skb->data;
	int decided = NEXT;

	if ((void *)(frame + 1) > (void *)(unsigned long)skb->data_end)
		return NEXT;
	if (skb->pkt_type == PACKET_BROADCAST && !is_limited_by_driver())
		decided = take(skb->protocol == ETH_P_ARP ? ARP : BROADCAST);
	else if (skb->pkt_type == PACKET_MULTICAST && !is_link_local(frame->receiver) && !is_limited_by_driver())
		decided = take(MULTICAST);
	if (decided != DROP)
		learn(as_number(frame->source));
	return decided;
}

/* The same limits for frames in the driver, before the kernel allocates anything for them. */
int limit_in_driver(struct xdp_md *ctx)
{
	struct frame *frame = (struct frame *)(unsigned long)ctx->data;
	void *end = (void *)(unsigned long)ctx->data_end;
	u16 protocol;
	int decided;

	if ((void *)(frame + 1) > end || !(frame->receiver[0] & 1) || is_link_local(frame->receiver))
		return XDP_PASS;
	protocol = frame->protocol;
	if (as_number(frame->receiver) != BROADCAST_MAC) {
		decided = take(MULTICAST);
	} else {
		if ((protocol == ETH_P_8021Q || protocol == ETH_P_8021AD) && (void *)(frame + 1) + 4 <= end)
			protocol = *(u16 *)((void *)(frame + 1) + 2);
		decided = take(protocol == ETH_P_ARP ? ARP : BROADCAST);
	}
	return decided == DROP ? XDP_DROP : XDP_PASS;
}

/* The bridge sends a frame by this port to a receiver that never sent anything from there: it floods it to all ports,
 * as it doesn't know where that receiver is. */
int limit_unknown(struct __sk_buff *skb)
{
	struct frame *frame = (struct frame *)(unsigned long)skb->data;
	struct seen *last;
	u32 first = 0;
	u64 receiver;

	if ((void *)(frame + 1) > (void *)(unsigned long)skb->data_end || frame->receiver[0] & 1)
		return NEXT;
	receiver = as_number(frame->receiver);
	last = seen.lookup(&first);
	if (!last || last->is_full || last->receiver == receiver)
		return NEXT;
	if (!macs.lookup(&receiver))
		return take(UNKNOWN);
	last->receiver = receiver;
	return NEXT;
}
