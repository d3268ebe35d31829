/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The arrays that packets and calls of sockets look at. Each is the one value of a map of its own:
 * so the programs have its address, and an element is reached by an addition, without a look-up and,
 * where the index cannot be too high, without a test for NULL.
 *
 * src/otelbpf/kernel/arrays.py makes them before BCC compiles the programs, and sets FD_<name>, the
 * maps; how long they are: CPU_SLOTS, SOCKET_SLOTS, READER_SLOTS, RING_SLOTS, SERIES_SETS and STAGE_ORDERS,
 * which are powers of two, CONNECTION_SETS, MAX_EXCHANGES, MAX_SERIES, and RING_MAX, which the ring is
 * to hold at most; and what it takes the sizes of elements to be that only the programs know,
 * <TYPE>_BYTES.
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
	_Static_assert(sizeof(struct type) == (bytes), "say so in src/otelbpf/kernel/arrays.py")

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
DEFINE_ARRAY(struct notices, notices)
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
