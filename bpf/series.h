/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * All requests in sums, whatever becomes of them: each is added to those of its series.
 * The agent is shown what has no place here yet (a series that is new, or an order of stamps, or
 * an end that was not an orderly one), adds that up itself, and gives it a place.
 */

#define STAMP_BITS 4	/* of an order of stamps is each stamp's number */
#define NO_STAMPS 1	/* in order */

static __always_inline u64 stamp_time(const struct exchange *x, u64 order)
{
	return x->record.stamp_ktime_ns[order & (STAMP_COUNT - 1)];
}

/* Puts a stamp that came before the last one where it belongs. */
static __always_inline u64 insert_stamp(const struct exchange *x, u64 order, u64 number, u64 time)
{
	u64 later = 0;
	u32 bits = 0;

	BOUNDED_LOOP
	while (bits < 60 && order != NO_STAMPS && time < stamp_time(x, order)) {
		later |= (order & (STAMP_COUNT - 1)) << bits;
		bits += STAMP_BITS;
		order >>= STAMP_BITS;
	}
	return (order << STAMP_BITS | number) << bits | later;
}

/*
 * The order of a request's stamps, as struct stage_order has it; those of the same nanosecond
 * keep the order of the way. 0 where all are there, for which it has no room.
 *
 * It lies in the exchange, not in a register, as what is loaded from there is unknown to the
 * verifier: else it would follow every way to put them in order.
 */
static __always_inline u64 order_of_stamps(struct exchange *x)
{
	volatile u64 *order = &x->order;
	u64 time, last = 0;
	u32 i, absent = 0;

	*order = NO_STAMPS;
	BOUNDED_LOOP
	for (i = 0; i < STAMP_COUNT; i++) {
		time = x->record.stamp_ktime_ns[i];
		if (!time) {
			absent = 1;
		} else if (time >= last) {	/* as it mostly is */
			*order = *order << STAMP_BITS | i;
			last = time;
		} else {
			*order = insert_stamp(x, *order, i, time);
		}
	}
	return absent ? *order : 0;
}

/* By halves, since BPF has no instruction for it; n is not 0. */
static __always_inline u64 highest_bit(u64 n)
{
	u64 bit = 0;

#pragma unroll
	for (u32 step = 32; step; step /= 2) {
		if (n >= 1ULL << step) {
			n >>= step;
			bit += step;
			/* Else the compiler works out both outcomes and compares twice. */
			asm volatile("" : "+r"(n), "+r"(bit));
		}
	}
	return bit;
}

#define SHORTEST_NS 119	/* 2^-23 s: the first bucket's end */

/* 10^9 * 2^(n / 8 + 33): where buckets end, between a power of two of ns and the next one. */
#define BOUND(n)							\
	((n) == 1 ? 0x81ffa7a9549ca6e3ULL : (n) == 2 ? 0x8dc3b8960164a7d9ULL :	\
	 (n) == 3 ? 0x9a9867054d512391ULL : (n) == 4 ? 0xa8965f74bf065071ULL :	\
	 (n) == 5 ? 0xb7d88a12d0dd9ea0ULL : (n) == 6 ? 0xc87c3e7d03cdbec3ULL :	\
	 (n) == 7 ? 0xdaa17c2cd19555dbULL : 0xee6b280000000000ULL)

/*
 * The bucket of a duration; its upper bound belongs to it.
 *
 * Args: memory: of a map; what comes back from there may be anything to the verifier, so
 * that it need not go on with each power of two on its own.
 */
static __always_inline u64 bucket_of(u64 ns, volatile u64 *memory)
{
	u64 bit, mantissa, passed;

	if (ns <= SHORTEST_NS)
		return 0;
	*memory = highest_bit(ns);
	bit = *memory & 63;
	mantissa = ns << (63 - bit);
	if (mantissa > BOUND(4)) {
		if (mantissa > BOUND(6))
			passed = mantissa > BOUND(7) ? 7 + (mantissa > BOUND(8)) : 6;
		else
			passed = 4 + (mantissa > BOUND(5));
	} else {
		passed = mantissa > BOUND(2) ? 2 + (mantissa > BOUND(3)) : mantissa > BOUND(1);
	}
	return at_most(HISTOGRAM_BUCKETS - 1, bit * 8 + passed - 55);
}

