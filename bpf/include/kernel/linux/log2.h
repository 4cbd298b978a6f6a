/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC includes it; nothing of it is needed. */
