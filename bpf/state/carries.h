/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What of a head's line a segment has left unfinished. */
#pragma once

#include "state/connection.h"
#include "state/scratch.h"

struct carry {
	u8 bytes[CARRY_MAX];
};

/*
 * By carry_key(). No map of the least recently used: there who is slow would lose what is kept of it to
 * those that come later. Where there is no room the newest is lost, and told as that. So each is deleted
 * when it is taken up again, or its connection is done with.
 */
MAP(HASH, carries, u64, struct carry, 8192)

static __always_inline u64 carry_key(const struct connection *conn, enum direction direction)
{
	return conn->id << 1 | direction;
}

/* What is carried of a connection is for nothing. */
static __always_inline void drop_carries(struct connection *conn)
{
	u64 key;

	if (conn->inbound.carried) {
		key = carry_key(conn, INBOUND);
		DELETE(carries, &key);
		conn->inbound.carried = 0;
	}
	if (conn->outbound.carried) {
		key = carry_key(conn, OUTBOUND);
		DELETE(carries, &key);
		conn->outbound.carried = 0;
	}
}
