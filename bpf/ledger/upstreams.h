/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The client's side of a connection to an upstream: its requests go out, and are
 * over when the response has been read. Here is what that changes.
 */
#pragma once

#include "ledger/submission.h"
#include "state/sockets.h"

static __always_inline long finish_one_read(struct connection *conn, enum ending ending)
{
	u64 ordinal = conn->finished;
	struct exchange *x;

	if (ordinal >= conn->answered || ordinal >= conn->read)
		return 1;
	x = in_flight(conn, ordinal);
	if (x) {
		if (!(x->record.flags & REQUEST_RECEIVED))
			return 1;
		submit(x, ending);
	}
	/* The reader and TC may both be here: neither must count the other's step. */
	conn->finished = ordinal + 1;
	return 0;
}

STEP finish_next_read(u64 turn UNUSED, struct connection **conn)
{
	return finish_one_read(*conn, IRREGULAR);
}

/*
 * Reports the requests whose responses have been read, in order. One that was
 * answered early waits for the rest of its own body to leave.
 *
 * first: how the first of them ends.
 */
static __always_inline void finish_read(struct connection *conn, enum ending first)
{
	if (!finish_one_read(conn, first) && conn->finished < conn->answered)
		REPEAT(IN_FLIGHT_MAX - 1, finish_next_read, &conn);
}

/* Has the client's socket taken the whole response? As far as anybody knows, where it is not known. */
static __always_inline bool is_taken(struct connection *conn, u64 ordinal)
{
	const struct exchange *x = in_flight(conn, ordinal);

	return !x || !before(taken_by_socket(conn, x->inbound_end), x->inbound_end);
}

/*
 * Whole responses that wait to be read must leave room for the next request. The first of them is
 * given up where that is used up: its read is late, or none is ever seen, as of sockets that have
 * another address than their packets, and of MPTCP's.
 */
static __always_inline void track_unread(struct connection *conn)
{
	if (conn->answered - conn->finished >= IN_FLIGHT_MAX - 1 && conn->read <= conn->finished &&
	    is_taken(conn, conn->finished))
		conn->read = conn->finished + 1;
}

/*
 * A FIN has ended the response, if TCP takes it. It has a number of its own, which is the response's last
 * one until that is known.
 */
static __always_inline void await_fin(struct exchange *x)
{
	if (x->record.flags & RESPONSE_UNTIL_CLOSE)
		x->inbound_end++;
}

/* TCP has taken a FIN. What it ended may have been read by then: no read will follow. */
static __always_inline void track_fin(struct connection *conn, u32 rcv_nxt)
{
	struct exchange *x = latest_arrival(conn);

	if (!x || !(x->record.flags & RESPONSE_UNTIL_CLOSE) || !inbound_is_whole(x) ||
	    x->inbound_end != rcv_nxt)
		return;
	x->inbound_end--;
	if (conn->read != x->record.ordinal || !x->record.stamp_ktime_ns[STAMP_READ] ||
	    before(conn->copied_seq, x->inbound_end))
		return;
	conn->read = x->record.ordinal + 1;
	finish_read(conn, IRREGULAR);
}

/* What came of the response is forgotten: it was an interim one. */
static __always_inline void unread_response(struct connection *conn, struct exchange *x)
{
	u64 ordinal = conn->answered;
	u32 i;

	conn->arrived = ordinal;
	if (ordinal < conn->tcp)
		conn->tcp = ordinal;
	if (ordinal < conn->queued)
		conn->queued = ordinal;
	if (ordinal < conn->read)
		conn->read = ordinal;
	if (!x)
		return;
#pragma unroll
	for (i = STAMP_NIC; i <= STAMP_READ_LAST; i++)
		x->record.stamp_ktime_ns[i] = 0;
}
