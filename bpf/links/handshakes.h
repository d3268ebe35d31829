/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * How connections begin, and what becomes of those that do not. What a SYN asks for is
 * remembered until the socket is ESTABLISHED or a RST refuses it. Only SYNs write here, and
 * the map is bounded: a flood of them makes the oldest forgotten, which then have no handshake.
 */
#pragma once

#include "ledger/histogram.h"
#include "state/connection.h"
#include "state/scratch.h"
#include "stream/packet.h"

DEFINE_ARRAY(struct connection_sums, connection_sums)

static __always_inline struct connection_sums *sums_of(bool clients)
{
	return &connection_sums()[clients];
}

#define COUNT_CONNECTION(clients, what)                                   \
	do {                                                              \
		if (SERIES)                                               \
			__sync_fetch_and_add(&sums_of(clients)->what, 1); \
	} while (0)

/* A connection that is not known to have been opened has had a request. */
static __always_inline void adopt(struct connection *conn, bool clients)
{
	if (conn->origin != ORIGIN_UNKNOWN)
		return;
	conn->origin = ORIGIN_ADOPTED;
	count(COUNT_CONNECTIONS_ADOPTED);
	COUNT_CONNECTION(clients, adopted);
}

/* The attempt of a segment. Its key is kept off the stack, where there is no room for it. */
static __always_inline struct handshake *attempt_of(struct scratch *s, const struct segment *seg)
{
	copy_key(&s->asked, &seg->key);
	return LOOKUP(handshakes, &s->asked);
}

/*
 * A SYN comes to a server, or leaves a client. That a server's comes again without an answer
 * having left tells that it was dropped on this side; a client knows better how its own end.
 */
static __always_inline void ask_for_connection(struct scratch *s, const struct segment *seg,
					       u32 ifindex, bool clients)
{
	struct handshake *known;

	if (seg->tcp_flags & TCP_ACK)
		return;
	known = attempt_of(s, seg);
	if (known && known->seq == seg->seq) {
		if (!clients && known->ifindex == ifindex && known->answer == NO_ANSWER) {
			known->answer = CAME_AGAIN;
			COUNT_CONNECTION(clients, unanswered);
		}
		return;
	}
	s->attempt.syn_ktime_ns = bpf_ktime_get_ns();
	s->attempt.seq = seg->seq;
	s->attempt.ifindex = ifindex;
	UPDATE(handshakes, &s->asked, &s->attempt);
}

/* A server sends SYN and ACK, or RST, which may well be of a connection that was granted. */
static __always_inline void answer_to_syn(struct scratch *s, const struct segment *seg)
{
	struct handshake *known = attempt_of(s, seg);

	if (!known)
		return;
	if (!(seg->tcp_flags & TCP_RST)) {
		if (known->answer == NO_ANSWER)
			known->answer = ANSWERED;
		return;
	}
	DELETE(handshakes, &s->asked);
	COUNT_CONNECTION(false, refused);
}

/* TCP has taken what ends the handshake: for an accept() the connection waits from here on. */
static __always_inline void end_handshake(struct connection *conn, struct connection_key *key,
					  u64 now)
{
	struct handshake *known;

	if (!SERIES)
		return;
	known = LOOKUP(handshakes, key);
	if (known) {
		add_duration(&sums_of(is_clients(conn))->handshake, now - known->syn_ktime_ns,
			     &conn->established_ktime_ns);
		DELETE(handshakes, key);
	}
	conn->established_ktime_ns = now;
}

/* A client's socket is closed before it was connected. */
static __always_inline void end_attempt(struct connection_key *key, u32 error)
{
	if (!LOOKUP(handshakes, key))
		return;
	DELETE(handshakes, key);
	if (error == ECONNREFUSED)
		COUNT_CONNECTION(true, refused);
	else
		COUNT_CONNECTION(true, unanswered);
}

static __always_inline void end_wait(struct connection *conn, u64 now)
{
	if (conn->established_ktime_ns)
		add_duration(&sums_of(is_clients(conn))->accept_queue,
			     now - conn->established_ktime_ns, &conn->established_ktime_ns);
	conn->established_ktime_ns = 0;
}
