/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What is kept of a connection whose segments do not come in order. */
#pragma once

#include "kernel/verifier.h"
#include "state/byte_times.h"

#define PIECES_MAX 32  /* kept of one connection; a power of two */
#define PIECE_MAX 2048 /* bytes; a power of two; fits the window */
#define HOLES_MAX 16   /* known of one connection */

/* A part of an early segment. */
struct piece {
	u32 seq;
	u32 length;       /* 0: this place is free */
	u64 ktime_ns;     /* when TC saw it */
	u64 tcp_ktime_ns; /* when TCP took it */
	u32 interface;    /* that it came by */
	u16 early;        /* an early segment begins with it */
	u16 repeats;      /* segments that repeated its bytes, or whose own were repeated */
};

/* Bytes of known framing that were stepped over. */
struct hole {
	u32 start;
	u32 end; /* start: this place is free */
};

/* Of a connection whose segments do not come in order, by its id. */
struct disorder {
	struct piece pieces[PIECES_MAX];
	struct hole holes[HOLES_MAX];
};

struct piece_key {
	u64 connection_id;
	u32 place; /* in struct disorder */
	u32 unused;
};

/* What is kept of it: the arrivals that were known when TC saw it say when its bytes came. */
struct kept {
	u8 bytes[PIECE_MAX];
	struct arrivals arrivals;
};

/*
 * None of these is a map of the least recently used: of a small one, where there are many processors,
 * each takes so many places to itself that another's are soon taken away. So whoever is done with a
 * connection deletes what is kept of it, and what finds no room is counted.
 */
MAP(HASH, disorders, u64, struct disorder, 512)
MAP(ARRAY, blank_disorder, u32, struct disorder, 1)
MAP(HASH, kept_pieces, struct piece_key, struct kept, 2048)

STEP drop_piece(u64 turn, struct piece_key *key)
{
	key->place = turn;
	DELETE(kept_pieces, key);
	return 0;
}

/* All that is kept of a connection. */
static __always_inline void drop_disorder(u64 connection_id)
{
	struct piece_key key = { .connection_id = connection_id };

	DELETE(disorders, &key.connection_id);
	REPEAT(PIECES_MAX, drop_piece, &key);
}
