/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Heads: of their lines only those named in enum found are looked at. */
#pragma once

#include "http1/familiar.h"
#include "http1/lines.h"
#include "http1/message.h"
#include "http1/methods.h"
#include "http1/values.h"
#include "ledger/route.h"
#include "stream/long_heads.h"

/* What the first line says, as far as it was found. -1: it is no request's. */
static __always_inline int take_request_line(struct scratch *s, struct connection *conn,
					     struct exchange *x)
{
	u64 length = s->found_length[FOUND_FIRST_LINE], at = s->found_at[FOUND_FIRST_LINE];
	u64 part = s->found_times[FOUND_FIRST_LINE], method = 3;
	int minor;

	if (part != FIRST_END) {
		if (four_at(s, at) != METHOD_GET)
			method = read_method(s, conn, at, length);
		if (length < method + BEHIND_METHOD)
			return -1;
		if (part == FIRST_START)
			return 0;
	}
	minor = read_version(s, at, length);
	if (minor < 0)
		return -1;
	if (x)
		x->record.http1.http_minor = minor;
	if (part == FIRST_END) {
		s->found_length[FOUND_FIRST_LINE] = 0; /* its start was taken */
		if (x)
			x->record.http1.request_line_length =
				at_most(0xffff, s->head.before + at + length);
	}
	return 0;
}

/* Of several nobody knows which one is meant (RFC 9112, section 3.2): none is told. */
static __always_inline void forget_host(struct scratch *s, struct exchange *x)
{
	x->record.http1.host_length = 0;
	s->found_length[FOUND_HOST] = 0;
}

/* The head goes on: a Host line that comes then is one of several, be it that the first one is empty. */
static __always_inline void note_host(const struct scratch *s, struct parser *p,
				      const struct exchange *x)
{
	if (x && s->found_times[FOUND_HOST])
		p->message_flags |= MESSAGE_HOST;
}

/* Of two, neither is to be believed: W3C Trace Context, section 3.2. */
static __always_inline void take_traceparent(struct scratch *s, struct exchange *x)
{
	x->record.join.traceparents += s->found_times[FOUND_TRACEPARENT];
	capture(x->record.join.traceparent, &x->record.join.traceparent_length, TRACEPARENT_MAX, s,
		FOUND_TRACEPARENT);
	if (x->record.join.traceparents > 1)
		x->record.join.traceparent_length = 0;
}

/* What the noted lines say. -1: this is not HTTP/1. */
static __always_inline int take_request_lines(struct scratch *s, struct connection *conn,
					      struct parser *p, struct exchange *x)
{
	if (!s->found_length[FOUND_FIRST_LINE]) {
		if (x && s->found_times[FOUND_HOST] && p->message_flags & MESSAGE_HOST)
			forget_host(s, x);
	} else if (take_request_line(s, conn, x)) {
		return -1;
	}
	if (!x)
		return 0;
	capture(x->record.http1.request_line, &x->record.http1.request_line_length,
		REQUEST_LINE_MAX, s, FOUND_FIRST_LINE);
	if (s->found_times[FOUND_HOST] > 1)
		forget_host(s, x);
	capture(x->record.http1.host, &x->record.http1.host_length, HOST_MAX, s, FOUND_HOST);
	capture(x->record.http1.user_agent, &x->record.http1.user_agent_length, USER_AGENT_MAX, s,
		FOUND_USER_AGENT);
	if (s->found_times[FOUND_TRACEPARENT])
		take_traceparent(s, x);
	return 0;
}

/* The status of a line that is at least as long as "HTTP/1.1 200"; -1: it is none. */
static __always_inline int take_status_line(const struct scratch *s, struct parser *p, u64 at,
					    u64 length)
{
	u32 minor, text, status;
	u8 after;

	if (length < 12 ||
	    (word_at(s, at) & FIRST_BYTES(7)) != WORD('H', 'T', 'T', 'P', '/', '1', '.', 0))
		return -1;
	/* Most are this one. */
	if (word_at(s, at + 5) == WORD('1', '.', '1', ' ', '2', '0', '0', ' ')) {
		p->status = 200;
		return 0;
	}
	minor = byte_at(s, at + 7) - '0';
	after = byte_at(s, at + 12);
	/* Of " 200" the blank becomes 0, and digits their numbers. */
	text = four_at(s, at + 8) ^ FOUR(' ', '0', '0', '0');
	if (minor > 9 || (text | (text + FOUR(0, 6, 6, 6))) & FOUR(0xff, 0xf0, 0xf0, 0xf0))
		return -1;
	status = (text >> 8 & 0xff) * 100 + (text >> 16 & 0xff) * 10 + (text >> 24);
	if (status < 100 || (after != ' ' && after != '\r' && after != '\n'))
		return -1;
	p->status = status;
	return 0;
}

