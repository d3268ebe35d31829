/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the programs remember between two packets: connections, the requests in flight on them, the
 * tasks that read them, and counts. The maps at the end are those that are looked up or called; the
 * others are in arrays.h.
 *
 * Set by the loader at compile time: WAYS (a power of two), CLIENTS (are there upstreams?), SERIES
 * (are all requests to be added up?).
 */

#define IN_FLIGHT_MAX 16	/* requests in flight on one connection; a power of two */
#define MARKS_RECENT 8		/* a power of two */
#define NO_SLOT 0xffffffffU
#define NEVER_WOKEN (~0ULL)
#define UNMEASURED 0xffffffffU	/* an interface that is not: what passed it was told of */

enum direction { INBOUND = 0, OUTBOUND = 1 };

/*
 * One direction of a connection and what it carries, which the role decides that
 * this side has in it: a server's requests come in, a client's go out.
 */
enum flow { REQUESTS_IN = 0, RESPONSES_OUT = 1, RESPONSES_IN = 2, REQUESTS_OUT = 3 };

#define IS_OUTBOUND(flow) ((flow) & 1)
#define IS_CLIENTS(flow) (CLIENTS && ((flow) & 2))
#define CARRIES_REQUESTS(flow) (!IS_OUTBOUND(flow) == !IS_CLIENTS(flow))

/* Where the bytes lie that are read: a constant, so that packets pay nothing for the rest. */
enum source { FROM_PACKET, FROM_PIECE };

/* Seen from this side: of a server's connection, peer is the client; of a client's, the upstream. */
struct connection_key {
	u8 peer_address[16] __attribute__((aligned(8)));	/* IPv4 as IPv4-mapped IPv6 */
	u8 local_address[16];
	u16 peer_port __attribute__((aligned(4)));	/* both in host order, and in one word */
	u16 local_port;
	u32 unused;		/* 0 where it is a map's key */
};

/*
 * When which byte passed: the first mark since the log was last empty, and the
 * most recent ones. What overflows is forgotten, never mixed up.
 */
struct marks {
	u32 count;		/* since the log was empty; may exceed what is kept */
	u32 seq[1 + MARKS_RECENT];
	u64 ktime_ns[1 + MARKS_RECENT];
};

/*
 * The same for packets as they came, whole: an early one leaves a hole before
 * it, and a byte in a hole has no mark.
 */
struct arrivals {
	u32 count;
	u32 seq[1 + MARKS_RECENT];
	u32 end[1 + MARKS_RECENT];
	u32 unused;
	u64 ktime_ns[1 + MARKS_RECENT];
	u64 found_ktime_ns;	/* what arrival_of() looks for */
};

enum parser_state {
	PARSER_LOST = 0,	/* waits for a segment that starts a request */
	PARSER_OFF,		/* not HTTP/1, or not to be measured */
	PARSER_BETWEEN,		/* the next byte starts a message */
	PARSER_FIRST_LINE,
	PARSER_HEADERS,
	PARSER_ENDED,		/* of a message, which end_message() then ends */
	PARSER_BODY,		/* `remaining` bytes of known length */
	PARSER_UNTIL_CLOSE,
	PARSER_CHUNK_SIZE,
	PARSER_CHUNK_EXTENSION,
	PARSER_CHUNK_DATA,	/* `remaining` bytes, the chunk's CRLF included */
	PARSER_TRAILER_START,	/* at the start of a trailer's line */
	PARSER_TRAILER_LINE,
};

enum message_flag { MESSAGE_HAS_LENGTH = 1, MESSAGE_CHUNKED = 2, MESSAGE_ENDS_HTTP = 4 };

/*
 * Where the framing of one flow stands. Written by one TC hook alone, and by the socket's where bytes
 * passed none.
 */
struct parser {
	u64 remaining;
	u32 next_seq;		/* of the next byte expected */
	u16 carried;		/* bytes of an unfinished line kept in `carries` */
	u16 status;		/* responses: of the message being read */
	u8 state;		/* enum parser_state */
	u8 skip_line;		/* the rest of a line too long to keep */
	u8 message_flags;	/* enum message_flag */
	u8 counted;		/* this flow was counted as not HTTP */
	union {
		u32 disorder;	/* inbound; 0: all bytes came in order */
		struct {
			u16 kept;	/* pieces of early segments, to be read later */
			u16 holes;	/* bytes that were stepped over and are still to come */
		};
	};
};

