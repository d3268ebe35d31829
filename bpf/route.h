/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A number for the method and the route of a request: the same for all paths that differ
 * only in segments that are ids, by the rule of src/otelbpf/routes.py. The agent gives
 * routes their names; here it is enough to tell them apart.
 *
 * Set by the loader: ROUTE_HASH_START and ROUTE_HASH_FACTOR, which nobody outside knows.
 */

#define ID_SEGMENT 0x100	/* no character */
#define VERSION_LONGEST 8

static __always_inline u64 take_character(u64 hash, u64 character)
{
	return (hash ^ character) * ROUTE_HASH_FACTOR;
}

static __always_inline bool is_digit(u8 character)
{
	return (u8)(character - '0') <= 9;
}

/* Is the segment that ends before `end` an id? */
static __always_inline bool is_id(const struct request_record *r,
				  const volatile struct route_cursor *v, u64 end)
{
	u64 start = at_most(REQUEST_LINE_MAX - 2, v->start);
	const u8 *first = r->request_line + start;

	if (start == end)
		return false;
	if (first[0] == 'v' && end - start > 1 && end - start <= VERSION_LONGEST &&
	    is_digit(first[1]))
		return false;
	return is_digit(first[0]) || v->digits >= 2;
}

/*
 * The route of a request line, as far as that was kept; of requests to upstreams the
 * upstream's, too. What tells one turn of the loop from another lives in memory for the
 * verifier's sake, as scan_lines() explains.
 */
static __always_inline u64 hash_route(const struct request_record *r,
				      volatile struct route_cursor *v, enum flow flow)
{
	const u64 *peer = (const u64 *)r->peer_address;
	u64 length = at_most(REQUEST_LINE_MAX, r->request_line_length);
	u64 hash = ROUTE_HASH_START, before, i;
	u8 character;

	if (IS_CLIENTS(flow))
		hash = take_character(take_character(hash, peer[0]), peer[1]);
	before = hash;
	v->in_path = 0;
	v->start = 0;
	v->digits = 0;
	BOUNDED_LOOP
	for (i = 0; i < length; i++) {
		/* Else clang ends the loop where i equals length, which 6.1 does not take for an end. */
		asm volatile("" : "+r"(i));
		character = r->request_line[i];
		if (character < '@') {		/* else it is nothing special, as most are */
			if (is_digit(character)) {
				v->digits++;
			} else if (character == '/' || character == ' ' || character == '?') {
				if (is_id(r, v, i))
					hash = take_character(before, ID_SEGMENT);
				if (character != '/' && v->in_path)
					return hash;
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
	return is_id(r, v, length) ? take_character(before, ID_SEGMENT) : hash;
}
