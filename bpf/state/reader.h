/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Tasks that read measured connections, and what they work on. */
#pragma once

#include "configuration.h"
#include "state/connection.h"

#define NEVER_WOKEN (~0ULL)

/* What a thread, or a goroutine, works on. */
struct handling {
	struct request_name last_read;
	struct request_name handled; /* by the call that is under way */
	u64 depth;                   /* that call's, on the stack; 0: there is none */
};

/* A task that reads measured connections: its last wake-up by one of them. */
struct reader {
	u64 sk;
	u64 woken_ktime_ns;   /* NEVER_WOKEN: by none of them */
	u64 running_ktime_ns; /* 0 until it got a CPU */
	u32 tid;
	u16 mingles; /* it read a request while it had another in hand */
	u16 waits;   /* reads of the last request's socket wait for data */
	struct handling handling;
};

ASSERT_BYTES(reader, READER_BYTES);

DEFINE_ARRAY(struct reader, readers)

/* The place of a task that reads, which others share. */
static __always_inline struct reader *reader_at(u32 tid)
{
	struct reader *r = &readers()[tid & (READER_SLOTS - 1)];

	/* Else clang would add it up anew wherever it is needed. */
	asm("" : "+r"(r));
	return r;
}

/* The place of a task that reads, which may have been another's. */
static __always_inline struct reader *reader_of(u32 tid)
{
	struct reader *r = reader_at(tid);

	if (r->tid != tid) {
		r->sk = 0;
		r->woken_ktime_ns = NEVER_WOKEN;
		r->tid = tid;
		r->mingles = 0;
		r->handling.last_read.connection_id = 0;
		r->handling.depth = 0;
	}
	return r;
}
