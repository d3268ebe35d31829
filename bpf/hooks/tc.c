/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A server at traffic control: requests are found at ingress, responses at egress,
 * and the peer's acknowledgements at ingress.
 */

/*
 * What an inbound packet says before its payload is read. True: there is payload to read, which `s`
 * then describes.
 */
static __always_inline bool handle_received(struct __sk_buff *skb, struct scratch *s,
					    struct connection *conn, const struct segment *seg)
{
	struct parser *p = &conn->inbound;

	conn->used_ktime_ns = s->ktime_ns;
	if (seg->tcp_flags & TCP_ACK && conn->finished < conn->answered) {
		judge_leaving_again(skb, seg, s, conn);
		acknowledge(conn, seg->ack_seq, s->ktime_ns);
	}
	track_peers_ending(conn, seg, REQUESTS_IN);
	if (!seg->payload_length || p->state == PARSER_OFF)
		return false;
	if ((p->state == PARSER_LOST || conn->outbound.state == PARSER_LOST) &&
	    !take_up(skb, conn, seg, REQUESTS_IN)) {
		p->state = PARSER_LOST;
		p->next_seq = seg->seq + seg->payload_length;
		return false;
	}
	return take_inbound(skb, s, conn, seg, REQUESTS_IN);
}

/* Gives the connection, and holds it, if there is payload of an inbound packet to read. */
static __always_inline struct connection *receive(struct __sk_buff *skb, struct scratch *s)
{
	struct segment seg = {};
	struct connection *conn = connection_asked(skb, s, &seg, REQUESTS_IN);

	if (!conn)
		return NULL;
	lock(conn);
	if (handle_received(skb, s, conn, &seg))
		return conn;
	unlock(conn);
	return NULL;
}

/* The connection of an outbound packet that concerns one. */
static __always_inline struct connection *transmitter(struct __sk_buff *skb, struct scratch *s,
						      struct segment *seg)
{
	if (parse_skb(skb, RESPONSES_OUT, seg) != SEGMENT_OURS)
		return NULL;
	if (!seg->payload_length) {
		if (SERIES && seg->tcp_flags & (TCP_SYN | TCP_RST))
			answer_to_syn(s, seg);
		if (!(seg->tcp_flags & (TCP_FIN | TCP_RST)))
			return NULL;
	}
	return find_connection(&seg->key);
}

/* As handle_received(), for an outbound packet. */
static __always_inline bool handle_transmitted(struct __sk_buff *skb, struct scratch *s,
					       struct connection *conn, const struct segment *seg)
{
	struct parser *p = &conn->outbound;

	track_own_ending(conn, seg, RESPONSES_OUT);
	if (conn->inbound.disorder && track_acknowledged(conn, seg->ack_seq)) {
		p->state = PARSER_LOST;
		return true;
	}
	if (p->state <= PARSER_OFF) {
		p->next_seq = seg->seq + seg->payload_length;
		return false;
	}
	s->ktime_ns = bpf_ktime_get_ns();
	/* What is sent again belongs to the first response not yet acknowledged. */
	return take_outbound(skb, s, conn, seg,
			     before(seg->seq, p->next_seq) ? conn->finished : conn->answered,
			     RESPONSES_OUT);
}

/* As receive(), for an outbound packet. */
static __always_inline struct connection *transmit(struct __sk_buff *skb, struct scratch *s)
{
	struct segment seg = {};
	struct connection *conn = transmitter(skb, s, &seg);

	if (!conn)
		return NULL;
	lock(conn);
	if (handle_transmitted(skb, s, conn, &seg))
		return conn;
	unlock(conn);
	return NULL;
}

/* A continuation comes in at the hooks' own programs again. */
int tc_ingress(struct __sk_buff *skb)
{
	struct scratch *s = own_scratch();

	return read_on(skb, s, s->continuing ? resume(s) : receive(skb, s), REQUESTS_IN);
}

int tc_egress(struct __sk_buff *skb)
{
	struct scratch *s = own_scratch();

	return read_on(skb, s, s->continuing ? resume(s) : transmit(skb, s), RESPONSES_OUT);
}

int tc_chunks(struct __sk_buff *skb) { return go_on_with_chunks(skb, REQUESTS_IN); }
int tc_disorder(struct __sk_buff *skb) { return track_early(skb, REQUESTS_IN); }
int tc_kept(struct __sk_buff *skb) { return read_kept(skb, false, REQUESTS_IN); }
int tc_kept_chunks(struct __sk_buff *skb) { return read_kept(skb, true, REQUESTS_IN); }
