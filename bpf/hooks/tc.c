/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Traffic control. A server's requests are found at ingress, its responses at egress, and the peer's
 * acknowledgements at ingress; a client's requests to upstreams at egress, their responses at ingress.
 * The programs only watch: TC_NEXT leaves the packet to whoever comes after.
 */

#include "links/fast_open.h"
#include "state/connections.h"
#include "stream/begin.h"
#include "stream/feed.h"
#include "stream/repeats.h"

#define HEADERS_MOST 256

/*
 * A driver may hand over a packet in pages of its own, with no more than the Ethernet header where it
 * can be looked at, and no GRO come in between. Then the kernel pulls the headers together, as it would
 * a little later in any case, and the program begins anew.
 */
static __always_inline void pull_headers(struct __sk_buff *skb, enum flow flow)
{
	u64 length = at_most(HEADERS_MOST, skb->len);

	if (skb->data_end - skb->data < length && !bpf_skb_pull_data(skb, length))
		TAIL_CALL(skb, continuations,
			  (IS_OUTBOUND(flow) ? CONTINUE_OUTBOUND : CONTINUE_INBOUND) +
				  OF_ROLE(flow));
}

static __always_inline int parse_skb(struct __sk_buff *skb, enum flow flow, struct segment *seg)
{
	int result =
		parse_segment((u8 *)(long)skb->data, (u8 *)(long)skb->data_end, skb->len,
			      IS_OUTBOUND(flow), IS_CLIENTS(flow) ? ROLE_CLIENT : ROLE_SERVER, seg);

	if (result != SEGMENT_UNPARSED)
		return result;
	pull_headers(skb, flow);
	/* It may come past the programs of both roles. */
	if (!(SERVERS && IS_CLIENTS(flow)))
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

/*
 * The connection of a packet in the direction of requests that concerns one, and its id. If none is known
 * another program looks whether there is one, and then has this one begin again.
 */
static __always_inline struct connection *connection_asked(struct __sk_buff *skb, struct scratch *s,
							   struct segment *seg, u64 *id,
							   enum flow flow)
{
	struct connection *conn;
	u64 now;

	if (parse_skb(skb, flow, seg) != SEGMENT_OURS)
		return NULL;
	if (seg->tcp_flags & TCP_SYN && SERIES)
		ask_for_connection(s, seg, skb->ifindex, IS_CLIENTS(flow));
	conn = find_with_id(&seg->key, id);
	if (conn ? !says_something(conn, seg, flow) : !seg->payload_length)
		return NULL;
	if (!conn) {
		TAIL_CALL(skb, continuations, CONTINUE_ADMIT + OF_ROLE(flow));
		return NULL; /* not reached */
	}
	now = bpf_ktime_get_ns();
	s->ktime_ns = now;
	conn->used_ktime_ns = now;
	return conn;
}

/* The same in the direction of responses. With one begins nothing that is measured. */
static __always_inline struct connection *connection_answered(struct __sk_buff *skb,
							      struct scratch *s,
							      struct segment *seg, u64 *id,
							      enum flow flow)
{
	struct connection *conn;

	if (parse_skb(skb, flow, seg) != SEGMENT_OURS)
		return NULL;
	if (!seg->payload_length) {
		if (!(seg->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)))
			return NULL;
		if (SERIES && IS_OUTBOUND(flow) && seg->tcp_flags & (TCP_SYN | TCP_RST))
			answer_to_syn(s, seg);
		if (seg->tcp_flags & TCP_SYN) {
			TAIL_CALL(skb, continuations, CONTINUE_GRANT + OF_ROLE(flow));
			return NULL; /* not reached */
		}
	}
	conn = find_with_id(&seg->key, id);
	if (!conn && IS_OUTBOUND(flow) && seg->payload_length)
		TAIL_CALL(skb, continuations, CONTINUE_GRANT + OF_ROLE(flow));
	return conn;
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

	if (seg->tcp_flags & TCP_ACK && conn->finished < conn->answered) {
		x = in_flight(conn, conn->finished);
		judge_leaving_again(skb, seg, s, x);
		acknowledge(conn, x, seg->ack_seq, s->ktime_ns);
	}
	track_peers_ending(conn, seg, REQUESTS_IN);
	if (!seg->payload_length || p->state == PARSER_OFF)
		return false;
	if ((p->state == PARSER_LOST || conn->outbound.state == PARSER_LOST) &&
	    !take_up(skb, conn, seg, REQUESTS_IN))
		return false;
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
	if (p->state <= PARSER_OFF && !take_up_response(skb, conn, seg, RESPONSES_OUT))
		return false;
	s->ktime_ns = bpf_ktime_get_ns();
	return take_outbound(skb, s, conn, seg, RESPONSES_OUT);
}

/* The same of a request to an upstream, and of its response. */
static __always_inline bool handle_requested(struct __sk_buff *skb, struct scratch *s,
					     struct connection *conn, struct segment *seg)
{
	struct parser *p = &conn->outbound;

