/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Finding a connection. Each packet and each call of a socket looks one up,
 * and in BPF's own hash that would cost more than all the rest that they do.
 *
 * The table is an array of sets of WAYS connections; which set follows from a hash of
 * the addresses, which of its ways from comparing tags. Where that set is full there is a second
 * one, which is looked at only by those whose first one ever was. If that is full, too, the first one
 * gives up the connection that has nothing in flight and was silent for longest. The socket
 * hooks come by another way: what was found for a socket is remembered by the
 * hash that the kernel keeps in it.
 *
 * The factors are drawn anew at each start, so that nobody outside can fill a set.
 */
#pragma once

#include "state/carries.h"
#include "state/connection.h"
#include "state/disorder.h"
#include "state/measured.h"
#include "state/scratch.h"
#include "stream/lock.h"

MAP(ARRAY, blank_connection, u32, struct connection, 1)

/*
 * Multiply and shift: two keys meet in a set no more often than by chance. Of IPv4 the first halves of
 * both addresses are zero, and nothing is multiplied.
 */
static __always_inline u64 hash_key(const struct connection_key *key)
{
	const u64 *peer = (const u64 *)key->peer_address, *local = (const u64 *)key->local_address;
	u64 ports = *(const u32 *)&key->peer_port;
	const u64 *factors = settings()->hash_factors;
	u64 hash = peer[1] * factors[1] + local[1] * factors[3] + ports * factors[4];

	if (peer[0])
		hash += peer[0] * factors[0] + local[0] * factors[2];
	return hash;
}

static __always_inline u64 set_of(u64 hash) { return (hash >> 32) * CONNECTION_SETS >> 32; }

static __always_inline u64 second_set_of(u64 hash)
{
	return (hash & 0xffffffff) * CONNECTION_SETS >> 32;
}

/* Never 0, which is the tag of nobody. */
static __always_inline u64 tag_of(u64 hash) { return hash | 1; }

