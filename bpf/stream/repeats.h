/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Bytes that come in again. TC has read those that came first, which need not be those that TCP takes: it
 * drops a segment whose checksum is wrong, or for which it has no room, and takes the next one for the
 * same place. Whose bytes the socket has taken already are so, whatever comes after them. Of others
 * either may be what is read: so what is told must be the same by both.
 *
 * A head that comes again whole is read again, and what it says compared; of one in several segments the
 * bytes are. What cannot be compared is not told. The bytes of a body say nothing, but where they are
 * chunks.
 *
 * Programs of its own do this, by a tail call: where nothing comes twice there is nothing to it.
 */
#pragma once

#include "http1/body.h"
#include "http1/head.h"
#include "links/existing.h"
#include "state/exchange.h"
#include "stream/continuations.h"
#include "stream/disorder.h"
#include "stream/feed.h"
#include "stream/long_heads.h"
#include "stream/packet.h"

/* A head that is read again. */
struct rereading {
	struct exchange x; /* what it says */
	struct parser p;
	u64 payload_length;
	/* Of the first reading. */
	u64 head_requests;
	u64 connect_requests;
	struct chunk_start chunks; /* how they were read */
	u32 from; /* the first byte that came again and that the socket had not taken */
	u32 unused;
};

MAP(PERCPU_ARRAY, rereadings, u32, struct rereading, 1)

enum verdict {
	VERDICT_SAME,   /* whatever the socket takes is what was read */
	VERDICT_OTHER,  /* that is not certain */
	VERDICT_MORE,   /* there is more of the head to read */
	VERDICT_CHUNKS, /* there are chunks to compare */
};

/* The first byte that the connection's socket has not taken. False: nobody knows. */
static __always_inline bool find_taken(void *context, struct scratch *s,
				       const struct connection *conn, u32 *taken)
{
	void *sk = look_up_socket(context, s, &conn->key);
	bool is_known = true;
	u64 tp, request;

	if (!sk)
		return false;
	tp = (u64)bpf_skc_to_tcp_sock(sk);
	if (tp && sock_state(tp, DIRECT) != TCP_LISTEN) {
		*taken = tcp_rcv_nxt(tp, DIRECT);
	} else if (tp) {
		/* Its own socket is still to be made. */
		*taken = conn->first_seq;
		is_known = conn->origin == ORIGIN_OPENING;
	} else {
		request = (u64)bpf_skc_to_tcp_request_sock(sk);
		is_known = request;
		if (request)
			*taken = request_rcv_isn(request) + 1;
	}
	bpf_sk_release(sk);
	return is_known;
}

/* Have the bytes been missing until now? */
static __always_inline bool fills_hole(struct connection *conn, u32 start, u32 end)
{
	struct disorder *d;
	bool fills = false;
	u32 i;

	if (!conn->inbound.holes)
		return false;
	d = LOOKUP(disorders, &conn->id);
	if (!d)
		return false;
	BOUNDED_LOOP
	for (i = 0; i < HOLES_MAX; i++)
		fills |= !before(start, d->holes[i].start) && !before(d->holes[i].end, end);
	return fills;
}

static __always_inline bool has_chunks(const struct exchange *x)
{
	return x->record.flags & (is_outgoing(x) ? RESPONSE_CHUNKED : REQUEST_CHUNKED);
}

/* Where the head of the message has its end that came in last, and is whole. */
static __always_inline u32 head_end_of(const struct exchange *x)
{
	u32 head = is_outgoing(x) && !has_chunks(x)
			   ? x->record.response_bytes - x->record.response_body_bytes
			   : x->head_bytes;

	return x->inbound_start + head;
}

/* Is what is before the message's first byte the empty line that may be there? */
static __always_inline bool is_empty_line(struct __sk_buff *skb, const struct scratch *s, u32 from,
					  u32 start)
{
	u32 at = s->payload_offset + from - s->seq;
	u8 line[2] = {};

	if (start - from == 1)
		return !bpf_skb_load_bytes(skb, at, line, 1) && line[0] == '\n';
	return start - from == 2 && !bpf_skb_load_bytes(skb, at, line, 2) && line[0] == '\r' &&
	       line[1] == '\n';
}

