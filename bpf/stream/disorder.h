/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Inbound segments that do not come in order. Where the bytes before an early
 * one lie inside a body or a chunk they are stepped over, and the hole is
 * remembered. Where they must be read first the early segment is kept, in pieces,
 * and read once they have come.
 *
 * Programs of its own do all of this, by tail calls: where segments come in order
 * all there is to it is a test that parser.disorder is 0.
 */
#pragma once

#include "http1/message.h"
#include "ledger/endings.h"
#include "state/disorder.h"
#include "state/exchange.h"
#include "stream/packet.h"

static __always_inline struct disorder *begin_disorder(struct connection *conn)
{
	u32 zero = 0;
	struct disorder *blank = LOOKUP(blank_disorder, &zero);

	if (!blank || UPDATE(disorders, &conn->id, blank)) {
		count(COUNT_CONNECTIONS_CROWDED);
		return NULL;
	}
	return LOOKUP(disorders, &conn->id);
}

static __always_inline void add_early(struct exchange *x, u32 n)
{
	if (x)
		x->record.out_of_order += n;
}

static __always_inline void add_repeats(struct exchange *x, u32 n)
{
	if (x)
		*inbound_retransmits(x) += n;
}

/*
 * The loops below keep what they find in the map, for the reason given at
 * scan_lines().
 */

/* ---- holes ---- */

/* Inside a body, or inside a chunk, the missing bytes need not be seen. */
static __always_inline bool step_over(struct parser *p, struct exchange *x, u32 missing,
				      enum flow flow)
{
	if (CARRIES_REQUESTS(flow) || IS_OUTBOUND(flow) || p->state != PARSER_UNTIL_CLOSE) {
		if ((p->state != PARSER_BODY && p->state != PARSER_CHUNK_DATA) ||
		    missing >= p->remaining)
			return false;
		p->remaining -= missing;
		p->message_flags |= MESSAGE_MAY_HIDE;
	}
	add_content(x, missing, flow);
	add_bytes(x, missing, flow);
	return true;
}

static __always_inline void add_hole(volatile struct disorder_cursor *v, struct disorder *d,
				     u32 start, u32 end)
{
	struct hole *hole;
	u32 i;

	/* With no place left one is forgotten: what fills it will be taken for a repeat. */
	v->place = 0;
	BOUNDED_LOOP
	for (i = 0; i < HOLES_MAX; i++)
		if (d->holes[i].start == d->holes[i].end)
			v->place = i;
	hole = &d->holes[v->place & (HOLES_MAX - 1)];
	hole->start = start;
	hole->end = end;
}

/* [start, end) has come. Returns how many of its bytes had been missing. */
static __always_inline u32 fill_holes(volatile struct disorder_cursor *v, struct disorder *d,
				      u32 start, u32 end)
{
	u32 i, from, to;

	v->filled = 0;
	v->rest_start = 0;
	v->rest_end = 0;
	BOUNDED_LOOP
	for (i = 0; i < HOLES_MAX; i++) {
		volatile struct hole *hole = &d->holes[i];

		from = before(hole->start, start) ? start : hole->start;
		to = before(end, hole->end) ? end : hole->end;
		if (!before(from, to))
			continue;
		v->filled += to - from;
		if (from == hole->start) {
			hole->start = to;
		} else {
			/* Only one hole can have a rest on both sides. */
			v->rest_start = to;
			v->rest_end = hole->end;
			hole->end = from;
		}
	}
	if (v->rest_start != v->rest_end)
		add_hole(v, d, v->rest_start, v->rest_end);
	return v->filled;
}

/* How many holes there are before the byte `seq`. */
static __always_inline u32 count_holes(volatile struct disorder_cursor *v, const struct disorder *d,
				       u32 seq)
{
	u32 i;

	v->holes = 0;
	BOUNDED_LOOP
	for (i = 0; i < HOLES_MAX; i++)
		if (d->holes[i].start != d->holes[i].end && before(d->holes[i].start, seq))
			v->holes++;
	return v->holes;
}

/* ---- pieces ---- */

#define FIND_ROUNDS 4 /* places may be in another order than the pieces in them */

