/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The arrays that packets and calls of sockets look at. Each is the one value of a map of its own:
 * so the programs have its address, and an element is reached by an addition, without a look-up and,
 * where the index cannot be too high, without a test for NULL.
 *
 * src/otelbpf/kernel/arrays.py makes them before the programs are compiled, and sets FD_<name>, the
 * maps; how long they are: CPU_SLOTS, SOCKET_SLOTS, READER_SLOTS, RING_SLOTS, SERIES_SETS and STAGE_ORDERS,
 * which are powers of two, CONNECTION_SETS, MAX_EXCHANGES, MAX_SERIES, and RING_MAX, which the ring is
 * to hold at most.
 */
#pragma once

#include "configuration.h"

/* Its first element. clang cannot know that a map has an address. */
#define DEFINE_ARRAY(type, name)                                                  \
	STAND_IN_FD(name)                                                         \
	static __always_inline type *name(void)                                   \
	{                                                                         \
		type *first = (type *)bpf_pseudo_fd(PSEUDO_MAP_VALUE, FD_##name); \
                                                                                  \
		if (!first)                                                       \
			__builtin_unreachable();                                  \
		return first;                                                     \
	}

/* The element at `index`; NULL where there is none. */
#define DEFINE_ELEMENT(type, name, array, count)                                           \
	static __always_inline type *name(u64 index)                                       \
	{                                                                                  \
		type *element;                                                             \
                                                                                           \
		/* What is compared is what is multiplied: the verifier sees the bound. */ \
		asm volatile("" : "+r"(index));                                            \
		if (index >= (count))                                                      \
			return NULL;                                                       \
		element = &array()[index];                                                 \
		asm volatile("" : "+r"(element));                                          \
		if (!element)                                                              \
			__builtin_unreachable();                                           \
		return element;                                                            \
	}

/* Is a struct as long as the agent takes it to be? */
#ifdef BCC_BUILD
#define ASSERT_BYTES(type, bytes) \
	_Static_assert(sizeof(struct type) == (bytes), "run scripts/generate-records")
#else
#define ASSERT_BYTES(type, bytes) _Static_assert(sizeof(struct type) % 8 == 0, "it is to be mapped")
#endif