/* Is the end of the response that came in last, which a FIN made, not where the segment has one? */
static __always_inline bool ends_otherwise(const struct scratch *s, const struct exchange *x,
					   u32 end)
{
	u32 fin = x->inbound_end - 1; /* TCP has not taken that: else it were no question */

	return is_outgoing(x) && x->record.flags & RESPONSE_UNTIL_CLOSE && inbound_is_whole(x) &&
	       !before(end, fin) && (!s->fin || s->seq + (u32)s->payload_length != fin);
}

/* Has it more than an empty line behind a message that is whole? That is an interim response. */
static __always_inline bool goes_beyond(struct __sk_buff *skb, const struct scratch *s,
					const struct exchange *x, u32 from, u32 end)
{
	u32 last = x->inbound_end;

	if (!inbound_is_whole(x) || !before(last, end))
		return false;
	if (before(last, from))
		last = from;
	return !is_empty_line(skb, s, last, end);
}

/*
 * The segment's chunks from s->position on come again, and none have come after them: are they
 * read as they were, in the state that they were in there? Whatever of them is not framing, or is the same
 * framing at the same places, says nothing that is told.
 */
static __always_inline enum verdict compare_chunks(struct __sk_buff *skb, struct scratch *s,
						   const struct connection *conn,
						   const struct chunk_start *were)
{
	volatile struct chunk_cursor *v = &s->chunks;
	const struct parser *p = &conn->inbound;
	u64 payload_length = s->payload_length, length = -(s64)s->ahead;

	s->payload_length = length;
	step_over_chunks(skb, s, were->remaining, were->state, FROM_PACKET);
	s->payload_length = payload_length;
	if (v->failed || v->position != length || v->body_bytes != were->body_bytes)
		return VERDICT_OTHER;
	if (v->state == PARSER_ENDED)
		return p->state == PARSER_BETWEEN ? VERDICT_SAME : VERDICT_OTHER;
	return v->state == p->state && v->remaining == p->remaining ? VERDICT_SAME : VERDICT_OTHER;
}

/*
 * The segment repeats what came before. VERDICT_MORE: it has the head of the message that came last,
 * which is to be read again.
 */
static __always_inline enum verdict judge_repeated(struct __sk_buff *skb, struct scratch *s,
						   struct connection *conn, struct rereading *r)
{
	u32 end = s->seq - s->ahead, from = s->seq, taken, head_end;
	const struct exchange *x;
	bool is_whole, is_behind; /* an earlier message that is whole, or none */
	enum kept_bytes kept;

	/* The same packet, at another interface; or as far as anybody knows. */
	if (passed_another(skb, conn, INBOUND) || !find_taken(skb, s, conn, &taken))
		return VERDICT_SAME;
	if (before(from, taken))
		from = taken;
	r->from = from;
	if (!before(from, end) || fills_hole(conn, from, end))
		return VERDICT_SAME;
	x = latest_arrival(conn);
	if (x && ends_otherwise(s, x, end))
		return VERDICT_OTHER;
	is_behind = !x || goes_beyond(skb, s, x, from, end);
	is_whole = !is_behind && (is_outgoing(x) ? x->record.status : x->head_bytes);
	head_end = is_whole ? head_end_of(x) : end;
	s->position = 0;
	r->chunks = conn->chunks;
	if (is_whole && !before(from, head_end))
		return has_chunks(x) && from == s->seq && from == conn->chunks.seq
			       ? VERDICT_CHUNKS
			       : VERDICT_SAME; /* of earlier ones nobody knows how they began */
	if (!is_behind && before(from, x->inbound_start) &&
	    is_empty_line(skb, s, from, x->inbound_start))
		from = x->inbound_start;
	/* What is behind the head says nothing, unless it is chunks. */
	kept = compare_long_head(skb, s, conn->id, from,
				 is_whole && before(head_end, end) && !has_chunks(x) ? head_end
										     : end);
	if (kept != KEPT_NONE)
		return kept == KEPT_SAME ? VERDICT_SAME : VERDICT_OTHER;
	if (!is_whole)
		return VERDICT_OTHER;
	if (before(end, head_end) || from != x->inbound_start)
		return VERDICT_OTHER;
	s->position = from - s->seq;
	r->payload_length = s->payload_length;
	s->payload_length = head_end - s->seq;
	return VERDICT_MORE;
}

