/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The socket: TCP takes a segment, its bytes are queued, the application reads
 * them and writes the response. Each program is a thin wrapper for one way to
 * attach; what happens is in the handle_* functions.
 */

#include "kernel/registers.h"
#include "ledger/causes.h"
#include "ledger/endings.h"
#include "ledger/stamps.h"
#include "ledger/upstreams.h"
#include "links/existing.h"
#include "links/unseen.h"
#include "state/sockets.h"
#include "stream/disorder.h"

MAP(HASH, connecting, u64, u8, 256) /* the agent's own sockets, by sk */

static __always_inline int handle_tcp(u64 sk, u64 skb, enum access access)
{
	struct connection *conn = connection_of(sk, access);
	struct byte_range range;
	bool earlier;
	u64 now, tp;

	/* What is queued it has taken before. */
	if (!conn || (conn->queued >= conn->arrived && !conn->inbound.kept))
		return 0;
	range = skb_byte_range(skb, access);
	if (range.start == range.end)
		return 0;
	now = bpf_ktime_get_ns();
	if (conn->inbound.kept)
		stamp_pieces(conn, range, now);
	earlier = conn->queued < conn->tcp;
	earlier |= stamp_tcp(conn, range, now);
	if (earlier) {
		tp = tcp_sock(sk, access);
		if (tp)
			skip_queued(conn, tcp_rcv_nxt(tp, access));
	}
	return 0;
}

static __always_inline int handle_queued(u64 sk, enum access access)
{
	struct connection_key key;
	struct connection *conn;
	struct scratch *s;
	bool is_measured;
	u32 rcv_nxt;
	u64 tp;

	conn = find_by_socket(sk, &key, &is_measured, access);
	if (!conn) {
		if (is_measured)
			miss_unknown(sk, &key, access);
		return 0;
	}
	tp = tcp_sock(sk, access);
	if (!tp)
		return 0;
	rcv_nxt = tcp_rcv_nxt(tp, access);
	if (has_come_unseen(conn, rcv_nxt))
		miss(conn, INBOUND, sock_interface_in(sk, access));
	stamp_queued(conn, rcv_nxt, bpf_ktime_get_ns());
	/*
	 * Whoever is woken on this CPU by the same task before the softirq ends, and then reads this
	 * socket, was woken for it; others may be woken in between, from an interrupt. Where no softirq
	 * ends, as in a thread of NAPI's, the next task does not go on with it.
	 */
	s = own_scratch();
	s->waking_sk = as_number(sk);
	s->waking_tid = task_tid(current_task());
	return 0;
}

/* Bytes were copied to the application, or handed to another file by splice(). */
static __always_inline int handle_read(u64 sk, enum access access)
{
	struct connection *conn = connection_of(sk, access);
	u32 copied_seq;
	u64 tp;

	if (!conn || !has_unread(conn))
		return 0;
	tp = tcp_sock(sk, access);
	if (!tp)
		return 0;
	copied_seq = tcp_copied_seq(tp, access);
	stamp_read(conn, sk, copied_seq, bpf_ktime_get_ns(), access);
	if (is_clients(conn)) {
		conn->copied_seq = copied_seq;
		conn->reads_seen = 1;
		finish_read(conn, ORDERLY);
	}
	return 0;
}

static __always_inline void leave_alone(struct connection *conn)
{
	if (conn->inbound.state == PARSER_OFF)
		return;
	conn->inbound.state = PARSER_OFF;
	conn->outbound.state = PARSER_OFF;
	conn->origin = ORIGIN_OWN;
	count(COUNT_CONNECTIONS_OWN);
}

/*
 * The agent's own export must not be measured: that would make a request of
 * every export of requests. Seen from the server it is the mirrored connection.
 */
static __always_inline void leave_own_export_alone(u64 sk)
{
	struct connection_key key;
	struct connection *conn;

	key.local_port = sock_peer_port(sk, DIRECT);
	if (!is_measured_port(key.local_port))
		return;
	key.peer_port = sock_local_port(sk, DIRECT);
	if (sock_addresses(sk, key.local_address, key.peer_address, DIRECT))
		return;
	conn = find_connection(&key);
	if (!conn)
		conn = create_connection(&key, bpf_ktime_get_ns());
	if (conn)
		leave_alone(conn);
}

#define WRITE_SEEN (1ULL << 32) /* so that no end is that of no write */

/*
 * Does a write end where the last one was to end? Then it is the same one, in whose loop the tracepoint
 * lies, or what is left of it for which there was no room: the application has handed that over before.
 */
static __always_inline bool is_rest_of_write(struct connection *conn, u32 write_seq, u32 left)
{
	u64 end = WRITE_SEEN | (u32)(write_seq + left), last = conn->write_end;

	conn->write_end = end;
	return last == end;
}

