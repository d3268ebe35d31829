/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What one run of a program cannot finish is continued by a tail call. */
#pragma once

#include "state/connection.h"
#include "state/scratch.h"
#include "stream/flow.h"
#include "stream/lock.h"

enum continuation {
	CONTINUE_INBOUND,
	CONTINUE_OUTBOUND,
	CONTINUE_CHUNKS,
	CONTINUE_DISORDER,
	CONTINUE_KEPT,
	CONTINUE_KEPT_CHUNKS,
	CONTINUE_ADMIT,
	CONTINUE_GRANT,
	CONTINUE_REPEATED,
	CONTINUATIONS_EACH,
	CONTINUATION_COUNT = 2 * CONTINUATIONS_EACH
};

MAP(PROG_ARRAY, continuations, u32, u32, CONTINUATION_COUNT)

/* For the program that goes on with this segment: whose it is. */
static __always_inline void hand_on(struct scratch *s, const struct connection *conn,
				    enum flow flow)
{
	s->connection_id = conn->id;
	s->place = conn->place;
	s->flow = flow;
}

/* Each role has its own continuations. */
#define OF_ROLE(flow) (IS_CLIENTS(flow) ? CONTINUATIONS_EACH : 0)

/* What hand_on() noted; NULL: it has ended meanwhile, and its place is unlocked. */
static __always_inline struct connection *continued_connection(const struct scratch *s)
{
	struct connection *conn = connection_at(s->place);

	if (!conn)
		return NULL;
	asm volatile("" : "+r"(conn));
	if (conn->id == s->connection_id)
		return conn;
	unlock(&conn->locked);
	return NULL;
}
