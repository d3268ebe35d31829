/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Bodies: stepped over, not read, but for the lines between chunks, and in the dark. */
#pragma once

#include "http1/message.h"
#include "http1/proxy_header.h"
#include "http1/window.h"

/* What a loop over the payload carries. */
struct payload_reader {
	struct __sk_buff *skb;
	struct scratch *s;
};

/* Is the window's next byte the end of a line, and the next line empty? 1 where it is, or there is none. */
static __always_inline long seek_empty_line(struct payload_reader *reader)
{
	struct scratch *s = reader->s;
	volatile struct head_cursor *v = &s->head;
	u64 at = v->at;

	if (at >= v->total)
		return 1;
	v->at = at + 1;
	if (byte_at(s, at) == '\n' && (byte_at(s, at + 1) == '\n' || two_at(s, at + 1) == CRLF))
		v->end = at + 1;
	return v->end != 0;
}

#define SOUGHT_EACH 16
#define SOUGHT_MOST TAKEN_EACH(WINDOW_MAX, 64) /* a power of two */

STEPS(seek_empty_lines, struct payload_reader, seek_empty_line, SOUGHT_EACH)

/*
 * Looks for an empty line in the body of a request that is read in the dark, at most `n` bytes of it: see
 * stream/begin.h. Returns how many it has looked at.
 */
SELDOM search_body(struct __sk_buff *skb, struct scratch *s, struct parser *p, u64 n)
{
	struct payload_reader reader = { .skb = skb, .s = s };
	volatile struct head_cursor *v = &s->head;

	n = at_most(SOUGHT_MOST, n);
	n = ((n - 1) & (SOUGHT_MOST - 1)) + 1;
	*(u16 *)s->window = p->last_two;
	if (load_payload(skb, s, s->position, s->window + 2, n, FROM_PACKET)) {
		p->message_flags |= MESSAGE_MAY_HIDE;
		return n;
	}
	p->last_two = two_at(s, n);
	s->window[(n + 2) & WINDOW_MASK] = 0; /* behind it no line ends */
	v->at = 0;
	v->total = n + 2;
	v->end = 0;
	REPEAT(SOUGHT_MOST / SOUGHT_EACH + 1, seek_empty_lines, &reader);
	if (v->end)
		p->message_flags |= MESSAGE_MAY_HIDE;
	return n;
}

static __always_inline void read_body(struct __sk_buff *skb, struct scratch *s,
				      const struct connection *conn, struct parser *p,
				      struct exchange *x, enum flow flow, enum source source)
{
	u64 n = s->payload_length - s->position;

	if (p->remaining <= n)
		n = p->remaining;
	if (CARRIES_REQUESTS(flow) && !x && conn->framing) {
		if (source == FROM_PACKET)
			n = search_body(skb, s, p, n);
		else
			p->message_flags |= MESSAGE_MAY_HIDE;
	}
	p->remaining -= n;
	add_content(x, n, flow);
	consume(s, x, n, flow);
	if (!p->remaining)
		p->state = PARSER_ENDED;
}

/*
 * The size in a chunk's first line, at the start of word, if that is one to six
 * hexadecimal digits and CRLF and not zero; 0 for any other line.
 */
static __always_inline u32 plain_chunk_size(u64 word, u32 *line_length)
{
	u64 marks = newlines(word), digits, letters, values, characters, wrong;
	u32 count = lowest(marks) - 1, unused_bits = 64 - 8 * count;

	if (!marks || count < 1 || count > 6 || (u8)(word >> 8 * count) != '\r')
		return 0;
	*line_length = count + 2;
	/* All digits at once: the last one in the highest byte, none in the lowest. */
	digits = word << unused_bits;
	letters = digits >> 6 & BYTES(1);
	values = (digits & BYTES(0x0f)) + 9 * letters;
	characters = values + BYTES('0') + ('a' - '0' - 10) * letters;
	wrong = values & BYTES(0xf0);                             /* letters beyond 'f' */
	wrong |= ((values + BYTES(6)) >> 4 & BYTES(1)) ^ letters; /* ':', '@' ... */
	wrong |= (characters ^ (digits | letters << 5)) >> unused_bits;
	if (wrong)
		return 0;
	values = __builtin_bswap64(values);
	values = (values | values >> 4) & 0x00ff00ff00ff00ffULL;
	values = (values | values >> 8) & 0x0000ffff0000ffffULL;
	return values | values >> 16;
}

