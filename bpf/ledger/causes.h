/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What a request to an upstream was caused by. */
#pragma once

#include "ledger/sampling.h"
#include "ledger/thread_context.h"
#include "state/reader.h"
#include "state/scratch.h"

/*
 * The request that a task has in hand: the one that it read last and that it has
 * not begun to answer, where it can have no other. So it is if reads of the
 * request's socket wait for data: who waits on one connection serves no other. A
 * task that does not wait so may do the bidding of any event, be it a timer, and
 * one that took a request in hand while it had another mingles them.
 *
 * False: it has none, or may have others.
 */
static __always_inline bool find_cause(u32 tid, struct request_name *cause, u32 *ambiguous)
{
	struct reader *r = reader_at(tid);
	const struct request_name *last;
	struct connection *conn;

	if (r->tid != tid)
		return false;
	last = &r->handling.last_read;
	conn = connection_named(last);
	if (!conn || last->ordinal < conn->answered)
		return false;
	if (!r->waits || r->mingles || conn->answered != last->ordinal ||
	    conn->begun != last->ordinal + 1) {
		*ambiguous = 1;
		return false;
	}
	if (conn->outbound.state != PARSER_BETWEEN)
		return false;
	*cause = *last;
	return true;
}

/* A task writes to an upstream. If a request starts there, notes who it is and what for. */
static __always_inline void note_writer(struct connection *conn, u32 write_seq)
{
	u8 state = conn->outbound.state;
	struct connection *server;
	u64 pid_tgid;

	if (write_seq != conn->outbound.next_seq ||
	    (state != PARSER_BETWEEN && state != PARSER_LOST))
		return;
	pid_tgid = bpf_get_current_pid_tgid();
	conn->writer.ambiguous = 0;
	if (find_cause((u32)pid_tgid, &conn->writer.cause, &conn->writer.ambiguous)) {
		/* Both are to be in one trace: what the thread says must be known by now. */
		server = connection_named(&conn->writer.cause);
		if (server)
			note_published(server);
	} else {
		conn->writer.cause.connection_id = 0;
	}
	conn->writer.pid_tgid = pid_tgid;
	name_process(&conn->writer.process, current_task());
	conn->writer.seq = write_seq;
}

/* The request whose first byte is `seq` leaves: who wrote it? */
static __always_inline void name_writer(const struct connection *conn, struct exchange *x, u32 seq)
{
	const struct writer *w = &conn->writer;

	if (!w->pid_tgid || w->seq != seq)
		return;
	x->record.pid = w->pid_tgid >> 32;
	x->record.tid = (u32)w->pid_tgid;
	x->record.process = w->process;
	x->record.join.cause_connection_id = w->cause.connection_id;
	x->record.join.cause_ordinal = w->cause.ordinal;
}

static __always_inline bool same_traceparent(const struct exchange *a, const struct exchange *b)
{
	const u64 *x = (const u64 *)a->record.join.traceparent;
	const u64 *y = (const u64 *)b->record.join.traceparent;
	u64 difference = a->record.join.traceparent_length ^ b->record.join.traceparent_length;
	u32 i;

#pragma unroll
	for (i = 0; i < TRACEPARENT_MAX / 8; i++)
		difference |= x[i] ^ y[i];
	return !difference;
}

/*
 * The head of the request is whole. It has its cause's trace context, and what the
 * application said of that, if it carries none, or the very one that its cause came
 * with, which was then handed on. If it carries another, the application is traced
 * and knows better. One that carries none, and may be for one of several requests, is counted: it
 * starts a trace for want of certainty.
 */
static __always_inline void name_cause(const struct connection *conn, struct exchange *x)
{
	struct exchange *cause = NULL;
	struct connection *server;

	if (!x->record.join.cause_connection_id) {
		/* Of those written together only the first is known to be the writer's. */
		if (conn->writer.ambiguous && conn->writer.seq == x->inbound_start &&
		    !x->record.join.traceparent_length)
			count(COUNT_CAUSES_AMBIGUOUS);
		return;
	}
	server = connection_named(&conn->writer.cause);
	if (server && server->id == x->record.join.cause_connection_id)
		cause = in_flight(server, x->record.join.cause_ordinal);
	if (!cause || (x->record.join.traceparent_length && !same_traceparent(x, cause))) {
		x->record.join.cause_connection_id = 0;
		x->record.join.cause_ordinal = 0;
		return;
	}
	x->record.join.traceparent_length = cause->record.join.traceparent_length;
	__builtin_memcpy(x->record.join.traceparent, cause->record.join.traceparent,
			 TRACEPARENT_MAX);
	x->record.join.marked = cause->record.join.marked;
	x->record.join.trace_flags = cause->record.join.trace_flags;
	__builtin_memcpy(x->record.join.trace_id, cause->record.join.trace_id, 16);
	__builtin_memcpy(x->record.join.parent_span_id, cause->record.join.span_id, 8);
	/* The two of them agree: the one's span is the other's parent. */
	x->record.flags |= CAUSED;
	x->record.sampled = cause->record.sampled;
}
