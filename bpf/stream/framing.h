/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Where the framing of a connection is given up. */
#pragma once

#include "ledger/endings.h"
#include "links/notices.h"
#include "state/carries.h"
#include "state/disorder.h"

/* What was kept for later is for nothing. */
static __always_inline void forget_disorder(struct connection *conn)
{
	if (!conn->inbound.disorder)
		return;
	drop_disorder(conn->id);
	conn->inbound.disorder = 0;
}

static __always_inline void lose_framing(struct connection *conn)
{
	/* What was turned off stays so: what comes may look like HTTP/1, and is not. */
	if (conn->inbound.state != PARSER_OFF || conn->outbound.state != PARSER_OFF) {
		conn->inbound.state = PARSER_LOST;
		conn->outbound.state = PARSER_LOST;
	}
	conn->framing = FRAMING_UNKNOWN;
	lose_requests(conn);
	drop_carries(conn);
	forget_disorder(conn); /* last: the verifier follows what comes after each way through it */
}

/* Of `kind`, a notice's, if that is to be told. */
static __always_inline void turn_off(struct connection *conn, u32 kind, u32 ifindex)
{
	drop_carries(conn);
	conn->inbound.state = PARSER_OFF;
	conn->outbound.state = PARSER_OFF;
	count_as_not_http(conn, kind, ifindex);
	forget_disorder(conn);
}
