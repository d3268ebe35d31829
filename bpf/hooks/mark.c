/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What applications say of the requests that they handle: abi/mark.h. The program
 * runs for every setsockopt() in its cgroup, so it returns early.
 */

#include "abi/mark.h"
#include "ledger/sampling.h"
#include "state/connections.h"
#include "state/exchange.h"

#define SETSOCKOPT_REFUSE 0
#define SETSOCKOPT_GO_ON 1
#define SETSOCKOPT_DONE -1 /* as optlen: the kernel is not asked */

static __always_inline void sock_key(const struct bpf_sock *sk, struct connection_key *key)
{
	u32 *peer = (u32 *)key->peer_address, *local = (u32 *)key->local_address;

	key->peer_port = __builtin_bswap16(sk->dst_port);
	key->local_port = sk->src_port;
	if (sk->family == AF_INET) {
		map_ipv4(key->peer_address, sk->dst_ip4);
		map_ipv4(key->local_address, sk->src_ip4);
		return;
	}
	peer[0] = sk->dst_ip6[0];
	peer[1] = sk->dst_ip6[1];
	peer[2] = sk->dst_ip6[2];
	peer[3] = sk->dst_ip6[3];
	local[0] = sk->src_ip6[0];
	local[1] = sk->src_ip6[1];
	local[2] = sk->src_ip6[2];
	local[3] = sk->src_ip6[3];
}

/* The key of the connection that the mark is about; -1 where it is not a measured one. */
static __always_inline int marked_key(const struct otelbpf_mark *m, const struct bpf_sock *sk,
				      struct connection_key *key)
{
	if (m->peer_port) {
		__builtin_memcpy(key->peer_address, m->peer_address, 16);
		__builtin_memcpy(key->local_address, m->local_address, 16);
		key->peer_port = m->peer_port;
		key->local_port = m->local_port;
	} else {
		sock_key(sk, key);
	}
	return is_measured_port(key->local_port) ? 0 : -1;
}

/* Without a branch, of which the verifier would go both ways each time. */
static __always_inline u32 hex_digit(u32 value)
{
	u32 is_letter = (9 - value) >> 31;

	return value + '0' + is_letter * ('a' - '0' - 10);
}

/* Does the request carry the context that the application took from it? */
static __always_inline bool carries_context(const struct exchange *x, const struct otelbpf_mark *m)
{
	const u8 *text = x->record.join.traceparent + 3; /* after "00-" */
	u32 i, at, difference = 0;
	u8 ids[24];

	__builtin_memcpy(ids, m->trace_id, 16);
	__builtin_memcpy(ids + 16, m->parent_span_id, 8);
	BOUNDED_LOOP
	for (i = 0; i < sizeof(ids); i++) {
		at = 2 * i + (i >= 16); /* a dash lies between the two */
		difference |= text[at] ^ hex_digit(ids[i] >> 4);
		difference |= text[at + 1] ^ hex_digit(ids[i] & 15);
	}
	return !difference;
}

/*
 * The request that the mark is about: it was read, its response has not been
 * sent, and no other mark has claimed it. A server handles the requests of one
 * connection one after another, but need not mark each: with two to choose from
 * nobody knows which one it is.
 */
