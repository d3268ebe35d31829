/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which connection it is. */
#pragma once

#include "kernel/fields.h"

/* Seen from this side: of a server's connection, peer is the client; of a client's, the upstream. */
struct connection_key {
	u8 peer_address[16] __attribute__((aligned(8))); /* IPv4 as IPv4-mapped IPv6 */
	u8 local_address[16];
	u16 peer_port __attribute__((aligned(4))); /* both in host order, and in one word */
	u16 local_port;
	/* Goes with the ports into each request's record; 0 where it is a map's key. */
	u16 unused;
	u8 unused_2;
	u8 client_told;
};

static __always_inline bool same_key(const struct connection_key *a, const struct connection_key *b)
{
	const u64 *a_peer = (const u64 *)a->peer_address, *a_local = (const u64 *)a->local_address;
	const u64 *b_peer = (const u64 *)b->peer_address, *b_local = (const u64 *)b->local_address;

	return a_peer[0] == b_peer[0] && a_peer[1] == b_peer[1] && a_local[0] == b_local[0] &&
	       a_local[1] == b_local[1] &&
	       *(const u32 *)&a->peer_port == *(const u32 *)&b->peer_port;
}

static __always_inline void copy_key(struct connection_key *to, const struct connection_key *from)
{
	copy_address(to->peer_address, from->peer_address);
	copy_address(to->local_address, from->local_address);
	to->peer_port = from->peer_port;
	to->local_port = from->local_port;
}
