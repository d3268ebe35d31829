/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The bodies of the programs at traffic control, be they a server's or a client's: a segment is read as
 * far as one run goes, and continued.
 */
#pragma once

#include "http1/body.h"
#include "http1/head.h"
#include "stream/alignment.h"
#include "stream/continuations.h"
#include "stream/disorder.h"
#include "stream/lock.h"

#define TC_NEXT -1

/* Is there a FIN behind what is read? One that comes in may have come before it. */
static __always_inline bool is_before_fin(const struct scratch *s, const struct connection *conn,
					  enum flow flow)
{
	if (IS_OUTBOUND(flow))
		return s->fin;
	return conn->flags & PEER_CLOSED && conn->fin_seq == s->seq + (u32)s->payload_length;
}

/*
 * Reads the segment's payload from s->position on, as far as one message head
 * and the body after it go; the rest is left to a continuation. Returns -1
 * where framing is lost.
 */
static __always_inline int feed(struct __sk_buff *skb, struct scratch *s, struct connection *conn,
				enum flow flow, enum source source)
{
	struct parser *p = parser_of(conn, flow);
	struct exchange *x = NULL;

	if (p->state >= PARSER_BETWEEN && p->state <= PARSER_HEADERS &&
	    s->position < s->payload_length) {
		if (read_head(skb, s, conn, p, &x, flow, source))
			return CARRIES_REQUESTS(flow) ? refuse_request(s, conn, p, flow) : -1;
	} else {
		x = current_exchange(conn, flow);
	}
	if (p->state == PARSER_BODY && s->position < s->payload_length)
		read_body(skb, s, conn, p, x, flow, source);
	if (!CARRIES_REQUESTS(flow) && p->state == PARSER_UNTIL_CLOSE) {
		add_content(x, s->payload_length - s->position, flow);
		consume(s, x, s->payload_length - s->position, flow);
		if (is_before_fin(s, conn, flow))
			p->state = PARSER_ENDED;
	}
	return p->state == PARSER_ENDED ? end_message(conn, s, x, flow, source) : 0;
}

/* Goes on with what is left of the segment. Returns only if nothing is (0), or
 * if the kernel allows no more tail calls (-1). */
static __always_inline int feed_rest(struct __sk_buff *skb, struct scratch *s,
				     const struct connection *conn, const struct parser *p,
				     enum flow flow)
{
	if (s->position >= s->payload_length || p->state <= PARSER_OFF)
		return 0;
	hand_on(s, conn, flow);
	s->continuing = 1;
	if (p->state >= PARSER_CHUNK_SIZE)
		TAIL_CALL(skb, continuations, CONTINUE_CHUNKS + OF_ROLE(flow));
	else if (!IS_OUTBOUND(flow))
		TAIL_CALL(skb, continuations, CONTINUE_INBOUND + OF_ROLE(flow));
	else
		TAIL_CALL(skb, continuations, CONTINUE_OUTBOUND + OF_ROLE(flow));
	s->continuing = 0;
	return -1;
}

/* The same for a hook's own program, when a continuation comes in there again. */
static __always_inline struct connection *resume(struct scratch *s)
{
	s->continuing = 0;
	return continued_connection(s);
}

/* The segment was read. If others came out of order, that is looked after now. */
static __always_inline void track_disorder(struct __sk_buff *skb, struct scratch *s,
					   const struct connection *conn, enum flow flow)
{
	if (!conn->inbound.disorder)
		return;
	hand_on(s, conn, flow);
	s->early = 0;
	TAIL_CALL(skb, continuations, CONTINUE_DISORDER + OF_ROLE(flow));
}

/* Both directions continue here with a chunked body; `role` is one of its two flows. */
static __always_inline int go_on_with_chunks(struct __sk_buff *skb, enum flow role)
{
	struct scratch *s = own_scratch();
	struct connection *conn;
	struct parser *p;
	enum flow flow;

	s->continuing = 0;
	flow = (s->flow & 1) | (role & 2);
	conn = continued_connection(s);
	if (!conn)
		return TC_NEXT;
	p = parser_of(conn, flow);
	if (read_chunks(skb, s, conn, p, flow, FROM_PACKET) || feed_rest(skb, s, conn, p, flow))
		lose_framing(conn);
	else if (!IS_OUTBOUND(flow))
		track_disorder(skb, s, conn, flow);
	unlock(&conn->locked);
	return TC_NEXT;
}

/* Goes on with the kept piece whose turn it is, or with the rest of it. Returns if it may not. */
static __always_inline void call_kept(struct __sk_buff *skb, struct connection *conn,
				      enum flow flow)
{
	if (conn->inbound.state >= PARSER_CHUNK_SIZE)
		TAIL_CALL(skb, continuations, CONTINUE_KEPT_CHUNKS + OF_ROLE(flow));
	else
		TAIL_CALL(skb, continuations, CONTINUE_KEPT + OF_ROLE(flow));
}

/* Keeps an early segment, or says what became of one that was read in its place. */
static __always_inline int track_early(struct __sk_buff *skb, enum flow flow)
{
	struct scratch *s = own_scratch();
	struct connection *conn;

	conn = continued_connection(s);
	if (!conn)
		return TC_NEXT;
	if (s->early ? keep(skb, s, conn) : settle(skb, s, conn))
		lose_framing(conn);
	else if (conn->inbound.kept)
		call_kept(skb, conn, flow);
	end_disorder(conn);
	unlock(&conn->locked);
	return TC_NEXT;
}

/* Goes on with the pieces from this one, or this part of one, on. */
static __always_inline void read_pieces(struct __sk_buff *skb, struct scratch *s,
					struct connection *conn, bool chunks, enum flow flow)
{
	struct parser *p = &conn->inbound;

	if (!s->continuing && !next_piece(s, conn, flow)) {
		end_disorder(conn);
		return;
	}
	s->continuing = 0;
	if (chunks ? read_chunks(skb, s, conn, p, flow, FROM_PIECE)
		   : feed(skb, s, conn, flow, FROM_PIECE)) {
		lose_framing(conn);
		return;
	}
	credit_piece(s, conn);
	if (p->state <= PARSER_OFF)
		return;
	s->continuing = s->position < s->payload_length;
	call_kept(skb, conn, flow);
	/* The kernel allows no more tail calls: the next segment goes on from here. */
	s->continuing = 0;
	p->next_seq = s->seq + s->position;
}

/* Reads a kept piece, or a part of one, if there is one whose turn it is. */
static __always_inline int read_kept(struct __sk_buff *skb, bool chunks, enum flow flow)
{
	struct scratch *s = own_scratch();
	struct connection *conn;

	conn = continued_connection(s);
	if (!conn) {
		s->continuing = 0;
		return TC_NEXT;
	}
	read_pieces(skb, s, conn, chunks, flow);
	unlock(&conn->locked);
	return TC_NEXT;
}

/* The body of all hooks: reads what there is to read of the connection; NULL: nothing. */
static __always_inline int read_on(struct __sk_buff *skb, struct scratch *s,
				   struct connection *conn, enum flow flow)
{
	struct parser *p;

	if (!conn)
		return TC_NEXT;
	p = parser_of(conn, flow);
	if (p->state == PARSER_LOST || feed(skb, s, conn, flow, FROM_PACKET) ||
	    feed_rest(skb, s, conn, p, flow))
		lose_framing(conn);
	else if (!IS_OUTBOUND(flow))
		track_disorder(skb, s, conn, flow);
	unlock(&conn->locked);
	return TC_NEXT;
}
