/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Lines are read, not characters: their ends are found eight bytes at a time. */
#pragma once

#include "http1/forwarded.h"
#include "http1/window.h"

/* Blanks before the colon are not allowed, and taken for nothing by some: then nothing is certain. */
static __always_inline bool may_end_name(u8 c) { return c == ':' || c == ' ' || c == '\t'; }

static __always_inline void note(struct scratch *s, u64 found, u64 at, u64 length)
{
	s->found_times[found]++;
	s->found_at[found] = at;
	s->found_length[found] = length;
}

/*
 * A header that says where the message ends is noted once its value is known to be whole: a line that
 * begins with a blank goes on with the one above, as if there were blanks in place of the line's end
 * (RFC 9112, section 5.2). So is one of which each line counts. One of a name is noted in each run. `line` is where the line starts, `at` its
 * value, `end` its end, `after` what comes after the name. 1 where this run is to end with the line above.
 */
static __always_inline long note_framing(struct scratch *s, u64 found, u64 line, u64 at, u64 end,
					 u8 after)
{
	volatile struct head_cursor *v = &s->head;
	u64 next = v->at, c;

	if (s->found_times[found]) {
		v->line = line;
		v->at = line;
		return 1;
	}
	if (next >= v->total) {
		v->line = line;
		return 1;
	}
	c = byte_at(s, next);
	if (c == ' ' || c == '\t') {
		s->window[end & WINDOW_MASK] = ' ';
		s->window[(next - 1) & WINDOW_MASK] = ' ';
		v->line = line;
		return 0;
	}
	note(s, found, at, after == ':' ? end - at : 0);
	return 0;
}

/* The first letters of a header's name, by which most that are of no interest are told. */
#define NAME_CONTENT FOUR('c', 'o', 'n', 't')
#define NAME_TRANSFER FOUR('t', 'r', 'a', 'n')
#define NAME_HOST FOUR('h', 'o', 's', 't')
#define NAME_USER_AGENT FOUR('u', 's', 'e', 'r')
#define NAME_TRACEPARENT FOUR('t', 'r', 'a', 'c')

/* Notes where the value of a request's header lies, if it is one of those that the request is known by. */
SELDOM note_request_header(struct scratch *s, u64 line, u64 end)
{
	switch (four_at(s, line) | FOUR_LOWER) {
	case NAME_HOST:
		if (byte_at(s, line + 4) == ':')
			note(s, FOUND_HOST, line + 5, end - line - 5);
		break;
	case NAME_USER_AGENT:
		if (is_word(word_at(s, line), WORD('u', 's', 'e', 'r', '-', 'a', 'g', 'e')) &&
		    is_word(four_at(s, line + 8) & FIRST_BYTES(3),
			    WORD('n', 't', ':', 0, 0, 0, 0, 0)))
			note(s, FOUND_USER_AGENT, line + 11, end - line - 11);
		break;
	case NAME_TRACEPARENT:
		if (is_word(word_at(s, line), WORD('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r')) &&
		    is_word(four_at(s, line + 8), WORD('e', 'n', 't', ':', 0, 0, 0, 0)))
			note(s, FOUND_TRACEPARENT, line + 12, end - line - 12);
		break;
	}
	return 0;
}

/*
 * Notes where the value of a header lies, if it is of interest; `is_whole`: the line is not cut. 1
 * where this run is to end with the line above.
 */
static __always_inline long note_header(struct scratch *s, u64 line, u64 end, bool is_whole,
					enum flow flow)
{
	u64 found, at;
	u8 after;

	switch (four_at(s, line) | FOUR_LOWER) {
	case NAME_CONTENT:
		after = byte_at(s, line + 14);
		if (!is_word(word_at(s, line), WORD('c', 'o', 'n', 't', 'e', 'n', 't', '-')) ||
		    !is_word(word_at(s, line + 8) & FIRST_BYTES(6),
			     WORD('l', 'e', 'n', 'g', 't', 'h', 0, 0)) ||
		    !may_end_name(after))
			return 0;
		found = FOUND_CONTENT_LENGTH;
		at = line + 15;
		break;
	case NAME_TRANSFER:
		after = byte_at(s, line + 17);
		if (!is_word(word_at(s, line), WORD('t', 'r', 'a', 'n', 's', 'f', 'e', 'r')) ||
		    !is_word(word_at(s, line + 8), WORD('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n')) ||
		    (byte_at(s, line + 16) | 0x20) != 'g' || !may_end_name(after))
			return 0;
		found = FOUND_TRANSFER_ENCODING;
		at = line + 18;
		break;
	case NAME_X_FORWARDED_FOR:
	case NAME_FORWARDED:
		at = line + (CARRIES_REQUESTS(flow) ? forwarded_name_length(s, line) : 0);
		after = byte_at(s, at);
		if (at == line || !may_end_name(after))
			return 0;
		found = FOUND_FORWARDED;
		at++;
		break;
	case NAME_HOST:
	case NAME_USER_AGENT:
	case NAME_TRACEPARENT:
		if (CARRIES_REQUESTS(flow))
			note_request_header(s, line, end);
		return 0;
	default:
		return 0;
	}
	if (is_whole)
		return note_framing(s, found, line, at, end, after);
	note(s, found, at, 0);
	return 0;
}

