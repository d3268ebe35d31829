/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * All requests in sums, whatever becomes of them: each is added to those of its series.
 * The agent is shown what has no place here yet (a series that is new, or an order of stamps, or
 * an end that was not an orderly one), adds that up itself, and gives it a place.
 */

#define ORDER_MASK 31	/* places and stamps are below STAMPS_MOST; this the verifier sees, too */

/* By its place in the order, counted from the first; 0: there are no more. */
static __always_inline u8 stamp_in_order(const struct exchange *x, u64 place)
{
	return ((const volatile u8 *)x->order.words)[place & (ORDER_MASK)];
}

static __always_inline void put_in_order(struct exchange *x, u64 place, u8 stamp)
{
	((volatile u8 *)x->order.words)[place & (ORDER_MASK)] = stamp;
}

/* Stamps are told in an order by their numbers plus one. */
static __always_inline u64 stamp_time(const struct exchange *x, u8 stamp)
{
	return x->record.stamp_ktime_ns[(stamp - 1) & ORDER_MASK];
}

/* Puts a stamp that came before the last one where it belongs. */
static __always_inline void insert_stamp(struct exchange *x, u8 stamp, u64 time)
{
	volatile u64 *place = &x->scratch;
	u64 at;
	u32 i;
	u8 other;

	*place = x->ordered;
	BOUNDED_LOOP
	for (i = 0; i < STAMP_ACKED; i++) {
		at = *place;
		if (!at)
			break;
		other = stamp_in_order(x, at - 1);
		if (time >= stamp_time(x, other))
			break;
		put_in_order(x, at, other);
		*place = at - 1;
	}
	put_in_order(x, *place, stamp);
}

/*
 * When a request that was answered ended; ~0: with its last stamp. A server's ends when the
 * response's last byte has left: its handler may go on, and the rest of a body come too late.
 */
static __always_inline u64 end_of(const struct request_record *r)
{
	u64 last = r->stamp_ktime_ns[STAMP_TC_OUT_LAST], first = r->stamp_ktime_ns[STAMP_TC_OUT];

	if (CLIENTS && r->flags & CLIENT)
		return ~0ULL;
	return (last ? : first) ? : ~0ULL;
}

/*
 * Finds the order of a request's stamps, without those that come after its end; those of the same
 * nanosecond keep the order of the way.
 *
 * It lies in the exchange, not in a register, as what is loaded from there is unknown to the
 * verifier: else it would follow every way to put them in order.
 */
static __always_inline void order_stamps(struct exchange *x)
{
	volatile u32 *ordered = &x->ordered;
	u64 time, last = 0, end = end_of(&x->record);
	u32 i;

	x->order.words[0] = 0;
	x->order.words[1] = 0;
	x->order.words[2] = 0;
	*ordered = 0;
	BOUNDED_LOOP
	for (i = 0; i < STAMP_ACKED; i++) {
		time = x->record.stamp_ktime_ns[i];
		if (!time || time > end)
			continue;
		if (time >= last) {	/* as it mostly is */
			put_in_order(x, *ordered, i + 1);
			last = time;
		} else {
			insert_stamp(x, i + 1, time);
		}
		*ordered += 1;
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
		comm[1]) * PLACE_FACTOR;
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
		found->place = place->place;
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
	if (find_place(r->route_hash ^ hash_process(r),
		       port | status << 16 | (u64)is_client << 32, found))
		return true;
	overflow = overflow_places.lookup(&is_client);
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
	u64 word = (order->words[0] * PLACE_FACTOR ^ order->words[1]) * PLACE_FACTOR ^
		   order->words[2];
	u64 at = word * PLACE_FACTOR >> 32 & (STAGE_ORDERS - 1);
	const struct stage_order *found = &stage_orders()[at];

	if (same_order(&found->order, order))
		return found;
	found = &stage_orders()[at ^ 1];
	return NULL_UNLESS(same_order(&found->order, order), found);
}

/* Adds all stages, and gives when the last one ends: the request's end. */
static __always_inline u64 add_stages(struct series *s, struct exchange *x, u64 first,
				      const struct stage_order *known)
{
	u64 start = first, end;
	u32 i, place;
	u8 stamp;

	BOUNDED_LOOP
	for (i = 0; i < STAMP_ACKED - 1; i++, start = end) {
		stamp = stamp_in_order(x, i + 1);
		if (!stamp)
			break;
		end = stamp_time(x, stamp);
		place = known->places[i];
		if (place < STAGE_PLACES)
			add_duration(&s->stages[place], end - start, &x->scratch);
	}
	return start;
}

/*
 * Adds a request that was answered, and is nobody else's any more, to its series, and
 * says whether it was slow. False: nothing was added, since there is no place for it yet.
 */
static __always_inline bool add_to_series(struct exchange *x, bool *slow)
{
	const struct request_record *r = &x->record;
	struct series_place at = {};
	const struct stage_order *known;
	u64 length, first, end, acked;
	struct series *s;

	if (!place_of(r, &at))
		return false;
	order_stamps(x);
	known = find_order(&x->order);
	if (!known)
		return false;
	s = series_at(at.place);
	if (!s)
		return false;
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
	*slow = length >= at.slow_ns;
	return true;
}
#else
static __always_inline bool add_to_series(struct exchange *x, bool *slow)
{
	return false;
}
#endif
