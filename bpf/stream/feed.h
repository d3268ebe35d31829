/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the programs at traffic control share, be they a server's (tc.c) or a
 * client's (tc_client.c). They only watch: TC_NEXT leaves the packet to whoever
 * comes after.
 */

#define TC_NEXT -1

#define LOCK_TRIES 4096	/* some 200 us */

/*
 * Two processors may have packets of one connection at the same time: loopback and a veth have a
 * queue for each that sends. Who comes second waits until the first one has read its packet, a
 * microsecond or two; for one that is stopped in the midst of that, no longer than a packet can wait.
 */
static __always_inline void lock(struct connection *conn)
{
	u64 i;

	BOUNDED_LOOP
	for (i = 0; i < LOCK_TRIES; i++) {
		if (!__sync_val_compare_and_swap(&conn->locked, 0, 1))
			return;
		bpf_ktime_get_ns();	/* leaves the other one some time */
	}
}

/* The packet was read as far as it will be. Where another program goes on, that one unlocks. */
static __always_inline void unlock(struct connection *conn)
{
	conn->locked = 0;
}

static __always_inline int parse_skb(struct __sk_buff *skb, enum flow flow,
				     struct segment *seg)
{
	int result = parse_segment((u8 *)(long)skb->data, (u8 *)(long)skb->data_end, skb->len,
				   IS_OUTBOUND(flow), IS_CLIENTS(flow) ? ROLE_CLIENT : ROLE_SERVER,
				   seg);

	/* It may come past the programs of both roles. */
	if (result == SEGMENT_UNPARSED && !(SERVERS && IS_CLIENTS(flow)))
		count(COUNT_PACKETS_UNPARSED);
	return result;
}

/*
 * Reads the segment's payload from s->position on, as far as one message head
 * and the body after it go; the rest is left to a continuation. Returns -1
 * where framing is lost.
 */
static __always_inline int feed(struct __sk_buff *skb, struct scratch *s,
				struct connection *conn, enum flow flow,
				enum source source)
{
	struct parser *p = parser_of(conn, flow);
	struct exchange *x = NULL;

	if (p->state >= PARSER_BETWEEN && p->state <= PARSER_HEADERS &&
	    s->position < s->payload_length) {
		if (read_head(skb, s, conn, p, &x, flow, source))
			return -1;
	} else {
		x = current_exchange(conn, flow);
	}
	if (p->state == PARSER_BODY && s->position < s->payload_length)
		read_body(s, p, x, flow);
	if (!CARRIES_REQUESTS(flow) && p->state == PARSER_UNTIL_CLOSE) {
		add_content(x, s->payload_length - s->position, flow);
		consume(s, x, s->payload_length - s->position, flow);
		if (s->fin)
			p->state = PARSER_ENDED;
	}
	if (p->state == PARSER_ENDED)
		end_message(conn, s, x, flow, source);
	return 0;
}

/* For the program that goes on with this segment: whose it is. */
static __always_inline void hand_on(struct scratch *s, const struct connection *conn, enum flow flow)
{
	s->connection_id = conn->id;
	s->place = conn->place;
	s->flow = flow;
}

/* Each role has its own continuations. */
#define OF_ROLE(flow) (IS_CLIENTS(flow) ? CONTINUATIONS_EACH : 0)

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
		continuations.call(skb, CONTINUE_CHUNKS + OF_ROLE(flow));
	else if (!IS_OUTBOUND(flow))
		continuations.call(skb, CONTINUE_INBOUND + OF_ROLE(flow));
	else
		continuations.call(skb, CONTINUE_OUTBOUND + OF_ROLE(flow));
	s->continuing = 0;
	return -1;
}

/* What hand_on() noted; NULL: another connection has its place by now. */
static __always_inline struct connection *continued_connection(const struct scratch *s)
{
	struct connection *conn = connection_at(s->place);

	return NULL_UNLESS(conn && conn->id == s->connection_id, conn);
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
	continuations.call(skb, CONTINUE_DISORDER + OF_ROLE(flow));
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
	if (read_chunks(skb, s, conn, p, flow, FROM_PACKET) ||
	    feed_rest(skb, s, conn, p, flow))
		lose_framing(conn);
	else if (!IS_OUTBOUND(flow))
		track_disorder(skb, s, conn, flow);
	unlock(conn);
	return TC_NEXT;
}

