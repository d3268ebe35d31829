/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The order in which a request's stamps came. */
#pragma once

#include "abi/records.h"
#include "configuration.h"
#include "kernel/verifier.h"

#define ORDER_MASK 31 /* places and stamps are below STAMPS_MOST; this the verifier sees, too */

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
	return (last ?: first) ?: ~0ULL;
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
		if (time >= last) { /* as it mostly is */
			put_in_order(x, *ordered, i + 1);
			last = time;
		} else {
			insert_stamp(x, i + 1, time);
		}
		*ordered += 1;
	}
}
