/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the lines of a head say. */
#pragma once

#include "http1/window.h"

/* A header's value with the blanks around it. */
struct stripped {
	const struct scratch *s;
	u64 at;
	u64 length;
};

/* Strips up to seven blanks before it: 1 where there are no more. */
STEP strip_before(u64 turn UNUSED, struct stripped *v)
{
	u64 n = at_most(v->length, lowest(not_blank(word_at(v->s, v->at)) | LAST_BYTE));

	v->at += n;
	v->length -= n;
	return n < 7;
}

/* Strips up to eight blanks after it: 1 where there are no more. */
STEP strip_after(u64 turn UNUSED, struct stripped *v)
{
	u64 text = not_blank(word_at(v->s, v->at + v->length - 8)), n;

	text |= text >> 8;
	text |= text >> 16;
	text |= text >> 32;
	n = at_most(v->length, 8 - ((text >> 7) * BYTES(1) >> 56));
	v->length -= n;
	return n < 8;
}

#define STRIP_STEPS 8 /* as many blanks as anybody lines values up with */

/* Strips the spaces and tabs around a header's value; it is not empty. */
static __always_inline void strip(u64 *at, u64 *length, const struct scratch *s)
{
	struct stripped v = { .s = s };
	u64 two = two_at(s, *at);

	/* One space before it and none after, as most write it. */
	if ((two & 0xff) == ' ' && two >> 8 > ' ' && byte_at(s, *at + *length - 1) > ' ') {
		*at += 1;
		*length -= 1;
		return;
	}
	v.at = *at;
	v.length = *length;
	REPEAT(STRIP_STEPS, strip_before, &v);
	REPEAT(STRIP_STEPS, strip_after, &v);
	*at = v.at;
	*length = v.length;
}

#define CAPTURED_AT_ONCE(max) ((max) % 32 ? (max) / 8 : 4) /* words */

/*
 * Copies a piece of the window, cut to max, which is a multiple of 8; `to` is aligned to that. What
 * follows it in the window comes with it: src/otelbpf/ledger/reader.py cuts it off.
 */
static __always_inline void capture(u8 *to, u16 *to_length, u64 max, struct scratch *s, u64 found)
{
	u64 at = s->found_at[found], length = s->found_length[found];
	const u64 *from;
	u32 i;

	if (length == 0)
		return;
	if (found != FOUND_FIRST_LINE)
		strip(&at, &length, s);
	*to_length = length;
	from = (const u64 *)(s->window + (at & WINDOW_MASK));
#pragma unroll
	for (i = 0; i < max / 8; i++) {
		if (i % CAPTURED_AT_ONCE(max) == 0 && 8 * i >= length)
			break;
		((u64 *)to)[i] = from[i];
	}
}

#define NOT_A_NUMBER (~0ULL)

/* The number that digits are, the last of which is in the highest byte; before the first one there are zeros. */
static __always_inline u64 number_in(u64 n)
{
	if ((n | (n + BYTES(6))) & BYTES(0xf0))
		return NOT_A_NUMBER;
	/* Of two neighbours each, of which the lower one counts more. */
	n = (n * (10 << 8 | 1)) >> 8 & 0x00ff00ff00ff00ffULL;
	n = (n * (100 << 16 | 1)) >> 16 & 0x0000ffff0000ffffULL;
	return (n * (10000ULL << 32 | 1)) >> 32;
}

/* The number that one to eight digits are. */
static __always_inline u64 number_at(const struct scratch *s, u64 at, u64 length)
{
	return number_in((word_at(s, at) ^ BYTES('0')) << (64 - 8 * length));
}

#define DIGITS_AT_ONCE 8
#define DIGITS_MOST (2 * DIGITS_AT_ONCE) /* ten petabytes */

/* Content-Length's digits; -1 where they are not a number. */
static __always_inline int read_digits(const struct scratch *s, u64 at, u64 length, u64 *value)
{
	u64 high = 0, low;

	if (length == 0 || length > DIGITS_MOST)
		return -1;
	if (length > DIGITS_AT_ONCE) {
		length -= DIGITS_AT_ONCE;
		high = number_at(s, at, length);
		at += length;
		length = DIGITS_AT_ONCE;
	}
	low = number_at(s, at, length);
	if (high == NOT_A_NUMBER || low == NOT_A_NUMBER)
		return -1;
	*value = high * 100000000 + low;
	return 0;
}

