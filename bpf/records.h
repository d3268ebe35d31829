/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What crosses from the kernel to user space. Written once, here: the Python
 * side (src/otelbpf/records.py) is generated from the BTF that clang makes of
 * this file, and a test holds the two together.
 *
 * Only fixed-width integers and byte arrays; every field has its natural
 * alignment, so there is no hidden padding.
 */
#ifndef OTELBPF_RECORDS_H
#define OTELBPF_RECORDS_H

#define REQUEST_LINE_MAX 192
#define HOST_MAX 64
#define USER_AGENT_MAX 96
#define TRACEPARENT_MAX 56

/*
 * The points a request's bytes pass, in the order in which a small request
 * passes them. A `_LAST` stamp is that of the last byte, and is present only
 * where it differs from the first byte's.
 */
enum stamp {
	STAMP_NIC = 0,
	STAMP_TC = 1,
	STAMP_TCP = 2,
	STAMP_QUEUED = 3,
	STAMP_WOKEN = 4,
	STAMP_RUNNING = 5,
	STAMP_READ = 6,
	STAMP_NIC_LAST = 7,
	STAMP_READ_LAST = 8,
	STAMP_HANDLER_START = 9,
	STAMP_HANDLER_END = 10,
	STAMP_WRITE = 11,
	STAMP_TC_OUT = 12,
	STAMP_WRITE_LAST = 13,
	STAMP_TC_OUT_LAST = 14,
	STAMP_ACKED = 15,
	STAMP_COUNT = 16,
};

/* Properties of a finished request; a set of bits. */
enum request_flag {
	REQUEST_RECEIVED = 1,		/* its last byte passed */
	REQUEST_ANSWERED = 2,		/* its response's last byte passed */
	REQUEST_CHUNKED = 4,
	RESPONSE_CHUNKED = 8,
	RESPONSE_UNTIL_CLOSE = 16,	/* the response had no length of its own */
	PEER_RESET = 32,		/* the other side sent RST */
	PEER_CLOSED = 64,		/* the other side sent FIN */
	LOCAL_RESET = 128,		/* this side sent RST */
	LOCAL_CLOSED = 256,		/* this side sent FIN */
	IDLE_TIMEOUT = 512,		/* ended by the agent, not by HTTP */
	UPGRADED = 1024,		/* 101, or 2xx to CONNECT: HTTP ended here */
	AGENT_STOPPED = 2048,		/* ended because the agent stopped */
	CLIENT = 4096,			/* a process of this machine sent it to an upstream */
	CAUSED = 8192,			/* by the request cause_*, whose traceparent it has */
	SAMPLED = 16384,		/* by the sampler's or the application's decision */
	KEPT = 32768,			/* is to become spans: sampled, or too slow or failed */
	IN_SERIES = 65536,		/* the kernel has added it to the sums of its series */
};

/* How an application said which trace a request belongs to. */
enum said {
	SAID_NOTHING = 0,
	SAID_BY_MARK = 1,		/* bpf/mark.h */
	SAID_BY_THREAD = 2,		/* bpf/thread_context.h */
};

