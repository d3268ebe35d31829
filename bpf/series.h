/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * All requests in sums, whatever becomes of them: each is added to those of its series.
 * The agent is shown what has no place here yet (a series or a stage that is new, an end
 * that was not an orderly one), adds that up itself, and gives it a place.
 */

#define STAMP_BITS 4	/* of a word of exchange.stamps are the stamp's number */

/*
 * Puts the stamps in order of time, each with its number below its time; those of the
 * same nanosecond keep the order of the way. In place of an absent stamp its neighbour is
 * repeated; 0 where there is none before it.
 *
 * They lie in the exchange, not on the stack, as what is loaded from there is unknown to
 * the verifier: else it would follow every way to fill them.
 */
static __always_inline void sort_stamps(struct exchange *x)
{
	u64 *sorted = x->stamps, time, key, before, last = 0;
	u32 i, j;

	BOUNDED_LOOP
	for (i = 0; i < STAMP_COUNT; i++) {
		time = x->record.stamp_ktime_ns[i];
		if (!time) {
			sorted[i] = last;
			continue;
		}
		key = time << STAMP_BITS | i;
		if (last < key) {	/* as it mostly is */
			sorted[i] = key;
			last = key;
			continue;
		}
		BOUNDED_LOOP
		for (j = i; j > 0; j--) {
			before = sorted[j - 1];
			if (before <= key)
				break;
			sorted[j] = before;
		}
		sorted[j] = key;
	}
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
		}
		/* Else the compiler makes it a tangle of twice the length. */
		asm volatile("" : "+r"(n), "+r"(bit));
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
static __always_inline struct series_place *place_of(const struct request_record *r)
{
	struct series_key key = { .route_hash = r->route_hash, .status_class = r->status / 100 };
	struct series_place *at;
	u32 is_client;

	key.is_client = CLIENTS && r->flags & CLIENT;
	key.port = key.is_client ? r->peer_port : r->local_port;
	at = series_places.lookup(&key);
	if (at)
		return at;
	is_client = key.is_client;
	at = overflow_places.lookup(&is_client);
	return at && at->in_use ? at : NULL;
}

/* 1 + the place of the stage between two words of exchange.stamps; 0: it has none yet. */
static __always_inline u32 stage_place(const struct stage_places *places, u64 first, u64 second)
{
	u64 row = (first & (STAMP_COUNT - 1)) * STAMP_COUNT;

	/* Else clang makes an OR of the sum, of which 6.1 knows no bounds. */
	asm volatile("" : "+r"(row));
	return places->of[row + (second & (STAMP_COUNT - 1))];
}

/* Has every stage a place? */
static __always_inline bool stages_are_known(const u64 *sorted, const struct stage_places *places)
{
	u64 first = sorted[0], second;
	u32 i;

	BOUNDED_LOOP
	for (i = 1; i < STAMP_COUNT; i++, first = second) {
		second = sorted[i];
		if (second != first && first && !stage_place(places, first, second))
			return false;
	}
	return true;
}

/* Adds all stages; uses up the first word. */
static __always_inline void add_stages(struct series *s, u64 *sorted,
				       const struct stage_places *places)
{
	u64 first = sorted[0], second;
	u32 i, place;

	BOUNDED_LOOP
	for (i = 1; i < STAMP_COUNT; i++, first = second) {
		second = sorted[i];
		if (second == first || !first)
			continue;
		place = stage_place(places, first, second) - 1;
		if (place < STAGE_PLACES)
			add_duration(&s->stages[place],
				     (second >> STAMP_BITS) - (first >> STAMP_BITS), sorted);
	}
}

/* From the first stamp to the last. */
static __always_inline u64 length_of(const u64 *sorted)
{
	u64 first = 0;
	u32 i;

	BOUNDED_LOOP
	for (i = 0; i < STAMP_COUNT && !first; i++)
		first = sorted[i];
	return (sorted[STAMP_COUNT - 1] >> STAMP_BITS) - (first >> STAMP_BITS);
}

/*
 * Adds a request that was answered, and is nobody else's any more, to its series, and
 * says whether it was slow. False: nothing was added, since there is no place for it yet.
 */
static __always_inline bool add_to_series(struct exchange *x, bool *slow)
{
	const struct request_record *r = &x->record;
	const struct series_place *at = place_of(r);
	const struct stage_places *places;
	struct series *s;
	int zero = 0;
	u32 place;
	u64 length;

	places = stage_places.lookup(&zero);
	if (!at || !places)
		return false;
	place = at->place;
	s = series.lookup(&place);
	if (!s)
		return false;
	sort_stamps(x);
	if (!stages_are_known(x->stamps, places))
		return false;
	length = length_of(x->stamps);
	add_stages(s, x->stamps, places);
	add_duration(&s->duration, length, x->stamps);
	__sync_fetch_and_add(&s->request_bytes, r->request_bytes);
	__sync_fetch_and_add(&s->response_bytes, r->response_bytes);
	if (r->request_retransmits | r->response_retransmits)
		__sync_fetch_and_add(&s->retransmits,
				     r->request_retransmits + r->response_retransmits);
	if (r->out_of_order)
		__sync_fetch_and_add(&s->out_of_order, r->out_of_order);
	*slow = length >= at->slow_ns;
	return true;
}
#else
static __always_inline bool add_to_series(struct exchange *x, bool *slow)
{
	return false;
}
#endif
