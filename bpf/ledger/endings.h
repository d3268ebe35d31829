/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* How connections end, and what that means for the requests in flight on them. */
#pragma once

#include "ledger/submission.h"
#include "state/sockets.h"
#include "stream/packet.h"

/* A FIN or RST: by the first one the connection began to end. */
static __always_inline void note_ending(struct connection *conn, u32 how)
{
	conn->flags |= how;
	if (!conn->ending)
		conn->ending = how;
}

/* From now on no response can become whole that is not. */
static __always_inline void end_responses(struct connection *conn, u64 now)
{
	if (!conn->ended_ktime_ns)
		conn->ended_ktime_ns = now;
}

/* Of a message that never became whole, the latest read was not its last. */
static __always_inline void forget_last_read(struct exchange *x)
{
	if (!inbound_is_whole(x))
		x->record.stamp_ktime_ns[STAMP_READ_LAST] = 0;
}

/*
 * The request ends with its connection. If it began when no answer could come any more it ends when
 * that is told, which is now.
 */
static __always_inline void end_with(const struct connection *conn, struct exchange *x, u64 now)
{
	u64 ended = conn->ended_ktime_ns;
	u64 begun = x->record.stamp_ktime_ns[is_outgoing(x) ? STAMP_TC_OUT : STAMP_TC];

	x->record.flags |= conn->ending;
	if (!(x->record.flags & REQUEST_ANSWERED))
		x->record.stamp_ktime_ns[STAMP_ENDED] = ended > begun ? ended : now;
	forget_last_read(x);
}

/*
 * What a client's socket has taken of the responses that were read, when framing is lost; as far as anybody
 * knows all of it. By way of the table: the verifier need not follow the loop for what is known and what is not.
 */
static __always_inline void note_taken(struct connection *conn)
{
	volatile u32 *taken = &conn->taken_seq;

	*taken = conn->inbound.next_seq + 1; /* a FIN included */
	if (is_clients(conn))
		*taken = taken_by_socket(conn, *taken);
}

/* Framing was lost: why is the request, too? 0: it is not. */
static __always_inline u32 why_lost(const struct connection *conn, const struct exchange *x)
{
	if (!(x->record.flags & REQUEST_ANSWERED) || !x->head_bytes)
		return COUNT_LOST_PARSER;
	return is_outgoing(x) && before(conn->taken_seq, x->inbound_end) ? COUNT_LOST_UNTAKEN : 0;
}

struct end_of_all {
	struct connection *conn;
	u64 now;
	u64 framing_lost;
};

STEP end_next_request(u64 turn UNUSED, struct end_of_all *e)
{
	struct connection *conn = e->conn;
	struct exchange *x;
	u32 reason;

	if (conn->finished >= conn->begun)
		return 1;
	x = in_flight(conn, conn->finished);
	if (x) {
		if (!e->framing_lost)
			end_with(conn, x, e->now);
		reason = e->framing_lost ? why_lost(conn, x)
			 : x->head_bytes ? 0
					 : COUNT_LOST_CLOSED;
		if (reason)
			abandon(x, reason);
		else
			submit(x, IRREGULAR);
	}
	conn->finished++;
	return 0;
}

/* Ends all requests in flight: those worth a record are submitted, the others lost. */
static __always_inline void end_requests(struct connection *conn, bool framing_lost, u64 now)
{
	struct end_of_all e = { .conn = conn, .now = now, .framing_lost = framing_lost };

	REPEAT(IN_FLIGHT_MAX, end_next_request, &e);
	if (conn->finished < conn->begun)
		conn->finished = conn->begun; /* what is beyond was never tracked */
}

/*
 * Nothing more will be learned of the requests in flight: those that were
 * answered, and those cut off after a whole head, are still worth a record.
 */
static __always_inline void close_requests(struct connection *conn, u64 now)
{
	end_requests(conn, false, now);
}

