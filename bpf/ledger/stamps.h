/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The stamps of the socket hooks: what TCP took, what was queued, and who read it. */
#pragma once

#include "kernel/registers.h"
#include "ledger/requests.h"
#include "state/reader.h"
#include "stream/sequence.h"

struct goroutine_key {
	u64 g; /* its address in the process */
	u32 tgid;
	u32 unused;
};

MAP(LRU_HASH, goroutines, struct goroutine_key, struct handling, 16384)

/*
 * Requests that were reported, or never tracked, want no stamps any more. A
 * cursor that lags behind them would come to a later request too late.
 */
static __always_inline void skip_finished(const struct connection *conn, u64 *cursor)
{
	if (*cursor < conn->finished)
		*cursor = conn->finished;
}

struct tcp_stamper {
	struct connection *conn;
	struct byte_range range;
	u64 now;
	u64 ordinal;     /* of the next request */
	u64 passed_over; /* was any that TCP has not taken yet? */
};

static __always_inline long stamp_one_tcp(struct tcp_stamper *s)
{
	struct connection *conn = s->conn;
	u64 ordinal = s->ordinal;
	struct exchange *x;

	if (ordinal >= conn->arrived)
		return 1;
	x = in_flight(conn, ordinal);
	if (x && !x->record.stamp_ktime_ns[STAMP_TCP] && !x->record.stamp_ktime_ns[STAMP_QUEUED]) {
		if (!before(x->inbound_start, s->range.end))
			return 1;
		if (!before(x->inbound_start, s->range.start))
			x->record.stamp_ktime_ns[STAMP_TCP] = s->now;
		else
			s->passed_over = true;
	}
	s->ordinal = ordinal + 1;
	if (!s->passed_over)
		conn->tcp = ordinal + 1;
	return 0;
}

STEP stamp_next_tcp(u64 turn UNUSED, struct tcp_stamper *s) { return stamp_one_tcp(s); }

/*
 * TCP took the bytes in range. Not always in order: a request whose first byte
 * it has not taken yet is looked at again. What is queued it has taken before.
 * True: there is such a request before these bytes.
 */
static __always_inline bool stamp_tcp(struct connection *conn, struct byte_range range, u64 now)
{
	struct tcp_stamper first = { .conn = conn, .range = range, .now = now }, rest;

	skip_finished(conn, &conn->tcp);
	first.ordinal = conn->tcp;
	/* A request at a time, mostly: it is in registers. */
	if (stamp_one_tcp(&first) || first.ordinal >= conn->arrived)
		return first.passed_over;
	rest = first;
	REPEAT(IN_FLIGHT_MAX - 1, stamp_next_tcp, &rest);
	return rest.passed_over;
}

struct queued_stamper {
	struct connection *conn;
	u64 now;
	u64 rcv_nxt;
};

static __always_inline long stamp_one_queued(struct queued_stamper *s)
{
	struct connection *conn = s->conn;
	struct exchange *x = in_flight(conn, conn->queued);

	if (x) {
		if (!before(x->inbound_start, (u32)s->rcv_nxt))
			return 1;
		x->record.stamp_ktime_ns[STAMP_QUEUED] = s->now;
	}
	conn->queued++;
	return conn->queued >= conn->arrived;
}

STEP stamp_next_queued(u64 turn UNUSED, struct queued_stamper *s) { return stamp_one_queued(s); }

/* All bytes before rcv_nxt are on the receive queue, in order. */
static __always_inline void stamp_queued(struct connection *conn, u32 rcv_nxt, u64 now)
{
	struct queued_stamper first = { .conn = conn, .now = now, .rcv_nxt = rcv_nxt }, rest;

	skip_finished(conn, &conn->queued);
	if (conn->queued >= conn->arrived || stamp_one_queued(&first))
		return;
	rest = first;
	REPEAT(IN_FLIGHT_MAX - 1, stamp_next_queued, &rest);
}

/*
 * TCP takes a segment, and has queued all bytes before rcv_nxt with earlier ones. Those whose
 * data-ready was missed stay without the stamp: the next one is that of later bytes.
 */
static __always_inline void skip_queued(struct connection *conn, u32 rcv_nxt)
{
	stamp_queued(conn, rcv_nxt, 0);
}

/*
 * How the reading task came to run. It was woken for this request if this very
 * socket woke it after the bytes were queued; it got its CPU for it if the
 * bytes came while it had been woken, by whomever, and was not yet running.
 */
