/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The earliest point software sees: the driver hands over a packet. What the
 * packet means is found out later, at TC, where segments may have been merged;
 * here it is only noted when each one came.
 */

#include "state/connections.h"
#include "stream/packet.h"

#define XDP_VERDICT_PASS 2

PROGRAM("xdp") int xdp_arrival(struct xdp_md *xdp)
{
	u8 *data = (u8 *)(long)xdp->data, *data_end = (u8 *)(long)xdp->data_end;
	struct segment seg = {};
	struct connection *conn;
	u64 now;

	if (parse_segment(data, data_end, (u32)(data_end - data), INBOUND,
			  ROLE_SERVER | ROLE_CLIENT, &seg) != SEGMENT_OURS ||
	    !seg.payload_length)
		return XDP_VERDICT_PASS;
	now = bpf_ktime_get_ns();
	conn = find_connection(&seg.key);
	if (!conn) {
		/* With a request begins what is measured: an upstream's response is none. */
		if (!has_role(&seg.key, ROLE_SERVER))
			return XDP_VERDICT_PASS;
		conn = create_connection(&seg.key, now);
		if (!conn)
			return XDP_VERDICT_PASS;
	}
	note_arrival(&conn->arrivals, seg.seq, seg.seq + seg.payload_length, now,
		     seg.seq == conn->inbound.next_seq);
	return XDP_VERDICT_PASS;
}