static __always_inline bool join_mark(struct connection *conn, const struct otelbpf_mark *m)
{
	u64 ordinal = conn->answered, request = 0;
	u32 found = 0, i;
	struct exchange *x;

	BOUNDED_LOOP
	for (i = 0; i < IN_FLIGHT_MAX; i++, ordinal++) {
		if (ordinal >= conn->begun)
			break;
		x = in_flight(conn, ordinal);
		if (!x || x->record.join.marked == SAID_BY_MARK ||
		    !x->record.stamp_ktime_ns[STAMP_READ])
			continue;
		request = ordinal;
		found++;
	}
	if (found > 1) {
		count(COUNT_MARKS_AMBIGUOUS);
		return false;
	}
	x = found ? in_flight(conn, request) : NULL;
	/* The caller may be known by other headers than this one, but not against it. */
	if (!x || (*(u64 *)m->parent_span_id && x->record.join.traceparent_length &&
		   !carries_context(x, m))) {
		count(COUNT_MARKS_UNKNOWN);
		return false;
	}
	__builtin_memcpy(x->record.join.trace_id, m->trace_id, 16);
	__builtin_memcpy(x->record.join.span_id, m->span_id, 8);
	__builtin_memcpy(x->record.join.parent_span_id, m->parent_span_id, 8);
	x->record.join.trace_flags = m->trace_flags;
	if (!x->record.stamp_ktime_ns[STAMP_HANDLER_START])
		x->record.stamp_ktime_ns[STAMP_HANDLER_START] = bpf_ktime_get_ns();
	asm volatile("" : : : "memory");
	/* Its client may have reset the connection, and another request have its slot. */
	if (in_flight(conn, request) != x) {
		count(COUNT_MARKS_UNKNOWN);
		return false;
	}
	x->record.join.marked = SAID_BY_MARK;
	x->record.sampled = m->trace_flags & TRACE_FLAG_SAMPLED;
	count(COUNT_MARKS_JOINED);
	return true;
}

/* Late ones are for nothing: the request may have been reported, and then is another's. */
static __always_inline void end_mark(struct connection *conn, const struct otelbpf_mark *m)
{
	u64 ordinal = conn->finished;
	u32 i;
	struct exchange *x;

	BOUNDED_LOOP
	for (i = 0; i < IN_FLIGHT_MAX; i++, ordinal++) {
		if (ordinal >= conn->begun)
			return;
		x = in_flight(conn, ordinal);
		if (x && x->record.join.marked == SAID_BY_MARK &&
		    *(u64 *)x->record.join.span_id == *(u64 *)m->span_id) {
			if (!x->record.stamp_ktime_ns[STAMP_HANDLER_END])
				x->record.stamp_ktime_ns[STAMP_HANDLER_END] = bpf_ktime_get_ns();
			return;
		}
	}
}

PROGRAM("cgroup/setsockopt") int marked_request(struct bpf_sockopt *ctx)
{
	u8 *end = (u8 *)(long)ctx->optval_end, *start = (u8 *)(long)ctx->optval;
	struct otelbpf_mark m __attribute__((aligned(8)));
	struct connection_key key;
	struct connection *conn;

	/* What is not for this agent may be for another one, whose program comes next. */
	if (ctx->level != OTELBPF_MARK_LEVEL || ctx->optlen != sizeof(m) ||
	    start + sizeof(m) > end || !ctx->sk ||
	    bpf_get_netns_cookie(ctx) != settings()->netns_cookie ||
	    ctx->optname < OTELBPF_MARK_START || ctx->optname > OTELBPF_MARK_ASK)
		return SETSOCKOPT_GO_ON;
	__builtin_memcpy(&m, start, sizeof(m));
	if (ctx->optname == OTELBPF_MARK_ASK && !m.peer_port) {
		if (!m.local_port || is_measured_port(m.local_port))
			ctx->optlen = SETSOCKOPT_DONE;
		return SETSOCKOPT_GO_ON;
	}
	if (marked_key(&m, ctx->sk, &key))
		return SETSOCKOPT_GO_ON;
	conn = find_connection(&key);
	if (ctx->optname == OTELBPF_MARK_ASK) {
		if (!conn)
			return SETSOCKOPT_GO_ON;
	} else if (ctx->optname == OTELBPF_MARK_END) {
		if (conn)
			end_mark(conn, &m);
	} else if (!conn) {
		count(COUNT_MARKS_UNKNOWN);
		return SETSOCKOPT_REFUSE;
	} else if (!join_mark(conn, &m)) {
		return SETSOCKOPT_REFUSE;
	}
	ctx->optlen = SETSOCKOPT_DONE;
	return SETSOCKOPT_GO_ON;
}