/* message: what is written; 0: there is none, but pages. */
static __always_inline int handle_write(u64 sk, u64 message, enum access access)
{
	struct connection *conn = connection_of(sk, access);
	u32 write_seq;
	u64 tp;

	if (!conn)
		return 0;
	tp = tcp_sock(sk, access);
	if (!tp)
		return 0;
	write_seq = tcp_write_seq(tp, access);
	if (has_left_unseen(conn, tp, access))
		miss(conn, OUTBOUND, sock_interface_out(sk));
	if (message && is_rest_of_write(conn, write_seq, message_left(message, access)))
		return 0;
	if (is_clients(conn))
		note_writer(conn, write_seq);
	else if (begins_response(conn, write_seq))
		note_published(conn);
	note_byte_time(&conn->writes, write_seq, bpf_ktime_get_ns(),
		       write_seq == conn->outbound.next_seq);
	return 0;
}

#define SHUTDOWN_MASK 3 /* for reading and for writing */

/* A socket that the agent connects: its own port is known once that is done. True: it is. */
static __always_inline bool watch_own_connect(u64 sk, u32 state)
{
	u64 key = as_number(sk);
	u8 own = 1;

	if (state == TCP_SYN_SENT) {
		if (settings()->agent_tgid == bpf_get_current_pid_tgid() >> 32)
			UPDATE(connecting, &key, &own);
	} else if (LOOKUP(connecting, &key)) {
		DELETE(connecting, &key);
		if (state == TCP_ESTABLISHED) {
			leave_own_export_alone(sk);
			return true;
		}
	}
	return false;
}

/* A socket closes: was its connection granted, and did the other side end it? */
static __always_inline void note_end(u64 sk, struct connection_key *key,
				     const struct connection *conn, u32 earlier)
{
	u32 error = sock_error(sk);
	bool clients = has_role(key, ROLE_CLIENT);

	if (earlier == TCP_SYN_SENT) {
		if (clients)
			end_attempt(key, error);
		return;
	}
	/* The flag alone may be that of a RST that TCP did not believe. */
	if (conn && conn->flags & PEER_RESET && (error == ECONNRESET || error == EPIPE)) {
		COUNT_CONNECTION(clients, reset);
		COUNT_CONNECTION(clients, reset_by_peer);
	}
}

/*
 * A socket is to send its FIN. To a server's response it may be the last byte, which is written now.
 * If the process has closed the socket, nobody reads an upstream's responses.
 */
static __always_inline int handle_shutdown(u64 sk)
{
	struct connection *conn = connection_of(sk, DIRECT);
	u64 tp;

	if (!conn)
		return 0;
	if (is_clients(conn)) {
		if (sock_shutdown(sk) == SHUTDOWN_MASK)
			end_responses(conn, bpf_ktime_get_ns());
	} else if (conn->answered < conn->begun && conn->writes.count) {
		tp = tcp_sock(sk, DIRECT);
		if (tp)
			note_byte_time(&conn->writes, tcp_write_seq(tp, DIRECT), bpf_ktime_get_ns(),
				       false);
	}
	return 0;
}

/* TCP has taken the other side's FIN. */
static __always_inline int handle_fin(u64 sk)
{
	struct connection *conn = connection_of(sk, DIRECT);
	u64 tp;

	if (!conn || !is_clients(conn))
		return 0;
	tp = tcp_sock(sk, DIRECT);
	if (tp)
		track_fin(conn, tcp_rcv_nxt(tp, DIRECT));
	return 0;
}

/* Is the connection in the table this socket's, whose first bytes came before it was ESTABLISHED? */
static __always_inline bool is_opening(const struct connection *conn, u64 sk, u64 tp)
{
	u32 first_seq = tcp_rcv_nxt(tp, DIRECT) - (u32)tcp_bytes_received(tp, DIRECT);

	return conn->origin == ORIGIN_OPENING &&
	       (is_clients(conn) ? conn->socket == as_number(sk) : conn->first_seq == first_seq);
}