/* Finds a request again, as long as it is in flight. */
struct request_name {
	u64 connection_id;	/* 0: of no request */
	u64 ordinal;
	u32 place;		/* the connection's */
	u32 unused;
};

/* Who wrote the byte `seq`, which starts a request, and what for. */
struct writer {
	u64 pid_tgid;
	struct process process;
	struct request_name cause;
	u32 seq;
	u32 ambiguous;		/* it may be for one of several requests */
};

/*
 * What the last response with a Content-Length looked like; the next one on its
 * connection may well look the same. In bytes from its start.
 */
struct head_shape {
	u16 end;		/* of the head; 0: none was seen yet */
	u16 digits_at;		/* where Content-Length's start, after one space */
	u16 digits_end;
	u16 unused;
};

/*
 * Requests on a connection are numbered by ordinals. For ordinals n: n < begun
 * have started, n < answered have had their whole response pass,
 * n < finished have been reported; of n < arrived the message that comes in (the
 * request, or an upstream's response) has begun, and tcp, queued and read say
 * how far each of these hooks has stamped that.
 */
struct connection {
	u64 id;			/* 0: nobody's, or not whole yet */
	struct connection_key key;
	u64 socket;		/* its struct sock, once a socket hook has seen it */
	u64 used_ktime_ns;	/* by the peer */
	u64 locked;		/* by a processor that reads one of its packets */
	u64 head_requests;	/* bit n % 64: request n is a HEAD */
	struct parser inbound;
	struct parser outbound;
	struct head_shape shape;
	u64 begun;
	u64 answered;
	u64 finished;
	u64 arrived;
	u64 tcp;
	u64 queued;
	u64 read;
	u32 place;		/* in the table of connections */
	u32 home;		/* the slot last used, tried first while it is warm */
	u32 flags;		/* enum request_flag: CLIENT, and all FINs and RSTs that were seen */
	u32 ending;		/* of these, the one by which it began to end */
	u32 interface[2];	/* by enum direction: that new bytes last passed; 0: none, or UNMEASURED */
	u64 ended_ktime_ns;	/* no response can become whole any more; 0: they can */
	u32 slot[IN_FLIGHT_MAX];
	struct arrivals arrivals;	/* at XDP, inbound bytes */
	struct marks writes;	/* at sendmsg, outbound bytes */
	u64 write_end;		/* of the last write: its last byte's sequence number and one, and WRITE_SEEN */
	struct writer writer;	/* of the last request to an upstream */
	u32 copied_seq;		/* what has been read of an upstream's responses */
	u32 reads_seen;
	u64 established_ktime_ns;	/* 0: not seen, or accepted since */
};

/* Whose the connections of a set are: see connections.h. 0: nobody's. */
struct connection_tags { u64 of[WAYS]; };

/* What a thread, or a goroutine, works on. */
struct handling {
	struct request_name last_read;
	struct request_name handled;	/* by the call that is under way */
	u64 depth;			/* that call's, on the stack; 0: there is none */
};

/* A task that reads measured connections: its last wake-up by one of them. */
struct reader {
	u64 sk;
	u64 woken_ktime_ns;	/* NEVER_WOKEN: by none of them */
	u64 running_ktime_ns;	/* 0 until it got a CPU */
	u32 tid;
	u16 mingles;		/* it read a request while it had another in hand */
	u16 waits;		/* reads of the last request's socket wait for data */
	struct handling handling;
};

#define PIECES_MAX 32		/* kept of one connection; a power of two */
#define PIECE_MAX 2048		/* bytes; a power of two; fits the window */
#define HOLES_MAX 16		/* known of one connection */