	/* The SYN has a number of its own, before its data. */
	if (seg->tcp_flags & TCP_SYN)
		seg->seq++;
	track_own_ending(conn, seg, REQUESTS_OUT);
	if (!seg->payload_length || p->state == PARSER_OFF)
		return false;
	if (conn->inbound.disorder && track_acknowledged(conn, seg->ack_seq)) {
		p->state = PARSER_LOST;
		return true;
	}
	if ((p->state == PARSER_LOST || conn->inbound.state == PARSER_LOST) &&
	    !take_up(skb, conn, seg, REQUESTS_OUT))
		return false;
	return take_outbound(skb, s, conn, seg, REQUESTS_OUT);
}

static __always_inline bool handle_responded(struct __sk_buff *skb, struct scratch *s,
					     struct connection *conn, const struct segment *seg)
{
	struct parser *p = &conn->inbound;

	track_peers_ending(conn, seg, RESPONSES_IN);
	if (p->state <= PARSER_OFF && !take_up_response(skb, conn, seg, RESPONSES_IN))
		return false;
	s->ktime_ns = bpf_ktime_get_ns();
	return take_inbound(skb, s, conn, seg, RESPONSES_IN);
}

static __always_inline bool handle_segment(struct __sk_buff *skb, struct scratch *s,
					   struct connection *conn, struct segment *seg,
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
	u64 id = 0;
	struct connection *conn = CARRIES_REQUESTS(flow)
					  ? connection_asked(skb, s, &seg, &id, flow)
					  : connection_answered(skb, s, &seg, &id, flow);

	if (!conn)
		return NULL;
	if (!lock(&conn->locked)) {
		count_in(s, COUNT_PACKETS_UNREAD, 1);
		return NULL;
	}
	/* Meanwhile the place may have become another one's. */
	if (conn->id == id && handle_segment(skb, s, conn, &seg, flow))
		return conn;
	unlock(&conn->locked);
	return NULL;
}

/* A continuation comes in at the hooks' own programs again. */
static __always_inline int handle_packet(struct __sk_buff *skb, enum flow flow)
{
	struct scratch *s = own_scratch();

	return read_on(skb, s, s->continuing ? resume(s) : take_packet(skb, s, flow), flow);
}

/* The hook's own program begins again with the packet: its connection is known by now. */
static __always_inline int begin_again(struct __sk_buff *skb, enum flow flow)
{
	TAIL_CALL(skb, continuations,
		  (IS_OUTBOUND(flow) ? CONTINUE_OUTBOUND : CONTINUE_INBOUND) + OF_ROLE(flow));
	return TC_NEXT;
}

/* A segment with payload in the direction of requests, of a connection that is not known: is there one? */
static __always_inline int admit_connection(struct __sk_buff *skb, enum flow flow)
{
	struct scratch *s = own_scratch();
	struct connection *conn;
	struct segment seg = {};

	if (parse_skb(skb, flow, &seg) != SEGMENT_OURS)
		return TC_NEXT;
	s->ktime_ns = bpf_ktime_get_ns();
	if (seg.tcp_flags & TCP_SYN && !IS_OUTBOUND(flow)) {
		keep_syn_data(skb, s, &seg);
		return TC_NEXT;
	}
	conn = IS_OUTBOUND(flow) ? admit_sent(skb, &seg, true, s->ktime_ns)
				 : admit_received(skb, s, &seg, s->ktime_ns);
	if (conn)
		return begin_again(skb, flow);
	count_in(s, COUNT_SEGMENTS_STRAY, 1);
	return TC_NEXT;
}

/* A SYN that answers another one, or a server's payload of a connection that is not known. */
static __always_inline int grant_connection(struct __sk_buff *skb, enum flow flow)
{
	struct scratch *s = own_scratch();
	struct segment seg = {};

	if (parse_skb(skb, flow, &seg) != SEGMENT_OURS)
		return TC_NEXT;
	if (!IS_OUTBOUND(flow)) {
		note_answer(&seg);
	} else if (!(seg.tcp_flags & TCP_SYN)) {
		if (admit_sent(skb, &seg, false, bpf_ktime_get_ns()))
			return begin_again(skb, flow);
	} else {
		note_redirection(skb, s, &seg);
		take_syn_data(skb, s, &seg);
	}
	return TC_NEXT;
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

PROGRAM("tc") int tc_admit(struct __sk_buff *skb) { return admit_connection(skb, REQUESTS_IN); }
PROGRAM("tc") int tc_grant(struct __sk_buff *skb) { return grant_connection(skb, RESPONSES_OUT); }
PROGRAM("tc") int tc_repeated(struct __sk_buff *skb) { return track_repeated(skb, REQUESTS_IN); }

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
PROGRAM("tc") int tc_client_admit(struct __sk_buff *skb)
{
	return admit_connection(skb, REQUESTS_OUT);
}
PROGRAM("tc") int tc_client_grant(struct __sk_buff *skb)
{
	return grant_connection(skb, RESPONSES_IN);
}
PROGRAM("tc") int tc_client_repeated(struct __sk_buff *skb)
{
	return track_repeated(skb, RESPONSES_IN);
}
#endif