/* Sets out to read it again. */
static __always_inline void begin_rereading(const struct connection *conn, struct rereading *r)
{
	clear(&r->x.record);
	r->x.slot = NO_SLOT; /* what a proxy said is kept as it was first read */
	start_message(&r->p);
	r->head_requests = conn->head_requests;
	r->connect_requests = conn->connect_requests;
}

static __always_inline bool same_bytes(const u8 *a, const u8 *b, u32 length, u32 most)
{
	u64 i, at;

	BOUNDED_LOOP
	for (i = 0; i < most; i++) {
		at = i;
		/* Else clang may leave out what tells the verifier that the loop ends in time. */
		asm volatile("" : "+r"(at));
		if (at >= length)
			return true;
		if (a[at] != b[at])
			return false;
	}
	return true;
}

static __always_inline bool same_texts(const struct request_record *a,
				       const struct request_record *b)
{
	const struct http1 *x = &a->http1, *y = &b->http1;

	return x->http_minor == y->http_minor && x->request_line_length == y->request_line_length &&
	       x->host_length == y->host_length && x->user_agent_length == y->user_agent_length &&
	       a->join.traceparents == b->join.traceparents &&
	       a->join.traceparent_length == b->join.traceparent_length &&
	       same_bytes(x->request_line, y->request_line, x->request_line_length,
			  REQUEST_LINE_MAX) &&
	       same_bytes(x->host, y->host, x->host_length, HOST_MAX) &&
	       same_bytes(x->user_agent, y->user_agent, x->user_agent_length, USER_AGENT_MAX) &&
	       same_bytes(a->join.traceparent, b->join.traceparent, a->join.traceparent_length,
			  TRACEPARENT_MAX);
}

/* Is the message as long, by its head? */
static __always_inline bool same_content(const struct connection *conn, const struct exchange *x,
					 const struct rereading *r, u64 content)
{
	u32 length =
		r->p.message_flags & (MESSAGE_HAS_LENGTH | MESSAGE_CODED | MESSAGE_UNCLEAR_LENGTH);

	if (has_chunks(x))
		return r->p.message_flags & MESSAGE_CHUNKED;
	if (is_outgoing(x) && x->record.flags & RESPONSE_UNTIL_CLOSE)
		return !(r->p.message_flags & MESSAGE_CHUNKED) && length != MESSAGE_HAS_LENGTH;
	if (conn->inbound.state == PARSER_BODY)
		content += conn->inbound.remaining;
	return !(length & ~MESSAGE_HAS_LENGTH) && content == r->p.remaining;
}

static __always_inline bool request_says_the_same(const struct connection *conn,
						  const struct exchange *x,
						  const struct rereading *r)
{
	return same_texts(&x->record, &r->x.record) && x->head_bytes == r->x.record.request_bytes &&
	       same_content(conn, x, r, x->record.request_body_bytes);
}

static __always_inline bool response_says_the_same(const struct connection *conn,
						   const struct exchange *x,
						   const struct rereading *r)
{
	u32 method = *(const u32 *)x->record.http1.request_line;

	return x->record.status == r->p.status &&
	       head_end_of(x) == x->inbound_start + (u32)r->x.record.response_bytes &&
	       (has_no_content(r->p.status) || method == METHOD_HEAD ||
		same_content(conn, x, r, x->record.response_body_bytes));
}

static __always_inline enum verdict reread(struct __sk_buff *skb, struct scratch *s,
					   struct connection *conn, struct rereading *r,
					   enum flow flow)
{
	u64 loaded = load_window(skb, s, conn, &r->p, flow, FROM_PACKET);
	const struct exchange *x = latest_arrival(conn);
	u32 end = s->seq - s->ahead;
	bool failed, is_whole;