/* Goes on with the kept piece whose turn it is, or with the rest of it. Returns if it may not. */
static __always_inline void call_kept(struct __sk_buff *skb, struct connection *conn,
				      enum flow flow)
{
	if (conn->inbound.state >= PARSER_CHUNK_SIZE)
		continuations.call(skb, CONTINUE_KEPT_CHUNKS + OF_ROLE(flow));
	else
		continuations.call(skb, CONTINUE_KEPT + OF_ROLE(flow));
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
	else
		end_disorder(conn);
	unlock(conn);
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
	unlock(conn);
	return TC_NEXT;
}

/*
 * TC may see an acknowledgement some packets before TCP does, which until then
 * may send again what has been reported.
 */
static __always_inline void add_retransmits(struct exchange *x, u32 n, enum flow flow)
{
	if (!x)
		count_many(COUNT_RETRANSMITS_LATE, n);
	else if (CARRIES_REQUESTS(flow))
		x->record.request_retransmits += n;
	else
		x->record.response_retransmits += n;
}

#define TCP_OPTIONS_MAX 40
#define ALIGNED_TIMESTAMP 0x0a080101	/* two NOPs, kind 8, 10 bytes; as every Linux aligns it */
#define ALIGNED_SACK 0x00050101		/* two NOPs, kind 5; any length */
#define ANY_LENGTH 0x00ffffff

/* What is looked at of a segment's options. */
struct tcp_options {
	u32 tsval;		/* 0: there are no time stamps, or not where they are looked for */
	u32 tsecr;
	bool duplicate;		/* it acknowledges a duplicate: RFC 2883 */
};

/*
 * Time stamps and the first block of a selective acknowledgement, where they lie as they mostly do:
 * at the options' start, which is 12, 24, 32 or 40 bytes before the payload. The window is free here.
 */
static __always_inline struct tcp_options read_options(struct __sk_buff *skb,
						       const struct segment *seg, struct scratch *s)
{
	const u32 *words = (const u32 *)s->window;
	struct tcp_options o = {};
	u32 at = seg->payload_offset - TCP_OPTIONS_MAX;

	s->window[0] = 0;
	if (bpf_skb_load_bytes(skb, at, s->window, TCP_OPTIONS_MAX))
		return o;
	at = words[7] == ALIGNED_TIMESTAMP ? 7 : words[4] == ALIGNED_TIMESTAMP ? 4 :
	     words[2] == ALIGNED_TIMESTAMP ? 2 : words[0] == ALIGNED_TIMESTAMP ? 0 : 10;
	if (at == 10)
		return o;
	words += at;
	o.tsval = __builtin_bswap32(words[1]);
	o.tsecr = __builtin_bswap32(words[2]);
	o.duplicate = at < 7 && (words[3] & ANY_LENGTH) == ALIGNED_SACK &&
		      before(__builtin_bswap32(words[4]), seg->ack_seq);
	return o;
}

/*
 * A part of a response leaves again after its last byte: the client has it whole later, unless that
 * turns out to be in vain.
 */
static __always_inline void leave_again(struct __sk_buff *skb, const struct segment *seg,
					struct scratch *s, struct exchange *x)
{
	if (!x || !(x->record.flags & REQUEST_ANSWERED))
		return;
	if (!x->left_again) {
		x->left_ktime_ns = x->record.stamp_ktime_ns[STAMP_TC_OUT_LAST];
		x->left_again_tsval = read_options(skb, seg, s).tsval;
	}
	x->left_again++;
	x->record.stamp_ktime_ns[STAMP_TC_OUT_LAST] = s->ktime_ns;
}

/*
 * The client acknowledges a response of which a part had left again. That was in vain if the first
 * one had come through: the acknowledgement echoes a time stamp from before, or says that what came
 * again was a duplicate. So TCP probes whether the last segment was lost, where a client merely
 * takes its time to acknowledge it.
 */
static __always_inline void judge_leaving_again(struct __sk_buff *skb, const struct segment *seg,
						struct scratch *s, struct connection *conn)
{
	struct exchange *x = in_flight(conn, conn->finished);
	struct tcp_options o;