/* A part of an early segment. */
struct piece {
	u32 seq;
	u32 length;		/* 0: this place is free */
	u64 ktime_ns;		/* when TC saw it */
	u64 tcp_ktime_ns;	/* when TCP took it */
	u32 interface;		/* that it came by */
	u16 early;		/* an early segment begins with it */
	u16 repeats;		/* segments that repeated its bytes, or whose own were repeated */
};

/* Bytes of known framing that were stepped over. */
struct hole {
	u32 start;
	u32 end;		/* start: this place is free */
};

/* Of a connection whose segments do not come in order, by its id. */
struct disorder {
	struct piece pieces[PIECES_MAX];
	struct hole holes[HOLES_MAX];
};

struct piece_key {
	u64 connection_id;
	u32 place;		/* in struct disorder */
	u32 unused;
};

/* What is kept of it: the arrivals that were known when TC saw it say when its bytes came. */
struct kept {
	u8 bytes[PIECE_MAX];
	struct arrivals arrivals;
};

#define CARRY_MAX 256		/* a power of two */
#define WINDOW_MAX 1024		/* a power of two */
#define WINDOW_MASK 2047

enum found { FOUND_FIRST_LINE, FOUND_HOST, FOUND_USER_AGENT, FOUND_TRACEPARENT,
	     FOUND_CONTENT_LENGTH, FOUND_TRANSFER_ENCODING, FOUND_COUNT = 8 };

/* What the loop over a head's lines carries. Indices into the window. */
struct head_cursor {
	u64 at;
	u64 line;		/* where the current line starts */
	u64 total;		/* where the window ends */
	u64 loaded;		/* how much of it this segment gave */
	u64 end;		/* where the head ends, once it is seen */
	u64 state;
	u64 skip;
};

/* What the loop over a request line carries. Indices into the line. */
struct route_cursor {
	u64 in_path;
	u64 start;		/* of the segment that is read */
	u64 digits;		/* in it */
	u64 whole;		/* how many segments from there on are no ids, whatever they look like */
};

/* What the loop over chunks carries. Positions in the payload. */
struct chunk_cursor {
	u64 remaining;
	u64 body_bytes;
	u32 position;
	u32 window_start;
	u32 window_end;
	u32 state;
};

/* What the loops over pieces and holes carry. Places may be past the end: none. */
struct disorder_cursor {
	u32 at;			/* position in the payload */
	u32 place;
	u32 overlapping;
	u32 reached;		/* sequence number */
	u32 early;
	u32 containing;
	u32 lowest;
	u32 missing;		/* bytes before the lowest one */
	u32 filled;
	u32 rest_start;
	u32 rest_end;
	u32 holes;
};

/* A connection that was asked for, and neither granted nor refused yet. */
struct handshake {
	u64 syn_ktime_ns;	/* of the first one, from which on the client waits */
	u32 seq;		/* the same for those sent again */
	u32 ifindex;		/* a packet may pass several interfaces */
	u32 answer;		/* enum answer */
	u32 unused;
};

enum answer { NO_ANSWER, ANSWERED, CAME_AGAIN };

/*
 * A CPU's own: what is counted there, whom data-ready wakes there, and the segment being read, kept
 * across tail calls. TC hooks do not nest.
 */
struct scratch {
	u64 counts[COUNT_COUNT];	/* first: src/otelbpf/kernel/arrays.py reads them */
	u64 waking_sk;			/* the socket; 0: none */
	u64 connection_id;
	u32 place;		/* the connection's */
	u32 seq;		/* of the payload's first byte */
	u64 ktime_ns;
	u32 payload_offset;	/* into the packet */
	u64 payload_length;
	u64 position;		/* payload bytes already read */
	u32 fin;
	u32 flow;		/* enum flow */
	u32 continuing;		/* this run continues another one */
	s32 ahead;		/* bytes stepped over before it; negative: seen before */
	u32 early;		/* this run is to keep the segment */
	u32 next_slot;		/* of exchanges, to be tried for the next request */
	u64 carry;		/* key of what is carried to the next segment, or from the last one */
	struct piece_key piece;	/* the one that is read instead of the packet */
	u64 tcp_ktime_ns;	/* its own */
	struct head_cursor head;
	struct route_cursor route;
	struct chunk_cursor chunks;
	struct disorder_cursor disorder;
	struct connection_key asked;
	struct handshake attempt;
	u64 found_at[FOUND_COUNT];
	u64 found_length[FOUND_COUNT];
	u8 found_times[FOUND_COUNT];	/* may wrap: 256 lines of one name find room in no window */
	u8 window[WINDOW_MASK + 1 + CARRY_MAX + 8];
} __attribute__((aligned(64)));		/* no two CPUs write to one cache line */