static __always_inline int handle_state(u64 sk, u32 earlier, u32 state)
{
	struct connection_key key = {};
	struct connection *conn;
	bool own;
	u64 tp, now;

	if (state == TCP_FIN_WAIT1 || state == TCP_LAST_ACK)
		return handle_shutdown(sk);
	if (CLIENTS && state == TCP_CLOSE_WAIT)
		return handle_fin(sk);
	if (state != TCP_ESTABLISHED && state != TCP_SYN_SENT && state != TCP_CLOSE)
		return 0;
	own = watch_own_connect(sk, state);
	if (state == TCP_SYN_SENT)
		return 0;
	tp = tcp_sock(sk, DIRECT);
	/* A socket that closes has given its port back already. */
	if (!tp || measured_key(sk,
				state == TCP_CLOSE ? tcp_bound_port(tp, DIRECT)
						   : sock_local_port(sk, DIRECT),
				&key, DIRECT))
		return 0;
	conn = find_connection(&key);
	if (state == TCP_CLOSE) {
		if (SERIES)
			note_end(sk, &key, conn, earlier);
		if (!conn)
			return 0;
		if (has_left_unseen(conn, tp, DIRECT))
			miss(conn, OUTBOUND, sock_interface_out(sk));
		now = bpf_ktime_get_ns();
		if (!(conn->flags & LOCAL_CLOSED))
			note_closed(conn, sock_error(sk));
		lose_untaken(conn, tcp_rcv_nxt(tp, DIRECT), true);
		end_connection(conn, now);
		count(COUNT_CONNECTIONS_CLOSED);
		COUNT_CONNECTION(has_role(&key, ROLE_CLIENT), closed);
		return 0;
	}
	now = bpf_ktime_get_ns();
	if (conn && conn->origin == ORIGIN_OWN)
		return 0;
	if (conn && !is_opening(conn, sk, tp)) {
		end_connection(conn, conn->used_ktime_ns);
		conn = NULL;
	}
	if (!conn) {
		conn = create_connection(&key, now);
		if (!conn)
			return 0;
		conn->inbound.next_seq = tcp_rcv_nxt(tp, DIRECT);
		conn->inbound.state = PARSER_BETWEEN;
		conn->outbound.next_seq = tcp_write_seq(tp, DIRECT);
		conn->outbound.state = PARSER_BETWEEN;
	}
	conn->origin = ORIGIN_OPENED;
	count(COUNT_CONNECTIONS_OPENED);
	COUNT_CONNECTION(is_clients(conn), opened);
	if (CLIENTS && own)
		leave_alone(conn);
	else
		end_handshake(conn, &key, now);
	return 0;
}

/* An application gets a socket from accept(). */
static __always_inline int handle_accept(u64 sk, enum access access)
{
	struct connection *conn = connection_of(sk, access);

	if (conn)
		end_wait(conn, bpf_ktime_get_ns());
	return 0;
}

/*
 * This side sends a RST. One that answers a segment (skb) ended a connection if the socket has
 * just been closed: for data that came when nobody could read it any more.
 */
static __always_inline int handle_reset(u64 sk, u64 skb)
{
	struct connection_key key;
	u64 tp;

	if (!sk || (skb && sock_state(sk, DIRECT) != TCP_CLOSE))
		return 0;
	tp = tcp_sock(sk, DIRECT);
	if (tp && !measured_key(sk, tcp_bound_port(tp, DIRECT), &key, DIRECT))
		COUNT_CONNECTION(has_role(&key, ROLE_CLIENT), reset);
	return 0;
}

/* On a tracepoint, or on a function's entry: both hand on their arguments so. */
PROGRAM("tracing") int traced_tcp(u64 *arguments)
{
	return handle_tcp(arguments[0], arguments[1], DIRECT);
}
PROGRAM("tracing") int traced_queued(u64 *arguments) { return handle_queued(arguments[0], DIRECT); }
PROGRAM("tracing") int traced_read(u64 *arguments) { return handle_read(arguments[0], DIRECT); }
PROGRAM("tracing") int traced_write(u64 *arguments)
{
	return handle_write(arguments[0], arguments[1], DIRECT);
}
PROGRAM("tracing") int traced_sendfile(u64 *arguments)
{
	return handle_write(arguments[0], 0, DIRECT);
}
PROGRAM("tracing") int traced_state(u64 *arguments)
{
	return handle_state(arguments[0], arguments[1], arguments[2]);
}
PROGRAM("tracing") int traced_accept(u64 *arguments) { return handle_accept(arguments[0], DIRECT); }
PROGRAM("tracing") int traced_reset(u64 *arguments)
{
	return handle_reset(arguments[0], arguments[1]);
}

PROGRAM("kprobe") int probed_tcp(struct pt_regs *ctx)
{
	return handle_tcp(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), BY_COPY);
}

PROGRAM("kprobe") int probed_queued(struct pt_regs *ctx)
{
	return handle_queued(PT_REGS_PARM1(ctx), BY_COPY);
}
PROGRAM("kprobe") int probed_read(struct pt_regs *ctx)
{
	return handle_read(PT_REGS_PARM1(ctx), BY_COPY);
}
PROGRAM("kprobe") int probed_write(struct pt_regs *ctx)
{
	return handle_write(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), BY_COPY);
}

PROGRAM("kprobe") int probed_sendfile(struct pt_regs *ctx)
{
	return handle_write(PT_REGS_PARM1(ctx), 0, BY_COPY);
}

PROGRAM("kprobe") int probed_accept(struct pt_regs *ctx)
{
	return handle_accept(PT_REGS_PARM1(ctx), BY_COPY);
}

/* Run once by the agent itself, so that its own id is the kernel's idea of it. */
PROGRAM("raw_tracepoint") int learn_agent(struct bpf_raw_tracepoint_args *ctx UNUSED)
{
	settings()->agent_tgid = bpf_get_current_pid_tgid() >> 32;
	return 0;
}