	if (!x || !x->left_again || before(seg->ack_seq, x->outbound_end))
		return;
	o = read_options(skb, seg, s);
	if ((o.tsecr && x->left_again_tsval && before(o.tsecr, x->left_again_tsval)) ||
	    (o.duplicate && x->left_again == 1))
		x->record.stamp_ktime_ns[STAMP_TC_OUT_LAST] = x->left_ktime_ns;
	x->left_again = 0;
}

/*
 * Brings the parser to this segment. Returns how many of its bytes were seen
 * before (all of them: it is a retransmission), or -1 where bytes before it are
 * missing and the parser needs them.
 */
static __always_inline s64 align(struct __sk_buff *skb, struct scratch *s,
				 struct connection *conn, const struct segment *seg, u64 ordinal,
				 enum flow flow)
{
	struct parser *p = parser_of(conn, flow);
	u32 end = seg->seq + seg->payload_length, missing;
	struct exchange *x;

	s->ahead = 0;
	if (seg->seq == p->next_seq)
		return 0;
	x = in_flight(conn, ordinal);
	if (before(seg->seq, p->next_seq)) {
		missing = before(p->next_seq, end) ? p->next_seq - seg->seq : seg->payload_length;
		s->ahead = -missing;
		if (missing == seg->payload_length && passed_another(skb, conn, IS_OUTBOUND(flow)))
			return missing;
		if (IS_OUTBOUND(flow)) {
			add_retransmits(x, skb->gso_segs ? : 1, flow);
			if (!CARRIES_REQUESTS(flow))
				leave_again(skb, seg, s, x);
		} else if (x && !p->disorder) {	/* else it may fill a hole */
			add_retransmits(x, 1, flow);
		}
		return missing;
	}
	missing = seg->seq - p->next_seq;
	/* What is kept is stepped to first: tc_kept() does that. */
	if (!p->kept && step_over(p, x, missing, flow)) {
		s->ahead = missing;
		if (!IS_OUTBOUND(flow))
			p->holes++;
		return 0;
	}
	return p->state == PARSER_UNTIL_CLOSE ? 0 : -1;
}

/*
 * A connection whose framing is not known (it is older than the agent, or bytes
 * were missed) is taken up again at a segment that starts a request: what the
 * client has acknowledged by then is where the response will begin.
 */
static __always_inline bool take_up(struct __sk_buff *skb, struct connection *conn,
				    const struct segment *seg, enum flow flow)
{
	struct parser *requests = parser_of(conn, flow), *responses = parser_of(conn, flow ^ 1);
	u32 first_four = 0, kind;

	if (seg->payload_length < 16 ||
	    bpf_skb_load_bytes(skb, seg->payload_offset, &first_four, 4) ||
	    !starts_a_request(first_four)) {
		/* What is none of these may well be the rest of a request. */
		kind = protocol_of(first_four);
		count_as_not_http(conn, kind == NOTICE_NOT_HTTP ? 0 : kind, skb->ifindex);
		return false;
	}
	if (!conn->begun) {
		count(COUNT_CONNECTIONS_ADOPTED);
		COUNT_CONNECTION(IS_CLIENTS(flow), adopted);
	}
	conn->answered = conn->begun;
	conn->arrived = conn->begun;
	requests->state = PARSER_BETWEEN;
	requests->next_seq = seg->seq;
	responses->state = PARSER_BETWEEN;
	responses->next_seq = seg->ack_seq;
	return true;
}

static __always_inline void fill_scratch(struct scratch *s, const struct segment *seg,
					 u64 seen_before)
{
	s->seq = seg->seq;
	s->payload_offset = seg->payload_offset;
	s->payload_length = seg->payload_length;
	s->position = seen_before;
	s->fin = seg->tcp_flags & TCP_FIN;
}

/* Can this segment end a response that only the end of the connection ends? */
static __always_inline bool may_end_response(const struct parser *p, const struct segment *seg,
					     enum flow flow)
{
	return !CARRIES_REQUESTS(flow) && seg->tcp_flags & TCP_FIN && p->state == PARSER_UNTIL_CLOSE;
}

