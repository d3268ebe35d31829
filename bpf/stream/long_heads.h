/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The bytes of heads that take several segments. Should one of these come again it cannot be read again,
 * as it begins or ends in the middle of a line: so the bytes are compared. So are those of interim
 * responses, of which else nothing is left.
 *
 * Not in what BCC compiles: it would have the verifier go through all this wherever a head is read.
 */
#pragma once

#include "kernel/verifier.h"
#include "state/connection.h"
#include "state/scratch.h"
#include "stream/sequence.h"
#include "stream/source.h"

#define LONG_HEAD_MAX 4096 /* bytes that are kept of one; a power of two */
#define BLOCK_BYTES 256    /* a power of two */
#define BLOCKS_MAX (LONG_HEAD_MAX / BLOCK_BYTES)
#define BLOCK_AT (CARRY_MAX + WINDOW_MAX + 8) /* in the window, behind what is read of the head */

_Static_assert(BLOCK_AT + 2 * BLOCK_BYTES <= WINDOW_MASK + 1, "two blocks are in the window");

/* What came in of the head that took several segments last, and of what followed it there. */
struct long_head {
	u32 start; /* sequence numbers */
	u32 end;
	u8 bytes[LONG_HEAD_MAX + BLOCK_BYTES];
};

/* By the connection's id. What is evicted cannot be compared, should it come again. */
MAP(LRU_HASH, long_heads, u64, struct long_head, 512)
MAP(ARRAY, blank_long_head, u32, struct long_head, 1)

/* What the loops over blocks carry. */
struct block_cursor {
	struct __sk_buff *skb;
	struct scratch *s;
	struct long_head *head;
	u64 at;      /* in the payload */
	u64 end;     /* there */
	u64 source;  /* enum source */
	u64 differs; /* does a byte, or could it not be looked at? */
};

static __always_inline u64 block_length(const struct block_cursor *c)
{
	u64 left = c->end - c->at;

	if (left > BLOCK_BYTES)
		left = BLOCK_BYTES;
	return ((left - 1) & (BLOCK_BYTES - 1)) + 1;
}

STEP keep_block(u64 turn UNUSED, struct block_cursor *c)
{
	struct long_head *head = c->head;
	u64 kept = head->end - head->start, length;

	if (c->at >= c->end || kept >= LONG_HEAD_MAX)
		return 1;
	length = block_length(c);
	if (load_payload(c->skb, c->s, c->at, head->bytes + (kept & (LONG_HEAD_MAX - 1)), length,
			 c->source))
		return 1;
	head->end += length;
	c->at += length;
	return 0;
}

/* Of the last block, what lies behind the segment's bytes is taken as it is kept. */
STEP compare_block(u64 turn UNUSED, struct block_cursor *c)
{
	u64 *kept = (u64 *)(c->s->window + BLOCK_AT), *came = kept + BLOCK_BYTES / 8;
	u64 at = (u32)(c->s->seq + c->at - c->head->start), length, differs = 0;
	const u8 *bytes = c->head->bytes + (at & (LONG_HEAD_MAX - 1));
	u32 i;

	if (c->at >= c->end)
		return 1;
	length = block_length(c);
	c->differs = 1;
	if (bpf_probe_read_kernel(kept, BLOCK_BYTES, bytes) ||
	    bpf_probe_read_kernel(came, BLOCK_BYTES, bytes) ||
	    load_payload(c->skb, c->s, c->at, (u8 *)came, length, FROM_PACKET))
		return 1;
	BOUNDED_LOOP
	for (i = 0; i < BLOCK_BYTES / 8; i++)
		differs |= kept[i] ^ came[i];
	if (differs)
		return 1;
	c->differs = 0;
	c->at += length;
	return 0;
}

/*
 * What is read, from its byte s->position on, is of a head that began at `start`, or goes on with one. Once
 * that was said of it, it may be said again. The verifier looks at this once, for whoever calls it.
 */
VERIFIED_ONCE keep_long_head(struct __sk_buff *skb, u64 connection_id, u32 start, u32 source)
{
	struct scratch *s = own_scratch();
	struct block_cursor c = { .skb = skb, .s = s, .source = source };
	struct long_head *blank;
	u32 zero = 0, from = s->seq + s->position;

	c.head = LOOKUP(long_heads, &connection_id);
	if (!c.head) {
		blank = LOOKUP(blank_long_head, &zero);
		if (!blank || UPDATE(long_heads, &connection_id, blank))
			return 0;
		c.head = LOOKUP(long_heads, &connection_id);
		if (!c.head)
			return 0;
	}
	if (!before(start, s->seq))
		from = start;
	if (!before(start, s->seq) || before(c.head->end, from) || before(from, c.head->start)) {
		c.head->start = from;
		c.head->end = from;
	}
	c.at = (u32)(c.head->end - s->seq);
	c.end = s->payload_length;
	REPEAT(BLOCKS_MAX + 1, keep_block, &c);
	return 0;
}

enum kept_bytes {
	KEPT_NONE, /* or not all of them */
	KEPT_SAME,
	KEPT_OTHER,
};

/* Are the segment's bytes from `from` to `end` those that are kept for these places? */
static __always_inline enum kept_bytes compare_long_head(struct __sk_buff *skb, struct scratch *s,
							 u64 connection_id, u32 from, u32 end)
{
	struct block_cursor c = {
		.skb = skb, .s = s, .at = (u32)(from - s->seq), .end = (u32)(end - s->seq)
	};

	c.head = LOOKUP(long_heads, &connection_id);
	if (!c.head || before(from, c.head->start) || before(c.head->end, end))
		return KEPT_NONE;
	REPEAT(BLOCKS_MAX + 1, compare_block, &c);
	return c.differs ? KEPT_OTHER : KEPT_SAME;
}
