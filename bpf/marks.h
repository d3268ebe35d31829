/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* When which bytes of a connection passed a point, for whoever looks at them later. */

/* Sequence numbers and ordinals wrap; compare them as the kernel does. */
static __always_inline bool before(u32 a, u32 b) { return (s32)(a - b) < 0; }

/* Where the next of `count` marks so far goes. */
static __always_inline u32 mark_index(u32 count)
{
	return count == 0 ? 0 : 1 + ((count - 1) & (MARKS_RECENT - 1));
}

static __always_inline void mark(struct marks *m, u32 seq, u64 ktime_ns, bool was_empty)
{
	u32 n = was_empty ? 0 : m->count;
	u32 i = mark_index(n);

	m->seq[i] = seq;
	m->ktime_ns[i] = ktime_ns;
	m->count = n + 1;
}

/* When the byte `seq` passed, or 0 where that is no longer known. */
static __always_inline u64 mark_of(const struct marks *m, u32 seq)
{
	u32 n = m->count, best_seq, i;
	u64 ktime_ns;
	bool found;

	if (n == 0)
		return 0;
	found = !before(seq, m->seq[0]);
	best_seq = m->seq[0];
	ktime_ns = m->ktime_ns[0];
	if (n == 1)
		return found ? ktime_ns : 0;
	/*
	 * Once recent marks were overwritten there is a hole after the first one,
	 * which then stands for its own first byte alone.
	 */
	if (n > 1 + MARKS_RECENT && seq != best_seq)
		found = false;
	BOUNDED_LOOP
	for (i = 1; i <= MARKS_RECENT; i++) {
		if (i >= n || before(seq, m->seq[i]))
			continue;
		/* Of two marks for the same byte the earlier one counts: a retransmission
		 * came later. */
		if (!found || before(best_seq, m->seq[i]) ||
		    (best_seq == m->seq[i] && m->ktime_ns[i] < ktime_ns)) {
			found = true;
			best_seq = m->seq[i];
			ktime_ns = m->ktime_ns[i];
		}
	}
	return found ? ktime_ns : 0;
}

/*
 * A packet with the bytes [seq, end) came. TC has taken all that was noted before
 * it if it takes this one next, unless packets overtook it on their way here.
 */
static __always_inline void note_arrival(struct arrivals *a, u32 seq, u32 end, u64 ktime_ns,
					 bool is_next)
{
	u32 n = a->count, i;

	if (is_next && !(n && before(seq, a->seq[mark_index(n - 1)])))
		n = 0;
	i = mark_index(n);
	a->seq[i] = seq;
	a->end[i] = end;
	a->ktime_ns[i] = ktime_ns;
	a->count = n + 1;
}

/*
 * When the byte `seq` first came, or 0 where that is no longer known. Kept in the
 * map while it is looked for, for the reason given at scan_lines().
 */
static __always_inline u64 arrival_of(struct arrivals *a, u32 seq)
{
	volatile u64 *found = &a->found_ktime_ns;
	u32 n = a->count, i;

	if (n == 1)
		return before(seq, a->seq[0]) || !before(seq, a->end[0]) ? 0 : a->ktime_ns[0];
	*found = 0;
	BOUNDED_LOOP
	for (i = 0; i <= MARKS_RECENT; i++) {
		/* No break: the verifier of 6.1 could not tell that what clang makes of it ends. */
		if (i >= n || before(seq, a->seq[i]) || !before(seq, a->end[i]))
			continue;
		if (!*found || a->ktime_ns[i] < *found)
			*found = a->ktime_ns[i];
	}
	return *found;
}
