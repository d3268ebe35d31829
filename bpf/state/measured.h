/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which connections are measured, and which side of them this machine is. */
#pragma once

#include "kernel/fields.h"
#include "state/connection_key.h"
#include "state/settings.h"

MAP(HASH, upstreams, struct upstream, u8, UPSTREAMS_MOST)

static __always_inline bool is_measured_port(u16 port)
{
	return measured_ports()[bounded_port(port)];
}

static __always_inline u8 upstream_port_of(u16 port)
{
	return upstream_ports()[bounded_port(port)];
}

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
	if (load_u64(FIELD(net, net, net_cookie), access) != s->netns_cookie)
		return false;
	s->netns_pointer = net;
	return true;
}

enum role { ROLE_SERVER = 1, ROLE_CLIENT = 2 };

static __always_inline bool is_upstream(const struct connection_key *key)
{
	struct upstream where = { .port = key->peer_port };
	u8 port = upstream_port_of(key->peer_port);

	if (port != UPSTREAM_BY_ADDRESS)
		return port;
	copy_address(where.address, key->peer_address);
	return LOOKUP(upstreams, &where);
}

/* Is this side one of these in a connection? Of both it is the server. */
static __always_inline bool has_role(const struct connection_key *key, u32 roles)
{
	if (is_measured_port(key->local_port))
		return roles & ROLE_SERVER;
	return CLIENTS && roles & ROLE_CLIENT && is_upstream(key);
}

/* Is it measured at all? */
static __always_inline bool is_measured(const struct connection_key *key)
{
	return has_role(key, ROLE_SERVER | ROLE_CLIENT);
}

/* Does a socket with these ports come into consideration? Its own one it has in host order. */
static __always_inline bool may_be_measured(u16 local_port, u64 sk, enum access access)
{
	return measured_ports()[local_port] ||
	       (CLIENTS && upstream_port_of(sock_peer_port(sk, access)));
}

/* The key of a measured socket, whose own port is known; -1 for every other socket. */
static __always_inline int measured_key(u64 sk, u16 local_port, struct connection_key *key,
					enum access access)
{
	if (!may_be_measured(local_port, sk, access))
		return -1;
	key->local_port = local_port;
	key->peer_port = sock_peer_port(sk, access);
	if (sock_addresses(sk, key->peer_address, key->local_address, access) || !is_measured(key))
		return -1;
	return is_measured_netns(load_u64(FIELD(sk, sock_common, skc_net), access), access) ? 0
											    : -1;
}
