/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What a probe is given, by the kernel's names. */
#pragma once

#include "target.h"

/* What a kprobe is given, by the kernel's names, which BCC's PT_REGS_PARM* know. */
#if defined(__x86_64__)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#else
#error "otelbpf knows the registers of x86-64 only"
#endif
