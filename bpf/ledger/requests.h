/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* How a request begins: its slot, and its first stamps. */
#pragma once

#include "state/exchange.h"
#include "state/scratch.h"
#include "state/settings.h"

/* Takes a free slot; nobody finds it until begin_request() has filled it. */
static __always_inline struct exchange *claim(u32 slot)
{
	struct exchange *x = exchange_at(slot);

	return x && swap(&x->state, EXCHANGE_FREE, EXCHANGE_FINISHING) ? x : NULL;
}

#define CLAIM_TRIES 16 /* beyond the first one */

/*
 * The next one, as the agent frees them in turn; else from anywhere in the table, each time anew:
 * neither long-lived requests nor those that wait to be read, one after the other, form a wall.
 */
static __always_inline struct exchange *claim_any(struct scratch *s, u32 *slot)
{
	struct exchange *x;
	u32 next;
	u64 i;

	*slot = s->next_slot;
	BOUNDED_LOOP
	for (i = 0; i <= CLAIM_TRIES; i++) {
		x = claim(*slot);
		if (x) {
			next = *slot + 1;
			s->next_slot = next < MAX_EXCHANGES ? next : 0;
			return x;
		}
		*slot = bpf_get_prandom_u32() % MAX_EXCHANGES;
	}
	return NULL;
}

/*
 * The slot that the connection had last is warm, and free unless the agent is still to read it:
 * in vain where all requests are kept.
 */
static __always_inline struct exchange *claim_warm(const struct connection *conn, u32 *slot)
{
	if (settings()->sampler_keeps == KEEPS_ALL)
		return NULL;
	*slot = conn->home;
	return claim(conn->home);
}

/* A connection's first request, of which nothing can be told, is counted and takes a number. */
static __always_inline void pass_over_first_request(struct scratch *s, struct connection *conn,
						    enum flow flow)
{
	count_in(s, COUNT_SEEN, 1);
	count_in(s, COUNT_LOST_PARSER, 1);
	conn->slot[conn->begun & (IN_FLIGHT_MAX - 1)] = NO_SLOT;
	conn->begun++;
	if (!IS_CLIENTS(flow))
		conn->arrived = conn->begun;
}

#define WORD_OF(field) (__builtin_offsetof(struct request_record, field) / 8)

/*
 * Clears all but what comes first, which each request has, the word of the ports, and the texts, whose
 * lengths say how much of them counts; of the request line the first word, which is looked at without.
 * By words of eight bytes: of a memset() clang would make twice as many of four.
 */
static __always_inline void clear(struct request_record *r)
{
	volatile u64 *words = (volatile u64 *)r;
	u32 i;

#pragma unroll
	for (i = WORD_OF(stamp_ktime_ns); i < WORD_OF(join.traceparent); i++)
		if (i != WORD_OF(peer_port))
			words[i] = 0;
#pragma unroll
	for (i = WORD_OF(http1); i <= WORD_OF(http1.request_line); i++)
		words[i] = 0;
}

/*
 * The word of the ports, with what else is in it: no status yet, and whether a client was told, which is
 * its highest bit. So only who has one told pays for that.
 */
static __always_inline void copy_ends(struct request_record *r, const struct connection *conn)
{
	s64 ports = *(const s64 *)&conn->key.peer_port;

	copy_address(r->peer_address, conn->key.peer_address);
	copy_address(r->local_address, conn->key.local_address);
	*(volatile s64 *)&r->peer_port = ports;
	if (ports < 0) {
		copy_address(r->client_address, conn->client.address);
		r->client_port = conn->client.port;
	}
}

/*
 * The request whose first byte is `seq`, and came, or was written, at `first`.
 * NULL: it is counted as lost.
 */
static __always_inline struct exchange *begin_request(struct scratch *s, struct connection *conn,
						      u32 seq, u64 first, enum flow flow)
{
	u64 ordinal = conn->begun;
	u32 slot;
	struct exchange *x;

	count_in(s, COUNT_SEEN, 1);
	conn->begun = ordinal + 1;
	if (!IS_CLIENTS(flow))
		conn->arrived = ordinal + 1;
	if (ordinal - conn->finished >= IN_FLIGHT_MAX) {
		count(COUNT_LOST_PIPELINE_FULL);
		return NULL;
	}
	x = claim_warm(conn, &slot);
	if (!x)
		x = claim_any(s, &slot);
	if (!x) {
		conn->slot[ordinal & (IN_FLIGHT_MAX - 1)] = NO_SLOT;
		count(COUNT_LOST_TABLE_FULL);
		return NULL;
	}
	conn->home = slot;
	conn->slot[ordinal & (IN_FLIGHT_MAX - 1)] = slot;

	clear(&x->record);
	x->head_bytes = 0;
	x->left_again = 0;
	x->inbound_start = seq;
	x->activity_ktime_ns = s->ktime_ns;
	x->slot = slot;
	x->record.connection_id = conn->id;
	x->record.ordinal = ordinal;
	copy_ends(&x->record, conn);
	if (IS_CLIENTS(flow))
		x->record.flags = CLIENT;
	x->record.stamp_ktime_ns[IS_CLIENTS(flow) ? STAMP_WRITE : STAMP_NIC] = first;
	x->record.stamp_ktime_ns[IS_CLIENTS(flow) ? STAMP_TC_OUT : STAMP_TC] = s->ktime_ns;
	/* Other CPUs may find it from here on, and find it whole. */
	asm volatile("" : : : "memory");
	x->state = EXCHANGE_IN_FLIGHT + conn->id;
	return x;
}
