/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Traffic control: requests are found at ingress, responses at egress, and the
 * peer's acknowledgements at ingress. The programs only watch: TC_NEXT leaves
 * the packet to whoever comes after.
 */

#define TC_NEXT -1

static __always_inline int parse_skb(struct __sk_buff *skb, enum direction direction,
				     struct segment *seg)
{
	int result = parse_segment((u8 *)(long)skb->data, (u8 *)(long)skb->data_end, skb->len,
				   direction, seg);

	if (result == SEGMENT_UNPARSED)
		count(COUNT_PACKETS_UNPARSED);
	return result;
}

/*
 * Reads the segment's payload from s->position on, as far as one message head
 * and the body after it go; the rest is left to a continuation. Returns -1
 * where framing is lost.
 */
static __always_inline int feed(struct __sk_buff *skb, struct scratch *s,
				struct connection *conn, enum direction direction,
				enum source source)
{
	struct parser *p = direction == INBOUND ? &conn->inbound : &conn->outbound;
	struct exchange *x = NULL;

	if (p->state >= PARSER_BETWEEN && p->state <= PARSER_HEADERS &&
	    s->position < s->payload_length) {
		if (read_head(skb, s, conn, p, &x, direction, source))
			return -1;
	} else {
		x = current_exchange(conn, direction);
	}
	if (p->state == PARSER_BODY && s->position < s->payload_length)
		read_body(s, p, x, direction);
	if (direction == OUTBOUND && p->state == PARSER_UNTIL_CLOSE) {
		add_content(x, s->payload_length - s->position, direction);
		consume(s, x, s->payload_length - s->position, direction);
		if (s->fin)
			p->state = PARSER_ENDED;
	}
	if (p->state == PARSER_ENDED)
		end_message(conn, s, x, direction, source);
	return 0;
}

/* Goes on with what is left of the segment. Returns only if nothing is (0), or
 * if the kernel allows no more tail calls (-1). */
static __always_inline int feed_rest(struct __sk_buff *skb, struct scratch *s,
				     struct parser *p, enum direction direction)
{
	if (s->position >= s->payload_length || p->state <= PARSER_OFF)
		return 0;
	s->continuing = 1;
	if (p->state >= PARSER_CHUNK_SIZE)
		continuations.call(skb, CONTINUE_CHUNKS);
	else if (direction == INBOUND)
		continuations.call(skb, CONTINUE_INBOUND);
	else
		continuations.call(skb, CONTINUE_OUTBOUND);
	s->continuing = 0;
	return -1;
}

/* What fill_scratch() noted; NULL: another connection has its place by now. */
static __always_inline struct connection *continued_connection(const struct scratch *s)
{
	struct connection *conn = connection_at(s->place);

	return conn && conn->id == s->connection_id ? conn : NULL;
}

/* The segment was read. If others came out of order, that is looked after now. */
static __always_inline void mind_disorder(struct __sk_buff *skb, struct scratch *s,
					  struct parser *p)
{
	if (!p->disorder)
		return;
	s->early = 0;
	continuations.call(skb, CONTINUE_DISORDER);
}

/* Both directions continue here with a chunked body. */
int tc_chunks(struct __sk_buff *skb)
{
	int zero = 0;
	struct scratch *s = scratches.lookup(&zero);
	enum direction direction;
	struct connection *conn;
	struct parser *p;

	if (!s)
		return TC_NEXT;
	s->continuing = 0;
	direction = s->direction;
	conn = continued_connection(s);
	if (!conn)
		return TC_NEXT;
	p = direction == INBOUND ? &conn->inbound : &conn->outbound;
	if (read_chunks(skb, s, conn, p, direction, FROM_PACKET) ||
	    feed_rest(skb, s, p, direction))
		lose_framing(conn);
	else if (direction == INBOUND)
		mind_disorder(skb, s, p);
	return TC_NEXT;
}

/* Goes on with the kept piece whose turn it is, or with the rest of it. Returns if it may not. */
static __always_inline void call_kept(struct __sk_buff *skb, struct connection *conn)
{
	if (conn->inbound.state >= PARSER_CHUNK_SIZE)
		continuations.call(skb, CONTINUE_KEPT_CHUNKS);
	else
		continuations.call(skb, CONTINUE_KEPT);
}

/* Keeps an early segment, or says what became of one that was read in its place. */
int tc_disorder(struct __sk_buff *skb)
{
	int zero = 0;
	struct scratch *s = scratches.lookup(&zero);
	struct connection *conn;

	if (!s)
		return TC_NEXT;
	conn = continued_connection(s);
	if (!conn)
		return TC_NEXT;
	if (s->early ? keep(skb, s, conn) : settle(s, conn))
		lose_framing(conn);
	else if (conn->inbound.kept)
		call_kept(skb, conn);
	else
		end_disorder(conn);
	return TC_NEXT;
}

