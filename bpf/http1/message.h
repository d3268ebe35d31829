/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * HTTP/1 framing: where a message starts and ends, and what follows from it.
 *
 * The parser takes segments as they come. A segment may hold half a line or
 * several messages; what one program run cannot finish is continued by a tail
 * call, and what the next segment must finish is kept in struct parser.
 */
#pragma once

#include "http1/methods.h"
#include "http1/proxy_header.h"
#include "http1/window.h"
#include "ledger/causes.h"
#include "ledger/requests.h"
#include "ledger/upstreams.h"
#include "stream/framing.h"
#include "stream/source.h"

static __always_inline void start_message(struct parser *p)
{
	p->state = PARSER_FIRST_LINE;
	p->remaining = 0;
	p->carried = 0;
	p->skip_line = 0;
	p->message_flags = 0;
	p->status = 0;
}

/* The message that comes in is whole. */
static __always_inline void end_inbound(struct connection *conn, struct scratch *s,
					struct exchange *x, enum source source)
{
	u64 last;

	x->inbound_end = s->seq + s->position;
	if (s->ktime_ns != x->record.stamp_ktime_ns[STAMP_TC])
		x->record.stamp_ktime_ns[STAMP_TC_LAST] = s->ktime_ns;
	last = arrival_of_read(s, conn, x->inbound_end - 1, source);
	if (last != x->record.stamp_ktime_ns[STAMP_NIC])
		x->record.stamp_ktime_ns[STAMP_NIC_LAST] = last;
}

/* The message that goes out is whole. Its last byte is the FIN, where nothing else ends it. */
static __always_inline void end_outbound(struct connection *conn, struct scratch *s,
					 struct exchange *x)
{
	bool until_close = x->record.flags & RESPONSE_UNTIL_CLOSE;
	u64 last;

	x->outbound_end = s->seq + s->position;
	if (s->ktime_ns != x->record.stamp_ktime_ns[STAMP_TC_OUT])
		x->record.stamp_ktime_ns[STAMP_TC_OUT_LAST] = s->ktime_ns;
	last = byte_time_of(&conn->writes, x->outbound_end - !until_close);
	if (last != x->record.stamp_ktime_ns[STAMP_WRITE])
		x->record.stamp_ktime_ns[STAMP_WRITE_LAST] = last;
}

/* What makes that another request's head may have its end in the body of the one that was read. */
#define MESSAGE_HIDING (MESSAGE_CODED | MESSAGE_UNCLEAR_LENGTH | MESSAGE_MAY_HIDE)

/*
 * A message that is read in the dark is whole, and its parser at PARSER_BETWEEN. It counts if nothing
 * came behind it: then the flow stands at its end. See stream/begin.h.
 */
static __always_inline void end_in_the_dark(struct connection *conn, const struct scratch *s,
					    struct parser *p, enum flow flow)
{
	struct parser *other = parser_of(conn, flow ^ 1);
	bool counts =
		s->position >= s->payload_length && !conn->inbound.disorder &&
		!(p->message_flags & (CARRIES_REQUESTS(flow) ? MESSAGE_HIDING : MESSAGE_ENDS_HTTP));

	p->message_flags = 0;
	if (!counts) {
		drop_carries(conn);
		conn->framing = FRAMING_UNKNOWN;
		p->state = PARSER_LOST;
		other->state = PARSER_LOST;
	} else if (CARRIES_REQUESTS(flow)) {
		/* With the client's next byte take_up() looks where both stand. */
		p->state = PARSER_LOST;
	} else {
		conn->framing = conn->framing == FRAMING_REQUEST && other->state == PARSER_LOST
					? FRAMING_EXCHANGE
					: FRAMING_ANSWERED;
		drop_carries(conn);
		other->state = PARSER_LOST;
	}
}

/*
 * For a parser that is at PARSER_ENDED: what it has read was a whole message. -1: HTTP/1 has ended with
 * it, and what was taken for requests behind it are none.
 */