#define CHUNK_WINDOW 64 /* a power of two */
#define PLAIN_LINE 8    /* bytes of which plain_chunk_size() looks at */
#define LAST_CHUNK WORD('0', '\r', '\n', '\r', '\n', 0, 0, 0)

/* A character of a chunk's line, neither of its extension nor its last one: 1 where none such may be. */
static __always_inline u32 read_size(volatile struct chunk_cursor *v, u8 c)
{
	u32 digit = c - '0', state = v->state;

	if (digit > 9)
		digit = (c | 0x20) - 'a' + 10;
	if (state <= PARSER_CHUNK_DIGITS && digit < 16 && (c <= '9' || digit >= 10) &&
	    !(v->remaining >> 56)) {
		v->remaining = v->remaining << 4 | digit;
		v->state = PARSER_CHUNK_DIGITS;
		return 0;
	}
	if (state == PARSER_CHUNK_SIZE || state == PARSER_CHUNK_CR)
		return 1;
	v->state = c == ';'    ? PARSER_CHUNK_EXTENSION
		   : c == '\r' ? PARSER_CHUNK_CR
			       : PARSER_CHUNK_BLANK;
	return c != ';' && c != '\r' && c != ' ' && c != '\t';
}

/* A character of the framing: 1 where the body ends with it, or where it is none, which sets `failed`. */
static __always_inline long read_character(volatile struct chunk_cursor *v, u8 c)
{
	switch (v->state) {
	case PARSER_CHUNK_DATA_CR:
		v->failed = c != '\r';
		v->state = PARSER_CHUNK_DATA_LF;
		return v->failed;
	case PARSER_CHUNK_DATA_LF:
		v->failed = c != '\n';
		v->state = PARSER_CHUNK_SIZE;
		return v->failed;
	case PARSER_TRAILER_START:
	case PARSER_TRAILER_START_LF:
		if (c == '\n') {
			v->state = PARSER_ENDED;
			return 1;
		}
		v->state = c == '\r' && v->state == PARSER_TRAILER_START ? PARSER_TRAILER_START_LF
									 : PARSER_TRAILER_LINE;
		return 0;
	case PARSER_TRAILER_LINE:
		if (c == '\n')
			v->state = PARSER_TRAILER_START;
		return 0;
	case PARSER_PROXY_HEADER:
		v->failed = 1; /* see read_chunks() */
		return 1;
	}
	if (c == '\n' && v->state != PARSER_CHUNK_SIZE) /* the size's line is whole */
		v->state = v->remaining ? PARSER_CHUNK_DATA : PARSER_TRAILER_START;
	else if (v->state != PARSER_CHUNK_EXTENSION)
		v->failed = read_size(v, c);
	return v->failed;
}

/*
 * Steps over a chunk, or reads the line before it: at once where it is plain, else a byte of it. 1 at
 * the payload's end or the body's, and where it is no chunk, which sets `failed`.
 * What it hands on lives in the map for the reason given at scan_line().
 */
