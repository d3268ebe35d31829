/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The arrays that packets and calls of sockets look at. Each is the one value of a map of its own:
 * so the programs have its address, and to reach an element takes no look-up, a third of the
 * instructions, and no test for NULL where the index cannot be too high.
 *
 * Made by the loader before BCC compiles the programs, and set by it: FD_<name>, the map, and
 * <TYPE>_BYTES of what only the programs know.
 */

#define BPF_PSEUDO_MAP_VALUE 2	/* in uapi/linux/bpf.h, too */

/* Its first element. clang cannot know that a map has an address. */
#define DEFINE_ARRAY(type, name)							\
	static __always_inline type *name(void)						\
	{										\
		type *first = (type *)bpf_pseudo_fd(BPF_PSEUDO_MAP_VALUE, FD_##name);	\
											\
		if (!first)								\
			__builtin_unreachable();					\
		return first;								\
	}

/*
 * The same value, of which the verifier knows nothing any more: else it would go on from here once
 * for each way by which it came about. Of `unknown` it knows nothing either.
 */
static __always_inline u64 forgotten(u64 value, u64 unknown)
{
	asm volatile("%0 ^= %1\n\t%0 ^= %1" : "+r"(value) : "r"(unknown));
	return value;
}

/* The element at `index`; NULL where there is none. */
#define DEFINE_ELEMENT(type, name, array, count)					\
	static __always_inline type *name(u64 index)					\
	{										\
		type *element;								\
											\
		/* What is compared is what is multiplied: the verifier sees the bound. */	\
		asm volatile("" : "+r"(index));						\
		if (index >= (count))							\
			return NULL;							\
		element = &array()[index];						\
		asm volatile("" : "+r"(element));					\
		if (!element)								\
			__builtin_unreachable();					\
		return element;								\
	}

#define ASSERT_BYTES(type, bytes)							\
	_Static_assert(sizeof(struct type) == (bytes), "say so in src/otelbpf/arrays.py")

ASSERT_BYTES(scratch, SCRATCH_BYTES);
ASSERT_BYTES(connection, CONNECTION_BYTES);
ASSERT_BYTES(reader, READER_BYTES);
ASSERT_BYTES(settings, SETTINGS_BYTES);

DEFINE_ARRAY(struct scratch, scratches)
DEFINE_ARRAY(struct connection, connections)
DEFINE_ARRAY(struct connection_tags, connection_tags)
DEFINE_ARRAY(u32, socket_places)
DEFINE_ARRAY(struct exchange, exchanges)
DEFINE_ARRAY(struct reader, readers)
DEFINE_ARRAY(u64, ring)
DEFINE_ARRAY(struct ring_ends, ring_ends)
DEFINE_ARRAY(struct settings, settings)
#if SERIES
DEFINE_ARRAY(struct series, series)
DEFINE_ARRAY(struct series_set, series_sets)
DEFINE_ARRAY(struct stage_order, stage_orders)
DEFINE_ARRAY(struct connection_sums, connection_sums)
#endif

DEFINE_ELEMENT(struct connection, connection_at, connections, CONNECTION_SETS * WAYS)
DEFINE_ELEMENT(struct exchange, exchange_at, exchanges, MAX_EXCHANGES)
#if SERIES
DEFINE_ELEMENT(struct series, series_at, series, MAX_SERIES)
#endif

static __always_inline struct scratch *own_scratch(void)
{
	return &scratches()[bpf_get_smp_processor_id() & (CPU_SLOTS - 1)];
}

/* The place of a task that reads, which others share. */
static __always_inline struct reader *reader_at(u32 tid)
{
	return &readers()[tid & (READER_SLOTS - 1)];
}
