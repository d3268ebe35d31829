/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What a proxy may say before HTTP, with a connection's first bytes: for whom it speaks. There are two
 * versions of it, one in text and one in octets.
 *
 * It is read of those alone who may say so: whoever else is believed by nobody who was not asked to,
 * and most servers take such bytes for a bad request.
 *
 * Source:
 *	The PROXY protocol, versions 1 and 2, by HAProxy's authors.
 */
#pragma once

#include "http1/methods.h"
#include "ledger/requests.h"
#include "links/notices.h"
#include "state/carries.h"
#include "state/settings.h"

#define PROXY_TEXT WORD('P', 'R', 'O', 'X', 'Y', ' ', 0, 0)
#define PROXY_TEXT_LENGTH 6
#define PROXY_LINE_MAX 107 /* its end included */

#define SIGNATURE_START WORD('\r', '\n', '\r', '\n', 0, '\r', '\n', 'Q')
#define SIGNATURE_REST FOUR('U', 'I', 'T', '\n')
#define SIGNATURE_LENGTH 12
#define SIGNATURE_BLANKS 4 /* so far it may as well be empty lines before a request */
#define AFTER_BLANKS WORD(0, '\r', '\n', 'Q', 'U', 'I', 'T', '\n')
#define PROXY_HEAD_LENGTH 16      /* of version 2: what each has */
#define PROXY_ADDRESSES_LENGTH 36 /* of two of IPv6, and their ports */

enum proxy_command { PROXY_LOCAL = 0x20, PROXY_RELAYED = 0x21 };
enum proxy_family { PROXY_OVER_TCP4 = 0x11, PROXY_OVER_TCP6 = 0x21 };

struct network_search {
	u64 address[2];
	u64 is_found;
};

STEP look_into_network(u64 turn, struct network_search *search)
{
	const struct proxy_network *network;
	const u64 *start, *mask;

	if (turn >= PROXY_NETWORKS || turn >= PROXY_NETWORKS_MOST)
		return 1;
	network = &proxy_networks()[turn & (PROXY_NETWORKS_MOST - 1)];
	start = (const u64 *)network->address;
	mask = (const u64 *)network->mask;
	search->is_found = (search->address[0] & mask[0]) == start[0] &&
			   (search->address[1] & mask[1]) == start[1];
	return search->is_found;
}

/* May whoever sends what this flow carries send such a header? */
static __always_inline bool may_send_proxy_header(const struct connection *conn, enum flow flow)
{
	struct network_search search = { .is_found = 0 };

	copy_address((u8 *)search.address,
		     IS_OUTBOUND(flow) ? conn->key.local_address : conn->key.peer_address);
	REPEAT(PROXY_NETWORKS_MOST, look_into_network, &search);
	return search.is_found;
}

/* How many of a word's first bytes, of which there are so many, are what they should be. */
static __always_inline u64 matching(u64 word, u64 wanted, u64 length)
{
	u64 different = ~equal(word ^ wanted, 0) & BYTES(0x80);
	u64 same = different ? lowest(different) : 8;

	return same < length ? same : length;
}

/* Of the window's first bytes, of which there are `length`, how many may begin a header. */
static __always_inline u64 matching_proxy_header(const struct scratch *s, u64 length)
{
	u64 word = word_at(s, 0), same;

	if ((u8)word == 'P')
		return matching(word, PROXY_TEXT, at_most(PROXY_TEXT_LENGTH, length));
	same = matching(word, SIGNATURE_START, at_most(8, length));
	if (same == 8)
		same += matching(four_at(s, 8), SIGNATURE_REST,
				 at_most(SIGNATURE_LENGTH - 8, length - 8));
	return same;
}

/* Does a connection begin with a header, as far as its first `length` bytes tell? */
SELDOM begins_with_proxy_header(const struct scratch *s, const struct connection *conn, u64 length,
				enum flow flow)
{
	u64 most = byte_at(s, 0) == 'P' ? PROXY_TEXT_LENGTH : SIGNATURE_LENGTH;

	return matching_proxy_header(s, length) == at_most(most, length) &&
	       may_send_proxy_header(conn, flow);
}

/*
 * The same, of one that nobody may send: no request has such a target, or goes on so behind empty lines, as
 * far as it is there.
 */
static __always_inline bool is_proxy_header(const struct scratch *s, u64 length, bool behind_blanks)
{
	u64 word = word_at(s, 0);
	u32 family = four_at(s, PROXY_TEXT_LENGTH);

	length = at_most(WINDOW_MAX, length);
	if (behind_blanks && !(u8)word)
		return matching(word, AFTER_BLANKS, at_most(8, length)) == at_most(8, length);
	return length >= PROXY_TEXT_LENGTH + 4 &&
	       (word & FIRST_BYTES(PROXY_TEXT_LENGTH)) == PROXY_TEXT &&
	       (family == FOUR('T', 'C', 'P', '4') || family == FOUR('T', 'C', 'P', '6') ||
		family == FOUR('U', 'N', 'K', 'N'));
}

