/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What never changes once the programs are loaded, so that the verifier knows it: which parts there
 * are, and how long the tables. BCC is told macros; an object has them in its read-only data, which
 * the agent fills before the programs are loaded.
 */
#pragma once

#include "target.h"

/* The same in all agents. */
enum fixed_length {
	WAYS = 8, /* connections in a set of them: bpf/state/connections.h */
	PORTS = 65536,
	READER_SLOTS = 16384, /* of tasks: bpf/state/reader.h */
	SERIES_SETS = 8192,   /* of their places: bpf/ledger/series.h */
	STAGE_ORDERS = 256,
	PROXY_NETWORKS_MOST = 64,
};

/* Where proxies say for whom they have forwarded a request. */
enum forwarded_header {
	HEADER_NONE, /* nobody is believed */
	HEADER_X_FORWARDED_FOR,
	HEADER_FORWARDED, /* RFC 7239 */
};

struct configuration {
	/* Parts: 0 where nobody asks for them. */
	u32 servers;     /* are ports measured? */
	u32 clients;     /* are there upstreams? */
	u32 series;      /* are all requests to be added up? */
	u32 go_handlers; /* are there handlers in Go? */
	/*
	 * How long the tables are: bpf/state/arrays.h. Of a power of two it is the mask that is needed, and
	 * here nothing has to be subtracted for it each time.
	 */
	u32 cpu_mask;
	u32 connection_sets;
	u32 connections; /* in all of the sets */
	u32 socket_mask;
	u32 max_exchanges;
	u32 ring_max;
	u32 ring_mask;
	u32 series_rows;
	u32 proxy_networks; /* how many there are; 0: nobody may send a header of the PROXY protocol */
	u32 forwarded_header; /* enum forwarded_header */
};

#ifndef BCC_BUILD
READ_ONLY struct configuration configuration_data SECTION(".rodata") = {};

/* Its address as if it were not known: else clang would take its zeros for what it holds. */
static __always_inline const struct configuration *configuration(void)
{
	const struct configuration *c = &configuration_data;

	asm("" : "+r"(c));
	return c;
}

#define SERVERS (configuration()->servers)
#define CLIENTS (configuration()->clients)
#define SERIES (configuration()->series)
#define GO_HANDLERS (configuration()->go_handlers)
#define CPU_MASK (configuration()->cpu_mask)
#define CONNECTION_SETS (configuration()->connection_sets)
#define CONNECTIONS (configuration()->connections)
#define SOCKET_MASK (configuration()->socket_mask)
#define MAX_EXCHANGES (configuration()->max_exchanges)
#define RING_MAX (configuration()->ring_max)
#define RING_MASK (configuration()->ring_mask)
#define SERIES_ROWS (configuration()->series_rows)
#define PROXY_NETWORKS (configuration()->proxy_networks)
#define FORWARDED_HEADER (configuration()->forwarded_header)
#endif
