/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * OpenTelemetry's thread context (OTEP 4947): a thread says which span it works on,
 * by a thread-local pointer, `otel_thread_ctx_v1`, to a record. What it works on
 * when it begins a response is the request that it answers.
 *
 * Where the pointer is in which process is the agent's to find out
 * (src/otelbpf/userspace/thread_contexts.py). A thread's record is written by that thread
 * alone, which is in the kernel here, so that one look at it is enough.
 */
#pragma once

#include "kernel/registers.h"
#include "ledger/sampling.h"
#include "state/exchange.h"
#include "state/settings.h"

MAP(HASH, thread_locals, u32, struct thread_variable, 1024) /* by tgid */

/* The record's beginning; attributes follow. */
struct thread_context {
	u8 trace_id[16] __attribute__((aligned(8)));
	u8 span_id[8];
	u8 valid; /* 1: it is; all other values are reserved */
	u8 trace_flags;
	u16 attributes_size;
	u32 unused; /* of this copy alone */
};

#define THREAD_CONTEXT_BYTES 28

/* A thread's table of its blocks: glibc's dtv, from one element before where it points. */
struct thread_table {
	u64 modules;
	u64 unused;
	u64 generation;
	u64 unused_either;
};

#define THREAD_TABLE_ELEMENT 16
#define NO_BLOCK (~0ULL) /* the thread has not used the module's variables yet */

#define PF_IO_WORKER 0x10
#define NR_IO_URING_ENTER 426

/*
 * Does the current task write for itself? What goes through io_uring may be written
 * by a worker, or with many others at once, long after a span has ended.
 */
static __always_inline bool writes_for_itself(u64 task)
{
	struct pt_regs *regs = (void *)bpf_task_pt_regs((void *)task);
	u64 number = NR_IO_URING_ENTER;
	u32 flags;

	copy_bytes(&flags, sizeof(flags), FIELD(task, task_struct, flags));
	bpf_probe_read_kernel(&number, sizeof(number), &regs->orig_ax);
	return !(flags & PF_IO_WORKER) && number != NR_IO_URING_ENTER;
}

/* Where the current thread has the variable; 0: nowhere. */
static __always_inline u64 address_of_thread_local(const struct thread_variable *v, u64 task)
{
	u64 thread = FIELD(task, task_struct, thread);
	struct thread_table table;
	u64 fs, at, block;

	copy_bytes(&fs, sizeof(fs), FIELD(thread, thread_struct, fsbase));
	if (!fs || !v->module)
		return fs ? fs + v->offset : 0;
	/* The table's address follows the thread's own. */
	if (bpf_probe_read_user(&at, sizeof(at), (void *)(fs + sizeof(u64))) ||
	    bpf_probe_read_user(&table, sizeof(table), (void *)(at - THREAD_TABLE_ELEMENT)) ||
	    v->module > table.modules || v->generation > table.generation ||
	    bpf_probe_read_user(&block, sizeof(block),
				(void *)(at + v->module * THREAD_TABLE_ELEMENT)))
		return 0;
	return block && block != NO_BLOCK ? block + v->offset : 0;
}

/* The context that the current thread has published; false: none. */
static __always_inline bool published_context(struct thread_context *c)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	const struct thread_variable *v = LOOKUP(thread_locals, &tgid);
	u64 task, variable, record;

	if (!v)
		return false;
	task = (u64)bpf_get_current_task_btf();
	if (!writes_for_itself(task))
		return false;
	variable = address_of_thread_local(v, task);
	if (!variable || bpf_probe_read_user(&record, sizeof(record), (void *)variable) ||
	    !record || bpf_probe_read_user(c, THREAD_CONTEXT_BYTES, (void *)record))
		return false;
	return c->valid == 1 && *(u64 *)c->span_id &&
	       (((u64 *)c->trace_id)[0] || ((u64 *)c->trace_id)[1]);
}

/*
 * The current thread works on the connection's one request that is unanswered and
 * was read: with another, nobody knows which it is. A mark has more to say than a
 * thread. What a thread said before may become another span of its trace: that of a
 * request to an upstream comes before the one around it.
 */
static __always_inline void note_published(struct connection *conn)
{
	u64 ordinal = conn->answered;
	struct thread_context c;
	struct exchange *x;
	u64 *trace_id;

	if (!settings()->has_thread_locals || conn->begun != ordinal + 1)
		return;
	x = in_flight(conn, ordinal);
	if (!x || x->record.join.marked == SAID_BY_MARK || !x->record.stamp_ktime_ns[STAMP_READ] ||
	    !published_context(&c))
		return;
	trace_id = (u64 *)x->record.join.trace_id;
	if (x->record.join.marked == SAID_BY_THREAD &&
	    (trace_id[0] != ((u64 *)c.trace_id)[0] || trace_id[1] != ((u64 *)c.trace_id)[1]))
		return;
	/* Its client may have reset the connection, and another request have its slot. */
	if (in_flight(conn, ordinal) != x)
		return;
	__builtin_memcpy(x->record.join.trace_id, c.trace_id, 16);
	__builtin_memcpy(x->record.join.span_id, c.span_id, 8);
	x->record.join.trace_flags = c.trace_flags;
	asm volatile("" : : : "memory");
	x->record.join.marked = SAID_BY_THREAD;
	sample_published(x);
}

/* A response begins at `write_seq`, where all bytes written before have left. */
static __always_inline bool begins_response(const struct connection *conn, u32 write_seq)
{
	return write_seq == conn->outbound.next_seq && conn->outbound.state == PARSER_BETWEEN;
}
