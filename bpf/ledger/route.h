/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A number for the method and the route of a request: the same for all paths that differ
 * only in segments that are ids, by the rule of src/otelbpf/policy/routes.py. Of a request to an
 * upstream it is also one for the host that was asked, as src/otelbpf/protocols/urls.py finds it:
 * where the connection leads, the Host header, and a host in the request line, which is no id. The agent
 * gives routes and hosts their names; here it is enough to tell them apart.
 *
 * Set by the loader: ROUTE_HASH_START and ROUTE_HASH_FACTOR, which nobody outside knows.
 */
#pragma once

#include "http1/words.h"
#include "kernel/verifier.h"
#include "state/scratch.h"
#include "stream/flow.h"

#define ID_SEGMENT 0x100 /* no character */
#define VERSION_LONGEST 8

static __always_inline u64 take_character(u64 hash, u64 character)
{
	return (hash ^ character) * ROUTE_HASH_FACTOR;
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
	u64 hash = take_character(take_character(ROUTE_HASH_START, peer[0]), peer[1]);
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

/*
 * The route of a request line, as far as that was kept; of requests to upstreams whose it is,
 * too. What tells one turn of the loop from another lives in memory for the verifier's sake, as
 * scan_lines() explains.
 */
static __always_inline u64 hash_route(const struct request_record *r,
				      volatile struct route_cursor *v, enum flow flow)
{
	u64 length = at_most(REQUEST_LINE_MAX, r->http1.request_line_length);
	u64 hash = ROUTE_HASH_START, before, i;
	u8 character;

	if (IS_CLIENTS(flow))
		hash = hash_upstream(r, &v->start);
	before = hash;
	v->in_path = 0;
	v->start = 0;
	v->digits = 0;
	if (IS_CLIENTS(flow))
		v->whole = 0;
	BOUNDED_LOOP
	for (i = 0; i < length; i++) {
		/* Else clang ends the loop where i equals length, which 6.1 does not take for an end. */
		asm volatile("" : "+r"(i));
		character = r->http1.request_line[i];
		if (character < '@') { /* else it is nothing special, as most are */
			if (is_digit(character)) {
				v->digits++;
			} else if (character == '/' || character == ' ' || character == '?') {
				if (ends_id(r, v, i, character, flow))
					hash = take_character(before, ID_SEGMENT);
				if (character != '/' && v->in_path)
					return hash;
				if (IS_CLIENTS(flow) && character == ' ')
					v->whole = SEGMENTS_BEFORE_PATH;
				v->in_path |= character == ' ';
				before = take_character(hash, character);
				hash = before;
				v->start = i + 1;
				v->digits = 0;
				continue;
			}
		}
		hash = take_character(hash, character);
	}
	return ends_id(r, v, length, 0, flow) ? take_character(before, ID_SEGMENT) : hash;
}