static __always_inline struct connection_tags *tags_of(u64 set)
{
	struct connection_tags *tags;

	/* What has a bound is multiplied: of one shift for both the verifier would know less. */
	asm("" : "+r"(set));
	tags = &connection_tags()[set];
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

#define NOWHERE (~0ULL)

/* The place in the second set; NOWHERE: in none of that. */
SELDOM find_in_second(u64 hash, void *context UNUSED)
{
	u64 index = second_set_of(hash), way = way_of(tags_of(index), tag_of(hash));

	return way == WAYS ? NOWHERE : index * WAYS + way;
}

/* The place of who has this hash; NOWHERE: nobody has it. */
static __always_inline u64 find_place_of(u64 hash)
{
	u64 index = set_of(hash);
	const struct connection_tags *tags = tags_of(index);
	u64 way = way_of(tags, tag_of(hash));

	if (way == WAYS)
		return tags->is_short ? (u64)find_in_second(hash, NULL) : NOWHERE;
	return index * WAYS + way;
}

/* Until it is locked the place may become another connection's: then it has not this id any more. */
static __always_inline struct connection *find_with_id(const struct connection_key *key, u64 *id)
{
	u64 hash = hash_key(key), place = forgotten(find_place_of(hash), hash);
	struct connection *conn = connection_at(place);

	if (conn)
		*id = conn->id;
	return NULL_UNLESS(conn && *id && same_key(&conn->key, key), conn);
}

static __always_inline struct connection *find_connection(const struct connection_key *key)
{
	u64 id;

	return find_with_id(key, &id);
}

/* The way that is to be given up: of an idle connection, else of any that nobody has locked. */
static __always_inline u32 find_victim(u32 index)
{
	u64 oldest_ktime_ns = ~0ULL, used;
	struct connection *conn;
	u32 victim = WAYS, way;

	BOUNDED_LOOP
	for (way = 0; way < WAYS; way++) {
		conn = connection_at(index * WAYS + way);
		if (!conn || conn->locked)
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
	return victim;
}

/*
 * Takes a free way of a set, and locks its place; NOWHERE: there is none. A place may be locked that is
 * free: by who still reads a packet of a connection that has ended; and who has its first set here, and
 * who has its second one, may both want a way.
 */
static __always_inline u64 claim_free(u32 index, u64 tag)
{
	struct connection_tags *tags = tags_of(index);
	struct connection *conn;
	u32 way;

	BOUNDED_LOOP
	for (way = 0; way < WAYS; way++) {
		conn = connection_at(index * WAYS + way);
		if (!conn || tags->of[way & (WAYS - 1)] || !try_lock(&conn->locked))
			continue;
		if (!*(volatile u64 *)&tags->of[way & (WAYS - 1)]) {
			tags->of[way & (WAYS - 1)] = tag;
			return index * WAYS + way;
		}
		unlock(&conn->locked);
	}
	return NOWHERE;
}

/* Takes a victim's way, and locks its place; NOWHERE: there is none. */
static __always_inline u64 claim_victims(u32 index, u64 tag)
{
	u32 way = find_victim(index);
	struct connection *conn = connection_at(index * WAYS + way);

	if (way == WAYS || !conn || !try_lock(&conn->locked))
		return NOWHERE;
	tags_of(index)->of[way & (WAYS - 1)] = tag;
	count(COUNT_CONNECTIONS_EVICTED);
	return index * WAYS + way;
}

/* The same where the first set may be full. */
SELDOM claim_place(u64 hash, void *context UNUSED)
{
	u64 index = set_of(hash), place = claim_free(index, tag_of(hash));
	struct connection_tags *tags = tags_of(index);

	if (place != NOWHERE)
		return place;
	/* Before it is there, so that nobody misses it. */
	*(volatile u64 *)&tags->is_short = 1;
	place = claim_free(second_set_of(hash), tag_of(hash));
	return place != NOWHERE ? place : claim_victims(index, tag_of(hash));
}

/* Nobody finds it any more. For who has it locked. */
static __always_inline void retire(struct connection *conn)
{
	if (conn->inbound.disorder)
		drop_disorder(conn->id);
	conn->inbound.disorder = 0;
	drop_carries(conn);
	conn->id = 0;
	conn->socket = 0;
}

/* A place that is locked becomes a connection's. */
static __always_inline void fill_place(struct connection *conn, u32 place,
				       const struct connection_key *key, u64 now)
{
	u32 zero = 0;
	struct connection *blank = LOOKUP(blank_connection, &zero);

	if (!blank)
		return;
	retire(conn);
	asm volatile("" : : : "memory");
	bpf_probe_read_kernel(&conn->key,
			      sizeof(*conn) - __builtin_offsetof(struct connection, key),
			      &blank->key);
	copy_key(&conn->key, key);
	conn->place = place;
	conn->home = NO_SLOT;
	conn->used_ktime_ns = now;
	if (has_role(key, ROLE_CLIENT))
		conn->flags = CLIENT;
	/* Other CPUs may find it from here on, and find it whole. */
	asm volatile("" : : : "memory");
	conn->id = now << 8 | (bpf_get_smp_processor_id() & 0xff);
}

/* Where the connection is in the table; NULL where it could not be stored. */
static __always_inline struct connection *create_connection(const struct connection_key *key,
							    u64 now)
{
	u64 hash = hash_key(key), place;
	struct connection_tags *tags = tags_of(set_of(hash));
	struct connection *conn;
	bool is_new;

	/* Two processors may have packets of a connection that neither has found. */
	if (!lock(&tags->locked))
		return NULL;
	place = forgotten(find_place_of(hash), hash);
	is_new = forgotten(place == NOWHERE, hash);
	if (is_new)
		place = claim_place(hash, NULL);
	place = forgotten(place, hash);
	conn = connection_at(place);
	if (conn && is_new) {
		fill_place(conn, place, key, now);
		unlock(&conn->locked);
	}
	unlock(&tags->locked);
	return conn;
}

/* For who has it locked. */
static __always_inline void delete_connection(struct connection *conn)
{
	u64 index = conn->place / WAYS;

	retire(conn);
	if (index < CONNECTION_SETS)
		tags_of(below(CONNECTION_SETS, index))->of[conn->place & (WAYS - 1)] = 0;
}
