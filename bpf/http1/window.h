/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The payload is looked at in little-endian words of the window that it is loaded into, after what the
 * last segment left unfinished.
 */
#pragma once

#include "http1/words.h"
#include "state/carries.h"
#include "stream/source.h"

static __always_inline u64 word_at(const struct scratch *s, u64 at)
{
	return *(u64 *)(s->window + (at & WINDOW_MASK));
}

static __always_inline u32 four_at(const struct scratch *s, u64 at)
{
	return *(u32 *)(s->window + (at & WINDOW_MASK));
}

static __always_inline u16 two_at(const struct scratch *s, u64 at)
{
	return *(u16 *)(s->window + (at & WINDOW_MASK));
}

static __always_inline u8 byte_at(const struct scratch *s, u64 at)
{
	return s->window[at & WINDOW_MASK];
}

/*
 * Loads what the last segment left unfinished and the bytes that follow it.
 * Returns the number of new bytes, 0 on failure.
 */
static __always_inline u64 load_window(struct __sk_buff *skb, struct scratch *s,
				       struct connection *conn, struct parser *p, enum flow flow,
				       enum source source)
{
	u64 carried = p->carried & (CARRY_MAX - 1);
	u64 n = s->payload_length - s->position;
	struct carry *carry;

	if (carried) {
		s->carry = carry_key(conn, IS_OUTBOUND(flow));
		carry = LOOKUP(carries, &s->carry);
		if (!carry)
			return 0;
		bpf_probe_read_kernel(s->window, CARRY_MAX, carry->bytes);
		DELETE(carries, &s->carry);
	}
	if (n > WINDOW_MAX)
		n = WINDOW_MAX;
	n = ((n - 1) & (WINDOW_MAX - 1)) + 1;
	if (load_payload(skb, s, s->position, s->window + carried, n, source))
		return 0;
	return n;
}
