/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Finding a connection. Each packet and each call of a socket looks one up,
 * and in BPF's own hash that would cost more than all the rest that they do.
 *
 * The table is an array of sets of WAYS connections; which set follows from a hash of
 * the addresses, which of its ways from comparing tags. A full set gives up the
 * connection that has nothing in flight and was silent for longest. The socket
 * hooks come by another way: what was found for a socket is remembered by the
 * hash that the kernel keeps in it.
 *
 * The factors are drawn anew at each start, so that nobody outside can fill a set.
 */
#pragma once

#include "state/connection.h"
#include "state/measured.h"
#include "state/scratch.h"

MAP(ARRAY, blank_connection, u32, struct connection, 1)

/* Multiply and shift: two keys meet in a set no more often than by chance. */
static __always_inline u64 hash_key(const struct connection_key *key)
{
	const u64 *peer = (const u64 *)key->peer_address, *local = (const u64 *)key->local_address;
	u64 ports = *(const u32 *)&key->peer_port;
	const u64 *factors = settings()->hash_factors;

	return peer[0] * factors[0] + peer[1] * factors[1] + local[0] * factors[2] +
	       local[1] * factors[3] + ports * factors[4];
}

static __always_inline u64 set_of(u64 hash) { return (hash >> 32) * CONNECTION_SETS >> 32; }

/* Never 0, which is the tag of nobody. */
static __always_inline u64 tag_of(u64 hash) { return hash | 1; }

static __always_inline struct connection_tags *tags_of(u64 set)
{
	struct connection_tags *tags = &connection_tags()[set];

	/* Else clang would add it up anew for each way. */
	asm("" : "+r"(tags));
	return tags;
}

/* The way that has this tag; WAYS: none. */
static __always_inline u32 way_of(const struct connection_tags *tags, u64 tag)
{
	u32 way;

#pragma unroll
	for (way = 0; way < WAYS; way++) {
		if (tags->of[way] == tag)
			return way;
	}
	return WAYS;
}

static __always_inline struct connection *find_connection(const struct connection_key *key)
{
	u64 hash = hash_key(key), index = set_of(hash);
	u64 way = way_of(tags_of(index), tag_of(hash));
	struct connection *conn;

	if (way == WAYS)
		return NULL;
	conn = connection_at(forgotten(index * WAYS + way, hash));
	return NULL_UNLESS(conn && conn->id && same_key(&conn->key, key), conn);
}

/* Takes a way of the set: a free one, else that of an idle connection, else any. */
static __always_inline u32 claim_way(struct connection_tags *tags, u32 index, u64 tag)
{
	u64 oldest_ktime_ns = ~0ULL;
	struct connection *conn;
	u32 victim = 0, way;
	u64 used;

	BOUNDED_LOOP
	for (way = 0; way < WAYS; way++) {
		if (!tags->of[way & (WAYS - 1)] &&
		    !__sync_val_compare_and_swap(&tags->of[way & (WAYS - 1)], 0, tag))
			return way;
	}
	BOUNDED_LOOP
	for (way = 0; way < WAYS; way++) {
		conn = connection_at(index * WAYS + way);
		if (!conn)
			continue;
		used = conn->used_ktime_ns;
		/* Those with requests in flight only when there are no others. */
		if (conn->begun != conn->finished)
			used |= 1ULL << 63;
		if (used < oldest_ktime_ns) {
			oldest_ktime_ns = used;
			victim = way;
		}
	}
	tags->of[victim & (WAYS - 1)] = tag;
	count(COUNT_CONNECTIONS_EVICTED);
	return victim;
}

/* Where the connection is in the table; NULL where it could not be stored. */
static __always_inline struct connection *create_connection(const struct connection_key *key,
							    u64 now)
{
	u64 hash = hash_key(key), index = set_of(hash);
	struct connection_tags *tags = tags_of(index);
	u64 place = forgotten(index * WAYS + claim_way(tags, index, tag_of(hash)), hash);
	u32 zero = 0;
	struct connection *conn, *blank = LOOKUP(blank_connection, &zero);

	if (!blank)
		return NULL;
	conn = connection_at(place);
	if (!conn)
		return NULL;
	conn->id = 0;
	asm volatile("" : : : "memory");
	bpf_probe_read_kernel(conn, sizeof(*conn), blank);
	copy_key(&conn->key, key);
	conn->place = place;
	conn->home = NO_SLOT;
	conn->used_ktime_ns = now;
	if (has_role(key, ROLE_CLIENT))
		conn->flags = CLIENT;
	/* Other CPUs may find it from here on, and find it whole. */
	asm volatile("" : : : "memory");
	conn->id = now << 8 | (bpf_get_smp_processor_id() & 0xff);
	return conn;
}

static __always_inline void delete_connection(struct connection *conn)
{
	u64 hash = hash_key(&conn->key);
	struct connection_tags *tags = tags_of(set_of(hash));
	u32 way = way_of(tags, tag_of(hash));

	conn->id = 0;
	conn->socket = 0;
	if (way < WAYS)
		tags->of[way] = 0;
}
