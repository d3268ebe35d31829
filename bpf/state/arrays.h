/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The arrays that packets and calls of sockets look at. Each is the one value of a map of its own:
 * so the programs have its address, and an element is reached by an addition, without a look-up and,
 * where the index cannot be too high, without a test for NULL.
 *
 * src/otelbpf/kernel/arrays.py makes their maps, as long as bpf/configuration.h says: what has a mask, and
 * READER_SLOTS, SERIES_SETS and STAGE_ORDERS are powers of two; the ring is to hold RING_MAX at most. In an
 * object each is a section of its own, whose map is that one.
 */
#pragma once

#include "configuration.h"
#include "kernel/verifier.h"

/* Its first element. clang cannot know that a map has an address, or how long a section will be. */
#ifdef BCC_BUILD
#define DEFINE_ARRAY(type, name)                                                  \
	static __always_inline type *name(void)                                   \
	{                                                                         \
		type *first = (type *)bpf_pseudo_fd(PSEUDO_MAP_VALUE, FD_##name); \
                                                                                  \
		if (!first)                                                       \
			__builtin_unreachable();                                  \
		return first;                                                     \
	}
#elif defined(HOST_BUILD)
#define DEFINE_ARRAY(type, name)   \
	static type *name##_array; \
	static __always_inline type *name(void) { return name##_array; }
#else
#define DEFINE_ARRAY(type, name)                                           \
	__attribute__((weak)) type name##_array[1] SECTION(".bss." #name); \
	static __always_inline type *name(void) { return name##_array; }
#endif

/* The element at `index`; NULL where there is none. */
#define DEFINE_ELEMENT(type, name, array, count) DEFINE_ELEMENT_OF(type, name, array, count, index)

/* The same, of an index that clang may keep on the stack meanwhile; it costs an instruction more. */
#define DEFINE_ELEMENT_KEPT(type, name, array, count) \
	DEFINE_ELEMENT_OF(type, name, array, count, below(count, index))

#define DEFINE_ELEMENT_OF(type, name, array, count, bounded)                               \
	static __always_inline type *name(u64 index)                                       \
	{                                                                                  \
		type *element;                                                             \
                                                                                           \
		/* What is compared is what is multiplied: the verifier sees the bound. */ \
		asm volatile("" : "+r"(index));                                            \
		if (index >= (count))                                                      \
			return NULL;                                                       \
		element = &array()[bounded];                                               \
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
#define ASSERT_BYTES(type, bytes) _Static_assert(sizeof(struct type) % 8 == 0, "to be mapped")
#endif
