/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Where the framing of a connection is given up. */
#pragma once

#include "ledger/endings.h"
#include "links/notices.h"
#include "state/disorder.h"

/* What was kept for later is for nothing. */
static __always_inline void forget_disorder(struct connection *conn)
{
	if (!conn->inbound.disorder)
		return;
	conn->inbound.disorder = 0;
	DELETE(disorders, &conn->id);
}

static __always_inline void lose_framing(struct connection *conn)
{
	forget_disorder(conn);
	conn->inbound.state = PARSER_LOST;
	conn->outbound.state = PARSER_LOST;
	conn->inbound.carried = 0;
	conn->outbound.carried = 0;
	lose_requests(conn);
}

/* Of `kind`, a notice's, if that is to be told. */
static __always_inline void turn_off(struct connection *conn, u32 kind, u32 ifindex)
{
	forget_disorder(conn);
	conn->inbound.state = PARSER_OFF;
	conn->outbound.state = PARSER_OFF;
	count_as_not_http(conn, kind, ifindex);
}
