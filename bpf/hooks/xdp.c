/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The earliest point software sees: the driver hands over a packet. What the
 * packet means is found out later, at TC, where segments may have been merged;
 * here it is only noted when each one came.
 */

#include "links/existing.h"
#include "stream/packet.h"

#define XDP_VERDICT_PASS 2

/* A connection that is not known. With a request begins what is measured: an upstream's response is none. */
SELDOM note_first_arrival(struct xdp_md *xdp, const struct segment *seg, u64 now)
{
	struct connection *conn;

	if (!has_role(&seg->key, ROLE_SERVER))
		return 0;
	conn = admit_received(xdp, own_scratch(), seg, now);
	if (conn)
		note_arrival(&conn->arrivals, seg->seq, seg->seq + seg->payload_length, now, true);
	return 0;
}

PROGRAM("xdp") int xdp_arrival(struct xdp_md *xdp)
{
	u8 *data = (u8 *)(long)xdp->data, *data_end = (u8 *)(long)xdp->data_end;
	struct segment seg = {}, copy;
	struct connection *conn;
	u64 now;

	if (parse_segment(data, data_end, (u32)(data_end - data), INBOUND,
			  ROLE_SERVER | ROLE_CLIENT, &seg) != SEGMENT_OURS ||
	    !seg.payload_length)
		return XDP_VERDICT_PASS;
	now = bpf_ktime_get_ns();
	conn = find_connection(&seg.key);
	if (__builtin_expect(!conn, 0)) {
		copy = seg; /* whose address is not handed on: it stays in registers */
		note_first_arrival(xdp, &copy, now);
		return XDP_VERDICT_PASS;
	}
	/* What TC still reads has been counted in, and yet is to be looked up. */
	note_arrival(&conn->arrivals, seg.seq, seg.seq + seg.payload_length, now,
		     seg.seq == conn->inbound.next_seq && !*(volatile u64 *)&conn->locked);
	return XDP_VERDICT_PASS;
}
