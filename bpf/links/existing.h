/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which connections there are. Anybody may send a segment, and a router hands on those of others: a
 * connection is one that a socket of this host has. Mostly its state told of it when it became
 * ESTABLISHED; else the socket is looked for here, for a segment that no connection is known for.
 */
#pragma once

#include "ledger/endings.h"
#include "links/handshakes.h"
#include "state/connections.h"
#include "stream/lock.h"

/* No more of the connection will be seen: what is in flight ends, and its place is free. */
static __always_inline void end_connection(struct connection *conn, u64 now)
{
	/* Else TC might still be at one of its packets. */
	bool held = forgotten(lock(&conn->locked), now);

	end_responses(conn, now);
	close_requests(conn, now);
	delete_connection(conn);
	if (held)
		unlock(&conn->locked);
}

/* What a socket says of the connection that it has. */
struct existing {
	u32 origin;   /* enum origin */
	u32 is_begun; /* are the next bytes of both sides its first ones? */
	u32 inbound_seq;
	u32 outbound_seq;
};

static __always_inline bool is_ipv4(const u8 *address)
{
	return !((const u64 *)address)[0] && ((const u32 *)address)[2] == 0xffff0000;
}

/* The other end of a client's, or the server's own: as the kernel looks for it at ingress. */
static __always_inline u32 fill_tuple(struct bpf_sock_tuple *tuple,
				      const struct connection_key *key)
{
	u16 peer = __builtin_bswap16(key->peer_port), local = __builtin_bswap16(key->local_port);

	if (is_ipv4(key->local_address)) {
		tuple->ipv4.saddr = ((const u32 *)key->peer_address)[3];
		tuple->ipv4.daddr = ((const u32 *)key->local_address)[3];
		tuple->ipv4.sport = peer;
		tuple->ipv4.dport = local;
		return sizeof(tuple->ipv4);
	}
	__builtin_memcpy(tuple->ipv6.saddr, key->peer_address, sizeof(tuple->ipv6.saddr));
	__builtin_memcpy(tuple->ipv6.daddr, key->local_address, sizeof(tuple->ipv6.daddr));
	tuple->ipv6.sport = peer;
	tuple->ipv6.dport = local;
	return sizeof(tuple->ipv6);
}

/*
 * A socket that TCP has a connection for, or is about to have. Nothing has passed either way yet
 * where neither side has a byte of the other's: so it is known where the first ones are.
 */
static __always_inline bool is_connected(u64 tp, struct existing *found)
{
	u8 state = sock_state(tp, DIRECT);

	if (state == TCP_LISTEN || state == TCP_CLOSE || state == TCP_SYN_SENT)
		return false;
	found->origin = state == TCP_SYN_RECV ? ORIGIN_OPENING : ORIGIN_UNKNOWN;
	found->inbound_seq = tcp_rcv_nxt(tp, DIRECT);
	found->outbound_seq = tcp_snd_una(tp, DIRECT);
	found->is_begun = !tcp_bytes_received(tp, DIRECT) && tcp_bytes_acked(tp, DIRECT) <= 1;
	return true;
}

/* What of a segment's headers the kernel looks at to tell whether it acknowledges a SYN cookie. */
struct cookie_headers {
	union {
		struct {
			u8 version; /* and the header's length */
			u8 unused[11];
			u32 source;
			u32 destination;
			u8 unused_2[20];
		} v4;
		struct {
			u8 version;
			u8 unused[7];
			u8 source[16];
			u8 destination[16];
		} v6;
	} ip;
	__be16 source_port;
	__be16 destination_port;
	__be32 seq;
	__be32 ack_seq;
	u8 offset;
	u8 flags;
	u16 unused[3];
};

/*
 * A server that many ask at once remembers none of them: its SYN has a cookie, which tells whoever brings
 * it back from those that never had it. Its socket is made when it comes back, after TC has seen that.
 */
static __always_inline bool brings_cookie(void *sk, struct scratch *s, const struct segment *seg)
{
	struct cookie_headers *headers = (struct cookie_headers *)s->window;
	const struct connection_key *key = &seg->key;

	__builtin_memset(headers, 0, sizeof(*headers));
	if (is_ipv4(key->local_address)) {
		headers->ip.v4.version = 0x45;
		headers->ip.v4.source = ((const u32 *)key->peer_address)[3];
		headers->ip.v4.destination = ((const u32 *)key->local_address)[3];
	} else {
		headers->ip.v6.version = 0x60;
		__builtin_memcpy(headers->ip.v6.source, key->peer_address, 16);
		__builtin_memcpy(headers->ip.v6.destination, key->local_address, 16);
	}
	headers->source_port = __builtin_bswap16(key->peer_port);
	headers->destination_port = __builtin_bswap16(key->local_port);
	headers->seq = __builtin_bswap32(seg->seq);
	headers->ack_seq = __builtin_bswap32(seg->ack_seq);
	headers->flags = seg->tcp_flags;
	return !bpf_tcp_check_syncookie(sk, &headers->ip, sizeof(headers->ip),
					&headers->source_port,
					sizeof(*headers) - sizeof(headers->ip));
}

/* The socket that the kernel finds for what comes in; to be released. NULL: there is none. */
static __always_inline void *look_up_socket(void *context, struct scratch *s,
					    const struct connection_key *key)
{
	u32 length = fill_tuple(&s->tuple, key);

	return length == sizeof(s->tuple.ipv4)
		       ? bpf_skc_lookup_tcp(context, &s->tuple, sizeof(s->tuple.ipv4),
					    BPF_F_CURRENT_NETNS, 0)
		       : bpf_skc_lookup_tcp(context, &s->tuple, sizeof(s->tuple.ipv6),
					    BPF_F_CURRENT_NETNS, 0);
}