static __always_inline int end_message(struct connection *conn, struct scratch *s,
				       struct exchange *x, enum flow flow, enum source source)
{
	struct parser *p = parser_of(conn, flow);

	p->state = PARSER_BETWEEN;
	if (x) {
		if (IS_OUTBOUND(flow))
			end_outbound(conn, s, x);
		else
			end_inbound(conn, s, x, source);
		x->record.flags |= CARRIES_REQUESTS(flow) ? REQUEST_RECEIVED : REQUEST_ANSWERED;
	} else if (conn->framing) {
		end_in_the_dark(conn, s, p, flow);
	}
	if (!CARRIES_REQUESTS(flow)) {
		conn->answered++;
		if (p->message_flags & MESSAGE_ENDS_HTTP)
			turn_off(conn, 0, 0);
	}
	if (IS_CLIENTS(flow)) {
		if (!IS_OUTBOUND(flow))
			track_unread(conn);
		if (x && !IS_OUTBOUND(flow))
			await_fin(x);
		/* That a request's own body is the last to leave is rare: the agent adds that up. */
		finish_read(conn, IS_OUTBOUND(flow) ? IRREGULAR : ORDERLY);
	}
	/* Read again: the verifier need not follow what comes before this twice. */
	if (!CARRIES_REQUESTS(flow) && *(volatile u8 *)&p->state == PARSER_OFF)
		return conn->begun == conn->answered ? 0 : -1;
	return 0;
}

/* Bytes on the wire, heads and chunk framing included. */
static __always_inline void add_bytes(struct exchange *x, u64 n, enum flow flow)
{
	if (!x)
		return;
	if (CARRIES_REQUESTS(flow))
		x->record.request_bytes += n;
	else
		x->record.response_bytes += n;
}

static __always_inline void consume(struct scratch *s, struct exchange *x, u64 n, enum flow flow)
{
	s->position += n;
	if (x)
		x->activity_ktime_ns = s->ktime_ns;
	add_bytes(x, n, flow);
}

static __always_inline void add_content(struct exchange *x, u64 n, enum flow flow)
{
	if (!x)
		return;
	if (CARRIES_REQUESTS(flow))
		x->record.request_body_bytes += n;
	else
		x->record.response_body_bytes += n;
}

/* A connection begins with the window's bytes, which begin no request. */
static __always_inline void note_protocol(const struct scratch *s, struct connection *conn,
					  enum direction direction)
{
	u64 length = s->payload_length - s->position;

	count_as_not_http(conn, length < 4 ? NOTICE_NOT_HTTP : protocol_of(four_at(s, 0)),
			  conn->interface[direction]);
}

/*
 * What a connection begins with that looks like the start of a request, and is none: the preface of HTTP/2
 * was made to, and a header of the PROXY protocol that nobody may send. 0: it is none of these.
 */
SELDOM resembling_protocol(const struct scratch *s, u64 loaded, bool behind_blanks)
{
	if (loaded >= 4 && four_at(s, 0) == FOUR('P', 'R', 'I', ' '))
		return NOTICE_HTTP2;
	return is_proxy_header(s, loaded, behind_blanks) ? NOTICE_PROXY_HEADER : 0;
}

/*
 * Does a request begin with the window's first byte? 1: it does; 0: not with this one; -1: there can
 * be none. An empty line before it, which some clients send after a body, is stepped over.
 */
static __always_inline int start_request(struct scratch *s, struct connection *conn,
					 struct parser *p, struct exchange **x, u64 loaded,
					 enum flow flow, enum source source)
{
	u32 seq = s->seq + s->position, kind;
	u8 first = byte_at(s, 0);

