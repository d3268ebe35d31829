/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The socket: TCP takes a segment, its bytes are queued, the application reads
 * them and writes the response. Each program is a thin wrapper for one way to
 * attach; what happens is in the handle_* functions.
 */

static __always_inline struct connection *connection_of(u64 sk)
{
	struct connection_key key;

	if (server_key(sk, false, &key))
		return NULL;
	return connections.lookup(&key);
}

static __always_inline int handle_tcp(u64 sk, u64 skb)
{
	struct connection *conn = connection_of(sk);
	struct byte_range range;

	if (!conn || !before(conn->tcp, conn->begun))
		return 0;
	range = skb_byte_range(skb);
	if (range.start != range.end)
		stamp_tcp(conn, range, bpf_ktime_get_ns());
	return 0;
}

static __always_inline int handle_queued(u64 sk)
{
	struct connection *conn = connection_of(sk);
	int zero = 0;
	u64 *waking;

	if (!conn)
		return 0;
	stamp_queued(conn, tcp_rcv_nxt(sk), bpf_ktime_get_ns());
	/* Whoever is woken on this CPU before the softirq ends is woken by this. */
	waking = waking_sk.lookup(&zero);
	if (waking)
		*waking = sk;
	return 0;
}

static __always_inline int handle_read(u64 sk, s64 length)
{
	struct connection *conn;

	if (length <= 0)
		return 0;
	conn = connection_of(sk);
	if (conn)
		stamp_read(conn, sk, tcp_copied_seq(sk), bpf_ktime_get_ns());
	return 0;
}

/*
 * The agent's own export must not be measured: that would make a request of
 * every export of requests. Seen from the server it is the mirrored connection.
 */
static __always_inline void leave_own_export_alone(u64 sk)
{
	struct connection_key key;
	struct socket_identity id;
	struct connection *conn;

	read_identity(&id, sk);
	key.local_port = identity_peer_port(&id);
	if (!IS_MEASURED_PORT(key.local_port))
		return;
	key.peer_port = identity_local_port(&id);
	if (identity_addresses(&id, sk, key.local_address, key.peer_address))
		return;
	conn = connections.lookup(&key);
	if (!conn)
		conn = create_connection(&key, bpf_ktime_get_ns());
	if (!conn || conn->inbound.state == PARSER_OFF)
		return;
	conn->inbound.state = PARSER_OFF;
	conn->outbound.state = PARSER_OFF;
	count(COUNT_CONNECTIONS_OWN);
}

static __always_inline int handle_write(u64 sk)
{
	struct connection *conn = connection_of(sk);
	u32 write_seq;

	if (!conn)
		return 0;
	write_seq = tcp_write_seq(sk);
	mark(&conn->writes, write_seq, bpf_ktime_get_ns(), write_seq == conn->outbound.next_seq);
	return 0;
}

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_CLOSE 7

/* A socket that the agent connects: its own port is known once that is done. */
static __always_inline void watch_own_connect(u64 sk, u32 state)
{
	int zero = 0;
	struct settings *s;
	u8 own = 1;

	if (state == TCP_SYN_SENT) {
		s = settings.lookup(&zero);
		if (s && s->agent_tgid == bpf_get_current_pid_tgid() >> 32)
			connecting.update(&sk, &own);
	} else if (connecting.lookup(&sk)) {
		connecting.delete(&sk);
		if (state == TCP_ESTABLISHED)
			leave_own_export_alone(sk);
	}
}

static __always_inline int handle_state(u64 sk, u32 state)
{
	struct connection_key key;
	struct connection *conn;
	struct exchange *x;

	if (state != TCP_ESTABLISHED && state != TCP_SYN_SENT && state != TCP_CLOSE)
		return 0;
	watch_own_connect(sk, state);
	if (state == TCP_SYN_SENT)
		return 0;
	if (server_key(sk, state == TCP_CLOSE, &key))
		return 0;
	conn = connections.lookup(&key);
	if (state == TCP_CLOSE) {
		if (!conn)
			return 0;
		/* Torn down from this side; its RST is sent only after this. */
		if (!(conn->flags & (PEER_RESET | LOCAL_CLOSED)))
			conn->flags |= LOCAL_RESET;
		close_requests(conn);
		connections.delete(&key);
		count(COUNT_CONNECTIONS_CLOSED);
		return 0;
	}
	if (conn && conn->begun) {
		/* Begun by data that came with the end of the handshake? Then go on. */
		x = in_flight(conn, 0);
		if (x && x->request_start == tcp_rcv_nxt(sk))
			return 0;
		/* Else it is an earlier connection between the same ports. */
		close_requests(conn);
		connections.delete(&key);
		conn = NULL;
	}
	/* XDP may have seen the first data packet already: its arrival stays. */
	if (!conn)
		conn = create_connection(&key, bpf_ktime_get_ns());
	if (!conn || conn->inbound.state != PARSER_LOST)
		return 0;
	conn->flags = 0;
	conn->inbound.counted = 0;
	conn->inbound.next_seq = tcp_rcv_nxt(sk);
	conn->inbound.state = PARSER_BETWEEN;
	conn->outbound.next_seq = tcp_write_seq(sk);
	conn->outbound.state = PARSER_BETWEEN;
	count(COUNT_CONNECTIONS_OPENED);
	return 0;
}

int raw_tcp_probe(struct bpf_raw_tracepoint_args *ctx)
{
	return handle_tcp(ctx->args[0], ctx->args[1]);
}

int raw_sk_data_ready(struct bpf_raw_tracepoint_args *ctx)
{
	return handle_queued(ctx->args[0]);
}

int raw_sock_recv_length(struct bpf_raw_tracepoint_args *ctx)
{
	return handle_read(ctx->args[0], (s32)ctx->args[1]);
}

int raw_tcp_sendmsg_locked(struct bpf_raw_tracepoint_args *ctx)
{
	return handle_write(ctx->args[0]);
}

int raw_inet_sock_set_state(struct bpf_raw_tracepoint_args *ctx)
{
	return handle_state(ctx->args[0], ctx->args[2]);
}

/* Run once by the agent itself, so that its own id is the kernel's idea of it. */
int learn_agent(struct bpf_raw_tracepoint_args *ctx)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	if (s)
		s->agent_tgid = bpf_get_current_pid_tgid() >> 32;
	return 0;
}
