/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* One processor at a time reads a packet of a connection. */
#pragma once

#include "kernel/verifier.h"
#include "state/connection.h"

#define LOCK_TRIES 4096 /* some 200 us */

/*
 * Two processors may have packets of one connection at the same time: loopback and a veth have a
 * queue for each that sends. Who comes second waits until the first one has read its packet, a
 * microsecond or two; for one that is stopped in the midst of that, no longer than a packet can wait.
 */
static __always_inline void lock(struct connection *conn)
{
	u64 i;

	BOUNDED_LOOP
	for (i = 0; i < LOCK_TRIES; i++) {
		if (!__sync_val_compare_and_swap(&conn->locked, 0, 1))
			return;
		bpf_ktime_get_ns(); /* leaves the other one some time */
	}
}

/* The packet was read as far as it will be. Where another program goes on, that one unlocks. */
static __always_inline void unlock(struct connection *conn) { conn->locked = 0; }
