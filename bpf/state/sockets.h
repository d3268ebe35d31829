/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The connection of a socket. */
#pragma once

#include "state/connections.h"

/* The connection of a measured socket. NULL where it is not known: `*is_measured` says if it is one. */
static __always_inline struct connection *find_by_socket(u64 sk, struct connection_key *key,
							 bool *is_measured, enum access access)
{
	u16 local_port = sock_local_port(sk, access);
	struct connection *conn;
	u32 *place;

	*is_measured = false;
	if (!may_be_measured(local_port, sk, access))
		return NULL;
	place = &socket_places()[sock_hash(sk, access) & SOCKET_MASK];
	conn = connection_at(*place);
	if (conn && conn->socket == sk)
		return conn;
	if (measured_key(sk, local_port, key, access))
		return NULL;
	*is_measured = true;
	conn = find_connection(key);
	if (conn) {
		conn->socket = sk;
		*place = conn->place;
	}
	return conn;
}

static __always_inline struct connection *connection_of(u64 sk, enum access access)
{
	struct connection_key key;
	bool is_measured;

	return find_by_socket(sk, &key, &is_measured, access);
}

/* The first byte that the connection's socket has not taken; `otherwise` where that is not known. */
static __always_inline u32 taken_by_socket(const struct connection *conn, u32 otherwise)
{
	u64 sk = conn->socket;

	return sk && is_tcp(sk, BY_COPY) ? tcp_rcv_nxt(tcp_sock(sk, BY_COPY), BY_COPY) : otherwise;
}
