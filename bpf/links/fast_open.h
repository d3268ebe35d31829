/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * TCP Fast Open: a SYN has the first bytes with it. Whether a server takes them is known when its own
 * SYN leaves, which then acknowledges them: until then they are kept, and are nobody's. A client has
 * its socket already: see admit_sent().
 */
#pragma once

#include "links/existing.h"
#include "stream/continuations.h"
#include "stream/disorder.h"
#include "stream/lock.h"

/* The bytes of a SYN. */
struct syn_data {
	struct kept kept;
	u64 ktime_ns; /* when TC saw it */
	u32 seq;      /* of the first one: the SYN has a number of its own */
	u32 length;
};

/* In a flood those forgotten first are those that nobody takes. */
MAP(LRU_HASH, data_of_syns, struct connection_key, struct syn_data, 1024)

/* A SYN with data comes in for a server. */
static __always_inline void keep_syn_data(struct __sk_buff *skb, struct scratch *s,
					  const struct segment *seg)
{
	u32 n = at_most(PIECE_MAX, seg->payload_length);
	struct syn_data *data = (struct syn_data *)s->window;

	n = ((n - 1) & (PIECE_MAX - 1)) + 1;
	if (bpf_skb_load_bytes(skb, seg->payload_offset, data->kept.bytes, n))
		return;
	__builtin_memset(&data->kept.arrivals, 0, sizeof(data->kept.arrivals));
	data->ktime_ns = bpf_ktime_get_ns();
	data->seq = seg->seq + 1;
	data->length = n;
	copy_key(&s->asked, &seg->key);
	UPDATE(data_of_syns, &s->asked, data);
}

/* The data becomes a piece of the connection that came early, and is read. Returns if it cannot be. */
static __always_inline void read_syn_data(struct __sk_buff *skb, struct scratch *s,
					  struct connection *conn, struct syn_data *data)
{
	struct piece_key key = { .connection_id = conn->id };
	struct disorder *d;

	if (!lock(&conn->locked))
		return;
	d = begin_disorder(conn);
	if (d && !UPDATE(kept_pieces, &key, &data->kept)) {
		d->pieces[0].seq = data->seq;
		d->pieces[0].length = data->length;
		d->pieces[0].ktime_ns = data->ktime_ns;
		conn->inbound.kept = 1;
		DELETE(data_of_syns, &s->asked);
		hand_on(s, conn, REQUESTS_IN);
		s->continuing = 0;
		TAIL_CALL(skb, continuations, CONTINUE_KEPT);
	} else if (d) {
		DELETE(disorders, &conn->id);
	}
	unlock(&conn->locked);
}

/* A server's SYN leaves. If it acknowledges data the connection has begun with that. */
static __always_inline void take_syn_data(struct __sk_buff *skb, struct scratch *s,
					  const struct segment *seg)
{
	struct existing found = { .origin = ORIGIN_OPENING, .is_begun = true };
	struct connection *conn;
	struct syn_data *data;
	void *sk = skb->sk;
	u64 tp;

	copy_key(&s->asked, &seg->key);
	data = LOOKUP(data_of_syns, &s->asked);
	if (!data || !data->length || data->seq + data->length != seg->ack_seq || !sk)
		return;
	tp = (u64)bpf_skc_to_tcp_sock(sk);
	if (!tp || !is_measured_netns(load_u64(FIELD(tp, sock_common, skc_net), DIRECT), DIRECT))
		return;
	conn = find_connection(&seg->key);
	if (conn)
		end_connection(conn, conn->used_ktime_ns);
	found.inbound_seq = data->seq;
	found.outbound_seq = seg->seq + 1;
	conn = create_existing(&seg->key, &found, false, data->ktime_ns);
	if (!conn)
		return;
	conn->interface[INBOUND] = skb->ifindex;
	read_syn_data(skb, s, conn, data);
}

/* The answer to a client's SYN: from here on the other side's bytes are known. */
static __always_inline void note_answer(const struct segment *seg)
{
	struct connection *conn = find_connection(&seg->key);

	if (conn && conn->origin == ORIGIN_OPENING)
		conn->inbound.next_seq = seg->seq + 1;
}
