/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the lines of a head say. */
#pragma once

#include "http1/window.h"

/* Strips up to seven spaces and tabs before a header's value, and eight after it; it is not empty. */
static __always_inline void strip(u64 *at, u64 *length, const struct scratch *s)
{
	u64 two = two_at(s, *at), text, n;

	/* One space before it and none after, as most write it. */
	if ((two & 0xff) == ' ' && two >> 8 > ' ' && byte_at(s, *at + *length - 1) > ' ') {
		*at += 1;
		*length -= 1;
		return;
	}
	n = at_most(*length, lowest(not_blank(word_at(s, *at)) | LAST_BYTE));
	*at += n;
	*length -= n;
	text = not_blank(word_at(s, *at + *length - 8));
	text |= text >> 8;
	text |= text >> 16;
	text |= text >> 32;
	n = 8 - ((text >> 7) * BYTES(1) >> 56);
	*length -= at_most(*length, n);
}

#define CAPTURED_AT_ONCE(max) ((max) % 32 ? (max) : 32)

/*
 * Copies a piece of the window, cut to max, which is a multiple of 8; `to` is aligned to that. What
 * follows it in the window comes with it: src/otelbpf/ledger/reader.py cuts it off.
 */
static __always_inline void capture(u8 *to, u16 *to_length, u64 max, struct scratch *s, u64 found)
{
	u64 at = s->found_at[found], length = s->found_length[found];
	const u64 *from;
	u64 i = 0, j;

	if (length == 0)
		return;
	if (found != FOUND_FIRST_LINE)
		strip(&at, &length, s);
	*to_length = length;
	do {
		/* clang 19 would count in another variable, whose bound the verifier cannot see. */
		asm volatile("" : "+r"(i));
		if (i >= max)
			break;
		from = (const u64 *)(s->window + ((at + i) & WINDOW_MASK));
#pragma unroll
		for (j = 0; j < CAPTURED_AT_ONCE(max) / 8; j++)
			((u64 *)(to + i))[j] = from[j];
		i += CAPTURED_AT_ONCE(max);
	} while (i < length);
}

/* Content-Length's digits; -1 where they are not a number. */
static __always_inline int read_digits(const struct scratch *s, u64 at, u64 length, u64 *value)
{
	u64 n = 0;
	u64 i;

	if (length == 0 || length > 18)
		return -1;
	BOUNDED_LOOP
	for (i = 0; i < 18; i++) {
		u64 digit = (u64)byte_at(s, at + i) - '0';

		if (i >= length)
			break;
		if (digit > 9)
			return -1;
		n = n * 10 + digit;
	}
	*value = n;
	return 0;
}

/* Content-Length's value. */
static __always_inline int read_length(const struct scratch *s, u64 *value)
{
	u64 at = s->found_at[FOUND_CONTENT_LENGTH], length = s->found_length[FOUND_CONTENT_LENGTH];

	strip(&at, &length, s);
	return read_digits(s, at, length, value);
}

/* Is the last coding "chunked"? */
static __always_inline bool is_chunked(struct scratch *s)
{
	u64 at = s->found_at[FOUND_TRANSFER_ENCODING],
	    length = s->found_length[FOUND_TRANSFER_ENCODING];

	strip(&at, &length, s);
	if (length < 7)
		return false;
	return ((word_at(s, at + length - 7) | LETTERS_LOWER) & FIRST_BYTES(7)) ==
	       WORD('c', 'h', 'u', 'n', 'k', 'e', 'd', 0);
}
