/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Connections: what is known of each, and the table of them. */
#pragma once

#include "abi/records.h"
#include "http1/parser.h"
#include "state/arrays.h"
#include "state/byte_times.h"
#include "state/connection_key.h"
#include "stream/flow.h"

#define IN_FLIGHT_MAX 16 /* requests in flight on one connection; a power of two */
#define NO_SLOT 0xffffffffU
#define UNMEASURED 0xffffffffU /* an interface that is not: what passed it was told of */

/* Finds a request again, as long as it is in flight. */
struct request_name {
	u64 connection_id; /* 0: of no request */
	u64 ordinal;
	u32 place; /* the connection's */
	u32 unused;
};

/* Who wrote the byte `seq`, which starts a request, and what for. */
struct writer {
	u64 pid_tgid;
	struct process process;
	struct request_name cause;
	u32 seq;
	u32 ambiguous; /* it may be for one of several requests */
};

/* Whom a header of the PROXY protocol has told; valid if key.client_told. */
struct told_client {
	u8 address[16] __attribute__((aligned(8))); /* zeros: nobody */
	u64 port;
};

/* How chunks were read where a segment that came in began among them: it may come again. */
struct chunk_start {
	u64 remaining;
	u64 body_bytes; /* how many of the segment's were of the body */
	u32 seq;
	u32 state; /* enum parser_state */
};

/* How a connection came into the table, of which its socket's state tells, or was told. */
enum origin {
	ORIGIN_UNKNOWN, /* it was there already, and no request was seen yet */
	ORIGIN_OWN,     /* the agent's export */
	ORIGIN_OPENING, /* its first bytes came before it was ESTABLISHED */
	ORIGIN_OPENED,  /* it was seen to become ESTABLISHED */
	ORIGIN_ADOPTED, /* it was there already */
};

/*
 * What is known of a connection whose framing is not: see stream/begin.h. Of what is read
 * in the dark nothing is told.
 */
enum framing {
	FRAMING_UNKNOWN,
	FRAMING_ANSWER,   /* a response is read in the dark */
	FRAMING_ANSWERED, /* it was final, and is whole */
	FRAMING_REQUEST,  /* the request behind it is read in the dark, and its response */
	FRAMING_EXCHANGE, /* both are whole */
};

/*
 * Requests on a connection are numbered by ordinals. For ordinals n: n < begun
 * have started, n < answered have had their whole response pass,
 * n < finished have been reported; of n < arrived the message that comes in (the
 * request, or an upstream's response) has begun, and tcp, queued and read say
 * how far each of these hooks has stamped that.
 */
struct connection {
	u64 id;     /* 0: nobody's, or not whole yet */
	u64 locked; /* the place: by who reads a packet of the connection, or makes or ends it */
	struct connection_key key;
	u64 socket;        /* its struct sock, once a socket hook has seen it */
	u64 used_ktime_ns; /* by the peer */
	/* Bit n % 64: request n is a HEAD, or a CONNECT, whose response has yet to begin. */
	u64 head_requests;
	u64 connect_requests;
	struct parser inbound;
	struct parser outbound;
	u64 begun;
	u64 answered;
	u64 finished;
	u64 arrived;
	u64 tcp;
	u64 queued;
	u64 read;
	u32 place;        /* in the table of connections */
	u32 home;         /* the slot last used, tried first while it is warm */
	u32 flags;        /* enum request_flag: CLIENT, and all FINs and RSTs that were seen */
	u32 ending;       /* of these, the one by which it began to end */
	u32 interface[2]; /* by enum direction: that new bytes last passed; 0: none, or UNMEASURED */
	u64 ended_ktime_ns; /* no response can become whole any more; 0: they can */
	u32 slot[IN_FLIGHT_MAX];
	struct arrivals arrivals; /* at XDP, inbound bytes */
	struct byte_times writes; /* at sendmsg, outbound bytes */
	u64 write_end; /* of the last write: its last byte's sequence number and one, and WRITE_SEEN */
	union {
		struct writer writer;      /* a client's: of the last request to an upstream */
		struct told_client client; /* a server's */
	};
	struct chunk_start chunks; /* of the last such segment */
	u32 copied_seq;            /* what has been read of an upstream's responses */
	u32 reads_seen;
	u64 established_ktime_ns; /* 0: not seen, or accepted since */
	u32 origin;               /* enum origin */
	u32 framing;              /* enum framing: where it is not known */
	union {
		u32 first_seq; /* a server's: of the first byte to come, if its beginning was seen */
		u32 fin_seq;   /* a client's: of the FIN that came last; valid if PEER_CLOSED */
	};
	u32 taken_seq; /* what a client's socket had taken when framing was lost */
};

/* Whose the connections of a set are: see connections.h. 0: nobody's. */
struct connection_tags {
	u64 of[WAYS];
	u64 locked;    /* by who makes a connection whose first set this is */
	u64 is_short;  /* it was full once: some of these are in their second set */
	u64 unused[6]; /* a cache line's rest, so that the tags are one */
};

ASSERT_BYTES(connection, CONNECTION_BYTES);
ASSERT_BYTES(connection_tags, CONNECTION_TAGS_BYTES);

DEFINE_ARRAY(struct connection, connections)
DEFINE_ARRAY(struct connection_tags, connection_tags)
DEFINE_ARRAY(u32, socket_places)

DEFINE_ELEMENT(struct connection, connection_at, connections, CONNECTIONS)

/* The connection of a request; NULL: another one has its place by now. */
static __always_inline struct connection *connection_named(const struct request_name *name)
{
	struct connection *conn = connection_at(name->place);

	return NULL_UNLESS(name->connection_id && conn && conn->id == name->connection_id, conn);
}

static __always_inline bool is_clients(const struct connection *conn)
{
	return CLIENTS && conn->flags & CLIENT;
}

static __always_inline struct parser *parser_of(struct connection *conn, enum flow flow)
{
	return IS_OUTBOUND(flow) ? &conn->outbound : &conn->inbound;
}
