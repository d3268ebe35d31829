/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* One processor at a time reads a packet of a connection. */
#pragma once

#include "kernel/verifier.h"
#include "state/connection.h"

/* Some 200 us. */
#define LOCK_TRIES 256
#define CLOCK_READS 16

/*
 * Two processors may have packets of one connection at the same time: loopback and a veth have a
 * queue for each that sends. Who comes second waits until the first one has read its packet, a
 * microsecond or two; for one that is stopped in the midst of that, no longer than a packet can wait.
 */
static __always_inline bool try_lock(struct connection *conn)
{
	return !__sync_val_compare_and_swap(&conn->locked, 0, 1);
}

STEP lock_after_a_while(u64 turn UNUSED, struct connection **conn)
{
	u32 i;

	/* Leaves the other one some time. */
#pragma unroll
	for (i = 0; i < CLOCK_READS; i++)
		bpf_ktime_get_ns();
	return try_lock(*conn);
}

static __always_inline void lock(struct connection *conn)
{
	if (!try_lock(conn))
		REPEAT(LOCK_TRIES, lock_after_a_while, &conn);
}

/* The packet was read as far as it will be. Where another program goes on, that one unlocks. */
static __always_inline void unlock(struct connection *conn) { conn->locked = 0; }
