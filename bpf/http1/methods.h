/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Any token is a method (RFC 9110, section 9.1). Those that most use are told at once. */
#pragma once

#include "http1/lines.h"
#include "state/connection.h"

#define METHOD_GET FOUR('G', 'E', 'T', ' ')
#define METHOD_HEAD FOUR('H', 'E', 'A', 'D')

static __always_inline bool starts_a_request(u32 first_four)
{
	switch (first_four) {
	case METHOD_GET:
	case FOUR('P', 'O', 'S', 'T'):
	case FOUR('P', 'U', 'T', ' '):
	case FOUR('H', 'E', 'A', 'D'):
	case FOUR('D', 'E', 'L', 'E'): /* DELETE */
	case FOUR('P', 'A', 'T', 'C'): /* PATCH */
	case FOUR('O', 'P', 'T', 'I'): /* OPTIONS */
		return true;
	}
	return false;
}

#define BIT_OF(c) (1ULL << ((c) & 63))
#define BITS_OF(first, last) (BIT_OF(last) - BIT_OF(first) + BIT_OF(last))
/* RFC 9110, section 5.6.2: below '@', and from there on. */
#define TOKEN_LOW                                                                     \
	(BIT_OF('!') | BITS_OF('#', '\'') | BIT_OF('*') | BIT_OF('+') | BIT_OF('-') | \
	 BIT_OF('.') | BITS_OF('0', '9'))
#define TOKEN_HIGH (BITS_OF('A', 'Z') | BITS_OF('^', 'z') | BIT_OF('|') | BIT_OF('~'))

static __always_inline bool is_of_token(u8 c)
{
	u64 bits = c < 64 ? TOKEN_LOW : c < 128 ? TOKEN_HIGH : 0;

	return bits >> (c & 63) & 1;
}

/* Goes to the end of a token: 1 there. */
STEP pass_token(u64 turn UNUSED, struct scratch **s)
{
	volatile struct route_cursor *v = &(*s)->route;
	u64 at = v->at;

	if (at >= v->length || !is_of_token(byte_at(*s, at)))
		return 1;
	v->at = at + 1;
	return 0;
}

#define TOKEN_MAX TAKEN_EACH(CARRY_MAX, 20)

#define NO_METHOD 0xffff /* longer than any line */

/* The length of the token that the line begins with, and a blank ends. */
static __always_inline u64 token_length(struct scratch *s, u64 line, u64 length)
{
	volatile struct route_cursor *v = &s->route;

	v->at = line;
	v->length = line + length;
	REPEAT(TOKEN_MAX, pass_token, &s);
	if (v->at == line || v->at >= line + length || byte_at(s, v->at) != ' ')
		return NO_METHOD;
	return v->at - line;
}

/* Notes that the request is one; false where as many are in flight as there are marks. */
static __always_inline bool mark_request(const struct connection *conn, u64 *marks)
{
	u64 ordinal = conn->begun - 1;

	*marks |= 1ULL << (ordinal & 63);
	return ordinal - conn->answered < 64;
}

/* The length of a method that is not GET. Notes what decides about the response. */
static __always_inline u64 read_method(struct scratch *s, struct connection *conn, u64 line,
				       u64 length)
{
	u64 start = word_at(s, line);

	if ((start & FIRST_BYTES(5)) == WORD('P', 'O', 'S', 'T', ' ', 0, 0, 0))
		return 4;
	if ((u32)start == FOUR('P', 'U', 'T', ' '))
		return 3;
	if ((start & FIRST_BYTES(5)) == WORD('H', 'E', 'A', 'D', ' ', 0, 0, 0))
		return mark_request(conn, &conn->head_requests) ? 4 : NO_METHOD;
	if (start == WORD('C', 'O', 'N', 'N', 'E', 'C', 'T', ' '))
		return mark_request(conn, &conn->connect_requests) ? 7 : NO_METHOD;
	if ((start & FIRST_BYTES(7)) == WORD('D', 'E', 'L', 'E', 'T', 'E', ' ', 0))
		return 6;
	if ((start & FIRST_BYTES(6)) == WORD('P', 'A', 'T', 'C', 'H', ' ', 0, 0))
		return 5;
	if (start == WORD('O', 'P', 'T', 'I', 'O', 'N', 'S', ' '))
		return 7;
	return token_length(s, line, length);
}

#define VERSION_LENGTH 9                   /* " HTTP/1.1" */
#define BEHIND_METHOD (VERSION_LENGTH + 2) /* and " /", at least */

/* The digit that ends a line of such a length, which ends with a version; -1 where it does not. */
static __always_inline int read_version(const struct scratch *s, u64 line, u64 length)
{
	const u8 *version = s->window + ((line + length - VERSION_LENGTH) & WINDOW_MASK);
	u32 minor = (u32)version[8] - '0';

	return minor > 9 || *(const u64 *)version != WORD(' ', 'H', 'T', 'T', 'P', '/', '1', '.')
		       ? -1
		       : (int)minor;
}

/* Goes to the end of the window's first line: 1 there. */
STEP pass_line(u64 turn UNUSED, struct scratch **s)
{
	volatile struct head_cursor *v = &(*s)->head;
	u64 at = v->at;

	if (at >= v->total)
		return 1;
	at += distance_to_line_end((*s)->window + (at & WINDOW_MASK), word_at(*s, at));
	v->at = at + 1;
	v->end = at < v->total && byte_at(*s, at) == '\n' ? at : 0;
	return v->end != 0;
}

#define LINE_STEPS TAKEN_EACH(SCAN_STEPS, 4) /* else its end counts as not there yet */

/* Does the window's first line, as far as it is there, look like a request's? For what is rare. */
static __always_inline bool may_be_request(struct scratch *s, u64 loaded)
{
	volatile struct head_cursor *v = &s->head;
	u64 length;

	if (!is_of_token(byte_at(s, 0)))
		return false;
	v->at = 0;
	v->total = loaded;
	v->end = 0;
	REPEAT(LINE_STEPS, pass_line, &s);
	length = v->end;
	if (!length)
		return true;
	if (byte_at(s, length - 1) == '\r')
		length--;
	return length >= token_length(s, 0, length) + BEHIND_METHOD &&
	       read_version(s, 0, length) >= 0;
}