/* ---- version 1, a line: PROXY TCP4 192.0.2.1 192.0.2.2 40000 80 ---- */

enum proxy_field { FIELD_CLIENT, FIELD_SERVER, FIELD_CLIENT_PORT, FIELD_SERVER_PORT, FIELD_COUNT };

#define LINE_FIELDS 11 /* where they begin: behind "PROXY TCP4 " */
#define NO_GAP 16      /* where `::` stands for groups */
#define NO_DECIMAL 65536

static __always_inline void begin_number(volatile struct proxy_cursor *v)
{
	v->digits = 0;
	v->decimal = 0;
	v->hexadecimal = 0;
}

/* An address of IPv4 is one of IPv6 of which the last four octets alone are told. */
static __always_inline void begin_field(volatile struct proxy_cursor *v)
{
	begin_number(v);
	v->octets = v->is_ipv4 ? 12 : 0;
	v->gap = NO_GAP;
	v->dots = 0;
	v->colons = 0;
}

static __always_inline void add_octet(volatile struct proxy_cursor *v, u8 octet)
{
	v->address[v->octets & 15] = octet;
	v->octets++;
}

/* Is what was read a number up to `most`, with no zero before it? */
static __always_inline bool is_decimal(const volatile struct proxy_cursor *v, u32 most)
{
	u32 digits = v->digits, decimal = v->decimal;

	return decimal <= most &&
	       (digits == 1 || (digits == 2 && decimal >= 10) || (digits == 3 && decimal >= 100) ||
		(digits == 4 && decimal >= 1000) || (digits == 5 && decimal >= 10000));
}

/* One of the four numbers of IPv4 has ended: 1 where it is none. */
static __always_inline long end_decimal(volatile struct proxy_cursor *v)
{
	if (!is_decimal(v, 255) || v->octets > 15)
		return 1;
	add_octet(v, v->decimal);
	begin_number(v);
	return 0;
}

/* The same of one of the eight groups of IPv6. */
static __always_inline long end_group(volatile struct proxy_cursor *v)
{
	u32 group = v->hexadecimal;

	if (v->octets > 14)
		return 1;
	add_octet(v, group >> 8);
	add_octet(v, group);
	begin_number(v);
	return 0;
}

static __always_inline long read_colon(volatile struct proxy_cursor *v)
{
	u32 colons = v->colons + 1;

	if (v->is_ipv4 || v->dots)
		return 1;
	if (v->digits) {
		v->colons = 1;
		return end_group(v);
	}
	v->colons = colons;
	if (colons == 1) /* the first one of an address, or one behind a group, which was seen */
		return v->octets != 0;
	if (colons > 2 || v->gap != NO_GAP)
		return 1;
	v->gap = v->octets;
	return 0;
}

static __always_inline long read_digit(volatile struct proxy_cursor *v, u8 c)
{
	u32 digit = (u32)c - '0', decimal = v->decimal, digits = v->digits;
	bool is_port = v->field >= FIELD_CLIENT_PORT;

	if (digit > 9) {
		digit = ((u32)c | 0x20) - 'a' + 10;
		if (digit < 10 || digit > 15 || is_port || v->is_ipv4 || v->dots)
			return 1;
		decimal = NO_DECIMAL;
	}
	/* Behind a colon that begins an address there is another one. */
	if (digits >= (is_port ? 5U : 4U) || (v->colons == 1 && !v->octets))
		return 1;
	v->colons = 0;
	v->digits = digits + 1;
	v->hexadecimal = v->hexadecimal << 4 | digit;
	v->decimal = decimal < NO_DECIMAL ? decimal * 10 + digit : NO_DECIMAL;
	return 0;
}

/* All of an address was read: 1 where it is none. */
static __always_inline long end_address(volatile struct proxy_cursor *v)
{
	if (v->dots || v->is_ipv4) {
		if (v->dots != 3 || end_decimal(v))
			return 1;
	} else if (v->digits) {
		if (end_group(v))
			return 1;
	} else if (v->colons != 2) {
		return 1;
	}
	return v->gap == NO_GAP ? v->octets != 16 : v->octets > 14;
}

/* What was read is the client's. */
static __always_inline void keep_address(volatile struct proxy_cursor *v)
{
	((volatile u64 *)v->client)[0] = ((volatile u64 *)v->address)[0];
	((volatile u64 *)v->client)[1] = ((volatile u64 *)v->address)[1];
	v->client_octets = v->octets;
	v->client_gap = v->gap;
}

