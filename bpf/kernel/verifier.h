/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the verifier, or a compiler, must be told so that they follow the code. */
#pragma once

#include "target.h"

/* A loop that stays a loop: unrolled it would only make the verifier's way longer. */
#define BOUNDED_LOOP _Pragma("clang loop unroll(disable)")

/*
 * A loop that the verifier walks through once: it calls step(turn, context) up to `count` times, until
 * that returns 1. BCC has no calls between functions, so there it goes round, and the verifier with it.
 */
#ifdef BCC_BUILD
#define STEP static __always_inline long
#define REPEAT(count, step, context)                   \
	do {                                           \
		u64 turn;                              \
                                                       \
		BOUNDED_LOOP                           \
		for (turn = 0; turn < (count); turn++) \
			if (step(turn, context))       \
				break;                 \
	} while (0)
#else
#define STEP static __attribute__((noinline)) long
#define REPEAT(count, step, context) bpf_loop(count, step, context, 0)
#endif

/* What is seldom run, and would else take registers from what often is. BCC has it inline. */
#define SELDOM STEP

/* The same of what knows nothing of who calls it: the verifier goes through it once, by itself. */
#if defined(BCC_BUILD) || defined(HOST_BUILD)
#define VERIFIED_ONCE STEP
#else
#define VERIFIED_ONCE __attribute__((noinline)) long
#endif

/* How much one turn is to take: the more, the more ways through it, of which BCC's turns have each. */
#ifdef BCC_BUILD
#define TAKEN_EACH(in_an_object, by_bcc) (by_bcc)
#else
#define TAKEN_EACH(in_an_object, by_bcc) (in_an_object)
#endif

/* A step of several: for what is short a call each time would cost more than it does itself. */
#define STEPS(name, type, one, each, ...)                \
	STEP name(u64 turn UNUSED, type *context)        \
	{                                                \
		u32 i;                                   \
                                                         \
		BOUNDED_LOOP                             \
		for (i = 0; i < (each); i++)             \
			if (one(context, ##__VA_ARGS__)) \
				return 1;                \
		return 0;                                \
	}

/* At most max, in a way that the verifier can follow and the compiler cannot undo. */
static __always_inline u64 at_most(u64 max, u64 value)
{
	asm volatile("" : "+r"(value));
	if (value > max)
		value = max;
	asm volatile("" : "+r"(value));
	return value;
}

/*
 * An index that was found to be below a count, which the verifier now knows: where clang had kept the
 * index on the stack while it was compared, 6.1's knows no bound of what is read back from there.
 */
static __always_inline u64 below(u64 count UNUSED, u64 index)
{
#ifndef HOST_BUILD /* where no verifier is */
	asm volatile("if %0 < %1 goto +1\n\t%0 = 0" : "+r"(index) : "r"(count));
#endif
	return index;
}

/*
 * A pointer that is NULL where something else does not hold: is it? Without this clang may test that
 * other thing again instead of the pointer, from which the verifier cannot tell that it is not NULL.
 */
#define NULL_UNLESS(condition, pointer)                           \
	({                                                        \
		typeof(pointer) pointer_or_null = NULL;           \
                                                                  \
		if (condition) {                                  \
			pointer_or_null = (pointer);              \
			asm volatile("" : "+r"(pointer_or_null)); \
			if (!pointer_or_null)                     \
				__builtin_unreachable();          \
		}                                                 \
		pointer_or_null;                                  \
	})

/*
 * The same value, of which the verifier knows nothing any more: else it would go on from here once
 * for each way by which it came about. Of `unknown` it knows nothing either.
 */
static __always_inline u64 forgotten(u64 value, u64 unknown UNUSED)
{
#ifndef HOST_BUILD /* where no verifier is */
	asm volatile("%0 ^= %1\n\t%0 ^= %1" : "+r"(value) : "r"(unknown));
#endif
	return value;
}

/*
 * Flips bits, where this is said. Else clang, to say it once for several such places, would
 * set the constant before the branches that lead to them, in the way of all that goes elsewhere. To the
 * verifier, which does not know what they are, what comes of it looks the same for all constants.
 */
#ifdef HOST_BUILD
#define FLIP_BITS_HERE(variable, constant) ((variable) ^= (constant))
#else
#define FLIP_BITS_HERE(variable, constant) asm volatile("%0 ^= %1" : "+r"(variable) : "i"(constant))
#endif

/* Puts `to` where `from` is; false, and does not, where something else is. */
static __always_inline bool swap(u64 *where, u64 from, u64 to)
{
	u64 found = __sync_val_compare_and_swap(where, from, to);

	/* Else clang would make a number of whether it was, to compare that. */
	asm volatile("" : "+r"(found));
	return found == from;
}

/*
 * A copy of a pointer to use as a map's key. A key lies in memory, and what was
 * read back from there is no pointer to the verifiers of 6.1 and 6.12 any more:
 * the compiler must not use this copy in the original's place.
 */
static __always_inline u64 as_number(u64 pointer)
{
	asm volatile("" : "+r"(pointer));
	return pointer;
}
