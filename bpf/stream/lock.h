/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* One processor at a time reads a packet of a connection, or has its place in the table. */
#pragma once

#include "kernel/verifier.h"

/* Some 6 ms, or 200 us where BCC has compiled it. */
#define LOCK_TRIES TAKEN_EACH(8192, 256)
#define CLOCK_READS 16

/*
 * Two processors may have packets of one connection at the same time: loopback and a veth have a
 * queue for each that sends. Who comes second waits until the first one has read its packet, a
 * microsecond or two; for one that is stopped in the midst of that, no longer than a packet can wait.
 */
static __always_inline bool try_lock(u64 *locked) { return swap(locked, 0, 1); }

struct waiting {
	u64 *locked;
	u64 held;
};

STEP lock_after_a_while(u64 turn UNUSED, struct waiting *w)
{
	u32 i;

	/* Leaves the other one some time. */
#pragma unroll
	for (i = 0; i < CLOCK_READS; i++)
		bpf_ktime_get_ns();
	w->held = try_lock(w->locked);
	return w->held;
}

SELDOM wait_for_lock(u64 *locked)
{
	struct waiting w = { .locked = locked };

	REPEAT(LOCK_TRIES, lock_after_a_while, &w);
	return w.held;
}

/* False: another one has it for too long. What it holds is left alone, and it alone unlocks. */
static __always_inline bool lock(u64 *locked) { return try_lock(locked) || wait_for_lock(locked); }

/* All is written that was to be. Where another program goes on, that one unlocks. */
static __always_inline void unlock(u64 *locked)
{
	asm volatile("" : : : "memory");
	*(volatile u64 *)locked = 0;
}
