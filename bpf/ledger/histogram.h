/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Durations in buckets. */
#pragma once

#include "abi/records.h"
#include "kernel/verifier.h"

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

#define SHORTEST_NS 119 /* 2^-23 s: the first bucket's end */

/* 10^9 * 2^(n / 8 + 33): where buckets end, between a power of two of ns and the next one. */
#define BOUND(n)                            \
	((n) == 1   ? 0x81ffa7a9549ca6e3ULL \
	 : (n) == 2 ? 0x8dc3b8960164a7d9ULL \
	 : (n) == 3 ? 0x9a9867054d512391ULL \
	 : (n) == 4 ? 0xa8965f74bf065071ULL \
	 : (n) == 5 ? 0xb7d88a12d0dd9ea0ULL \
	 : (n) == 6 ? 0xc87c3e7d03cdbec3ULL \
	 : (n) == 7 ? 0xdaa17c2cd19555dbULL \
		    : 0xee6b280000000000ULL)

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