/* Reads a kept piece, or a part of one, if there is one whose turn it is. */
static __always_inline int read_kept(struct __sk_buff *skb, bool chunks)
{
	int zero = 0;
	struct scratch *s = scratches.lookup(&zero);
	struct connection *conn;
	struct parser *p;

	if (!s)
		return TC_NEXT;
	conn = continued_connection(s);
	if (!conn) {
		s->continuing = 0;
		return TC_NEXT;
	}
	if (!s->continuing && !next_piece(s, conn)) {
		end_disorder(conn);
		return TC_NEXT;
	}
	s->continuing = 0;
	p = &conn->inbound;
	if (chunks ? read_chunks(skb, s, conn, p, INBOUND, FROM_PIECE)
		   : feed(skb, s, conn, INBOUND, FROM_PIECE)) {
		lose_framing(conn);
		return TC_NEXT;
	}
	credit_piece(s, conn);
	if (p->state <= PARSER_OFF)
		return TC_NEXT;
	s->continuing = s->position < s->payload_length;
	call_kept(skb, conn);
	/* The kernel allows no more tail calls: the next segment goes on from here. */
	s->continuing = 0;
	p->next_seq = s->seq + s->position;
	return TC_NEXT;
}

int tc_kept(struct __sk_buff *skb) { return read_kept(skb, false); }
int tc_kept_chunks(struct __sk_buff *skb) { return read_kept(skb, true); }

/*
 * TC may see an acknowledgement some packets before TCP does, which until then
 * may send again what has been reported.
 */
static __always_inline void add_response_retransmits(struct exchange *x, u32 n)
{
	if (x)
		x->record.response_retransmits += n;
	else
		count_many(COUNT_RETRANSMITS_LATE, n);
}

/*
 * Brings the parser to this segment. Returns how many of its bytes were seen
 * before (all of them: it is a retransmission), or -1 where bytes before it are
 * missing and the parser needs them.
 */
