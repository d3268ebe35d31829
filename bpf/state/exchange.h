/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Requests in flight, and how they are found. */
#pragma once

#include "abi/records.h"
#include "state/connection.h"

DEFINE_ARRAY(struct exchange, exchanges)
DEFINE_ELEMENT(struct exchange, exchange_at, exchanges, MAX_EXCHANGES)
DEFINE_ARRAY(struct forwarded_text, forwarded_texts)
DEFINE_ELEMENT(struct forwarded_text, forwarded_text_at, forwarded_texts, MAX_EXCHANGES)

static __always_inline struct exchange *in_flight(struct connection *conn, u64 ordinal)
{
	u32 slot = conn->slot[ordinal & (IN_FLIGHT_MAX - 1)];
	struct exchange *x = exchange_at(slot);

	return NULL_UNLESS(
		x && x->state == EXCHANGE_IN_FLIGHT + conn->id && x->record.ordinal == ordinal, x);
}

/* Was it sent to an upstream? */
static __always_inline bool is_outgoing(const struct exchange *x)
{
	return CLIENTS && x->record.flags & CLIENT;
}

/* Has the last byte come of the request, or of an upstream's response? */
static __always_inline bool inbound_is_whole(const struct exchange *x)
{
	return x->record.flags & (is_outgoing(x) ? REQUEST_ANSWERED : REQUEST_RECEIVED);
}

/* The request whose bytes, or whose response's, are passing now. */
static __always_inline struct exchange *current_exchange(struct connection *conn, enum flow flow)
{
	return in_flight(conn, CARRIES_REQUESTS(flow) ? conn->begun - 1 : conn->answered);
}

static __always_inline u32 *inbound_retransmits(struct exchange *x)
{
	return is_outgoing(x) ? &x->record.response_retransmits : &x->record.request_retransmits;
}

/* The request whose own bytes, or whose response's, have come in last. */
static __always_inline struct exchange *latest_arrival(struct connection *conn)
{
	return in_flight(conn, conn->arrived - 1);
}

static __always_inline void name_request(struct request_name *name, const struct connection *conn,
					 const struct exchange *x)
{
	name->connection_id = conn->id;
	name->place = conn->place;
	name->ordinal = x->record.ordinal;
}
