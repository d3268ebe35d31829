/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Bytes that traffic control never sees: they pass an interface that is not measured, or one that is,
 * but under another port, or behind a program that keeps them from ours. TCP has them all the same, so
 * that shows at the socket, and at once. A FIN counts as a byte.
 */
#pragma once

#include "links/notices.h"
#include "state/connections.h"
#include "stream/framing.h"
#include "stream/lock.h"

/* Has TCP taken bytes that were not seen to come? */
static __always_inline bool has_come_unseen(const struct connection *conn, u32 rcv_nxt)
{
	const struct parser *p = &conn->inbound;

	return before(p->next_seq + 1, rcv_nxt) && p->state > PARSER_OFF && !p->disorder;
}

/*
 * Has the peer acknowledged bytes that were not seen to leave? That is certain of what was written
 * after all else had left.
 */
static __always_inline bool has_left_unseen(const struct connection *conn, u64 tp,
					    enum access access)
{
	const struct parser *p = &conn->outbound;

	/* Mostly all that was written has left: then the socket is not asked. */
	return conn->writes.seq[0] == p->next_seq && conn->writes.count && p->state > PARSER_OFF &&
	       before(p->next_seq + 1, tcp_snd_una(tp, access));
}

/*
 * Tells of it, once until bytes are seen again. What was in flight will not become whole, and with the
 * next request that is seen the connection is taken up again.
 */
SELDOM miss(struct connection *conn, enum direction direction, u32 ifindex)
{
	if (settings()->is_complete) {
		if (conn->interface[direction] != UNMEASURED) {
			conn->interface[direction] = UNMEASURED;
			count(COUNT_CONNECTIONS_UNSEEN);
			notify(conn, direction == INBOUND ? NOTICE_UNSEEN : NOTICE_UNSEEN_OUT,
			       ifindex);
		}
	} else if (conn->begun != conn->finished) {
		return 0; /* the agent stops: that is why */
	}
	if (!lock(&conn->locked))
		return 0; /* the next call tries again */
	lose_framing(conn);
	unlock(&conn->locked);
	return 0;
}

/* A server's socket has bytes to read, and is not known: it is older than the agent. */
static __always_inline void miss_unknown(u64 sk, const struct connection_key *key,
					 enum access access)
{
	struct connection *conn;

	/* With a response nothing begins that is measured; and whoever listens has no bytes. */
	if (!settings()->is_complete || !has_role(key, ROLE_SERVER) ||
	    sock_state(sk, access) != TCP_ESTABLISHED)
		return;
	conn = create_connection(key, bpf_ktime_get_ns());
	if (conn)
		miss(conn, INBOUND, sock_interface_in(sk, access));
}
