/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A client at traffic control: requests to upstreams are found at egress, their
 * responses at ingress.
 *
 * Compiled only where there are upstreams (CLIENTS).
 */
#if CLIENTS

/*
 * What an outbound packet says before its payload is read. Returns the
 * connection if there is payload to read, which `s` then describes.
 */
static __always_inline struct connection *send_request(struct __sk_buff *skb, struct scratch *s)
{
	struct segment seg = {};
	struct connection *conn;
	struct parser *p;
	u64 now;

	if (parse_skb(skb, REQUESTS_OUT, &seg) != SEGMENT_OURS)
		return NULL;
	if (SERIES && seg.tcp_flags & TCP_SYN)
		ask_for_connection(s, &seg, skb->ifindex, true);
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
	mind_own_ending(conn, &seg);
	p = &conn->outbound;
	if (!seg.payload_length || p->state == PARSER_OFF)
		return NULL;
	if (conn->inbound.disorder && mind_acknowledged(conn, seg.ack_seq)) {
		p->state = PARSER_LOST;
		return conn;
	}
	if ((p->state == PARSER_LOST || conn->inbound.state == PARSER_LOST) &&
	    !take_up(skb, conn, &seg, REQUESTS_OUT)) {
		p->state = PARSER_LOST;
		p->next_seq = seg.seq + seg.payload_length;
		return NULL;
	}
	/* What is sent again belongs to the first request not yet answered. */
	return take_outbound(skb, s, conn, &seg,
			     before(seg.seq, p->next_seq) ? conn->answered : conn->begun - 1,
			     now, REQUESTS_OUT);
}

/* The same for an inbound packet. */
static __always_inline struct connection *receive_response(struct __sk_buff *skb,
							   struct scratch *s)
{
	struct segment seg = {};
	struct connection *conn;
	struct parser *p;

	if (parse_skb(skb, RESPONSES_IN, &seg) != SEGMENT_OURS)
		return NULL;
	if (!seg.payload_length && !(seg.tcp_flags & (TCP_FIN | TCP_RST)))
		return NULL;
	conn = find_connection(&seg.key);
	if (!conn)
		return NULL;
	hold(s, conn);
	mind_peers_ending(conn, &seg);
	p = &conn->inbound;
	if (p->state <= PARSER_OFF) {
		p->next_seq = seg.seq + seg.payload_length;
		return NULL;
	}
	return take_inbound(skb, s, conn, &seg, bpf_ktime_get_ns(), RESPONSES_IN);
}

int tc_client_ingress(struct __sk_buff *skb)
{
	int zero = 0;
	struct scratch *s = scratches.lookup(&zero);

	if (!s)
		return TC_NEXT;
	return read_on(skb, s, s->continuing ? resume(s) : receive_response(skb, s), RESPONSES_IN);
}

int tc_client_egress(struct __sk_buff *skb)
{
	int zero = 0;
	struct scratch *s = scratches.lookup(&zero);

	if (!s)
		return TC_NEXT;
	return read_on(skb, s, s->continuing ? resume(s) : send_request(skb, s), REQUESTS_OUT);
}

int tc_client_chunks(struct __sk_buff *skb) { return go_on_with_chunks(skb, RESPONSES_IN); }
int tc_client_disorder(struct __sk_buff *skb) { return mind_early(skb, RESPONSES_IN); }
int tc_client_kept(struct __sk_buff *skb) { return read_kept(skb, false, RESPONSES_IN); }
int tc_client_kept_chunks(struct __sk_buff *skb) { return read_kept(skb, true, RESPONSES_IN); }
#endif