static __always_inline void note_first_line(struct scratch *s, u64 at, u64 length)
{
	s->found_at[FOUND_FIRST_LINE] = at;
	s->found_length[FOUND_FIRST_LINE] = length;
}

/* How far ahead a byte is looked for that may end a line: it fits behind the window's last one. */
#define LOOKED_AHEAD TAKEN_EACH(128, 32)

/* Marks the bytes of text that may end a line: at least all below a blank. The lowest mark is exact. */
static __always_inline u64 may_end_line(u64 text) { return (text - BYTES(' ')) & BYTES(0x80); }

/* Looks for that byte in the eight of text from `offset` on. */
#define SEEK(offset)                                                   \
	do {                                                           \
		marks = may_end_line(*(const u64 *)(text + (offset))); \
		if (marks) {                                           \
			distance = above_lowest(marks);                \
			FLIP_BITS_HERE(distance, LAST_INDEX + offset); \
			return distance;                               \
		}                                                      \
	} while (0)

/*
 * How far the next byte is from the first of `text` that may end a line; at most what is looked at.
 * `first` are the first eight bytes.
 */
static __always_inline u64 distance_to_line_end(const u8 *text, u64 first)
{
	u64 marks = may_end_line(first), distance;

	if (marks)
		return lowest(marks);
	SEEK(8);
	SEEK(16);
	SEEK(24);
#ifndef BCC_BUILD
	SEEK(32);
	SEEK(40);
	SEEK(48);
	SEEK(56);
	SEEK(64);
	SEEK(72);
	SEEK(80);
	SEEK(88);
	SEEK(96);
	SEEK(104);
	SEEK(112);
	SEEK(120);
#endif
	return LOOKED_AHEAD;
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
	at += distance_to_line_end(s->window + (at & WINDOW_MASK), word_at(s, at));
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
		if (kind != LINE_REST) {
			if (at == line)
				return 0;
			note_first_line(s, line, at - line);
			if (kind == LINE_FIRST_REST)
				s->found_times[FOUND_FIRST_LINE] = FIRST_END;
		}
		v->kind = LINE_HEADER;
	} else if (at != line) {
		return note_header(s, line, at, true, flow);
	} else {
		v->end = next;
		return 1;
	}
	return 0;
}

/*
 * Passes a header's line that is as most are: longer than a word and not too long, with CRLF at its end,
 * nothing in it that only looks like that, and not of framing. 1 where what comes next is not like that,
 * or the head has its end there: what lies behind the window is neither, since it begins with a zero.
 */
static __always_inline long pass_header(struct scratch *s, enum flow flow)
{
	volatile struct head_cursor *v = &s->head;
	u64 line = v->line & WINDOW_MASK, length;
	const u8 *text = s->window + line;
	u64 first = *(const u64 *)text;

	if (may_end_line(first)) {
		if ((u16)first == CRLF)
			v->end = line + 2;
		return 1;
	}
	length = distance_to_line_end(text, first);
	if (*(const u16 *)(text + length) != CRLF)
		return 1;
	switch ((u32)first | FOUR_LOWER) {
	case NAME_CONTENT:
	case NAME_TRANSFER:
		return 1;
	case NAME_X_FORWARDED_FOR:
	case NAME_FORWARDED:
		if (CARRIES_REQUESTS(flow) && FORWARDED_HEADER)
			return 1;
		break;
	case NAME_HOST: /* each request has one: no call for that */
		if (CARRIES_REQUESTS(flow) && text[4] == ':')
			note(s, FOUND_HOST, line + 5, length - 5);
		break;
	case NAME_USER_AGENT:
	case NAME_TRACEPARENT:
		if (CARRIES_REQUESTS(flow))
			note_request_header(s, line, line + length);
	}
	v->line = line + length + 2;
	return 0;
}

/* At least a byte each: a line that takes them all is too long to be carried. */
#define SCAN_STEPS CARRY_MAX
#define LINES_EACH TAKEN_EACH(1, 8)
#define HEADERS_EACH 16

/* BCC's turns would have the verifier go through all the ways of the one within the other. */
static __always_inline long scan_some_lines(struct scratch *s, enum flow flow)
{
	u32 i;
#ifdef BCC_BUILD
	BOUNDED_LOOP
	for (i = 0; i < LINES_EACH; i++)
		if (scan_line(s, flow))
			return 1;
	return 0;
#else
	volatile struct head_cursor *v = &s->head;

	if (scan_line(s, flow))
		return 1;
	if (v->kind != LINE_HEADER || v->line != v->at)
		return 0;
	BOUNDED_LOOP
	for (i = 0; i < HEADERS_EACH; i++)
		if (pass_header(s, flow))
			break;
	v->at = v->line;
	return v->end != 0;
#endif
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
