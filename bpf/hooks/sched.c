/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The scheduler: a task is woken by a measured socket, and gets a CPU. These
 * run for every task of the machine, so they return early.
 */

#include "kernel/fields.h"
#include "state/reader.h"
#include "state/scratch.h"

static __always_inline int handle_waking(u64 task)
{
	const struct scratch *s = own_scratch();
	u64 sk = s->waking_sk;
	struct reader *r;
	u32 tid;

	if (!sk || s->waking_tid != task_tid(current_task()))
		return 0;
	tid = task_tid(task);
	r = reader_at(tid);
	if (r->tid != tid) {
		/* What the other one has read is no more this one's than what it handles. */
		r->handling.last_read.connection_id = 0;
		r->handling.depth = 0;
		r->mingles = 0;
		r->tid = tid;
	}
	r->sk = sk;
	r->woken_ktime_ns = bpf_ktime_get_ns();
	r->running_ktime_ns = 0;
	return 0;
}

static __always_inline int handle_running(u64 next)
{
	u32 tid = task_tid(next);
	struct reader *r = reader_at(tid);

	if (r->tid == tid && !r->running_ktime_ns)
		r->running_ktime_ns = bpf_ktime_get_ns();
	return 0;
}

PROGRAM("tracing") int traced_waking(u64 *arguments) { return handle_waking(arguments[0]); }
PROGRAM("tracing") int traced_switch(u64 *arguments) { return handle_running(arguments[2]); }

/* Ends the time in which a wake-up is put down to the last data-ready. */
PROGRAM("tracing") int traced_softirq_exit(u64 *arguments UNUSED)
{
	own_scratch()->waking_sk = 0;
	return 0;
}