	if (!loaded || !x)
		return VERDICT_OTHER;
	go_on_with_head(s, &r->p, &r->x, loaded, flow);
	failed = read_lines(s, conn, &r->p, &r->x, loaded, flow);
	is_whole = *(volatile u64 *)&s->head.end;
	if (!failed && !is_whole && s->position < s->payload_length) {
		if (CARRIES_REQUESTS(flow))
			note_host(s, &r->p, &r->x);
		return VERDICT_MORE;
	}
	/* Of the first reading, whose head was whole, nothing is carried: it is one key for both. */
	conn->inbound.carried = r->p.carried;
	drop_carries(conn);
	conn->head_requests = r->head_requests;
	conn->connect_requests = r->connect_requests;
	s->payload_length = r->payload_length;
	if (failed || !is_whole ||
	    (CARRIES_REQUESTS(flow) ? !request_says_the_same(conn, x, r)
				    : !response_says_the_same(conn, x, r)))
		return VERDICT_OTHER;
	if (!has_chunks(x) || conn->inbound.next_seq != end)
		return VERDICT_SAME;
	r->chunks.state = PARSER_CHUNK_SIZE;
	r->chunks.remaining = 0;
	r->chunks.body_bytes =
		is_outgoing(x) ? x->record.response_body_bytes : x->record.request_body_bytes;
	return VERDICT_CHUNKS;
}

/* Goes on with what the segment has behind what it repeats. Returns if there is nothing, or it may not. */
static __always_inline void read_the_rest(struct __sk_buff *skb, struct scratch *s,
					  struct connection *conn, enum flow flow)
{
	u64 repeated = -(s64)s->ahead;
	struct parser *p = &conn->inbound;

	s->position = repeated;
	if (repeated >= s->payload_length &&
	    (CARRIES_REQUESTS(flow) || !s->fin || p->state != PARSER_UNTIL_CLOSE)) {
		if (!p->disorder)
			return;
		s->early = 0;
		TAIL_CALL(skb, continuations, CONTINUE_DISORDER + OF_ROLE(flow));
		return; /* not reached */
	}
	p->next_seq = s->seq + s->payload_length;
	conn->interface[INBOUND] = skb->ifindex;
	s->continuing = 1;
	TAIL_CALL(skb, continuations, CONTINUE_INBOUND + OF_ROLE(flow));
	s->continuing = 0;
	lose_framing(conn);
}

/* What the next response was after interim ones, and whether HTTP/1 has ended, is not certain either. */
static __always_inline void doubt_response(struct connection *conn)
{
	conn->inbound.state = PARSER_LOST;
	if (conn->arrived == conn->answered && conn->answered < conn->begun)
		conn->arrived++;
}

/* A segment that begins with bytes that came before. */
static __always_inline int track_repeated(struct __sk_buff *skb, enum flow flow)
{
	struct scratch *s = own_scratch();
	struct connection *conn = continued_connection(s);
	bool goes_on = s->continuing;
	struct rereading *r;
	enum verdict verdict = VERDICT_OTHER;
	u32 zero = 0;

	s->continuing = 0;
	if (!conn)
		return TC_NEXT;
	r = LOOKUP(rereadings, &zero);
	if (r) {
		verdict = goes_on ? VERDICT_MORE : judge_repeated(skb, s, conn, r);
		if (verdict == VERDICT_MORE && !goes_on)
			begin_rereading(conn, r);
		if (verdict == VERDICT_MORE)
			verdict = reread(skb, s, conn, r, flow);
		if (verdict == VERDICT_MORE) {
			s->continuing = 1;
			TAIL_CALL(skb, continuations, CONTINUE_REPEATED + OF_ROLE(flow));
			s->continuing = 0;
		}
		if (verdict == VERDICT_CHUNKS)
			verdict = compare_chunks(skb, s, conn, &r->chunks);
	}
	if (verdict == VERDICT_SAME) {
		read_the_rest(skb, s, conn, flow);
	} else {
		if (!CARRIES_REQUESTS(flow))
			doubt_response(conn);
		lose_untaken(conn, r ? r->from : s->seq, false);
		lose_framing(conn);
	}
	unlock(&conn->locked);
	return TC_NEXT;
}