/* The address that was kept. The groups of its gap are zeros. */
static __always_inline void take_address(volatile struct proxy_cursor *v, u8 *to)
{
	u32 gap = v->client_gap, missing = 16 - v->client_octets, i;

	BOUNDED_LOOP
	for (i = 0; i < 16; i++) {
		if (i < gap)
			to[i] = v->client[i];
		else if (i >= gap + missing)
			to[i] = v->client[(i - missing) & 15];
	}
}

static __always_inline long end_field(volatile struct proxy_cursor *v)
{
	u32 field = v->field;

	if (field >= FIELD_CLIENT_PORT) {
		if (!is_decimal(v, 65535))
			return 1;
		if (field == FIELD_CLIENT_PORT)
			v->port = v->decimal;
	} else {
		if (end_address(v))
			return 1;
		if (field == FIELD_CLIENT)
			keep_address(v);
	}
	v->field = field + 1;
	begin_field(v);
	return 0;
}

/* A character of the line, behind which there is one more blank for us. 1 at its end, or where it is wrong. */
STEP read_of_line(u64 turn UNUSED, struct scratch **s)
{
	volatile struct proxy_cursor *v = &(*s)->proxy;
	u64 at = v->at;
	u8 c;

	if (at > v->length || v->field >= FIELD_COUNT)
		return 1;
	c = at < v->length ? byte_at(*s, at) : ' ';
	v->at = at + 1;
	if (c == ' ')
		return end_field(v);
	if (v->field >= FIELD_CLIENT_PORT || (c != ':' && c != '.'))
		return read_digit(v, c);
	if (c == ':')
		return read_colon(v);
	v->dots++;
	return end_decimal(v);
}

/* Reads the line of `length` bytes that the window begins with. -1: it is none. */
static __always_inline int read_proxy_line(struct scratch *s, struct told_client *client,
					   u64 length)
{
	volatile struct proxy_cursor *v = &s->proxy;
	u64 family = word_at(s, PROXY_TEXT_LENGTH);
	u8 after;

	if (length > PROXY_LINE_MAX || two_at(s, length - 2) != CRLF)
		return -1;
	if ((family & FIRST_BYTES(7)) == WORD('U', 'N', 'K', 'N', 'O', 'W', 'N', 0)) {
		after = byte_at(s, PROXY_TEXT_LENGTH + 7);
		return after == ' ' || after == '\r' ? 0 : -1;
	}
	family &= FIRST_BYTES(5);
	if (family != WORD('T', 'C', 'P', '4', ' ', 0, 0, 0) &&
	    family != WORD('T', 'C', 'P', '6', ' ', 0, 0, 0))
		return -1;
	v->is_ipv4 = (u8)(family >> 24) == '4';
	v->at = LINE_FIELDS;
	v->length = length - 2;
	v->field = FIELD_CLIENT;
	begin_field(v);
	*(volatile u64 *)&v->address[0] = 0;
	*(volatile u64 *)&v->address[8] = 0xffff0000; /* ::ffff:0:0/96, on little-endian machines */
	REPEAT(PROXY_LINE_MAX, read_of_line, &s);
	if (v->field != FIELD_COUNT || v->at <= v->length)
		return -1;
	take_address(v, client->address);
	client->port = v->port;
	return 0;
}

/* ---- version 2: the signature, what it is, how much follows, and that ---- */

/*
 * Reads the start of one, of which there is as much as is looked at. What comes behind the addresses is
 * of no interest. True: a client is told, or there is one of whom nothing is; -1: it is no header.
 */
static __always_inline int read_proxy_octets(const struct scratch *s, struct told_client *client)
{
	u32 what = four_at(s, SIGNATURE_LENGTH), length = __builtin_bswap16(what >> 16);
	u8 command = what, family = what >> 8, *from = (u8 *)s->window + PROXY_HEAD_LENGTH;

	if (command != PROXY_LOCAL && command != PROXY_RELAYED)
		return -1;
	if (command == PROXY_LOCAL)
		return 0; /* the proxy itself asks */
	if (family == PROXY_OVER_TCP4) {
		if (length < 12)
			return -1;
		map_ipv4(client->address, *(u32 *)from);
		client->port = __builtin_bswap16(*(u16 *)(from + 8));
	} else if (family == PROXY_OVER_TCP6) {
		if (length < PROXY_ADDRESSES_LENGTH)
			return -1;
		copy_address(client->address, from);
		client->port = __builtin_bswap16(*(u16 *)(from + 32));
	}
	return 1;
}

/* ---- either ---- */

/*
 * How long the header is that begins the window, of whose bytes there are `total`; 0: more of them must
 * come first; -1: it is none, or none that is right. What it tells the connection has then.
 */