/* Where a Content-Length that is more than digits is read. */
enum length_state {
	LENGTH_BEFORE, /* a number is to come */
	LENGTH_WITHIN,
	LENGTH_BEHIND,
	LENGTH_WRONG
};

#define LENGTH_MAX TAKEN_EACH(CARRY_MAX, 20) /* characters */
#define LENGTH_MOST (1ULL << 59)             /* with one more digit it still fits */

/* Takes a character of it; the end is one more comma. 1 at the end, or where it is no length. */
STEP read_length(u64 turn UNUSED, struct scratch **scratch)
{
	const struct scratch *s = *scratch;
	volatile struct length_cursor *v = &(*scratch)->length;
	u64 at = v->at, value = v->value, state = v->state, is_end = at >= v->end;
	u8 c = is_end ? ',' : byte_at(s, at);
	u64 digit = (u8)(c - '0');

	v->at = at + 1;
	v->state = LENGTH_WRONG;
	if (digit <= 9) {
		if (state == LENGTH_BEHIND || value >= LENGTH_MOST)
			return 1;
		v->value = value * 10 + digit;
		v->state = LENGTH_WITHIN;
	} else if (c == ',') {
		if (state == LENGTH_BEFORE || (v->numbers && value != v->first))
			return 1;
		v->first = value;
		v->numbers = 1;
		v->value = 0;
		v->state = LENGTH_BEFORE;
	} else if (c == ' ' || c == '\t') {
		v->state = state == LENGTH_WITHIN ? LENGTH_BEHIND : state;
	} else {
		return 1;
	}
	/* All at one place: else BCC's loop runs on into its beginning, which 6.1 refuses where no jump leads. */
	asm volatile("" : "+r"(is_end));
	return is_end;
}

/*
 * A length that is written at length: with zeros before it, or as a list in which it is repeated (RFC
 * 9110, section 8.6). -1 where it is none, or of several.
 */
static __always_inline int read_long_length(struct scratch *s, u64 *value)
{
	volatile struct length_cursor *v = &s->length;

	v->at = s->found_at[FOUND_CONTENT_LENGTH];
	v->end = v->at + s->found_length[FOUND_CONTENT_LENGTH];
	v->value = 0;
	v->numbers = 0;
	v->state = LENGTH_BEFORE;
	REPEAT(LENGTH_MAX, read_length, &s);
	if (v->at <= v->end || v->state != LENGTH_BEFORE)
		return -1;
	*value = v->first;
	return 0;
}

/* Content-Length's value, which may be unclear, or another one than the same head has had. */
static __always_inline void take_length(struct scratch *s, struct parser *p)
{
	u64 at = s->found_at[FOUND_CONTENT_LENGTH], length = s->found_length[FOUND_CONTENT_LENGTH];
	u64 value;

	strip(&at, &length, s);
	if ((read_digits(s, at, length, &value) && read_long_length(s, &value)) ||
	    (p->message_flags & MESSAGE_HAS_LENGTH && value != p->remaining)) {
		p->message_flags |= MESSAGE_UNCLEAR_LENGTH;
		return;
	}
	p->remaining = value;
	p->message_flags |= MESSAGE_HAS_LENGTH;
}

/* Is the last coding "chunked", and not one that ends like it? */
static __always_inline bool is_chunked(const struct scratch *s, u64 at, u64 length)
{
	struct stripped before = { .s = s, .at = at, .length = length - 7 };

	if (length < 7 || !is_word(word_at(s, at + length - 7) & FIRST_BYTES(7),
				   WORD('c', 'h', 'u', 'n', 'k', 'e', 'd', 0)))
		return false;
	if (length == 7)
		return true;
	REPEAT(STRIP_STEPS, strip_after, &before);
	return before.length && byte_at(s, at + before.length - 1) == ',';
}

/* Of several lines of Transfer-Encoding the last one has the last coding. */
static __always_inline void take_coding(struct scratch *s, struct parser *p)
{
	u64 at = s->found_at[FOUND_TRANSFER_ENCODING],
	    length = s->found_length[FOUND_TRANSFER_ENCODING];

	p->message_flags |= MESSAGE_CODED;
	p->message_flags &= ~MESSAGE_CHUNKED;
	if (length)
		strip(&at, &length, s);
	if (!length || byte_at(s, at + length - 1) == ',')
		p->message_flags |= MESSAGE_UNCLEAR_CODING;
	else if (!(p->message_flags & MESSAGE_UNCLEAR_CODING) && is_chunked(s, at, length))
		p->message_flags |= MESSAGE_CHUNKED;
}
