/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC asks for the version; the programs here use only what UAPI promises. */
#include <uapi/linux/version.h>
