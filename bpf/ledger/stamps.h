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

#ifdef GO_HANDLERS
MAP(LRU_HASH, goroutines, struct goroutine_key, struct handling, 16384)
#endif

/*
 * Requests that were reported, or never tracked, want no stamps any more. A
 * cursor that lags behind them would come to a later request too late.
 */
static __always_inline void skip_finished(const struct connection *conn, u64 *cursor)
{
	if (*cursor < conn->finished)
		*cursor = conn->finished;
}

/*
 * TCP took the bytes in range. Not always in order: a request whose first byte
 * it has not taken yet is looked at again. What is queued it has taken before.
 * True: there is such a request before these bytes.
 */
static __always_inline bool stamp_tcp(struct connection *conn, struct byte_range range, u64 now)
{
	bool all_taken = true;
	struct exchange *x;
	u64 ordinal;
	u64 i;

	skip_finished(conn, &conn->tcp);
	ordinal = conn->tcp;
	BOUNDED_LOOP
	for (i = 0; i < IN_FLIGHT_MAX; i++, ordinal++) {
		if (ordinal >= conn->arrived)
			break;
		x = in_flight(conn, ordinal);
		if (x && !x->record.stamp_ktime_ns[STAMP_TCP] &&
		    !x->record.stamp_ktime_ns[STAMP_QUEUED]) {
			if (!before(x->inbound_start, range.end))
				break;
			if (!before(x->inbound_start, range.start))
				x->record.stamp_ktime_ns[STAMP_TCP] = now;
			else
				all_taken = false;
		}
		if (all_taken)
			conn->tcp = ordinal + 1;
	}
	return !all_taken;
}

/* All bytes before rcv_nxt are on the receive queue, in order. */
static __always_inline void stamp_queued(struct connection *conn, u32 rcv_nxt, u64 now)
{
	struct exchange *x;
	u64 i;

	skip_finished(conn, &conn->queued);
	BOUNDED_LOOP
	for (i = 0; i < IN_FLIGHT_MAX; i++) {
		if (conn->queued >= conn->arrived)
			return;
		x = in_flight(conn, conn->queued);
		if (x) {
			if (!before(x->inbound_start, rcv_nxt))
				return;
			x->record.stamp_ktime_ns[STAMP_QUEUED] = now;
		}
		conn->queued++;
	}
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
#ifdef GO_HANDLERS
	struct pt_regs *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	struct handling h = {};
	struct goroutine_key key = { .tgid = x->record.pid };

	bpf_probe_read_kernel(&key.g, sizeof(key.g), &regs->r14);
	name_request(&h.last_read, conn, x);
	UPDATE(goroutines, &key, &h);
#endif
}

/* A task reads bytes of a request, or of an upstream's response: the first ones, or others. */
static __always_inline void note_reader(struct connection *conn, struct exchange *x, u64 sk,
					bool first, enum access access)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct reader *r = reader_of((u32)pid_tgid);

	if (!x->record.pid) {
		x->record.pid = pid_tgid >> 32;
		x->record.tid = (u32)pid_tgid;
		name_process(&x->record.process);
	}
	if (first)
		stamp_wakeup(x, r, sk);
	if (is_outgoing(x))
		return;
	if (CLIENTS)
		take_in_hand(conn, r, sock_blocks(sk, access));
	name_request(&r->handling.last_read, conn, x);
	note_goroutine(conn, x);
}

/* The application has read all bytes before copied_seq. */
static __always_inline void stamp_read(struct connection *conn, u64 sk, u32 copied_seq, u64 now,
				       enum access access)
{
	struct exchange *x;
	bool first;
	u64 i;

	skip_finished(conn, &conn->read);
	BOUNDED_LOOP
	for (i = 0; i < IN_FLIGHT_MAX; i++) {
		if (conn->read >= conn->arrived)
			return;
		x = in_flight(conn, conn->read);
		if (x) {
			if (!before(x->inbound_start, copied_seq))
				return;
			first = !x->record.stamp_ktime_ns[STAMP_READ];
			x->record.stamp_ktime_ns[first ? STAMP_READ : STAMP_READ_LAST] = now;
			note_reader(conn, x, sk, first, access);
			if (!inbound_is_whole(x) || before(copied_seq, x->inbound_end))
				return;
		}
		conn->read++;
	}
}
