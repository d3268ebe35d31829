/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * All requests in sums, whatever becomes of them: each is added to those of its series.
 * The agent is shown what has no place here yet (a series or a stage that is new, an end
 * that was not an orderly one), adds that up itself, and gives it a place.
 */

#define STAMP_BITS 4	/* of a key of sort_stamps() are the stamp's number */

/*
 * Words on the stack that are read and written at places unknown to the verifier, which
 * takes them for anything then. Else it would follow every way to fill them.
 */
struct opaque_words {
	u64 of[STAMP_COUNT];
	u32 hidden;		/* 0, which the verifier does not know */
};

static __always_inline volatile u64 *opaque(struct opaque_words *words, u32 at)
{
	return &words->of[(at + words->hidden) & (STAMP_COUNT - 1)];
}

/*
 * The stamps in order of time, each with its number below its time; those of the same
 * nanosecond keep the order of the way. In place of an absent stamp its neighbour is
 * repeated; 0 where there is none before it.
 */
static __always_inline void sort_stamps(const struct request_record *r, struct opaque_words *keys)
{
	u64 key, before, last = 0;
	u32 i, j;

	BOUNDED_LOOP
	for (i = 0; i < STAMP_COUNT; i++) {
		key = r->stamp_ktime_ns[i];
		key = key ? key << STAMP_BITS | i : last;
		/* Most are in order already. */
		BOUNDED_LOOP
		for (j = i; j > 0; j--) {
			before = *opaque(keys, j - 1);
			if (before <= key)
				break;
			*opaque(keys, j) = before;
		}
		*opaque(keys, j) = key;
		last = *opaque(keys, i);
	}
}

/* 1 where n is not 0. Without a branch, for the verifier would go both ways each time. */
static __always_inline u64 is_nonzero(u64 n)
{
	u64 negative = -n;

	asm volatile("" : "+r"(negative));
	return (n | negative) >> 63;
}

/* By halves, since BPF has no instruction for it; n is not 0. */
static __always_inline u64 highest_bit(u64 n)
{
	u64 bit = 0, shift;

#pragma unroll
	for (u32 step = 32; step > 1; step /= 2) {
		shift = is_nonzero(n >> step) * step;
		n >>= shift;
		bit += shift;
	}
	return bit + (n >> 1);
}

#define SHORTEST_NS_BIT 7	/* the first bucket's end, as a power of two */

/* 2^(63 + n / 8), rounded up: the bounds of the buckets within a doubling. */
#define EIGHTH(n)							\
	((n) == 1 ? 0x8b95c1e3ea8bd6e7ULL : (n) == 2 ? 0x9837f0518db8a970ULL :	\
	 (n) == 3 ? 0xa5fed6a9b15138ebULL : (n) == 4 ? 0xb504f333f9de6485ULL :	\
	 (n) == 5 ? 0xc5672a115506dadeULL : (n) == 6 ? 0xd744fccad69d6af5ULL :	\
		    0xeac0c6e7dd24392fULL)

/* The bucket of a duration; its upper bound belongs to it. */
static __always_inline u64 bucket_of(u64 ns)
{
	u64 octave, eighth, mantissa;

	if (ns <= 1ULL << SHORTEST_NS_BIT)
		return 0;
	octave = highest_bit(ns) & 63;
	mantissa = ns << (63 - octave);
	if (mantissa >= EIGHTH(4))
		eighth = mantissa >= EIGHTH(6) ? 6 + (mantissa >= EIGHTH(7))
					       : 4 + (mantissa >= EIGHTH(5));
	else
		eighth = mantissa >= EIGHTH(2) ? 2 + (mantissa >= EIGHTH(3))
					       : mantissa >= EIGHTH(1);
	/* A power of two is the bound itself. */
	return at_most(HISTOGRAM_BUCKETS - 1, (octave - SHORTEST_NS_BIT) * 8 + eighth +
					      (mantissa != 1ULL << 63));
}

static __always_inline void add_duration(struct histogram *h, u64 ns)
{
	__sync_fetch_and_add(&h->sum_ns, ns);
	__sync_fetch_and_add(&h->counts[bucket_of(ns)], 1);
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

#define PLACE_BITS 8	/* of a word of find_stages() are 1 + the stage's place */

/* Puts each stage's length and place where its last stamp is. False: one has no place yet. */
static __always_inline bool find_stages(struct opaque_words *keys, struct opaque_words *stages)
{
	u64 before = *opaque(keys, 0), key, place;
	struct stage_places *places;
	int zero = 0;
	u32 i;

	places = stage_places.lookup(&zero);
	if (!places)
		return false;
	BOUNDED_LOOP
	for (i = 1; i < STAMP_COUNT; i++, before = key) {
		key = *opaque(keys, i);
		*opaque(stages, i) = 0;
		if (!before || key == before)
			continue;
		place = places->of[(before & (STAMP_COUNT - 1)) * STAMP_COUNT +
				   (key & (STAMP_COUNT - 1))];
		if (!place)
			return false;
		*opaque(stages, i) = ((key >> STAMP_BITS) - (before >> STAMP_BITS)) << PLACE_BITS |
				     place;
	}
	return true;
}

/* Adds what was found, and gives the request's length. */
static __always_inline u64 add_stages(struct series *s, struct opaque_words *stages)
{
	volatile u64 *total = opaque(stages, 0);
	u64 stage, place;
	u32 i;

	*total = 0;

	BOUNDED_LOOP
	for (i = 1; i < STAMP_COUNT; i++) {
		stage = *opaque(stages, i);
		place = (stage & ((1 << PLACE_BITS) - 1)) - 1;
		stage >>= PLACE_BITS;
		*total += stage;
		if (place < STAGE_PLACES)
			add_duration(&s->stages[place], stage);
	}
	stage = *total;
	add_duration(&s->duration, stage);
	return stage;
}

/*
 * Adds a request that was answered to its series, and says whether it was slow. False:
 * nothing was added, since there is no place for it yet.
 */
static __always_inline bool add_to_series(const struct request_record *r, bool *slow)
{
	struct opaque_words keys = { .hidden = r->unused }, stages = { .hidden = r->unused };
	const struct series_place *at = place_of(r);
	struct series *s;
	u32 place;

	if (!at)
		return false;
	place = at->place;
	s = series.lookup(&place);
	if (!s)
		return false;
	sort_stamps(r, &keys);
	if (!find_stages(&keys, &stages))
		return false;
	*slow = add_stages(s, &stages) >= at->slow_ns;
	__sync_fetch_and_add(&s->request_bytes, r->request_bytes);
	__sync_fetch_and_add(&s->response_bytes, r->response_bytes);
	if (r->request_retransmits | r->response_retransmits)
		__sync_fetch_and_add(&s->retransmits,
				     r->request_retransmits + r->response_retransmits);
	if (r->out_of_order)
		__sync_fetch_and_add(&s->out_of_order, r->out_of_order);
	return true;
}
#else
static __always_inline bool add_to_series(const struct request_record *r, bool *slow)
{
	return false;
}
#endif