static __always_inline int take_response_lines(const struct scratch *s, struct parser *p)
{
	u64 length = s->found_length[FOUND_FIRST_LINE];

	return length ? take_status_line(s, p, s->found_at[FOUND_FIRST_LINE], length) : 0;
}

#define FIRST_END_MAX 16 /* bytes: the version and the line's end are fewer */

/*
 * The window does not have the end of a request's first line. If it has no room for it either, its start
 * is noted, and what is gone on with is no more than its last bytes.
 */
static __always_inline void cut_request_line(struct scratch *s)
{
	volatile struct head_cursor *v = &s->head;
	u64 at = v->at, total = v->total;

	if (v->kind == LINE_FIRST) {
		if (total < CARRY_MAX && at >= total)
			return;
		note_first_line(s, 0, CARRY_MAX);
		s->found_times[FOUND_FIRST_LINE] = FIRST_START;
		v->kind = LINE_FIRST_REST;
	}
	v->line = at_most(total, at) - FIRST_END_MAX;
}

/*
 * Takes what was scanned from the payload: all up to the end of the head or of
 * the window, but for a line that is not whole yet. -1: there is no room for that.
 */
static __always_inline int consume_lines(struct scratch *s, struct connection *conn,
					 struct parser *p, struct exchange *x, enum flow flow)
{
	volatile struct head_cursor *v = &s->head;
	u64 carried = p->carried, total = v->total, line, partial;
	bool is_kept;

	p->carried = 0;
	if (v->end) {
		consume(s, x, v->end - carried, flow);
		return 0; /* what follows is up to what the lines say */
	}
	if (CARRIES_REQUESTS(flow) && (v->kind == LINE_FIRST || v->kind == LINE_FIRST_REST))
		cut_request_line(s);
	line = v->line;
	partial = total - line;
	is_kept = partial < CARRY_MAX && v->kind != LINE_REST;
	if (is_kept && v->at >= total && s->position + v->loaded == s->payload_length) {
		/* The next segment finishes this line. */
		s->carry = carry_key(conn, IS_OUTBOUND(flow));
		if (partial &&
		    UPDATE(carries, &s->carry, (struct carry *)(s->window + (line & WINDOW_MASK))))
			return -1;
		p->carried = partial;
		consume(s, x, v->loaded, flow);
	} else if (line && (v->at < total || is_kept)) {
		/* The next run starts again at this line. */
		consume(s, x, line - carried, flow);
	} else {
		/* A line too long to keep: its start is all that is looked at. */
		if (v->kind == LINE_FIRST)
			note_first_line(s, line, CARRY_MAX);
		else if (v->kind == LINE_HEADER)
			note_header(s, line, line + CARRY_MAX, false, flow);
		/* Its end may have come, and what had not is whether there is more of it. */
		if (v->at < total || byte_at(s, total - 1) != '\n')
			v->kind = LINE_REST;
		consume(s, x, at_most(total, v->at) - carried, flow);
	}
	p->state = v->kind == LINE_FIRST || v->kind == LINE_FIRST_REST ? PARSER_FIRST_LINE
								       : PARSER_HEADERS;
	p->skip_line = v->kind == LINE_REST || v->kind == LINE_FIRST_REST;
	return 0;
}

/* A head goes on with the window, behind what the last one left. */
static __always_inline void go_on_with_head(struct scratch *s, const struct parser *p,
					    const struct exchange *x, u64 loaded, enum flow flow)
{
	volatile struct head_cursor *v = &s->head;
	u64 carried = p->carried;

	/* The last bytes may be a line's end, or the half of one. */
	v->at = carried > 2 ? carried - 2 : 0;
	v->total = carried + loaded;
	v->kind = LINE_HEADER;
	if (p->skip_line)
		v->kind = LINE_REST;
	if (p->state != PARSER_FIRST_LINE)
		return;
	v->kind = p->skip_line ? LINE_FIRST_REST : LINE_FIRST;
	if (CARRIES_REQUESTS(flow) && x)
		v->before = x->record.request_bytes - carried;
}

