/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* A connection that is about to begin. */
#pragma once

#include "state/connection_key.h"

/* A connection that was asked for, and neither granted nor refused yet. */
struct handshake {
	u64 syn_ktime_ns; /* of the first one, from which on the client waits */
	u32 seq;          /* the same for those sent again */
	u32 ifindex;      /* a packet may pass several interfaces */
	u32 answer;       /* enum answer */
	u32 granted_seq;  /* if REDIRECTED: of the server's first byte */
};

enum answer {
	NO_ANSWER,
	ANSWERED,
	CAME_AGAIN,
	REDIRECTED, /* answered by a socket with another address or port */
};

/* In a flood of SYNs those forgotten first are those that nobody answers. */
MAP(LRU_HASH, handshakes, struct connection_key, struct handshake, 16384)
