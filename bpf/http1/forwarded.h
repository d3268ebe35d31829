/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The header in which proxies say for whom they have forwarded a request: only where somebody asks for
 * it is it looked for. What it says is the agent's to read: src/otelbpf/protocols/forwarded.py.
 */
#pragma once

#include "http1/window.h"
#include "state/exchange.h"

#define NAME_X_FORWARDED_FOR FOUR('x', '-', 'f', 'o')
#define NAME_FORWARDED FOUR('f', 'o', 'r', 'w')

/* How long the name is of a line, if it is that of the header that is asked for; else 0. */
SELDOM forwarded_name_length(const struct scratch *s, u64 line)
{
	u64 start = word_at(s, line), rest = word_at(s, line + 8);

	switch (FORWARDED_HEADER) {
	case HEADER_X_FORWARDED_FOR:
		return is_word(start, WORD('x', '-', 'f', 'o', 'r', 'w', 'a', 'r')) &&
				       is_word(rest & FIRST_BYTES(7),
					       WORD('d', 'e', 'd', '-', 'f', 'o', 'r', 0))
			       ? 15
			       : 0;
	case HEADER_FORWARDED:
		return is_word(start, WORD('f', 'o', 'r', 'w', 'a', 'r', 'd', 'e')) &&
				       ((u8)rest | 0x20) == 'd'
			       ? 9
			       : 0;
	}
	return 0;
}

#define FORWARDED_LINE_MAX (FORWARDED_MAX - 1) /* of a line, its last bytes */

/* Where a line is kept that is noted in the scratch. */
struct keeping {
	struct scratch *s;
	struct forwarded_text *f;
};

static __always_inline void keep_byte(struct forwarded_text *f, u8 byte)
{
	volatile u64 *length = &f->length;
	u64 at = *length;

	*length = at + 1;
	f->text[at & (FORWARDED_MAX - 1)] = byte;
}

/* Keeps the next byte. As in scan_line(), what goes on from turn to turn lies in maps. 1: there is none. */
STEP keep_next(u64 turn UNUSED, struct keeping *k)
{
	volatile u64 *from = &k->s->found_at[FOUND_FORWARDED];
	volatile u64 *rest = &k->s->found_length[FOUND_FORWARDED];
	u64 at = *from, left = *rest;

	if (!left)
		return 1;
	*from = at + 1;
	*rest = left - 1;
	keep_byte(k->f, byte_at(k->s, at));
	return 0;
}

/* Adds a line's value, which is not known where it has no length, to those of the request's lines before it. */
SELDOM keep_forwarded(struct scratch *s, const struct exchange *x)
{
	struct keeping k = { .s = s };
	struct forwarded_text *f = FORWARDED_HEADER ? forwarded_text_at(x->slot) : NULL;
	u64 length = s->found_length[FOUND_FORWARDED];

	if (!f)
		return 0;
	if (f->connection_id != x->record.connection_id || f->ordinal != x->record.ordinal) {
		f->connection_id = x->record.connection_id;
		f->ordinal = x->record.ordinal;
		f->length = 0;
	}
	if (f->length)
		keep_byte(f, ',');
	if (!length || length > FORWARDED_LINE_MAX)
		keep_byte(f, '?');
	if (length > FORWARDED_LINE_MAX) {
		s->found_at[FOUND_FORWARDED] += length - FORWARDED_LINE_MAX;
		s->found_length[FOUND_FORWARDED] = FORWARDED_LINE_MAX;
	}
	k.f = f;
	REPEAT(FORWARDED_LINE_MAX, keep_next, &k);
	return 0;
}