/* Reads the window's lines, of a head that begins or goes on there. -1: this is not HTTP/1. */
static __always_inline int read_lines(struct scratch *s, struct connection *conn, struct parser *p,
				      struct exchange *x, u64 loaded, enum flow flow)
{
	volatile struct head_cursor *v = &s->head;

	v->loaded = loaded;
	/* Behind the window no line goes on, nor ends. */
	s->window[v->total & WINDOW_MASK] = 0;
	v->line = 0;
	v->end = 0;
	__builtin_memset(s->found_length, 0, FOUND_FORWARDED * sizeof(s->found_length[0]));
	__builtin_memset(s->found_times, 0, sizeof(s->found_times));
	scan_lines(s, flow);
	if (consume_lines(s, conn, p, x, flow))
		return -1;
	if (CARRIES_REQUESTS(flow) ? take_request_lines(s, conn, p, x) : take_response_lines(s, p))
		return -1;
	/* Of most requests there are none of these. */
	if (*(u32 *)&s->found_times[FOUND_CONTENT_LENGTH]) {
		if (s->found_times[FOUND_TRANSFER_ENCODING])
			take_coding(s, p);
		if (s->found_times[FOUND_CONTENT_LENGTH])
			take_length(s, p);
		if (CARRIES_REQUESTS(flow) && !IS_CLIENTS(flow) &&
		    s->found_times[FOUND_FORWARDED] && x)
			keep_forwarded(s, x);
	}
	return 0;
}

/* What comes in may come again. */
#ifdef BCC_BUILD
#define KEEPS_HEADS(flow) false
#else
#define KEEPS_HEADS(flow) (!IS_OUTBOUND(flow))
#endif

/* The first byte that is read that had not come before. */
static __always_inline u32 first_new(const struct scratch *s, enum source source)
{
	return source == FROM_PACKET && s->ahead < 0 ? s->seq - s->ahead : s->seq;
}

/*
 * Reads lines up to the end of the head or of the window, and gives the exchange
 * that they belong to. Returns 0, or -1 when the bytes are no HTTP/1 message or
 * one was too odd to follow.
 */
static __always_inline int read_head(struct __sk_buff *skb, struct scratch *s,
				     struct connection *conn, struct parser *p, struct exchange **x,
				     enum flow flow, enum source source)
{
	volatile struct head_cursor *v = &s->head;
	u64 loaded = load_window(skb, s, conn, p, flow, source);
	int begun;

	if (!loaded)
		return -1;
	if (p->state != PARSER_BETWEEN) {
		*x = current_exchange(conn, flow);
		if (KEEPS_HEADS(flow) && *x && before((*x)->inbound_start, first_new(s, source)))
			keep_long_head(skb, conn->id, (*x)->inbound_start, source);
		go_on_with_head(s, p, *x, loaded, flow);
	} else {
		begun = CARRIES_REQUESTS(flow) ? start_request(s, conn, p, x, loaded, flow, source)
					       : start_response(s, conn, p, x, flow, source);
		if (begun <= 0)
			return begun;
		if (!CARRIES_REQUESTS(flow) && read_familiar_head(s, conn, p, *x, flow))
			return 0;
		v->at = 0;
		v->total = loaded;
		v->kind = LINE_FIRST;
	}
	if (read_lines(s, conn, p, *x, loaded, flow))
		return -1;
	if (!v->end) {
		if (CARRIES_REQUESTS(flow))
			note_host(s, p, *x);
		if (KEEPS_HEADS(flow) && *x && s->position == s->payload_length &&
		    !before((*x)->inbound_start, s->seq))
			keep_long_head(skb, conn->id, (*x)->inbound_start, source);
		return 0;
	}
	if (CARRIES_REQUESTS(flow)) {
		if (SERIES && *x)
			(*x)->record.route_hash = hash_route(&(*x)->record, &s->route, flow);
		return begin_request_body(conn, p, *x, flow);
	}
	remember_head(s, conn, p);
	if (is_interim(p)) {
		if (KEEPS_HEADS(flow) && *x && !before((*x)->inbound_start, s->seq))
			keep_long_head(skb, conn->id, (*x)->inbound_start, source);
		p->state = PARSER_BETWEEN;
		forget_response(conn, *x, flow);
		return 0;
	}
	return begin_response_body(conn, p, *x, flow);
}
