/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A client at traffic control: requests to upstreams are found at egress, their
 * responses at ingress.
 *
 * Compiled only where there are upstreams (CLIENTS).
 */
#if CLIENTS

/*
 * What an outbound packet says before its payload is read. True: there is payload to read, which `s`
 * then describes.
 */
static __always_inline bool handle_requested(struct __sk_buff *skb, struct scratch *s,
					     struct connection *conn, const struct segment *seg)
{
	struct parser *p = &conn->outbound;

	conn->used_ktime_ns = s->ktime_ns;
	track_own_ending(conn, seg, REQUESTS_OUT);
	if (!seg->payload_length || p->state == PARSER_OFF)
		return false;
	if (conn->inbound.disorder && track_acknowledged(conn, seg->ack_seq)) {
		p->state = PARSER_LOST;
		return true;
	}
	if ((p->state == PARSER_LOST || conn->inbound.state == PARSER_LOST) &&
	    !take_up(skb, conn, seg, REQUESTS_OUT)) {
		p->state = PARSER_LOST;
		p->next_seq = seg->seq + seg->payload_length;
		return false;
	}
	/* What is sent again belongs to the first request not yet answered. */
	return take_outbound(skb, s, conn, seg,
			     before(seg->seq, p->next_seq) ? conn->answered : conn->begun - 1,
			     REQUESTS_OUT);
}

/* Gives the connection, and holds it, if there is payload of an outbound packet to read. */
static __always_inline struct connection *request(struct __sk_buff *skb, struct scratch *s)
{
	struct segment seg = {};
	struct connection *conn = connection_asked(skb, s, &seg, REQUESTS_OUT);

	if (!conn)
		return NULL;
	lock(conn);
	if (handle_requested(skb, s, conn, &seg))
		return conn;
	unlock(conn);
	return NULL;
}

/* The connection of an inbound packet that concerns one. */
static __always_inline struct connection *responder(struct __sk_buff *skb, struct segment *seg)
{
	if (parse_skb(skb, RESPONSES_IN, seg) != SEGMENT_OURS)
		return NULL;
	if (!seg->payload_length && !(seg->tcp_flags & (TCP_FIN | TCP_RST)))
		return NULL;
	return find_connection(&seg->key);
}

/* As handle_requested(), for an inbound packet. */
static __always_inline bool handle_responded(struct __sk_buff *skb, struct scratch *s,
					     struct connection *conn, const struct segment *seg)
{
	struct parser *p = &conn->inbound;

	track_peers_ending(conn, seg, RESPONSES_IN);
	if (p->state <= PARSER_OFF) {
		p->next_seq = seg->seq + seg->payload_length;
		return false;
	}
	s->ktime_ns = bpf_ktime_get_ns();
	return take_inbound(skb, s, conn, seg, RESPONSES_IN);
}

/* As request(), for an inbound packet. */
static __always_inline struct connection *respond(struct __sk_buff *skb, struct scratch *s)
{
	struct segment seg = {};
	struct connection *conn = responder(skb, &seg);

	if (!conn)
		return NULL;
	lock(conn);
	if (handle_responded(skb, s, conn, &seg))
		return conn;
	unlock(conn);
	return NULL;
}

int tc_client_ingress(struct __sk_buff *skb)
{
	struct scratch *s = own_scratch();

	return read_on(skb, s, s->continuing ? resume(s) : respond(skb, s), RESPONSES_IN);
}

int tc_client_egress(struct __sk_buff *skb)
{
	struct scratch *s = own_scratch();

	return read_on(skb, s, s->continuing ? resume(s) : request(skb, s), REQUESTS_OUT);
}

int tc_client_chunks(struct __sk_buff *skb) { return go_on_with_chunks(skb, RESPONSES_IN); }
int tc_client_disorder(struct __sk_buff *skb) { return track_early(skb, RESPONSES_IN); }
int tc_client_kept(struct __sk_buff *skb) { return read_kept(skb, false, RESPONSES_IN); }
int tc_client_kept_chunks(struct __sk_buff *skb) { return read_kept(skb, true, RESPONSES_IN); }
#endif
