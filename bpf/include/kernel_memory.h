/* SPDX-License-Identifier: GPL-2.0-only */
/* Read the kernel's memory at offsets from BTF, which bpf/build.py passes. */
#pragma once

#define INLINE static __always_inline
#define FIRST_INODE 0xefffff00 /* of namespaces, in include/linux/proc_ns.h and fs/proc/generic.c */

INLINE u64 pointer_at(u64 at)
{
	u64 found = 0;
	bpf_probe_read_kernel(&found, sizeof(found), (void *)at);
	return found;
}

INLINE u32 word_at(u64 at)
{
	u32 found = 0;
	bpf_probe_read_kernel(&found, sizeof(found), (void *)at);
	return found;
}

INLINE u16 short_at(u64 at)
{
	u16 found = 0;
	bpf_probe_read_kernel(&found, sizeof(found), (void *)at);
	return found;
}

INLINE u8 byte_at(u64 at)
{
	u8 found = 0;
	bpf_probe_read_kernel(&found, sizeof(found), (void *)at);
	return found;
}

/* Return the inode of a struct net, 0 if it isn't one: some members of sk_buff share their memory with others. */
INLINE u32 inode_of(u64 net)
{
	u32 inode = net ? word_at(net + NET_INUM) : 0;
	return inode >= FIRST_INODE ? inode : 0;
}
