/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Where requests begin on a connection whose framing is not known: it is older than the agent, or bytes
 * were missed. Any segment of it may be of a body, be it that it looks like a request: so nothing is
 * told, and nothing captured, before it is certain.
 *
 * A final response that is whole, and whose end is just what the client acknowledges with its next
 * byte, says that no request is under way then, unless it was given early: of a request whose body
 * still comes. So what follows, and is read in the dark as a request, may be bytes of that body which
 * look like one, and the request that the next response is to may begin among them. But that one's head
 * has come, whole, before it is answered, and a head ends with an empty line. What was read in the dark
 * has one where its own head ends; if it has none in its body, both heads have their end there. Then the
 * lines that say how long the other's body is are lines of the one that was read, too, and their bodies end
 * together. So however many answers are given early, one after the other: where a response is whole once
 * such a request is, and both sides go on from just there, what comes next is a request.
 *
 * That a client has asked more before it had an answer (pipelining) is not seen by that.
 */
#pragma once

#include "http1/message.h"
#include "links/handshakes.h"
#include "links/notices.h"
#include "state/carries.h"
#include "stream/packet.h"

#define RESPONSE_LEAST 12 /* "HTTP/1.1 200" */

/* A request of which nothing is told, and to which a response is awaited, takes a number all the same. */
static __always_inline void pass_over_request(struct connection *conn)
{
	conn->answered = conn->begun;
	conn->begun++;
	conn->finished = conn->begun;
	conn->arrived = conn->begun;
	conn->head_requests = 0;
	conn->connect_requests = 0;
}

/* A segment of which nothing is told may begin a request. */
static __always_inline void leave_untold(struct connection *conn, enum flow flow)
{
	adopt(conn, IS_CLIENTS(flow));
	count(COUNT_SEGMENTS_UNCERTAIN);
}

/* The framing of the next byte in either direction is known. */
static __always_inline void begin_between(struct connection *conn)
{
	conn->framing = FRAMING_UNKNOWN;
	conn->inbound.state = PARSER_BETWEEN;
	conn->outbound.state = PARSER_BETWEEN;
}

/*
 * What was taken up comes again. Of what is read in the dark nothing is kept to compare it with: so whose
 * bytes the socket takes is not known, but for this side's own, and what came by another interface.
 */
static __always_inline bool begins_anew(const struct __sk_buff *skb, const struct connection *conn,
					enum flow flow)
{
	return !IS_OUTBOUND(flow) && !passed_another(skb, conn, INBOUND);
}

/*
 * No request begins there. It may well be the rest of one, unless the client has said nothing before; so
 * may be what looks like another protocol, but that is told if no request was seen before it.
 */
static __always_inline void note_other_protocol(struct connection *conn, u32 kind, u32 ifindex,
						enum flow flow)
{
	bool is_opened = conn->origin == ORIGIN_OPENED || conn->origin == ORIGIN_OPENING;
	bool is_first = is_opened && conn->interface[IS_OUTBOUND(flow)] != UNMEASURED &&
			!(parser_of(conn, flow)->message_flags & MESSAGE_NOT_FIRST);

	if (conn->begun)
		return;
	if (kind != NOTICE_NOT_HTTP)
		count_as_not_http(conn, kind, ifindex);
	else if (is_first)
		count_as_not_http(conn, 0, ifindex);
}

/*
 * A segment in the direction of requests, of a connection whose framing is not known. Is it to be
 * read? In the dark it is where a request begins in which nobody is in the midst; as a request, where
 * that is certain.
 */
static __always_inline bool take_up(struct __sk_buff *skb, struct connection *conn,
				    const struct segment *seg, enum flow flow)
{
	struct parser *requests = parser_of(conn, flow), *responses = parser_of(conn, flow ^ 1);
	u32 end = seg->seq + seg->payload_length, first_four = 0;
	bool follows = responses->state == PARSER_BETWEEN && seg->seq == requests->next_seq &&
		       seg->ack_seq == responses->next_seq;

	if (conn->framing && !before(requests->next_seq, end) && !begins_anew(skb, conn, flow))
		return false;
	if (follows && conn->framing == FRAMING_EXCHANGE) {
		begin_between(conn);
		return true;
	}
	if (follows && conn->framing == FRAMING_ANSWERED) {
		leave_untold(conn, flow);
		pass_over_request(conn);
		conn->framing = FRAMING_REQUEST;
		start_message(requests);
		return true;
	}
	conn->framing = FRAMING_UNKNOWN;
	drop_carries(conn);
	requests->state = PARSER_LOST;
	requests->next_seq = end;
	responses->state = PARSER_LOST;
	if (seg->payload_length >= 4)
		bpf_skb_load_bytes(skb, seg->payload_offset, &first_four, 4);
	if (starts_a_request(first_four))
		leave_untold(conn, flow);
	else
		note_other_protocol(conn, protocol_of(first_four), skb->ifindex, flow);
	requests->message_flags |= MESSAGE_NOT_FIRST;
	return false;
}

/*
 * With the response that came last HTTP/1 has ended, if it is what the client reads. Before that its bytes
 * may come again.
 */
static __always_inline bool repeats_upgrade(struct connection *conn, const struct segment *seg,
					    enum flow flow)
{
	const struct exchange *x;

	if (IS_OUTBOUND(flow) || !before(seg->seq, conn->inbound.next_seq))
		return false;
	x = latest_arrival(conn);
	return x && x->record.flags & UPGRADED;
}

/* The same in the direction of responses: one that begins here is read in the dark. */
SELDOM begin_in_the_dark(struct __sk_buff *skb, struct connection *conn, const struct segment *seg,
			 enum flow flow)
{
	struct parser *responses = parser_of(conn, flow), *requests = parser_of(conn, flow ^ 1);
	u64 start = 0;

	if (responses->state == PARSER_OFF && repeats_upgrade(conn, seg, flow))
		return true;
	if (responses->state == PARSER_OFF || requests->state == PARSER_OFF ||
	    seg->payload_length < RESPONSE_LEAST ||
	    bpf_skb_load_bytes(skb, seg->payload_offset, &start, sizeof(start)) ||
	    (start & FIRST_BYTES(7)) != WORD('H', 'T', 'T', 'P', '/', '1', '.', 0)) {
		responses->next_seq = seg->seq + seg->payload_length;
		return false;
	}
	pass_over_request(conn);
	drop_carries(conn);
	conn->framing = FRAMING_ANSWER;
	start_message(responses);
	responses->next_seq = seg->seq;
	requests->state = PARSER_LOST;
	/* More than this the other side has not had when it sent the response. */
	requests->next_seq = seg->ack_seq;
	return true;
}

static __always_inline bool take_up_response(struct __sk_buff *skb, struct connection *conn,
					     const struct segment *seg, enum flow flow)
{
	struct segment copy = *seg; /* whose address is not handed on: it stays in registers */

	return begin_in_the_dark(skb, conn, &copy, flow);
}