static __always_inline s64 align(struct __sk_buff *skb, struct scratch *s,
				 struct connection *conn, struct parser *p,
				 const struct segment *seg, u32 ordinal, enum direction direction)
{
	u32 end = seg->seq + seg->payload_length, missing;
	struct exchange *x;

	s->ahead = 0;
	if (seg->seq == p->next_seq)
		return 0;
	x = in_flight(conn, ordinal);
	if (before(seg->seq, p->next_seq)) {
		missing = before(p->next_seq, end) ? p->next_seq - seg->seq : seg->payload_length;
		s->ahead = -missing;
		if (direction == OUTBOUND)
			add_response_retransmits(x, skb->gso_segs ? : 1);
		else if (x && !p->disorder)	/* else it may fill a hole */
			x->record.request_retransmits++;
		return missing;
	}
	missing = seg->seq - p->next_seq;
	/* What is kept is stepped to first: tc_kept() does that. */
	if (!p->kept && step_over(p, x, missing, direction)) {
		s->ahead = missing;
		if (direction == INBOUND)
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
				    const struct segment *seg)
{
	u32 first_four = 0;

	if (seg->payload_length < 16 ||
	    bpf_skb_load_bytes(skb, seg->payload_offset, &first_four, 4) ||
	    !starts_a_request(first_four)) {
		count_as_not_http(conn);
		return false;
	}
	if (!conn->begun)
		count(COUNT_CONNECTIONS_ADOPTED);
	conn->answered = conn->begun;
	conn->inbound.state = PARSER_BETWEEN;
	conn->inbound.next_seq = seg->seq;
	conn->outbound.state = PARSER_BETWEEN;
	conn->outbound.next_seq = seg->ack_seq;
	return true;
}

static __always_inline void fill_scratch(struct scratch *s, const struct connection *conn,
					 const struct segment *seg, enum direction direction,
					 u32 seen_before, u64 now)
{
	s->connection_id = conn->id;
	s->place = conn->place;
	s->seq = seg->seq;
	s->direction = direction;
	s->ktime_ns = now;
	s->payload_offset = seg->payload_offset;
	s->payload_length = seg->payload_length;
	s->position = seen_before;
	s->fin = seg->tcp_flags & TCP_FIN;
}

/*
 * What an inbound packet says before its payload is read. Returns the
 * connection if there is payload to read, which `s` then describes.
 */
static __always_inline struct connection *receive(struct __sk_buff *skb, struct scratch *s)
{
	struct segment seg = {};
	struct connection *conn;
	struct parser *p;
	s64 seen_before;
	u64 now;

	if (parse_skb(skb, INBOUND, &seg) != SEGMENT_OURS)
		return NULL;
	conn = find_connection(&seg.key);
	if (!conn && !seg.payload_length)
		return NULL;
	now = bpf_ktime_get_ns();
	if (!conn) {
		conn = create_connection(&seg.key, now);
		if (!conn)
			return NULL;
	}
	conn->used_ktime_ns = now;
	if (seg.tcp_flags & TCP_ACK)
		acknowledge(conn, seg.ack_seq, now);
	if (seg.tcp_flags & (TCP_RST | TCP_FIN))
		conn->flags |= seg.tcp_flags & TCP_RST ? PEER_RESET : PEER_CLOSED;
	p = &conn->inbound;
	if (!seg.payload_length || p->state == PARSER_OFF)
		return NULL;
	if ((p->state == PARSER_LOST || conn->outbound.state == PARSER_LOST) &&
	    !take_up(skb, conn, &seg)) {
		p->state = PARSER_LOST;
		p->next_seq = seg.seq + seg.payload_length;
		return NULL;
	}
	seen_before = align(skb, s, conn, p, &seg, conn->begun - 1, INBOUND);
	if (seen_before >= seg.payload_length && !p->disorder)
		return NULL;
	fill_scratch(s, conn, &seg, INBOUND, seen_before, now);
	if (seen_before < 0 || seen_before >= seg.payload_length) {
		s->early = seen_before < 0;
		continuations.call(skb, CONTINUE_DISORDER);
		return NULL;	/* not reached */
	}
	p->next_seq = seg.seq + seg.payload_length;
	return conn;
}

/* The same for an outbound packet. */
static __always_inline struct connection *transmit(struct __sk_buff *skb, struct scratch *s)
{
	struct segment seg = {};
	struct connection *conn;
	struct parser *p;
	s64 seen_before;
	u32 ordinal;

	if (parse_skb(skb, OUTBOUND, &seg) != SEGMENT_OURS)
		return NULL;
	if (!seg.payload_length && !(seg.tcp_flags & (TCP_FIN | TCP_RST)))
		return NULL;
	conn = find_connection(&seg.key);
	if (!conn)
		return NULL;
	if (seg.tcp_flags & TCP_FIN)
		conn->flags |= LOCAL_CLOSED;
	if (seg.tcp_flags & TCP_RST) {
		/* Perhaps of no socket at all, and then none will be seen to close. */
		conn->flags |= LOCAL_RESET;
		close_requests(conn);
	}
	p = &conn->outbound;
	if (conn->inbound.disorder && mind_acknowledged(conn, seg.ack_seq)) {
		p->state = PARSER_LOST;
		return conn;
	}
	if (p->state <= PARSER_OFF) {
		p->next_seq = seg.seq + seg.payload_length;
		return NULL;
	}
	/* What is sent again belongs to the first response not yet acknowledged. */
	ordinal = before(seg.seq, p->next_seq) ? conn->finished : conn->answered;
	seen_before = align(skb, s, conn, p, &seg, ordinal, OUTBOUND);
	if (seen_before >= seg.payload_length && !(seg.tcp_flags & TCP_FIN))
		return NULL;
	if (seen_before < 0) {
		p->state = PARSER_LOST;
		return conn;
	}
	fill_scratch(s, conn, &seg, OUTBOUND, seen_before, bpf_ktime_get_ns());
	if (before(p->next_seq, seg.seq + seg.payload_length))
		p->next_seq = seg.seq + seg.payload_length;
	return conn;
}

/* The body of both hooks; a continuation comes in here again. */
static __always_inline int watch(struct __sk_buff *skb, enum direction direction)
{
	int zero = 0;
	struct scratch *s = scratches.lookup(&zero);
	struct connection *conn;
	struct parser *p;

	if (!s)
		return TC_NEXT;
	if (s->continuing) {
		s->continuing = 0;
		conn = continued_connection(s);
	} else {
		conn = direction == INBOUND ? receive(skb, s) : transmit(skb, s);
	}
	if (!conn)
		return TC_NEXT;
	p = direction == INBOUND ? &conn->inbound : &conn->outbound;
	if (p->state == PARSER_LOST || feed(skb, s, conn, direction, FROM_PACKET) ||
	    feed_rest(skb, s, p, direction))
		lose_framing(conn);
	else if (direction == INBOUND)
		mind_disorder(skb, s, p);
	return TC_NEXT;
}

int tc_ingress(struct __sk_buff *skb) { return watch(skb, INBOUND); }
int tc_egress(struct __sk_buff *skb) { return watch(skb, OUTBOUND); }
