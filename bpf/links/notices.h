/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Connections that are not measured: the agent is told of them, on rare paths only. */
#pragma once

#include "http1/words.h"
#include "state/connection.h"
#include "state/scratch.h"

DEFINE_ARRAY(struct notices, notices)

static __always_inline void notify(const struct connection *conn, u32 kind, u32 ifindex)
{
	struct notices *all = notices();
	struct notice *to = &all->recent[__sync_fetch_and_add(&all->count, 1) & (NOTICES - 1)];

	/* The agent may be reading it. */
	to->kind = 0;
	asm volatile("" : : : "memory");
	to->ktime_ns = bpf_ktime_get_ns();
	copy_address(to->peer_address, conn->key.peer_address);
	copy_address(to->local_address, conn->key.local_address);
	to->peer_port = conn->key.peer_port;
	to->local_port = conn->key.local_port;
	to->ifindex = ifindex;
	to->is_client = conn->flags / CLIENT & 1;
	asm volatile("" : : : "memory");
	to->kind = kind;
}

/* What a connection is of whose first bytes begin no request of HTTP/1. */
static __always_inline u32 protocol_of(u32 first_four)
{
	/* A record's type, of a handshake or of data, and version 3.x. */
	if ((first_four & 0xf8fffe) == 0x000316)
		return NOTICE_TLS;
	if (first_four == (u32)WORD('P', 'R', 'I', ' ', 0, 0, 0, 0))
		return NOTICE_HTTP2;
	return NOTICE_NOT_HTTP;
}

/* Once for each connection. The agent is told if `kind`, a notice's, says what it is instead. */
static __always_inline void count_as_not_http(struct connection *conn, u32 kind, u32 ifindex)
{
	if (conn->inbound.counted)
		return;
	conn->inbound.counted = 1;
	count(COUNT_CONNECTIONS_NOT_HTTP);
	if (kind == NOTICE_TLS)
		count(COUNT_CONNECTIONS_TLS);
	if (kind == NOTICE_HTTP2)
		count(COUNT_CONNECTIONS_HTTP2);
	if (kind)
		notify(conn, kind, ifindex);
}