	/* What is not there yet of its first word does no harm. */
	if (four_at(s, 0) != METHOD_GET && !starts_a_request(four_at(s, 0))) {
		if (PROXY_NETWORKS && !conn->begun && !(p->message_flags & MESSAGE_NOT_FIRST) &&
		    (first == 'P' || first == '\r') &&
		    begins_with_proxy_header(s, conn, loaded, flow)) {
			p->state = PARSER_PROXY_HEADER;
			p->remaining = 0;
			return 0;
		}
		if (first == '\r' || first == '\n') {
			p->message_flags |= MESSAGE_NOT_FIRST;
			s->position++;
			return 0;
		}
		kind = conn->begun ? 0
				   : resembling_protocol(s, loaded,
							 p->message_flags & MESSAGE_NOT_FIRST);
		if (kind) {
			turn_off(conn, kind, conn->interface[IS_OUTBOUND(flow)]);
			return 0;
		}
		if (!may_be_request(s, loaded)) {
			if (!conn->begun)
				note_protocol(s, conn, IS_OUTBOUND(flow));
			return -1;
		}
	}
	start_message(p);
	*x = begin_request(s, conn, seq,
			   IS_OUTBOUND(flow) ? byte_time_of(&conn->writes, seq)
					     : arrival_of_read(s, conn, seq, source),
			   flow);
	if (*x && IS_CLIENTS(flow))
		name_writer(conn, *x, seq);
	/* TCP had it in its hands before it was a request. */
	if (source == FROM_PIECE && *x)
		(*x)->record.stamp_ktime_ns[STAMP_TCP] = s->tcp_ktime_ns;
	return 1;
}

/* Does the window, in which lines were looked for, begin with a message's first one? */
static __always_inline bool is_first_line(const struct scratch *s)
{
	return s->found_length[FOUND_FIRST_LINE] && !s->found_at[FOUND_FIRST_LINE];
}

/*
 * What comes is no request. It costs those nothing before it that wait for their answers: of what the
 * client says no more is read. -1 where there are none such: framing is lost.
 */
static __always_inline int refuse_request(struct scratch *s, struct connection *conn,
					  struct parser *p, enum flow flow)
{
	bool begun = p->state != PARSER_BETWEEN;
	struct exchange *x;
	u32 kind;

	if (conn->begun - begun <= conn->answered) {
		/* What it is may be seen only now that its first line is whole. */
		kind = conn->begun == 1 && begun && is_first_line(s)
			       ? resembling_protocol(s, s->head.total, false)
			       : 0;
		if (kind)
			turn_off(conn, kind, conn->interface[IS_OUTBOUND(flow)]);
		return -1;
	}
	x = in_flight(conn, conn->begun - 1);
	if (begun && x)
		abandon(x, COUNT_LOST_PARSER);
	forget_disorder(conn);
	p->state = PARSER_OFF;
	return 0;
}

/* A response begins with the window's first byte: 1; -1 where none was asked for. */
static __always_inline int start_response(struct scratch *s, struct connection *conn,
					  struct parser *p, struct exchange **x, enum flow flow,
					  enum source source)
{
	u32 seq = s->seq + s->position;

	if (conn->answered >= conn->begun) {
		if (!conn->framing) /* else its request may not be known */
			count(COUNT_SEGMENTS_UNASKED);
		return -1;
	}
	start_message(p);
	*x = current_exchange(conn, flow);
	if (*x && IS_OUTBOUND(flow)) {
		(*x)->record.stamp_ktime_ns[STAMP_TC_OUT] = s->ktime_ns;
		(*x)->record.stamp_ktime_ns[STAMP_WRITE] = byte_time_of(&conn->writes, seq);
	} else if (*x) {
		(*x)->inbound_start = seq;
		(*x)->record.stamp_ktime_ns[STAMP_NIC] = arrival_of_read(s, conn, seq, source);
		(*x)->record.stamp_ktime_ns[STAMP_TC] = s->ktime_ns;
		if (source == FROM_PIECE)
			(*x)->record.stamp_ktime_ns[STAMP_TCP] = s->tcp_ktime_ns;
	}
	if (!IS_OUTBOUND(flow))
		conn->arrived = conn->answered + 1;
	return 1;
}