/* One finished request. */
struct request_record {
	__u64 connection_id;
	__u64 ordinal;				/* of the request on its connection */
	__u8 peer_address[16];			/* IPv4 as IPv4-mapped IPv6 */
	__u8 local_address[16];
	__u64 stamp_ktime_ns[STAMP_COUNT];	/* CLOCK_MONOTONIC; 0: absent */
	__u64 cause_connection_id;		/* valid if CAUSED, as the next one */
	__u64 cause_ordinal;
	__u64 request_bytes;			/* head and body, as sent */
	__u64 response_bytes;
	__u64 request_body_bytes;		/* content, without chunk framing */
	__u64 response_body_bytes;
	__u64 route_hash;			/* bpf/route.h; 0: not looked at */
	__u32 pid;				/* of who read it, or wrote it to an upstream; 0: unknown */
	__u32 tid;
	__u32 flags;				/* enum request_flag */
	__u32 request_retransmits;		/* segments that repeated bytes */
	__u32 response_retransmits;
	__u32 out_of_order;			/* segments that came before bytes that precede them */
	__u32 unused;
	/*
	 * enum said: how the application said, of this request or of its cause, what the next
	 * fields say. By a thread, the span is one of the application's, and has no parent here.
	 */
	__u16 marked;
	__u16 trace_flags;
	__u8 trace_id[16];
	__u8 span_id[8];			/* of the request's span, the application's parent */
	__u8 parent_span_id[8];			/* of the caller's, or the cause's; 0: there is none */
	__u16 peer_port;
	__u16 local_port;
	__u16 status;				/* 0: no response head was seen */
	__u16 http_minor;			/* HTTP/1.x of the request */
	__u16 request_line_length;		/* as sent; more than the array holds: cut */
	__u16 host_length;
	__u16 user_agent_length;
	__u16 traceparent_length;
	/* Valid up to their lengths. */
	__u8 request_line[REQUEST_LINE_MAX];
	__u8 host[HOST_MAX];
	__u8 user_agent[USER_AGENT_MAX];
	__u8 traceparent[TRACEPARENT_MAX];
};

enum exchange_state {
	EXCHANGE_FREE = 0,
	EXCHANGE_FINISHING = 1,		/* being filled, or waiting for the agent to read it */
	EXCHANGE_IN_FLIGHT = 2,		/* and its connection's id: never a state of nobody's */
};

/*
 * A request in flight, or one that has finished and not been read yet. Belongs to
 * record.connection_id, record.ordinal. The agent maps the table of them: to read the finished
 * ones where they are, and to find those that have gone silent.
 */
struct exchange {
	__u64 state;			/* enum exchange_state; changes hands by compare-and-swap */
	__u64 activity_ktime_ns;	/* of the last byte, either way */
	/* Sequence numbers of the message that comes in: the request, or an upstream's response. */
	__u32 inbound_start;		/* valid once it has begun */
	__u32 inbound_end;		/* valid once it is whole */
	__u32 outbound_end;		/* of the other message, once that is whole */
	__u32 head_whole;		/* the request's whole head was read */
	__u32 slot;			/* its place in the table */
	__u32 unused;
	struct request_record record;
	__u64 order;			/* of its stamps: bpf/series.h */
};

/*
 * Finished requests, in the order in which they ended: submitted by the programs, read by the
 * agent. The ring of their slots is mapped beside this; place n % its length holds the slot of
 * request n and one, or 0 while that is not written yet.
 */
struct ring_ends {
	__u64 submitted;		/* requests so far */
	__u64 read;			/* of these */
};

/*
 * Durations. Bucket 0 holds those up to 2^-23 s, which is 119 ns, bucket i those above
 * 2^((i - 1) / 8 - 23) s and up to 2^(i / 8 - 23) s; the last one all that are longer, too.
 */
#define HISTOGRAM_BUCKETS 289

struct histogram {
	__u64 sum_ns;
	__u64 counts[HISTOGRAM_BUCKETS];
};

#define STAGE_PLACES 40

/*
 * The requests of one route, method, class of status, port and role in sums. The agent
 * maps the table of them, and knows what each is called.
 */
struct series {
	__u64 request_bytes;
	__u64 response_bytes;
	__u64 retransmits;
	__u64 out_of_order;
	struct histogram duration;
	struct histogram stages[STAGE_PLACES];
};

/*
 * All connections of servers, or of clients. A handshake is that of a connection whose SYN was
 * seen; a wait, that of one that was accepted after its handshake.
 */
