/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Traffic control. A server's requests are found at ingress, its responses at egress, and the peer's
 * acknowledgements at ingress; a client's requests to upstreams at egress, their responses at ingress.
 * The programs only watch: TC_NEXT leaves the packet to whoever comes after.
 */

#include "links/handshakes.h"
#include "state/connections.h"
#include "stream/feed.h"

static __always_inline int parse_skb(struct __sk_buff *skb, enum flow flow, struct segment *seg)
{
	int result =
		parse_segment((u8 *)(long)skb->data, (u8 *)(long)skb->data_end, skb->len,
			      IS_OUTBOUND(flow), IS_CLIENTS(flow) ? ROLE_CLIENT : ROLE_SERVER, seg);

	/* It may come past the programs of both roles. */
	if (result == SEGMENT_UNPARSED && !(SERVERS && IS_CLIENTS(flow)))
		count(COUNT_PACKETS_UNPARSED);
	return result;
}

/* Does a packet say anything of its connection, where it has no payload? An ACK mostly does not. */
static __always_inline bool says_something(const struct connection *conn, const struct segment *seg,
					   enum flow flow)
{
	return seg->payload_length || seg->tcp_flags & (TCP_FIN | TCP_RST) ||
	       (!IS_CLIENTS(flow) && conn->finished < conn->answered);
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
	if (conn ? !says_something(conn, seg, flow) : !seg->payload_length)
		return NULL;
	s->ktime_ns = bpf_ktime_get_ns();
	return conn ? conn : create_connection(&seg->key, s->ktime_ns);
}

/* The same in the direction of responses: with one begins nothing that is measured. */
static __always_inline struct connection *connection_answered(struct __sk_buff *skb,
							      struct scratch *s,
							      struct segment *seg, enum flow flow)
{
	if (parse_skb(skb, flow, seg) != SEGMENT_OURS)
		return NULL;
	if (!seg->payload_length) {
		if (SERIES && IS_OUTBOUND(flow) && seg->tcp_flags & (TCP_SYN | TCP_RST))
			answer_to_syn(s, seg);
		if (!(seg->tcp_flags & (TCP_FIN | TCP_RST)))
			return NULL;
	}
	return find_connection(&seg->key);
}

/*
 * What a packet says before its payload is read: a request's to a server, and a response's of it.
 * True: there is payload to read, which `s` then describes.
 */
static __always_inline bool handle_received(struct __sk_buff *skb, struct scratch *s,
					    struct connection *conn, const struct segment *seg)
{
	struct parser *p = &conn->inbound;
	struct exchange *x;

	conn->used_ktime_ns = s->ktime_ns;
	if (seg->tcp_flags & TCP_ACK && conn->finished < conn->answered) {
		x = in_flight(conn, conn->finished);
		judge_leaving_again(skb, seg, s, x);
		acknowledge(conn, x, seg->ack_seq, s->ktime_ns);
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

/* The same of a request to an upstream, and of its response. */
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

static __always_inline bool handle_segment(struct __sk_buff *skb, struct scratch *s,
					   struct connection *conn, const struct segment *seg,
					   enum flow flow)
{
	switch (flow) {
	case REQUESTS_IN:
		return handle_received(skb, s, conn, seg);
	case RESPONSES_OUT:
		return handle_transmitted(skb, s, conn, seg);
	case RESPONSES_IN:
		return handle_responded(skb, s, conn, seg);
	case REQUESTS_OUT:
		return handle_requested(skb, s, conn, seg);
	}
	return false;
}

/* Gives the connection, locked, if there is payload of the packet to read. */
static __always_inline struct connection *take_packet(struct __sk_buff *skb, struct scratch *s,
						      enum flow flow)
{
	struct segment seg = {};
	struct connection *conn = CARRIES_REQUESTS(flow) ? connection_asked(skb, s, &seg, flow)
							 : connection_answered(skb, s, &seg, flow);

	if (!conn)
		return NULL;
	lock(conn);
	if (handle_segment(skb, s, conn, &seg, flow))
		return conn;
	unlock(conn);
	return NULL;
}

/* A continuation comes in at the hooks' own programs again. */
static __always_inline int handle_packet(struct __sk_buff *skb, enum flow flow)
{
	struct scratch *s = own_scratch();

	return read_on(skb, s, s->continuing ? resume(s) : take_packet(skb, s, flow), flow);
}

PROGRAM("tc") int tc_ingress(struct __sk_buff *skb) { return handle_packet(skb, REQUESTS_IN); }
PROGRAM("tc") int tc_egress(struct __sk_buff *skb) { return handle_packet(skb, RESPONSES_OUT); }
PROGRAM("tc") int tc_chunks(struct __sk_buff *skb) { return go_on_with_chunks(skb, REQUESTS_IN); }
PROGRAM("tc") int tc_disorder(struct __sk_buff *skb) { return track_early(skb, REQUESTS_IN); }
PROGRAM("tc") int tc_kept(struct __sk_buff *skb) { return read_kept(skb, false, REQUESTS_IN); }
PROGRAM("tc") int tc_kept_chunks(struct __sk_buff *skb)
{
	return read_kept(skb, true, REQUESTS_IN);
}

#if WITH_CLIENTS
PROGRAM("tc") int tc_client_ingress(struct __sk_buff *skb)
{
	return handle_packet(skb, RESPONSES_IN);
}

PROGRAM("tc") int tc_client_egress(struct __sk_buff *skb)
{
	return handle_packet(skb, REQUESTS_OUT);
}

PROGRAM("tc") int tc_client_chunks(struct __sk_buff *skb)
{
	return go_on_with_chunks(skb, RESPONSES_IN);
}
PROGRAM("tc") int tc_client_disorder(struct __sk_buff *skb)
{
	return track_early(skb, RESPONSES_IN);
}
PROGRAM("tc") int tc_client_kept(struct __sk_buff *skb)
{
	return read_kept(skb, false, RESPONSES_IN);
}
PROGRAM("tc") int tc_client_kept_chunks(struct __sk_buff *skb)
{
	return read_kept(skb, true, RESPONSES_IN);
}
#endif