/* The request's head is whole: how long is its body? -1: nobody can say (RFC 9112, section 6.3). */
static __always_inline int begin_request_body(struct connection *conn, struct parser *p,
					      struct exchange *x, enum flow flow)
{
	if (x) {
		x->head_bytes = x->record.request_bytes;
		sample(x);
		if (IS_CLIENTS(flow))
			name_cause(conn, x);
	}
	if (p->message_flags & (MESSAGE_CODED | MESSAGE_UNCLEAR_LENGTH)) {
		if (!(p->message_flags & MESSAGE_CHUNKED))
			return -1;
		p->state = PARSER_CHUNK_SIZE;
		p->remaining = 0;
		if (x)
			x->record.flags |= REQUEST_CHUNKED;
	} else if (p->remaining) {
		p->state = PARSER_BODY;
	} else {
		p->state = PARSER_ENDED;
	}
	return 0;
}

/* It was an interim response: the real one is still to come. */
static __always_inline void forget_response(struct connection *conn, struct exchange *x,
					    enum flow flow)
{
	if (!IS_OUTBOUND(flow))
		unread_response(conn, x);
	if (!x)
		return;
	if (IS_OUTBOUND(flow)) {
		x->record.stamp_ktime_ns[STAMP_TC_OUT] = 0;
		x->record.stamp_ktime_ns[STAMP_WRITE] = 0;
	}
	x->record.response_bytes = 0;
}

/* Is the request whose response begins marked so? Its mark is free then for a later one. */
static __always_inline bool take_mark(const struct connection *conn, u64 *marks)
{
	u64 mark = 1ULL << (conn->answered & 63);
	bool is_marked = *marks & mark;

	*marks &= ~mark;
	return is_marked;
}

static __always_inline bool is_interim(const struct parser *p)
{
	return p->status < 200 && p->status != 101;
}

static __always_inline bool has_no_content(u32 status) { return status == 204 || status == 304; }

/* The same of a response, which is final. */
static __always_inline int begin_response_body(struct connection *conn, struct parser *p,
					       struct exchange *x, enum flow flow)
{
	bool to_head = false, to_connect = false;

	if (conn->head_requests | conn->connect_requests) {
		to_head = take_mark(conn, &conn->head_requests);
		to_connect = take_mark(conn, &conn->connect_requests);
	}
	if (x)
		x->record.status = p->status;
	/* After 101, or 2xx to CONNECT, the connection belongs to another protocol. */
	if (p->status == 101 || (to_connect && p->status < 300)) {
		if (x)
			x->record.flags |= UPGRADED;
		p->message_flags |= MESSAGE_ENDS_HTTP;
		p->state = PARSER_ENDED;
	} else if (to_head || has_no_content(p->status)) {
		p->state = PARSER_ENDED;
	} else if (p->message_flags & MESSAGE_CHUNKED) {
		p->state = PARSER_CHUNK_SIZE;
		p->remaining = 0;
		if (x) {
			x->record.flags |= RESPONSE_CHUNKED;
			if (!IS_OUTBOUND(flow))
				x->head_bytes = x->record.response_bytes;
		}
	} else if ((p->message_flags & (MESSAGE_HAS_LENGTH | MESSAGE_CODED |
					MESSAGE_UNCLEAR_LENGTH)) == MESSAGE_HAS_LENGTH) {
		p->state = p->remaining ? PARSER_BODY : PARSER_ENDED;
	} else if (p->message_flags & MESSAGE_UNCLEAR_CODING ||
		   (p->message_flags & (MESSAGE_CODED | MESSAGE_UNCLEAR_LENGTH)) ==
			   MESSAGE_UNCLEAR_LENGTH) {
		return -1;
	} else {
		p->state = PARSER_UNTIL_CLOSE;
		if (x)
			x->record.flags |= RESPONSE_UNTIL_CLOSE;
	}
	return 0;
}