static __always_inline s64 read_proxy_start(struct scratch *s, struct connection *conn, u64 total,
					    enum flow flow)
{
	struct told_client client = {}; /* nobody */
	volatile struct head_cursor *v = &s->head;
	u64 length;
	int told = 1;

	if (byte_at(s, 0) == 'P') {
		v->at = 0;
		v->total = total;
		v->end = 0;
		REPEAT(LINE_STEPS, pass_line, &s);
		if (!v->end)
			return total < PROXY_LINE_MAX ? 0 : -1;
		length = v->end + 1;
		if (read_proxy_line(s, &client, length))
			return -1;
	} else {
		if (total < PROXY_HEAD_LENGTH)
			return 0;
		length = PROXY_HEAD_LENGTH + __builtin_bswap16(two_at(s, PROXY_HEAD_LENGTH - 2));
		if (total < at_most(PROXY_HEAD_LENGTH + PROXY_ADDRESSES_LENGTH, length))
			return 0;
		told = read_proxy_octets(s, &client);
		if (told < 0)
			return -1;
	}
	if (told && !IS_CLIENTS(flow)) {
		conn->client = client;
		conn->key.client_told = CLIENT_TOLD;
	}
	return length;
}

/*
 * The first bytes of a request may look like those of a header, too. When they came is not known any more:
 * it is not told, and read for those behind it. -1: there is no room for that.
 */
static __always_inline int begin_within_request(struct scratch *s, struct connection *conn,
						struct parser *p, u64 carried, enum flow flow)
{
	s->carry = carry_key(conn, IS_OUTBOUND(flow));
	pass_over_first_request(s, conn, flow);
	if (UPDATE(carries, &s->carry, (struct carry *)s->window))
		return -1;
	p->carried = carried;
	p->state = PARSER_FIRST_LINE;
	p->message_flags = 0;
	return 0;
}

/* The header's first bytes are not those of one. Empty lines may come before a request; -1: it is none of these. */
static __always_inline int refuse_proxy_header(struct scratch *s, struct connection *conn,
					       struct parser *p, u64 same, u64 carried,
					       enum flow flow)
{
	if (byte_at(s, 0) != 'P' && same <= SIGNATURE_BLANKS) {
		s->position += same - carried;
		p->message_flags |= MESSAGE_NOT_FIRST;
		p->state = PARSER_BETWEEN;
		return 0;
	}
	if (carried && byte_at(s, 0) == 'P')
		return begin_within_request(s, conn, p, carried, flow);
	count_as_not_http(conn, NOTICE_NOT_HTTP, conn->interface[IS_OUTBOUND(flow)]);
	return -1;
}

/* Keeps all of the window for the next segment, as its end is not there yet. -1: there is no room. */
static __always_inline int keep_proxy_start(struct scratch *s, struct connection *conn,
					    struct parser *p, u64 loaded, u64 total, enum flow flow)
{
	s->carry = carry_key(conn, IS_OUTBOUND(flow));
	if (UPDATE(carries, &s->carry, (struct carry *)s->window)) {
		count_in(s, COUNT_CONNECTIONS_CROWDED, 1);
		return -1;
	}
	p->carried = total;
	s->position += loaded;
	return 0;
}

/* Goes on with a header, or behind it with HTTP. -1: it is none. */
static __always_inline int read_proxy_header(struct __sk_buff *skb, struct scratch *s,
					     struct connection *conn, struct parser *p,
					     enum flow flow, enum source source)
{
	u64 carried = p->carried & (CARRY_MAX - 1), left = s->payload_length - s->position;
	u64 loaded, total, same;
	s64 length;

	if (!p->remaining) {
		loaded = load_window(skb, s, conn, p, flow, source);
		p->carried = 0;
		if (!loaded)
			return -1;
		total = carried + loaded;
		same = matching_proxy_header(s, total);
		if (same <
		    at_most(byte_at(s, 0) == 'P' ? PROXY_TEXT_LENGTH : SIGNATURE_LENGTH, total))
			return refuse_proxy_header(s, conn, p, same, carried, flow);
		length = read_proxy_start(s, conn, total, flow);
		if (length < 0) {
			count_as_not_http(conn, NOTICE_NOT_HTTP,
					  conn->interface[IS_OUTBOUND(flow)]);
			return -1;
		}
		if (!length)
			return keep_proxy_start(s, conn, p, loaded, total, flow);
		p->remaining = length - carried;
	}
	left = at_most(p->remaining, left);
	p->remaining -= left;
	s->position += left;
	if (!p->remaining) {
		p->message_flags |= MESSAGE_NOT_FIRST;
		p->state = PARSER_BETWEEN;
	}
	return 0;
}