static __always_inline long read_chunk(struct payload_reader *reader, enum source source)
{
	struct scratch *s = reader->s;
	volatile struct chunk_cursor *v = &s->chunks;
	u32 length = s->payload_length, n, position = v->position, at = 0, line_length = 0;
	u64 word;

	if (position >= length)
		return 1;
	if (v->state != PARSER_CHUNK_DATA) {
		n = length - position;
		if (position + at_most(2 + PLAIN_LINE, n) > v->window_end ||
		    position < v->window_start) {
			if (n > CHUNK_WINDOW)
				n = CHUNK_WINDOW;
			n = ((n - 1) & (CHUNK_WINDOW - 1)) + 1;
			if (load_payload(reader->skb, s, position, s->window, n, source)) {
				v->failed = 1;
				return 1;
			}
			v->window_start = position;
			v->window_end = position + n;
		}
		at = (position - v->window_start) & (CHUNK_WINDOW - 1);
	}
	if (v->state == PARSER_CHUNK_DATA_CR && *(u16 *)(s->window + at) == CRLF &&
	    position + 2 <= v->window_end) {
		position += 2;
		at += 2;
		v->position = position;
		v->state = PARSER_CHUNK_SIZE;
		if (position >= v->window_end)
			return 0;
	}
	if (v->state == PARSER_CHUNK_SIZE) {
		word = *(u64 *)(s->window + at);
		if (position + 5 <= v->window_end && (word & FIRST_BYTES(5)) == LAST_CHUNK) {
			v->position = position + 5;
			v->state = PARSER_ENDED;
			return 1;
		}
		n = position + PLAIN_LINE <= v->window_end ? plain_chunk_size(word, &line_length)
							   : 0;
		if (n) {
			v->remaining = n;
			v->state = PARSER_CHUNK_DATA;
			position += line_length;
		}
	}
	if (v->state == PARSER_CHUNK_DATA) {
		n = length - position;
		if (v->remaining <= n) {
			n = v->remaining;
			v->state = PARSER_CHUNK_DATA_CR;
		}
		v->body_bytes += n;
		v->remaining -= n;
		v->position = position + n;
		return 0;
	}
	v->position = position + 1;
	return read_character(v, s->window[at]);
}

#define CHUNK_STEPS 96 /* with 33 tail calls: 64 KiB of 16-byte chunks */
#define CHUNKS_EACH 8

STEPS(read_packets_chunks, struct payload_reader, read_chunk, CHUNKS_EACH, FROM_PACKET)
STEPS(read_pieces_chunks, struct payload_reader, read_chunk, CHUNKS_EACH, FROM_PIECE)

/* Reads chunks from the segment's position on, in the state that they were in there. */
static __always_inline void step_over_chunks(struct __sk_buff *skb, struct scratch *s,
					     u64 remaining, u32 state, enum source source)
{
	struct payload_reader reader = { .skb = skb, .s = s };
	volatile struct chunk_cursor *v = &s->chunks;

	v->position = s->position;
	v->window_start = 0;
	v->window_end = 0;
	v->body_bytes = 0;
	v->remaining = remaining;
	v->state = state;
	v->failed = 0;
	if (source == FROM_PACKET)
		REPEAT(CHUNK_STEPS / CHUNKS_EACH, read_packets_chunks, &reader);
	else
		REPEAT(CHUNK_STEPS / CHUNKS_EACH, read_pieces_chunks, &reader);
}

/* Steps over chunks; -1 where there are none. */
static __always_inline int read_chunks(struct __sk_buff *skb, struct scratch *s,
				       struct connection *conn, struct parser *p, enum flow flow,
				       enum source source)
{
	volatile struct chunk_cursor *v = &s->chunks;
	struct exchange *x;

	step_over_chunks(skb, s, p->remaining, p->state, source);
	if (!IS_OUTBOUND(flow) && !s->position) {
		conn->chunks.seq = s->seq;
		conn->chunks.state = p->state;
		conn->chunks.remaining = p->remaining;
		conn->chunks.body_bytes = v->body_bytes;
	}
	if (v->failed) {
		if (!CARRIES_REQUESTS(flow))
			return -1;
		/* Chunks are as often as this is rare: so they do not pay for a test of it. */
		if (p->state == PARSER_PROXY_HEADER)
			return read_proxy_header(skb, s, conn, p, flow, source);
		return refuse_request(s, conn, p, flow);
	}
	p->state = v->state;
	p->remaining = v->remaining;
	x = current_exchange(conn, flow);
	add_content(x, v->body_bytes, flow);
	consume(s, x, v->position - s->position, flow);
	return p->state == PARSER_ENDED ? end_message(conn, s, x, flow, source) : 0;
}
