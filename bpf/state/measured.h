/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which connections are measured, and which side of them this machine is. */
#pragma once

#include "kernel/fields.h"
#include "state/connection_key.h"
#include "state/settings.h"

/*
 * Is this the namespace that is measured? Told by its cookie, which is never
 * used twice (an inode number is, while sockets of a dead namespace linger);
 * its struct net is then remembered.
 */
static __always_inline bool is_measured_netns(u64 net, enum access access)
{
	struct settings *s = settings();

	if (s->netns_pointer)
		return s->netns_pointer == net;
	if (load_u64(net + OFFSET_NET_COOKIE, access) != NETNS_COOKIE)
		return false;
	s->netns_pointer = net;
	return true;
}

enum role { ROLE_SERVER = 1, ROLE_CLIENT = 2 };

/* What this side is in a connection; 0: it is not measured. */
static __always_inline u32 role_in(const struct connection_key *key)
{
	if (IS_MEASURED_PORT(key->local_port))
		return ROLE_SERVER;
	if (CLIENTS && IS_UPSTREAM(key->peer_port, (const u64 *)key->peer_address))
		return ROLE_CLIENT;
	return 0;
}

/* Does a socket with these ports come into consideration? */
static __always_inline bool may_be_measured(u16 local_port, u64 sk, enum access access)
{
	return IS_MEASURED_PORT(local_port) ||
	       (CLIENTS && IS_UPSTREAM_PORT(sock_peer_port(sk, access)));
}

/* The key of a measured socket, whose own port is known; -1 for every other socket. */
static __always_inline int measured_key(u64 sk, u16 local_port, struct connection_key *key,
					enum access access)
{
	if (!may_be_measured(local_port, sk, access))
		return -1;
	key->local_port = local_port;
	key->peer_port = sock_peer_port(sk, access);
	if (sock_addresses(sk, key->peer_address, key->local_address, access) || !role_in(key))
		return -1;
	return is_measured_netns(load_u64(sk + OFFSET_SOCK_COMMON_NET, access), access) ? 0 : -1;
}