/* Framing was lost: which bytes belong to which request is no longer known. */
SELDOM lose_requests(struct connection *conn)
{
	note_taken(conn);
	end_requests(conn, true, 0);
	return 0;
}

struct untaken {
	struct connection *conn;
	u64 ordinal;
	u32 taken;
	u32 is_closing;
};

/* Is what was read of the message that comes in not known to be what the socket takes? */
static __always_inline bool is_doubtful(const struct exchange *x, const struct untaken *u)
{
	if (inbound_is_whole(x) && (is_outgoing(x) || !u->is_closing))
		return before(u->taken, x->inbound_end);
	if (!u->is_closing)
		return true;
	return before(u->taken, x->inbound_start + (is_outgoing(x) ? 1 : x->head_bytes));
}

STEP lose_untaken_one(u64 turn UNUSED, struct untaken *u)
{
	struct connection *conn = u->conn;
	struct exchange *x;

	if (u->ordinal >= conn->arrived)
		return 1;
	x = in_flight(conn, u->ordinal);
	if (x && is_doubtful(x, u))
		abandon(x, COUNT_LOST_UNTAKEN);
	u->ordinal++;
	return 0;
}

/*
 * The socket has taken the bytes before `taken`. Those from there on are not the only ones that came for
 * their places; or it closes, and takes none of them: then a request needs its head to be one.
 */
static __always_inline void lose_untaken(struct connection *conn, u32 taken, bool is_closing)
{
	struct untaken u = {
		.conn = conn,
		.ordinal = conn->finished,
		.taken = taken,
		.is_closing = is_closing,
	};

	REPEAT(IN_FLIGHT_MAX, lose_untaken_one, &u);
}

/*
 * What ended a connection that neither side has closed: a RST, whose only trace here may be the
 * socket's error. A socket that its own side tears down has none yet; its RST is sent after this.
 */
static __always_inline void note_closed(struct connection *conn, u32 error)
{
	if (error == ECONNRESET || error == EPIPE)
		note_ending(conn, PEER_RESET);
	else if (!error)
		note_ending(conn, LOCAL_RESET);
}

/* How a packet of this side's says that the connection ends. */
static __always_inline void track_own_ending(struct connection *conn, const struct segment *seg,
					     enum flow flow)
{
	u64 now;

	if (!(seg->tcp_flags & (TCP_FIN | TCP_RST)))
		return;
	now = bpf_ktime_get_ns();
	if (seg->tcp_flags & TCP_FIN) {
		note_ending(conn, LOCAL_CLOSED);
		/* A client that has nothing more to ask may still be answered. */
		if (!IS_CLIENTS(flow))
			end_responses(conn, now);
	}
	if (seg->tcp_flags & TCP_RST) {
		/* Perhaps of no socket at all, and then none will be seen to close. */
		note_ending(conn, LOCAL_RESET);
		end_responses(conn, now);
		close_requests(conn, now);
	}
}

/* The other side's. */
static __always_inline void track_peers_ending(struct connection *conn, const struct segment *seg,
					       enum flow flow)
{
	if (!(seg->tcp_flags & (TCP_FIN | TCP_RST)))
		return;
	if (seg->tcp_flags & TCP_RST)
		conn->flags |= PEER_RESET;
	if (IS_CLIENTS(flow) && seg->tcp_flags & TCP_FIN)
		conn->fin_seq = seg->seq + seg->payload_length;
	/* Whether TCP believes a RST is seen when the socket closes, if there is one that is known. */
	if (!(seg->tcp_flags & TCP_RST))
		note_ending(conn, PEER_CLOSED);
	else if (!conn->socket)
		note_ending(conn, PEER_RESET);
	else
		return;
	/* A client that has nothing more to ask may still be answered. */
	if (IS_CLIENTS(flow) || seg->tcp_flags & TCP_RST)
		end_responses(conn, bpf_ktime_get_ns());
}
