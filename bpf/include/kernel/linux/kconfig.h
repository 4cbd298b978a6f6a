/* SPDX-License-Identifier: GPL-2.0-only */
/* Stands in for the kernel tree's header of that name, so that no kernel headers need to be installed. */
#define CONFIG_BPF_SYSCALL 1