enum continuation { CONTINUE_INBOUND, CONTINUE_OUTBOUND, CONTINUE_CHUNKS, CONTINUE_DISORDER,
		    CONTINUE_KEPT, CONTINUE_KEPT_CHUNKS, CONTINUATIONS_EACH,
		    CONTINUATION_COUNT = 2 * CONTINUATIONS_EACH };

struct carry { u8 bytes[CARRY_MAX]; };

struct sweep_order {
	u64 waited_ktime_ns;	/* who is silent since this has waited for what should follow at once */
	u64 idle_ktime_ns;	/* who is since this, with no socket that is open, for too long */
	u32 slot;
	u32 stopped;		/* the agent stops: nothing is waited for any more */
};

/* Where an argument of a USDT probe is. */
struct usdt_argument {
	u16 at;			/* of its register, or its address's, in struct pt_regs */
	u16 in_memory;
	s32 displacement;
};

#define PYTHON_NAME_MAX 64
#define PYTHON_FILE_MAX 128
#define PYTHON_SITES 64

/* A place where a Python interpreter tells of all calls, and the one that is meant. */
struct python_site {
	struct usdt_argument file;
	struct usdt_argument function;
	u32 file_length;	/* 0: any file */
	u32 unused;
	u8 function_name[PYTHON_NAME_MAX];	/* with zeros after it */
	u8 file_name[PYTHON_FILE_MAX];		/* a slash and the last part of the path, likewise */
};

struct goroutine_key {
	u64 g;			/* its address in the process */
	u32 tgid;
	u32 unused;
};

/* Where each thread of a process has a variable. */
struct thread_local {
	s64 offset;		/* from the thread's pointer on, or from its block for the module */
	u64 module;		/* its number in the thread's table of blocks; 0: of none */
	u64 generation;		/* since which the table has the module */
};

struct settings {
	u64 netns_pointer;	/* struct net of the measured namespace, once seen */
	u32 agent_tgid;
	u32 has_thread_locals;	/* is any process in thread_locals? Written by the agent */
	u32 is_complete;	/* all is attached: what is not seen from here on is missed. Likewise */
	u32 unused;
};

BPF_ARRAY(blank_connection, struct connection, 1);
BPF_TABLE("lru_hash", u64, struct carry, carries, 1024);
BPF_TABLE("lru_hash", u64, struct disorder, disorders, 512);
BPF_ARRAY(blank_disorder, struct disorder, 1);
BPF_TABLE("lru_hash", struct piece_key, struct kept, kept_pieces, 2048);
#ifdef HANDLERS
BPF_ARRAY(python_sites, struct python_site, PYTHON_SITES);
#endif
#ifdef GO_HANDLERS
BPF_TABLE("lru_hash", struct goroutine_key, struct handling, goroutines, 16384);
#endif
BPF_HASH(thread_locals, u32, struct thread_local, 1024);	/* otel_thread_ctx_v1, by tgid */
BPF_HASH(connecting, u64, u8, 256);	/* the agent's own sockets, by sk */
#if SERIES
BPF_ARRAY(overflow_places, struct series_place, 2);	/* by is_client; while there is no other */
BPF_ARRAY_OF_MAPS(fence, "overflow_places", 1);	/* who writes to it waits for the programs that run */
/* In a flood of SYNs those forgotten first are those that nobody answers. */
BPF_TABLE("lru_hash", struct connection_key, struct handshake, handshakes, 16384);
#endif
BPF_ARRAY(sweep_orders, struct sweep_order, 1);
BPF_PROG_ARRAY(continuations, CONTINUATION_COUNT);
