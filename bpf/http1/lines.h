/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Lines are read, not characters: their ends are found eight bytes at a time. */
#pragma once

#include "http1/window.h"

/* Notes where the value of a line of interest lies. */
static __always_inline void note_line(struct scratch *s, volatile struct head_cursor *v, u64 at,
				      u64 length, enum flow flow)
{
	u64 start, next, found, name_length;

	if (v->state == PARSER_FIRST_LINE) {
		v->state = PARSER_HEADERS;
		s->found_at[FOUND_FIRST_LINE] = at;
		s->found_length[FOUND_FIRST_LINE] = length;
		return;
	}
	start = word_at(s, at) | LETTERS_LOWER;
	next = word_at(s, at + 8) | LETTERS_LOWER;
	if (start == WORD('c', 'o', 'n', 't', 'e', 'n', 't', '-') &&
	    (next & FIRST_BYTES(7)) == WORD('l', 'e', 'n', 'g', 't', 'h', ':', 0)) {
		found = FOUND_CONTENT_LENGTH;
		name_length = 15;
	} else if (start == WORD('t', 'r', 'a', 'n', 's', 'f', 'e', 'r') &&
		   next == WORD('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n')) {
		found = FOUND_TRANSFER_ENCODING;
		name_length = 18;
	} else if (!CARRIES_REQUESTS(flow)) {
		return; /* the others are a request's */
	} else if ((start & FIRST_BYTES(5)) == WORD('h', 'o', 's', 't', ':', 0, 0, 0)) {
		found = FOUND_HOST;
		name_length = 5;
	} else if (start == WORD('u', 's', 'e', 'r', '-', 'a', 'g', 'e') &&
		   (next & FIRST_BYTES(3)) == WORD('n', 't', ':', 0, 0, 0, 0, 0)) {
		found = FOUND_USER_AGENT;
		name_length = 11;
	} else if (start == WORD('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r') &&
		   (next & FIRST_BYTES(4)) == WORD('e', 'n', 't', ':', 0, 0, 0, 0)) {
		found = FOUND_TRACEPARENT;
		name_length = 12;
	} else {
		return;
	}
	found &= 7;
	s->found_times[found]++;
	s->found_at[found] = at + name_length;
	s->found_length[found] = length - name_length;
}

/* How far the next byte is from `at` that may end a line; 32 where it is farther. */
static __always_inline u64 distance_to_line_end(const struct scratch *s, u64 at)
{
	const u64 *words = (const u64 *)(s->window + (at & WINDOW_MASK));
	u64 marks;
	u64 i;

#pragma unroll
	for (i = 0; i < 4; i++) {
		marks = maybe_line_ends(words[i]);
		if (marks)
			return 8 * i + lowest(marks);
	}
	return 32;
}

struct line_scanner {
	struct scratch *s;
};

/*
 * Takes what is up to the next byte that may end a line; notes the line if it is of interest and
 * that byte ends it. 1 at the window's end, or the head's.
 *
 * What one turn of the loop hands to the next lives in the map, not in registers: a loaded value is
 * unknown to the verifier, so each turn looks the same to it and it need not
 * walk every path through every turn.
 */
static __always_inline long scan_line(struct line_scanner *scanner, enum flow flow)
{
	struct scratch *s = scanner->s;
	volatile struct head_cursor *v = &s->head;
	u64 at = v->at, two, line;

	if (at >= v->total)
		return 1;
	at += distance_to_line_end(s, at);
	two = two_at(s, at);
	if (two == CRLF) {
		v->at = at + 2;
	} else {
		v->at = at + 1;
		if ((two & 0xff) != '\n')
			return 0;
	}
	if (v->at > v->total)
		return 1;
	line = v->line;
	v->line = v->at;
	if (v->skip) {
		v->skip = 0;
	} else if (at != line) {
		note_line(s, v, line, at - line, flow);
	} else if (v->state == PARSER_HEADERS) {
		v->end = v->at;
		return 1;
	}
	return 0;
}

/* At least a byte each: a line that takes them all is too long to be carried. */
#define SCAN_STEPS CARRY_MAX
#define LINES_EACH 16

STEPS(scan_request_lines, struct line_scanner, scan_line, LINES_EACH, REQUESTS_IN)
STEPS(scan_response_lines, struct line_scanner, scan_line, LINES_EACH, RESPONSES_OUT)

/* Notes the lines of interest in the window, up to its end or the head's. */
static __always_inline void scan_lines(struct scratch *s, enum flow flow)
{
	struct line_scanner scanner = { .s = s };

	if (CARRIES_REQUESTS(flow))
		REPEAT(SCAN_STEPS / LINES_EACH, scan_request_lines, &scanner);
	else
		REPEAT(SCAN_STEPS / LINES_EACH, scan_response_lines, &scanner);
}