struct search {
	volatile struct disorder_cursor *v;
	const struct disorder *d;
	u32 start;
	u32 end;
};

STEP look_at_piece(u64 turn, struct search *sought)
{
	volatile struct disorder_cursor *v = sought->v;
	u32 place = turn & (PIECES_MAX - 1);
	const struct piece *piece = &sought->d->pieces[place];
	u32 piece_end = piece->seq + piece->length;

	if (!piece->length || !before(piece->seq, sought->end) || !before(sought->start, piece_end))
		return 0;
	v->overlapping = place;
	if (!before(v->reached, piece->seq) && before(v->reached, piece_end))
		v->reached = piece_end;
	return 0;
}

/* Looks for a piece that has some of these bytes, and how far the pieces have all of them. */
static __always_inline void find_pieces(volatile struct disorder_cursor *v,
					const struct disorder *d, u32 start, u32 end)
{
	struct search sought = { .v = v, .d = d, .start = start, .end = end };

	v->overlapping = PIECES_MAX;
	v->reached = start;
	REPEAT(FIND_ROUNDS * PIECES_MAX, look_at_piece, &sought);
}

/*
 * Some of an early segment's bytes are kept already. Has it others? Which of them TCP takes is up to it,
 * and to their checksums. To compare them would take BCC's programs, which have no calls, beyond what
 * the verifier allows: there nobody knows.
 */
#ifdef BCC_BUILD
static __always_inline bool differs(struct __sk_buff *skb UNUSED, struct scratch *s UNUSED,
				    struct connection *conn UNUSED, const struct disorder *d UNUSED)
{
	return true;
}
#else
struct comparison {
	struct __sk_buff *skb;
	struct scratch *s;
	struct connection *conn;
	const struct disorder *d;
};

struct word_comparison {
	struct scratch *s;
	const struct kept *kept;
	u64 at; /* in the piece, of the window's first byte */
	u64 length;
};

/* Eight bytes of the window, or as many as there are, and of the piece. What differs is noted in the map. */
static __always_inline long compare_word(u64 turn, struct word_comparison *c)
{
	u64 i = turn * 8 & (PIECE_MAX - 1), left = c->length - turn * 8, difference;
	volatile struct disorder_cursor *v = &c->s->disorder;

	if (turn * 8 >= c->length)
		return 1;
	difference = *(const u64 *)(c->s->window + i) ^
		     *(const u64 *)(c->kept->bytes + ((c->at + i) & (PIECE_MAX - 1)));
	if (left < 8)
		difference &= FIRST_BYTES(left);
	if (difference)
		v->differs = 1;
	return 0;
}

STEP compare_next_word(u64 turn, struct word_comparison *c) { return compare_word(turn, c); }

STEP compare_piece(u64 turn, struct comparison *c)
{
	const struct piece *piece = &c->d->pieces[turn & (PIECES_MAX - 1)];
	struct piece_key key = { .connection_id = c->conn->id, .place = turn };
	u32 from = c->s->seq, to = from + c->s->payload_length, n;
	struct word_comparison words = { .s = c->s };

	if (before(from, piece->seq))
		from = piece->seq;
	if (before(piece->seq + piece->length, to))
		to = piece->seq + piece->length;
	if (!piece->length || !before(from, to))
		return 0;
	words.kept = LOOKUP(kept_pieces, &key);
	words.at = from - piece->seq;
	words.length = to - from;
	n = ((words.length - 1) & (PIECE_MAX - 1)) + 1;
	if (!words.kept ||
	    bpf_skb_load_bytes(c->skb, c->s->payload_offset + from - c->s->seq, c->s->window, n)) {
		c->s->disorder.differs = 1;
		return 1;
	}
	REPEAT(PIECE_MAX / 8, compare_next_word, &words);
	return 0;
}

static __always_inline bool differs(struct __sk_buff *skb, struct scratch *s,
				    struct connection *conn, const struct disorder *d)
{
	struct comparison c = { .skb = skb, .s = s, .conn = conn, .d = d };
	volatile struct disorder_cursor *v = &s->disorder;