/*
 * An inbound segment of a connection that is followed. True: there is something to read, which `s`
 * then describes.
 */
static __always_inline bool take_inbound(struct __sk_buff *skb, struct scratch *s,
					 struct connection *conn, const struct segment *seg,
					 enum flow flow)
{
	s64 seen_before = align(skb, s, conn, seg, conn->arrived - 1, flow);
	struct parser *p = &conn->inbound;
	bool nothing_new = seen_before >= seg->payload_length && !may_end_response(p, seg, flow);

	if (nothing_new && !p->disorder)
		return false;
	fill_scratch(s, seg, seen_before);
	if (seen_before < 0 || nothing_new) {
		hand_on(s, conn, flow);
		s->early = seen_before < 0;
		continuations.call(skb, CONTINUE_DISORDER + OF_ROLE(flow));
		return false;	/* not reached */
	}
	p->next_seq = seg->seq + seg->payload_length;
	conn->interface[INBOUND] = skb->ifindex;
	return true;
}

/* The same for an outbound segment. If what is missing must be known, framing is lost. */
static __always_inline bool take_outbound(struct __sk_buff *skb, struct scratch *s,
					  struct connection *conn, const struct segment *seg,
					  u64 ordinal, enum flow flow)
{
	s64 seen_before = align(skb, s, conn, seg, ordinal, flow);
	struct parser *p = &conn->outbound;

	if (seen_before >= seg->payload_length && !may_end_response(p, seg, flow))
		return false;
	if (seen_before < 0) {
		p->state = PARSER_LOST;
		return true;
	}
	fill_scratch(s, seg, seen_before);
	conn->interface[OUTBOUND] = skb->ifindex;
	if (before(p->next_seq, seg->seq + seg->payload_length))
		p->next_seq = seg->seq + seg->payload_length;
	return true;
}

/* The connection of a packet in the direction of requests that concerns one, be it new. */
static __always_inline struct connection *connection_asked(struct __sk_buff *skb, struct scratch *s,
							   struct segment *seg, enum flow flow)
{
	struct connection *conn;

	if (parse_skb(skb, flow, seg) != SEGMENT_OURS)
		return NULL;
	if (SERIES && seg->tcp_flags & TCP_SYN)
		ask_for_connection(s, seg, skb->ifindex, IS_CLIENTS(flow));
	conn = find_connection(&seg->key);
	if (!conn && !seg->payload_length)
		return NULL;
	s->ktime_ns = bpf_ktime_get_ns();
	return conn ? conn : create_connection(&seg->key, s->ktime_ns);
}

/* How a packet of this side's says that the connection ends. */
static __always_inline void track_own_ending(struct connection *conn, const struct segment *seg,
					     enum flow flow)
{
	u64 now;

	if (!(seg->tcp_flags & (TCP_FIN | TCP_RST)))
		return;
	now = bpf_ktime_get_ns();
	if (seg->tcp_flags & TCP_FIN) {
		note_ending(conn, LOCAL_CLOSED);
		/* A client that has nothing more to ask may still be answered. */
		if (!IS_CLIENTS(flow))
			end_responses(conn, now);
	}
	if (seg->tcp_flags & TCP_RST) {
		/* Perhaps of no socket at all, and then none will be seen to close. */
		note_ending(conn, LOCAL_RESET);
		end_responses(conn, now);
		close_requests(conn, now);
	}
}

/* The other side's. */
static __always_inline void track_peers_ending(struct connection *conn, const struct segment *seg,
					       enum flow flow)
{
	if (!(seg->tcp_flags & (TCP_FIN | TCP_RST)))
		return;
	if (seg->tcp_flags & TCP_RST)
		conn->flags |= PEER_RESET;
	/* Whether TCP believes a RST is seen when the socket closes, if there is one that is known. */
	if (!(seg->tcp_flags & TCP_RST))
		note_ending(conn, PEER_CLOSED);
	else if (!conn->socket)
		note_ending(conn, PEER_RESET);
	else
		return;
	/* A client that has nothing more to ask may still be answered. */
	if (IS_CLIENTS(flow) || seg->tcp_flags & TCP_RST)
		end_responses(conn, bpf_ktime_get_ns());
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
	unlock(conn);
	return TC_NEXT;
}
