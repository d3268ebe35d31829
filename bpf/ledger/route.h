/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A number for the method and the route of a request: the same for all paths that differ
 * only in segments that are ids, by the rule of src/otelbpf/policy/routes.py. Of a request to an
 * upstream it is also one for the host that was asked, as src/otelbpf/protocols/urls.py finds it:
 * where the connection leads, the Host header, and a host in the request line, which is no id. The agent
 * gives routes and hosts their names; here it is enough to tell them apart.
 * Nobody outside knows what it starts with and is multiplied by.
 */
#pragma once

#include "http1/words.h"
#include "kernel/verifier.h"
#include "state/scratch.h"
#include "state/settings.h"
#include "stream/flow.h"

#define ID_SEGMENT 0x100 /* no character */
#define VERSION_LONGEST 8

static __always_inline u64 take_character(u64 hash, u64 character)
{
	return (hash ^ character) * settings()->route_hash_factor;
}

static __always_inline bool is_digit(u8 character) { return (u8)(character - '0') <= 9; }

/* Is the segment that ends before `end` an id? */
static __always_inline bool is_id(const struct request_record *r,
				  const volatile struct route_cursor *v, u64 end)
{
	u64 start = at_most(REQUEST_LINE_MAX - 2, v->start);
	const u8 *first = r->http1.request_line + start;

	if (start == end)
		return false;
	if (first[0] == 'v' && end - start > 1 && end - start <= VERSION_LONGEST &&
	    is_digit(first[1]))
		return false;
	return is_digit(first[0]) || v->digits >= 2;
}

/* Whom a request to an upstream asks, as far as its request line does not say. */
static __always_inline u64 hash_upstream(const struct request_record *r, volatile u64 *left)
{
	const u64 *peer = (const u64 *)r->peer_address, *host = (const u64 *)r->http1.host;
	u64 hash = take_character(take_character(settings()->route_hash_start, peer[0]), peer[1]);
	u64 n;
	u32 i;

	hash = take_character(hash, r->http1.host_length);
	*left = r->http1.host_length;
	BOUNDED_LOOP
	for (i = 0; i < HOST_MAX / 8; i++) {
		n = *left;
		if (!n)
			break;
		/* What lies beyond the text is somebody else's. */
		hash = take_character(hash, n < 8 ? host[i] & FIRST_BYTES(n) : host[i]);
		*left = n < 8 ? 0 : n - 8;
	}
	return hash;
}

#define SEGMENTS_BEFORE_PATH 3 /* http: and nothing and the host */

/* Does an id end before `end`, with this character? */
static __always_inline bool ends_id(const struct request_record *r, volatile struct route_cursor *v,
				    u64 end, u8 character, enum flow flow)
{
	u64 whole;

	if (!IS_CLIENTS(flow))
		return is_id(r, v, end);
	whole = v->whole;
	if (!whole)
		return is_id(r, v, end);
	/* A target begins with a slash, unless it names the host. */
	v->whole = whole == SEGMENTS_BEFORE_PATH && v->start == end && character == '/' ? 0
											: whole - 1;
	return false;
}

struct route_reader {
	const struct request_record *r;
	volatile struct route_cursor *v;
};

#define CHARACTERS_EACH 8

/*
 * Takes some characters of the request line. 1 at the route's end, or the line's.
 * Most of what it hands on lives in memory for the verifier's sake, as scan_line() explains.
 */
static __always_inline long take_characters(struct route_reader *reader, enum flow flow)
{
	const struct request_record *r = reader->r;
	volatile struct route_cursor *v = reader->v;
	u64 at = v->at, length = v->length, hash = v->hash, before = v->before;
	u8 character;
	u32 i;

	BOUNDED_LOOP
	for (i = 0; i < CHARACTERS_EACH; i++, at++) {
		if (at >= length) {
			v->hash = ends_id(r, v, length, 0, flow)
					  ? take_character(before, ID_SEGMENT)
					  : hash;
			return 1;
		}
		character = r->http1.request_line[at_most(REQUEST_LINE_MAX - 1, at)];
		if (character < '@') { /* else it is nothing special, as most are */
			if (is_digit(character)) {
				v->digits++;
			} else if (character == '/' || character == ' ' || character == '?') {
				if (ends_id(r, v, at, character, flow))
					hash = take_character(before, ID_SEGMENT);
				if (character != '/' && v->in_path) {
					v->hash = hash;
					return 1;
				}
				if (IS_CLIENTS(flow) && character == ' ')
					v->whole = SEGMENTS_BEFORE_PATH;
				v->in_path |= character == ' ';
				before = take_character(hash, character);
				hash = before;
				v->start = at + 1;
				v->digits = 0;
				continue;
			}
		}
		hash = take_character(hash, character);
	}
	v->at = at;
	v->hash = hash;
	v->before = before;
	return 0;
}

STEP take_servers_characters(u64 turn UNUSED, struct route_reader *reader)
{
	return take_characters(reader, REQUESTS_IN);
}

STEP take_clients_characters(u64 turn UNUSED, struct route_reader *reader)
{
	return take_characters(reader, REQUESTS_OUT);
}

/* The route of a request line, as far as that was kept; of requests to upstreams whose it is, too. */
static __always_inline u64 hash_route(const struct request_record *r,
				      volatile struct route_cursor *v, enum flow flow)
{
	struct route_reader reader = { .r = r, .v = v };
	u64 length = at_most(REQUEST_LINE_MAX, r->http1.request_line_length);
	u64 hash = settings()->route_hash_start;

	if (IS_CLIENTS(flow))
		hash = hash_upstream(r, &v->start);
	v->hash = hash;
	v->before = hash;
	v->at = 0;
	v->length = length;
	v->in_path = 0;
	v->start = 0;
	v->digits = 0;
	v->whole = 0;
	/* Once more than it may be long, for its end. */
	if (IS_CLIENTS(flow))
		REPEAT(REQUEST_LINE_MAX / CHARACTERS_EACH + 1, take_clients_characters, &reader);
	else
		REPEAT(REQUEST_LINE_MAX / CHARACTERS_EACH + 1, take_servers_characters, &reader);
	return v->hash;
}