static __always_inline void add_duration(struct histogram *h, u64 ns, volatile u64 *memory)
{
	__sync_fetch_and_add(&h->sum_ns, ns);
	__sync_fetch_and_add(&h->counts[bucket_of(ns, memory)], 1);
}

#if SERIES
/* Where the requests with this key, in two words, are added up; false: nowhere yet. */
static __always_inline bool find_place(u64 route_hash, u64 rest, struct series_place *found)
{
	u64 index = (route_hash ^ rest) * PLACE_FACTOR >> 32 & (SERIES_SETS - 1);
	struct series_set *set = &series_sets()[index];
	volatile struct series_place *place;
	volatile u64 *key;
	u32 way;

#pragma unroll
	for (way = 0; way < SERIES_WAYS; way++) {
		key = (volatile u64 *)&set->keys[way];
		if (key[0] != route_hash || key[1] != rest)
			continue;
		place = &set->places[way];
		found->slow_ns = place->slow_ns;
		found->place = place->place;
		/* Else the agent has just given the way to another. */
		return key[0] == route_hash && key[1] == rest;
	}
	return false;
}

/* The place of a request that was answered. */
static __always_inline bool place_of(const struct request_record *r, struct series_place *found)
{
	u32 is_client = CLIENTS && r->flags & CLIENT;
	u64 port = is_client ? r->peer_port : r->local_port, status_class = r->status / 100;
	struct series_place *overflow;

	/* As struct series_key has them, on little-endian machines. */
	if (find_place(r->route_hash, port | status_class << 16 | (u64)is_client << 24, found))
		return true;
	overflow = overflow_places.lookup(&is_client);
	if (!overflow || !overflow->in_use)
		return false;
	*found = *overflow;
	return true;
}

/* Where the stages of this order are; NULL: nowhere yet. */
static __always_inline const struct stage_order *find_order(u64 order)
{
	u64 at = order * PLACE_FACTOR >> 32 & (STAGE_ORDERS - 1);
	const struct stage_order *found = &stage_orders()[at];

	if (found->order == order)
		return found;
	found = &stage_orders()[at ^ 1];
	return NULL_UNLESS(found->order == order, found);
}

/*
 * Adds all stages, the last one first, and uses up exchange.order; gives what is then left of
 * the order: the first stamp.
 */
static __always_inline u64 add_stages(struct series *s, struct exchange *x, u64 order,
				      const struct stage_order *known)
{
	u64 end = stamp_time(x, order), start;
	u32 i, place;

	BOUNDED_LOOP
	for (i = 0; i < STAMP_COUNT - 2; i++, end = start) {
		if (order >> STAMP_BITS == NO_STAMPS)
			break;
		order >>= STAMP_BITS;
		start = stamp_time(x, order);
		place = known->places[i];
		if (place < STAGE_PLACES)
			add_duration(&s->stages[place], end - start, &x->order);
	}
	return order;
}

/*
 * Adds a request that was answered, and is nobody else's any more, to its series, and
 * says whether it was slow. False: nothing was added, since there is no place for it yet.
 */
static __always_inline bool add_to_series(struct exchange *x, bool *slow)
{
	const struct request_record *r = &x->record;
	struct series_place at = {};
	u64 order = place_of(r, &at) ? order_of_stamps(x) : 0, length;
	const struct stage_order *known = order ? find_order(order) : NULL;
	struct series *s;

	if (!known)
		return false;
	s = series_at(at.place);
	if (!s)
		return false;
	length = stamp_time(x, order) - stamp_time(x, add_stages(s, x, order, known));
	add_duration(&s->duration, length, &x->order);
	__sync_fetch_and_add(&s->request_bytes, r->request_bytes);
	__sync_fetch_and_add(&s->response_bytes, r->response_bytes);
	if (r->request_retransmits | r->response_retransmits)
		__sync_fetch_and_add(&s->retransmits,
				     r->request_retransmits + r->response_retransmits);
	if (r->out_of_order)
		__sync_fetch_and_add(&s->out_of_order, r->out_of_order);
	*slow = length >= at.slow_ns;
	return true;
}
#else
static __always_inline bool add_to_series(struct exchange *x, bool *slow)
{
	return false;
}
#endif