/* Has a socket of this host the connection that a segment comes in for? */
static __always_inline bool find_socket(void *context, struct scratch *s, const struct segment *seg,
					struct existing *found)
{
	void *sk = look_up_socket(context, s, &seg->key);
	bool exists = false;
	u64 tp, request;

	if (!sk)
		return false;
	tp = (u64)bpf_skc_to_tcp_sock(sk);
	if (tp && sock_state(tp, DIRECT) == TCP_LISTEN) {
		exists = brings_cookie(sk, s, seg);
		found->origin = ORIGIN_OPENING;
		found->inbound_seq = seg->seq;
		found->outbound_seq = seg->ack_seq;
		found->is_begun = true;
	} else if (tp) {
		exists = is_connected(tp, found);
		found->is_begun &= found->inbound_seq == seg->seq &&
				   found->outbound_seq == seg->ack_seq &&
				   tcp_write_seq(tp, DIRECT) == seg->ack_seq;
	} else {
		request = (u64)bpf_skc_to_tcp_request_sock(sk);
		if (request) {
			/* Half a handshake is no connection: whoever ends it has seen our SYN. */
			found->origin = ORIGIN_OPENING;
			found->inbound_seq = request_rcv_isn(request) + 1;
			found->outbound_seq = request_snt_isn(request) + 1;
			found->is_begun = true;
			exists = seg->ack_seq == found->outbound_seq;
		}
	}
	bpf_sk_release(sk);
	return exists;
}

/*
 * Is it one that was granted under another address or port than the packets have? These do not find its
 * socket, but whose SYN it was that left was seen. What the socket's state tells is of its own address.
 */
static __always_inline bool find_redirected(struct scratch *s, const struct segment *seg,
					    struct existing *found)
{
	struct handshake *known = attempt_of(s, seg);

	if (!known || known->answer != REDIRECTED || known->granted_seq != seg->ack_seq)
		return false;
	found->origin = ORIGIN_UNKNOWN;
	found->is_begun = true;
	found->inbound_seq = known->seq + 1;
	found->outbound_seq = known->granted_seq;
	DELETE(handshakes, &s->asked);
	return true;
}

static __always_inline struct connection *create_existing(const struct connection_key *key,
							  const struct existing *found,
							  bool clients, u64 now)
{
	struct connection *conn = create_connection(key, now);

	/* Another processor may have made it meanwhile. */
	if (!conn || conn->origin != ORIGIN_UNKNOWN || conn->inbound.state != PARSER_LOST)
		return conn;
	conn->origin = found->origin;
	if (!found->is_begun)
		return conn;
	if (!clients)
		conn->first_seq = found->inbound_seq;
	conn->inbound.next_seq = found->inbound_seq;
	conn->outbound.next_seq = found->outbound_seq;
	conn->inbound.state = PARSER_BETWEEN;
	conn->outbound.state = PARSER_BETWEEN;
	adopt(conn, clients);
	return conn;
}

/* The connection of a segment that comes in for a server, and for which none is known; NULL: there is none. */
static __always_inline struct connection *admit_received(void *context, struct scratch *s,
							 const struct segment *seg, u64 now)
{
	struct existing found = {};

	if (!find_socket(context, s, seg, &found) && !find_redirected(s, seg, &found))
		return NULL;
	return create_existing(&seg->key, &found, false, now);
}

/* The same of a segment that leaves: if it is of this host's, its socket is still with it. */
static __always_inline struct connection *admit_sent(struct __sk_buff *skb,
						     const struct segment *seg, bool clients,
						     u64 now)
{
	struct existing found = {};
	struct connection *conn;
	void *sk = skb->sk;
	u64 tp;

	if (!sk)
		return NULL;
	tp = (u64)bpf_skc_to_tcp_sock(sk);
	if (!tp || !is_measured_netns(load_u64(FIELD(tp, sock_common, skc_net), DIRECT), DIRECT))
		return NULL;
	if (clients && sock_state(tp, DIRECT) == TCP_SYN_SENT) {
		/* Fast Open: what the other side's bytes are is seen when it answers. */
		found.origin = ORIGIN_OPENING;
		found.is_begun = true;
		found.outbound_seq = seg->seq + 1;
	} else if (is_connected(tp, &found)) {
		/* With a server's first bytes begins nothing that is measured. */
		found.is_begun &= clients && found.outbound_seq == seg->seq;
	} else {
		return NULL;
	}
	conn = create_existing(&seg->key, &found, clients, now);
	if (conn)
		conn->socket = as_number(tp);
	return conn;
}

/* A SYN answers another one: is it that of a socket with another address or port than it says? */
static __always_inline void note_redirection(struct __sk_buff *skb, struct scratch *s,
					     const struct segment *seg)
{
	struct connection_key key = {};
	void *sk = skb->sk;
	u64 request;

	if (!sk)
		return;
	request = (u64)bpf_skc_to_tcp_request_sock(sk);
	if (!request ||
	    !is_measured_netns(load_u64(FIELD(request, sock_common, skc_net), DIRECT), DIRECT))
		return;
	key.local_port = sock_local_port(request, DIRECT);
	key.peer_port = sock_peer_port(request, DIRECT);
	if (sock_addresses(request, key.peer_address, key.local_address, DIRECT) ||
	    same_key(&key, &seg->key))
		return;
	copy_key(&s->asked, &seg->key);
	s->attempt.syn_ktime_ns = bpf_ktime_get_ns();
	s->attempt.seq = seg->ack_seq - 1;
	s->attempt.granted_seq = seg->seq + 1;
	s->attempt.answer = REDIRECTED;
	UPDATE(handshakes, &s->asked, &s->attempt);
	s->attempt.answer = NO_ANSWER;
}