	v->differs = 0;
	REPEAT(PIECES_MAX, compare_piece, &c);
	return v->differs;
}
#endif

/* Keeps the segment's next bytes, as many as there is room for, in a free place. */
static __always_inline int keep_piece(struct __sk_buff *skb, struct scratch *s,
				      struct connection *conn, struct piece *piece, u32 place)
{
	volatile struct disorder_cursor *v = &s->disorder;
	u32 at = v->at, n = at_most(PIECE_MAX, s->payload_length - at);
	struct piece_key key = { .connection_id = conn->id, .place = place };

	n = ((n - 1) & (PIECE_MAX - 1)) + 1;
	if (bpf_skb_load_bytes(skb, s->payload_offset + at, s->window, n))
		return -1;
	bpf_probe_read_kernel(s->window + PIECE_MAX, sizeof(conn->arrivals), &conn->arrivals);
	if (UPDATE(kept_pieces, &key, (struct kept *)s->window)) {
		count(COUNT_CONNECTIONS_CROWDED);
		return -1;
	}
	piece->seq = s->seq + at;
	piece->length = n;
	piece->ktime_ns = s->ktime_ns;
	piece->tcp_ktime_ns = 0;
	piece->interface = skb->ifindex;
	piece->early = at == 0 && v->early;
	piece->repeats = at == 0 && v->overlapping < PIECES_MAX;
	conn->inbound.kept++;
	v->at = at + n;
	return 0;
}

/* Keeps all of an early segment; -1 where that cannot be done, for want of room, for one. */
static __always_inline int keep(struct __sk_buff *skb, struct scratch *s, struct connection *conn)
{
	volatile struct disorder_cursor *v = &s->disorder;
	struct disorder *d = LOOKUP(disorders, &conn->id);
	u32 i;

	if (!d && !conn->inbound.kept)
		d = begin_disorder(conn);
	if (!d)
		return -1;
	/* It is none if all before it came, but took more tail calls than there are. */
	find_pieces(v, d, conn->inbound.next_seq, s->seq);
	v->early = before(v->reached, s->seq);
	find_pieces(v, d, s->seq, s->seq + s->payload_length);
	i = v->overlapping;
	if (i < PIECES_MAX && differs(skb, s, conn, d)) {
		lose_untaken(conn, s->seq, false);
		return -1;
	}
	if (i < PIECES_MAX && !before(v->reached, s->seq + s->payload_length)) {
		/* Else it is the same packet, at another interface. */
		if (d->pieces[i].interface == skb->ifindex)
			d->pieces[i].repeats++;
		return 0;
	}
	v->at = 0;
	BOUNDED_LOOP
	for (i = 0; i < PIECES_MAX && v->at < s->payload_length; i++)
		if (!d->pieces[i].length && keep_piece(skb, s, conn, &d->pieces[i], i))
			return -1;
	return v->at < s->payload_length ? -1 : 0;
}

/*
 * The kept piece that holds the next byte becomes what is read, or the lowest one
 * if the bytes before it need not be; false if there is none such.
 */
static __always_inline bool next_piece(struct scratch *s, struct connection *conn, enum flow flow)
{
	volatile struct disorder_cursor *v = &s->disorder;
	struct disorder *d = LOOKUP(disorders, &conn->id);
	struct exchange *x = latest_arrival(conn);
	struct piece_key key = { .connection_id = conn->id };
	struct parser *p = &conn->inbound;
	struct piece *piece;
	u32 i, place;

	if (!d)
		return false;
	v->containing = PIECES_MAX;
	v->lowest = PIECES_MAX;
	v->missing = ~0U;
	BOUNDED_LOOP
	for (i = 0; i < PIECES_MAX; i++) {
		piece = &d->pieces[i];
		if (!piece->length)
			continue;
		if (before(p->next_seq, piece->seq)) {
			if (piece->seq - p->next_seq < v->missing) {
				v->missing = piece->seq - p->next_seq;
				v->lowest = i;
			}
		} else if (before(p->next_seq, piece->seq + piece->length)) {
			v->containing = i;
		} else {
			/* All of it has been read, if not from here. */
			add_early(x, piece->early);
			add_repeats(x, piece->repeats);
			key.place = i;
			DELETE(kept_pieces, &key);
			piece->length = 0;
			p->kept--;
		}
	}
	place = v->containing;
	if (place >= PIECES_MAX) {
		place = v->lowest;
		if (place >= PIECES_MAX || !step_over(p, x, v->missing, flow))
			return false;
		add_hole(v, d, p->next_seq, p->next_seq + v->missing);
		p->holes++;
		p->next_seq += v->missing;
	}
	piece = &d->pieces[place];
	s->piece.connection_id = conn->id;
	s->piece.place = place;
	s->seq = piece->seq;
	s->payload_length = piece->length;
	s->position = p->next_seq - piece->seq;
	s->ktime_ns = piece->ktime_ns;
	s->tcp_ktime_ns = piece->tcp_ktime_ns;
	p->next_seq = piece->seq + piece->length;
	return true;
}