static __always_inline void stamp_wakeup(struct exchange *x, const struct reader *r, u64 sk)
{
	u64 queued = x->record.stamp_ktime_ns[STAMP_QUEUED];

	if (!queued)
		return;
	if (r->sk == sk && r->woken_ktime_ns >= queued)
		x->record.stamp_ktime_ns[STAMP_WOKEN] = r->woken_ktime_ns;
	if (r->running_ktime_ns >= queued && (r->woken_ktime_ns <= queued || r->sk == sk))
		x->record.stamp_ktime_ns[STAMP_RUNNING] = r->running_ktime_ns;
}

/* A task reads a request. Has it let go of the one before? */
static __always_inline void take_in_hand(const struct connection *conn, struct reader *r,
					 bool waits)
{
	const struct request_name *last = &r->handling.last_read;
	struct connection *other = connection_named(last);

	if (other && other != conn && last->ordinal >= other->answered)
		r->mingles = 1;
	r->waits = waits;
}

/* Go keeps the running goroutine's address in r14, where its system calls leave it alone. */
static __always_inline void note_goroutine(const struct connection *conn, const struct exchange *x)
{
	struct goroutine_key key = { .tgid = x->record.pid };
	struct handling h = {};
	struct pt_regs *regs;

	regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	bpf_probe_read_kernel(&key.g, sizeof(key.g), &regs->r14);
	name_request(&h.last_read, conn, x);
	UPDATE(goroutines, &key, &h);
}

/* A task reads bytes of a request, or of an upstream's response: the first ones, or others. */
static __always_inline void note_reader(struct connection *conn, struct exchange *x, u64 sk,
					u64 now, enum access access)
{
	u64 task = current_task();
	u32 tid = task_tid(task);
	struct reader *r = reader_of(tid);

	if (!x->record.stamp_ktime_ns[STAMP_READ]) {
		x->record.stamp_ktime_ns[STAMP_READ] = now;
		stamp_wakeup(x, r, sk);
	} else {
		x->record.stamp_ktime_ns[STAMP_READ_LAST] = now;
	}
	if (!x->record.pid) {
		x->record.pid = task_tgid(task);
		x->record.tid = tid;
		name_process(&x->record.process, task);
	}
	if (is_outgoing(x))
		return;
	if (CLIENTS)
		take_in_hand(conn, r, sock_blocks(sk, access));
	name_request(&r->handling.last_read, conn, x);
	if (GO_HANDLERS)
		note_goroutine(conn, x);
}

/* Has a message begun to come in that was not read to its end? */
static __always_inline bool has_unread(struct connection *conn)
{
	skip_finished(conn, &conn->read);
	return conn->read < conn->arrived;
}

struct read_stamper {
	struct connection *conn;
	u64 sk;
	u64 now;
	u64 copied_seq;
};

static __always_inline long stamp_one_read(struct read_stamper *s, enum access access)
{
	struct connection *conn = s->conn;
	struct exchange *x = in_flight(conn, conn->read);

	if (x) {
		if (!before(x->inbound_start, (u32)s->copied_seq))
			return 1;
		note_reader(conn, x, s->sk, s->now, access);
		if (!inbound_is_whole(x) || before((u32)s->copied_seq, x->inbound_end))
			return 1;
	}
	conn->read++;
	return conn->read >= conn->arrived;
}

STEP stamp_next_read(u64 turn UNUSED, struct read_stamper *s) { return stamp_one_read(s, DIRECT); }
STEP stamp_next_copied(u64 turn UNUSED, struct read_stamper *s)
{
	return stamp_one_read(s, BY_COPY);
}

/* The application has read all bytes before copied_seq, and has_unread(). */
static __always_inline void stamp_read(struct connection *conn, u64 sk, u32 copied_seq, u64 now,
				       enum access access)
{
	struct read_stamper first = {
		.conn = conn,
		.sk = sk,
		.now = now,
		.copied_seq = copied_seq,
	};
	struct read_stamper rest;

	if (stamp_one_read(&first, access))
		return;
	rest = first;
	if (access == DIRECT)
		REPEAT(IN_FLIGHT_MAX - 1, stamp_next_read, &rest);
	else
		REPEAT(IN_FLIGHT_MAX - 1, stamp_next_copied, &rest);
}
