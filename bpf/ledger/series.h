/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * All requests in sums, whatever becomes of them: each is added to those of its series.
 * The agent is shown what has no place here yet (a series that is new, or an order of stamps, or
 * an end that was not an orderly one), adds that up itself, and gives it a place.
 */
#pragma once

#include "ledger/histogram.h"
#include "ledger/order.h"
#include "state/arrays.h"

DEFINE_ARRAY(struct series, series)
DEFINE_ARRAY(struct series_set, series_sets)
DEFINE_ARRAY(struct stage_order, stage_orders)
DEFINE_ELEMENT_KEPT(struct series, series_at, series, SERIES_ROWS)

MAP(ARRAY, overflow_places, u32, struct series_place, 2) /* by is_client; while there is no other */

/*
 * Tells processes apart of which one may be another service than the other: all but those that have
 * forked from one another. As src/otelbpf/metrics/series.py does.
 */
static __always_inline u64 hash_process(const struct request_record *r)
{
	const struct process *p = &r->process;
	const u64 *comm = (const u64 *)p->comm;

	if (!r->pid)
		return 0;
	return (((p->stack * PLACE_FACTOR ^ p->cgroup_id) * PLACE_FACTOR ^ comm[0]) * PLACE_FACTOR ^
		comm[1]) *
	       PLACE_FACTOR;
}

/* Where the requests with this key, in two words, are added up; false: nowhere yet. */
static __always_inline bool find_place(u64 hash, u64 rest, struct series_place *found)
{
	u64 index = (hash ^ rest) * PLACE_FACTOR >> 32 & (SERIES_SETS - 1);
	struct series_set *set = &series_sets()[index];
	volatile struct series_place *place;
	volatile u64 *key;
	u32 way;

#pragma unroll
	for (way = 0; way < SERIES_WAYS; way++) {
		key = (volatile u64 *)&set->keys[way];
		if (key[0] != hash || key[1] != rest)
			continue;
		place = &set->places[way];
		found->slow_ns = place->slow_ns;
		found->row = place->row;
		found->cpu_mask = place->cpu_mask;
		/* Else the agent has just given the way to another. */
		return key[0] == hash && key[1] == rest;
	}
	return false;
}

/* The place of a request that was answered. */
static __always_inline bool place_of(const struct request_record *r, struct series_place *found)
{
	u32 is_client = CLIENTS && r->flags & CLIENT;
	u64 port = is_client ? r->peer_port : r->local_port, status = r->status;
	struct series_place *overflow;

	/* As struct series_key has them, on little-endian machines. */
	if (find_place(r->route_hash ^ hash_process(r), port | status << 16 | (u64)is_client << 32,
		       found))
		return true;
	overflow = LOOKUP(overflow_places, &is_client);
	if (!overflow || !overflow->in_use)
		return false;
	*found = *overflow;
	return true;
}

static __always_inline bool same_order(const struct stamp_order *a, const struct stamp_order *b)
{
	return !((a->words[0] ^ b->words[0]) | (a->words[1] ^ b->words[1]) |
		 (a->words[2] ^ b->words[2]));
}

/* Where the stages of this order are; NULL: nowhere yet. */
static __always_inline const struct stage_order *find_order(const struct stamp_order *order)
{
	u64 word =
		(order->words[0] * PLACE_FACTOR ^ order->words[1]) * PLACE_FACTOR ^ order->words[2];
	u64 at = word * PLACE_FACTOR >> 32 & (STAGE_ORDERS - 1);
	const struct stage_order *found = &stage_orders()[at];

	if (same_order(&found->order, order))
		return found;
	found = &stage_orders()[at ^ 1];
	return NULL_UNLESS(same_order(&found->order, order), found);
}

struct stages {
	struct series *series;
	struct exchange *x;
	const struct stage_order *known;
	u64 end; /* of the latest one */
};

STEP add_stage(u64 turn, struct stages *s)
{
	u8 stamp = stamp_in_order(s->x, turn + 1);
	u64 start = s->end;
	u32 place;

	if (!stamp)
		return 1;
	s->end = stamp_time(s->x, stamp);
	place = s->known->places[at_most(STAMPS_MOST - 1, turn)];
	if (place < STAGE_PLACES)
		add_duration(&s->series->stages[place], s->end - start, &s->x->scratch);
	return 0;
}

/* Adds all stages, and gives when the last one ends: the request's end. */
static __always_inline u64 add_stages(struct series *series, struct exchange *x, u64 first,
				      const struct stage_order *known)
{
	struct stages s = { .series = series, .x = x, .known = known, .end = first };

	REPEAT(STAMP_ACKED - 1, add_stage, &s);
	return s.end;
}

enum added {
	NOT_ADDED, /* there is no place for it yet */
	ADDED,
	ADDED_SLOW, /* and it was slow */
};

/*
 * Adds a request that was answered, and is nobody else's any more, to its series: enum added. A call, as
 * it takes all registers there are, which whoever adds up nothing has for something better.
 */
STEP add_to_series(struct exchange *x, void *context UNUSED)
{
	const struct request_record *r = &x->record;
	struct series_place at = {};
	const struct stage_order *known;
	u64 length, first, end, acked;
	struct series *s;

	if (!place_of(r, &at))
		return NOT_ADDED;
	/* Here: asked for later on it would have the verifier look at half as much again. */
	at.row += bpf_get_smp_processor_id() & at.cpu_mask;
	order_stamps(x);
	known = find_order(&x->order);
	if (!known)
		return NOT_ADDED;
	s = series_at(at.row);
	if (!s)
		return NOT_ADDED;
	first = stamp_time(x, stamp_in_order(x, 0));
	end = add_stages(s, x, first, known);
	length = end - first;
	add_duration(&s->duration, length, &x->scratch);
	acked = r->stamp_ktime_ns[STAMP_ACKED];
	if (acked > end)
		add_duration(&s->acked, acked - end, &x->scratch);
	__sync_fetch_and_add(&s->request_bytes, r->request_bytes);
	__sync_fetch_and_add(&s->response_bytes, r->response_bytes);
	if (r->request_retransmits | r->response_retransmits)
		__sync_fetch_and_add(&s->retransmits,
				     r->request_retransmits + r->response_retransmits);
	if (r->out_of_order)
		__sync_fetch_and_add(&s->out_of_order, r->out_of_order);
	return length >= at.slow_ns ? ADDED_SLOW : ADDED;
}
