/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Where the bytes lie that are read: in the packet, or in a piece that was kept. */
#pragma once

#include "state/connection.h"
#include "state/scratch.h"

/* Where the bytes lie that are read: a constant, so that packets pay nothing for the rest. */
enum source { FROM_PACKET, FROM_PIECE };

/* The piece that is read in place of the packet; NULL if it was evicted. */
static __always_inline struct kept *kept_piece(struct scratch *s)
{
	return LOOKUP(kept_pieces, &s->piece);
}

/* When the byte `seq`, which is read now, came. */
static __always_inline u64 arrival_of_read(struct scratch *s, struct connection *conn, u32 seq,
					   enum source source)
{
	struct kept *kept;

	if (source == FROM_PACKET)
		return arrival_of(&conn->arrivals, seq);
	kept = kept_piece(s);
	return kept ? arrival_of(&kept->arrivals, seq) : 0;
}

/* n bytes of the segment that is read, from its byte `at` on. */
static __always_inline int load_payload(struct __sk_buff *skb, struct scratch *s, u64 at, u8 *to,
					u64 n, enum source source)
{
	struct kept *kept;

	if (source == FROM_PACKET)
		return bpf_skb_load_bytes(skb, s->payload_offset + at, to, n);
	kept = kept_piece(s);
	return kept ? bpf_probe_read_kernel(to, n, kept->bytes + (at & (PIECE_MAX - 1))) : -1;
}
