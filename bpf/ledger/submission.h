/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* How a request leaves the programs: submitted to the agent, or counted as lost, exactly once. */
#pragma once

#include "ledger/sampling.h"
#include "ledger/series.h"
#include "state/exchange.h"
#include "state/scratch.h"
#include "stream/sequence.h"

DEFINE_ARRAY(u64, ring)
DEFINE_ARRAY(struct ring_ends, ring_ends)

static __always_inline bool take_out_of_flight(struct exchange *x)
{
	u64 in_flight = EXCHANGE_IN_FLIGHT + x->record.connection_id;

	return swap(&x->state, in_flight, EXCHANGE_FINISHING);
}

/*
 * Leaves it in its slot for the agent, which looks for it now and then: to wake the agent would cost
 * each request more than all else. False: too many wait there already.
 */
static __always_inline bool hand_over(const struct exchange *x)
{
	struct ring_ends *ends = ring_ends();
	u64 at;

	if (ends->submitted - ends->read >= RING_MAX)
		return false;
	at = __sync_fetch_and_add(&ends->submitted, 1) & RING_MASK;
	/* The record is whole before anybody is shown it. */
	asm volatile("" : : : "memory");
	ring()[at] = x->slot + 1;
	return true;
}

/*
 * How a request ended: only those that went as they should are added up here, and of
 * several that end at once, which is rare, only the first: the verifier need not walk
 * that way for each.
 */
enum ending { ORDERLY, IRREGULAR };

static __always_inline void submit(struct exchange *x, enum ending ending)
{
	long added = NOT_ADDED;

	if (!take_out_of_flight(x))
		return;
	if (SERIES && ending == ORDERLY) {
		added = add_to_series(x, NULL);
		if (added)
			x->record.flags |= IN_SERIES;
	}
	if (x->record.sampled || added == ADDED_SLOW ||
	    (settings()->keep_errors && has_failed(&x->record))) {
		x->record.flags |= KEPT;
	} else if (!SERIES || x->record.flags & IN_SERIES) {
		count(COUNT_SAMPLED_OUT);
		x->state = EXCHANGE_FREE;
		return;
	}
	if (!hand_over(x)) {
		count(COUNT_LOST_RING_FULL);
		x->state = EXCHANGE_FREE;
	}
}

static __always_inline void abandon(struct exchange *x, u32 reason)
{
	if (!take_out_of_flight(x))
		return;
	count(reason);
	x->state = EXCHANGE_FREE;
}

struct acknowledged {
	struct connection *conn;
	u64 now;
	u64 ack_seq;
};

/* x: the first request that has been answered and is not finished; NULL: it was never tracked. */
static __always_inline long acknowledge_one(const struct acknowledged *a, struct exchange *x,
					    enum ending ending)
{
	struct connection *conn = a->conn;

	if (x) {
		if (before((u32)a->ack_seq, x->outbound_end))
			return 1;
		if (!x->record.stamp_ktime_ns[STAMP_ACKED])
			x->record.stamp_ktime_ns[STAMP_ACKED] = a->now;
		/* Answered early: the rest of its body is still to come. */
		if (!(x->record.flags & REQUEST_RECEIVED))
			return 1;
		submit(x, ending);
	}
	conn->finished++;
	return 0;
}

STEP acknowledge_next(u64 turn UNUSED, struct acknowledged *a)
{
	struct connection *conn = a->conn;

	if (conn->finished >= conn->answered)
		return 1;
	return acknowledge_one(a, in_flight(conn, conn->finished), IRREGULAR);
}

/*
 * The peer has all bytes before ack_seq: report the responses that end there.
 *
 * x: the first of them, as for acknowledge_one().
 */
static __always_inline void acknowledge(struct connection *conn, struct exchange *x, u32 ack_seq,
					u64 now)
{
	struct acknowledged first = { .conn = conn, .now = now, .ack_seq = ack_seq }, rest;

	if (acknowledge_one(&first, x, ORDERLY) || conn->finished >= conn->answered)
		return;
	rest = first;
	REPEAT(IN_FLIGHT_MAX - 1, acknowledge_next, &rest);
}
