/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Lines are read, not characters: their ends are found eight bytes at a time. */
#pragma once

#include "http1/window.h"

/* Is a Content-Length the one that was noted before, to the byte, and short enough to tell? */
static __always_inline bool same_length(const struct scratch *s, u64 at, u64 length)
{
	u64 other = s->found_at[FOUND_CONTENT_LENGTH];

	if (length != s->found_length[FOUND_CONTENT_LENGTH] || length - 1 > 7)
		return false;
	return !((word_at(s, at) ^ word_at(s, other)) << (64 - 8 * length));
}

/* Blanks before the colon are not allowed, and taken for nothing by some: then nothing is certain. */
static __always_inline bool may_end_name(u8 c) { return c == ':' || c == ' ' || c == '\t'; }

/* Notes where the value of a header lies, if it is of interest. */
static __always_inline void note_header(struct scratch *s, u64 at, u64 length, enum flow flow)
{
	u64 start, next, found, name_length;
	u8 after;

	/* By its first letters most that are of no interest are told. */
	switch (four_at(s, at) | FOUR_LOWER) {
	case FOUR('c', 'o', 'n', 't'):
		start = word_at(s, at) | (LETTERS_LOWER & FIRST_BYTES(7));
		next = word_at(s, at + 8) | (LETTERS_LOWER & FIRST_BYTES(6));
		after = next >> 48;
		if (start != WORD('c', 'o', 'n', 't', 'e', 'n', 't', '-') ||
		    (next & FIRST_BYTES(6)) != WORD('l', 'e', 'n', 'g', 't', 'h', 0, 0) ||
		    !may_end_name(after))
			return;
		found = FOUND_CONTENT_LENGTH;
		name_length = 15;
		if (after != ':' || (s->found_times[FOUND_CONTENT_LENGTH] &&
				     !same_length(s, at + name_length, length - name_length)))
			length = name_length; /* which is no number */
		break;
	case FOUR('t', 'r', 'a', 'n'):
		start = word_at(s, at) | LETTERS_LOWER;
		next = word_at(s, at + 8) | (LETTERS_LOWER & ~FIRST_BYTES(1));
		after = byte_at(s, at + 17);
		if (start != WORD('t', 'r', 'a', 'n', 's', 'f', 'e', 'r') ||
		    next != WORD('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n') ||
		    (byte_at(s, at + 16) | 0x20) != 'g' || !may_end_name(after))
			return;
		found = FOUND_TRANSFER_ENCODING;
		name_length = 18;
		if (after != ':')
			length = name_length; /* which is no coding */
		break;
	/* The others are a request's. */
	case FOUR('h', 'o', 's', 't'):
		if (!CARRIES_REQUESTS(flow) || byte_at(s, at + 4) != ':')
			return;
		found = FOUND_HOST;
		name_length = 5;
		break;
	case FOUR('u', 's', 'e', 'r'):
		start = word_at(s, at) | LETTERS_LOWER;
		next = four_at(s, at + 8) | FOUR_LOWER;
		if (!CARRIES_REQUESTS(flow) ||
		    start != WORD('u', 's', 'e', 'r', '-', 'a', 'g', 'e') ||
		    (next & FIRST_BYTES(3)) != FOUR('n', 't', ':', 0))
			return;
		found = FOUND_USER_AGENT;
		name_length = 11;
		break;
	case FOUR('t', 'r', 'a', 'c'):
		start = word_at(s, at) | LETTERS_LOWER;
		next = four_at(s, at + 8) | FOUR_LOWER;
		if (!CARRIES_REQUESTS(flow) ||
		    start != WORD('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r') ||
		    next != FOUR('e', 'n', 't', ':'))
			return;
		found = FOUND_TRACEPARENT;
		name_length = 12;
		break;
	default:
		return;
	}
	s->found_times[found]++;
	s->found_at[found] = at + name_length;
	s->found_length[found] = length - name_length;
}

static __always_inline void note_first_line(struct scratch *s, u64 at, u64 length)
{
	s->found_at[FOUND_FIRST_LINE] = at;
	s->found_length[FOUND_FIRST_LINE] = length;
}

#define WORDS_EACH TAKEN_EACH(16, 4) /* they fit between the window's last byte and its end */

/* How far the next byte is from `at` that may end a line; as far as is looked at where it is farther. */
static __always_inline u64 distance_to_line_end(const struct scratch *s, u64 at)
{
	const u64 *words = (const u64 *)(s->window + (at & WINDOW_MASK));
	u64 shift = BYTES(0x80 - ' '), all = BYTES(0x80), text;
	u64 i;

	/* Else clang would load them again for each word. */
	asm("" : "+r"(shift), "+r"(all));
#pragma unroll
	for (i = 0; i < WORDS_EACH; i++) {
		text = (words[i] + shift) & all;
		if (text != all)
			return 8 * i + lowest(text ^ all);
	}
	return 8 * WORDS_EACH;
}

/*
 * Takes what is up to the next byte that may end a line; notes the line if it is of interest and
 * that byte ends it. 1 at the window's end, or the head's.
 *
 * What one turn of the loop hands to the next lives in the map, not in registers: a loaded value is
 * unknown to the verifier, so each turn looks the same to it and it need not
 * walk every path through every turn.
 */
static __always_inline long scan_line(struct scratch *s, enum flow flow)
{
	volatile struct head_cursor *v = &s->head;
	u64 at = v->at, total = v->total, next, two, line, kind;

	if (at >= total)
		return 1;
	at += distance_to_line_end(s, at);
	two = two_at(s, at);
	next = at + 2;
	if (two != CRLF) {
		next = at + 1;
		if ((two & 0xff) != '\n') {
			v->at = next;
			return 0;
		}
	}
	v->at = next;
	if (next > total)
		return 1;
	line = v->line;
	v->line = next;
	kind = v->kind;
	if (kind != LINE_HEADER) {
		if (kind == LINE_FIRST) {
			if (at == line)
				return 0;
			note_first_line(s, line, at - line);
		}
		v->kind = LINE_HEADER;
	} else if (at != line) {
		note_header(s, line, at - line, flow);
	} else {
		v->end = next;
		return 1;
	}
	return 0;
}

/* At least a byte each: a line that takes them all is too long to be carried. */
#define SCAN_STEPS CARRY_MAX
#define LINES_EACH 8

static __always_inline long scan_some_lines(struct scratch *s, enum flow flow)
{
	u32 i;

	BOUNDED_LOOP
	for (i = 0; i < LINES_EACH; i++)
		if (scan_line(s, flow))
			return 1;
	return 0;
}

STEP scan_request_lines(u64 turn UNUSED, struct scratch **s)
{
	return scan_some_lines(*s, REQUESTS_IN);
}

STEP scan_response_lines(u64 turn UNUSED, struct scratch **s)
{
	return scan_some_lines(*s, RESPONSES_OUT);
}

/* Notes the lines of interest in the window, up to its end or the head's. */
static __always_inline void scan_lines(struct scratch *s, enum flow flow)
{
	if (CARRIES_REQUESTS(flow))
		REPEAT(SCAN_STEPS / LINES_EACH, scan_request_lines, &s);
	else
		REPEAT(SCAN_STEPS / LINES_EACH, scan_response_lines, &s);
}