/*
 * A segment was read, or was found to bring nothing new, while others are early
 * or late: what became of the holes, and what is to be said of this one. -1 where
 * what had been kept is gone.
 */
static __always_inline int settle(struct __sk_buff *skb, struct scratch *s, struct connection *conn)
{
	u32 start = s->seq, end = start + s->payload_length, late = start, filled;
	volatile struct disorder_cursor *v = &s->disorder;
	struct disorder *d = LOOKUP(disorders, &conn->id);
	struct parser *p = &conn->inbound;
	struct exchange *x;

	if (!d) {
		p->holes = 0;
		if (p->kept)
			return -1;
		d = begin_disorder(conn);
		if (!d)
			return 0;
	}
	if (s->ahead > 0)
		add_hole(v, d, start - s->ahead, start);
	else
		late = start - s->ahead;
	filled = fill_holes(v, d, start, late);
	if (!filled && passed_another(skb, conn, INBOUND))
		return 0;
	find_pieces(v, d, start, end);
	count_holes(v, d, start);
	x = latest_arrival(conn);
	if (filled != late - start || v->overlapping < PIECES_MAX)
		add_repeats(x, 1);
	if ((filled || late != end) && v->holes)
		add_early(x, 1);
	p->holes = count_holes(v, d, p->next_seq);
	return 0;
}

/* There is nothing out of order any more. */
static __always_inline void end_disorder(struct connection *conn)
{
	if (!conn->inbound.disorder)
		DELETE(disorders, &conn->id);
}

/* Once what a piece brought belongs to a request, that one is told of it. */
static __always_inline void credit_piece(const struct scratch *s, struct connection *conn)
{
	struct disorder *d = LOOKUP(disorders, &conn->id);
	struct exchange *x = latest_arrival(conn);
	struct piece *piece;

	if (!d)
		return;
	piece = &d->pieces[s->piece.place & (PIECES_MAX - 1)];
	add_early(x, piece->early);
	add_repeats(x, piece->repeats);
	piece->early = 0;
	piece->repeats = 0;
}

/*
 * TCP has acknowledged all bytes before ack_seq, so none of them is still to
 * come: those that are missing went past TC. -1 where they
 * should have been read.
 */
static __always_inline int track_acknowledged(struct connection *conn, u32 ack_seq)
{
	struct parser *p = &conn->inbound;

	if (before(ack_seq, p->next_seq))
		return 0;
	if (p->kept)
		return ack_seq == p->next_seq ? 0 : -1;
	forget_disorder(conn);
	return 0;
}

/* TCP took the bytes in range. The requests that begin there are not known yet. */
static __always_inline void stamp_pieces(struct connection *conn, struct byte_range range, u64 now)
{
	struct disorder *d = LOOKUP(disorders, &conn->id);
	u32 i;

	if (!d)
		return;
	BOUNDED_LOOP
	for (i = 0; i < PIECES_MAX; i++) {
		struct piece *piece = &d->pieces[i];

		if (piece->length && !piece->tcp_ktime_ns && !before(piece->seq, range.start) &&
		    before(piece->seq, range.end))
			piece->tcp_ktime_ns = now;
	}
}
