/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A server at traffic control: requests are found at ingress, responses at egress,
 * and the peer's acknowledgements at ingress.
 */

/*
 * What an inbound packet says before its payload is read. Returns the
 * connection if there is payload to read, which `s` then describes.
 */
static __always_inline struct connection *receive(struct __sk_buff *skb, struct scratch *s)
{
	struct segment seg = {};
	struct connection *conn;
	struct parser *p;
	u64 now;

	if (parse_skb(skb, REQUESTS_IN, &seg) != SEGMENT_OURS)
		return NULL;
	if (SERIES && seg.tcp_flags & TCP_SYN)
		ask_for_connection(s, &seg, skb->ifindex, false);
	conn = find_connection(&seg.key);
	if (!conn && !seg.payload_length)
		return NULL;
	now = bpf_ktime_get_ns();
	if (!conn) {
		conn = create_connection(&seg.key, now);
		if (!conn)
			return NULL;
	}
	hold(s, conn);
	conn->used_ktime_ns = now;
	if (seg.tcp_flags & TCP_ACK)
		acknowledge(conn, seg.ack_seq, now);
	mind_peers_ending(conn, &seg);
	p = &conn->inbound;
	if (!seg.payload_length || p->state == PARSER_OFF)
		return NULL;
	if ((p->state == PARSER_LOST || conn->outbound.state == PARSER_LOST) &&
	    !take_up(skb, conn, &seg, REQUESTS_IN)) {
		p->state = PARSER_LOST;
		p->next_seq = seg.seq + seg.payload_length;
		return NULL;
	}
	return take_inbound(skb, s, conn, &seg, now, REQUESTS_IN);
}

/* The same for an outbound packet. */
static __always_inline struct connection *transmit(struct __sk_buff *skb, struct scratch *s)
{
	struct segment seg = {};
	struct connection *conn;
	struct parser *p;

	if (parse_skb(skb, RESPONSES_OUT, &seg) != SEGMENT_OURS)
		return NULL;
	if (!seg.payload_length) {
		if (SERIES && seg.tcp_flags & (TCP_SYN | TCP_RST))
			answer_to_syn(s, &seg);
		if (!(seg.tcp_flags & (TCP_FIN | TCP_RST)))
			return NULL;
	}
	conn = find_connection(&seg.key);
	if (!conn)
		return NULL;
	hold(s, conn);
	mind_own_ending(conn, &seg);
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
	return take_outbound(skb, s, conn, &seg,
			     before(seg.seq, p->next_seq) ? conn->finished : conn->answered,
			     bpf_ktime_get_ns(), RESPONSES_OUT);
}

/* A continuation comes in at the hooks' own programs again. */
int tc_ingress(struct __sk_buff *skb)
{
	int zero = 0;
	struct scratch *s = scratches.lookup(&zero);

	if (!s)
		return TC_NEXT;
	return read_on(skb, s, s->continuing ? resume(s) : receive(skb, s), REQUESTS_IN);
}

int tc_egress(struct __sk_buff *skb)
{
	int zero = 0;
	struct scratch *s = scratches.lookup(&zero);

	if (!s)
		return TC_NEXT;
	return read_on(skb, s, s->continuing ? resume(s) : transmit(skb, s), RESPONSES_OUT);
}

int tc_chunks(struct __sk_buff *skb) { return go_on_with_chunks(skb, REQUESTS_IN); }
int tc_disorder(struct __sk_buff *skb) { return mind_early(skb, REQUESTS_IN); }
int tc_kept(struct __sk_buff *skb) { return read_kept(skb, false, REQUESTS_IN); }
int tc_kept_chunks(struct __sk_buff *skb) { return read_kept(skb, true, REQUESTS_IN); }