struct connection_sums {
	__u64 opened;
	__u64 adopted;			/* older than the agent */
	__u64 closed;
	__u64 reset;			/* by a RST, whoever sent it */
	__u64 reset_by_peer;		/* of these */
	__u64 refused;			/* a RST was the answer to the SYN, or to the handshake's end */
	__u64 unanswered;		/* servers': the SYN came again, and no answer to it had left;
					   clients': the socket was closed before there was one */
	struct histogram handshake;
	struct histogram accept_queue;
};

#define STAGE_ORDERS 256	/* known at a time; a power of two */

/*
 * An order that the stamps of a request come in: their numbers, the first one highest, four
 * bits each, below a 1. Its stages are in struct series at these places, the last stage first.
 * It is at one of two neighbours.
 */
struct stage_order {
	__u64 order;			/* 0: of none */
	__u16 places[STAMP_COUNT];
};

/* Of this product of what is looked for, the high half tells where it is. */
#define PLACE_FACTOR 0x9e3779b97f4a7c15ULL

/* Of which series a request is. */
struct series_key {
	__u64 route_hash;
	__u16 port;			/* the server's */
	__u8 status_class;		/* 2: 200 to 299; 0: nobody's key */
	__u8 is_client;
	__u32 unused;
};

/* Where that series is, and from when on its requests are slow. */
struct series_place {
	__u64 slow_ns;			/* ~0: never */
	__u32 place;
	__u32 in_use;
};

#define SERIES_WAYS 4
#define SERIES_SETS 8192		/* a power of two */

/*
 * Which keys' series have which places. The agent writes them: to give a way to another key, it
 * takes the second word of the old one away first, and writes that of the new one last.
 */
struct series_set {
	struct series_key keys[SERIES_WAYS];
	struct series_place places[SERIES_WAYS];
};

/*
 * What became of requests and packets. Each request that is counted in
 * COUNT_SEEN is counted exactly once more: in COUNT_SUBMITTED, in
 * COUNT_SAMPLED_OUT or in one of COUNT_LOST_*.
 */
enum counter {
	COUNT_SEEN = 0,
	COUNT_SUBMITTED = 1,			/* told by ring_ends.submitted */
	COUNT_LOST_RING_FULL = 2,
	COUNT_LOST_PIPELINE_FULL = 3,		/* more in flight than a connection holds */
	COUNT_LOST_TABLE_FULL = 4,		/* no free slot for the request */
	COUNT_LOST_PARSER = 5,			/* bytes that are no HTTP, or that were missed */
	COUNT_LOST_CLOSED = 6,			/* closed before the request's head was whole */
	COUNT_LOST_EVICTED = 7,			/* its connection was evicted from the table */
	COUNT_LOST_STOPPED = 8,			/* still unanswered when the agent stopped */
	COUNT_CONNECTIONS_OPENED = 9,
	COUNT_CONNECTIONS_ADOPTED = 10,		/* older than the agent */
	COUNT_CONNECTIONS_CLOSED = 11,
	COUNT_CONNECTIONS_EVICTED = 12,		/* forgotten, to make room for another */
	COUNT_CONNECTIONS_NOT_HTTP = 13,	/* not HTTP/1: TLS, HTTP/2, an upgrade */
	COUNT_CONNECTIONS_OWN = 14,		/* the agent's own export, left alone */
	COUNT_RESPONSES_UNASKED = 15,		/* bytes sent with no request in flight */
	COUNT_PACKETS_UNPARSED = 16,		/* fragments and malformed headers */
	COUNT_RETRANSMITS_LATE = 17,		/* segments sent again once all was acknowledged */
	COUNT_MARKS_JOINED = 18,		/* what applications said, and of which request */
	COUNT_MARKS_UNKNOWN = 19,		/* of no request that is known, or that fits */
	COUNT_MARKS_AMBIGUOUS = 20,		/* of one of several */
	COUNT_CAUSES_AMBIGUOUS = 21,		/* of requests to upstreams: they may have others */
	COUNT_SAMPLED_OUT = 22,			/* and so not submitted */
	COUNT_COUNT = 23,
};

#endif
