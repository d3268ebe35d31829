/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Each processor's own memory: what it counts, and the segment that it reads. */
#pragma once

#include "abi/records.h"
#include "state/arrays.h"
#include "state/disorder.h"
#include "state/handshake.h"

#define CARRY_MAX 256   /* a power of two */
#define WINDOW_MAX 1024 /* a power of two */
#define WINDOW_MASK 2047

enum found {
	FOUND_FIRST_LINE,
	FOUND_HOST,
	FOUND_USER_AGENT,
	FOUND_TRACEPARENT,
	FOUND_CONTENT_LENGTH,
	FOUND_TRANSFER_ENCODING,
	FOUND_FORWARDED, /* where it was, its length counts, too */
	FOUND_COUNT
};

enum line_kind {
	LINE_FIRST,
	LINE_HEADER,
	LINE_REST,       /* of one that is too long to keep: it is skipped */
	LINE_FIRST_REST, /* of a request's first one: its last bytes are kept */
};

/* What of the first line was found, as found_times[FOUND_FIRST_LINE]. */
enum first_line {
	FIRST_WHOLE,
	FIRST_START, /* of a request's that is too long to keep */
	FIRST_END,
};

/* What the loop over a head's lines carries. Indices into the window. */
struct head_cursor {
	u64 at;
	u64 line;   /* where the current line starts */
	u64 total;  /* where the window ends */
	u64 loaded; /* how much of it this segment gave */
	u64 end;    /* where the head ends, once it is seen */
	u64 kind;   /* enum line_kind: of the current line */
	u64 before; /* bytes of the request before the window, where its first line is too long to keep */
};

/* What the loop over a Content-Length carries. Indices into the window. */
struct length_cursor {
	u64 at;
	u64 end;
	u64 value;   /* of the number that is read */
	u64 first;   /* the number before it */
	u64 numbers; /* is there one? */
	u64 state;   /* enum length_state */
};

/* What the loop over a request line carries. Indices into the line. */
struct route_cursor {
	u64 at;
	u64 length;
	u64 hash;   /* of what was read */
	u64 before; /* of what is before the segment that is read */
	u64 in_path;
	u64 start;  /* of the segment that is read */
	u64 digits; /* in it */
	u64 whole;  /* how many segments from there on are no ids, whatever they look like */
};

/* What the loop over chunks carries. Positions in the payload. */
struct chunk_cursor {
	u64 remaining;
	u64 body_bytes;
	u32 position;
	u32 window_start;
	u32 window_end;
	u32 state;
	u32 failed;
	u32 unused;
};

/* What the loop over a PROXY header's line carries. Indices into the window, and what was read. */
struct proxy_cursor {
	u64 at;
	u64 length; /* of the line */
	u32 field;  /* enum proxy_field */
	u32 is_ipv4;
	u32 octets; /* of the address, so far */
	u32 gap;    /* before which of them some were left out; NO_GAP: nowhere */
	u32 digits; /* of the number that is read */
	u32 decimal;
	u32 hexadecimal;
	u32 dots;
	u32 colons; /* one behind the other, before the number */
	u32 port;   /* the client's */
	u32 client_octets;
	u32 client_gap;
	u8 address[16] __attribute__((aligned(8)));
	u8 client[16];
};

/* What the loops over pieces and holes carry. Places may be past the end: none. */
struct disorder_cursor {
	u32 at; /* position in the payload */
	u32 place;
	u32 overlapping;
	u32 reached; /* sequence number */
	u32 early;
	u32 containing;
	u32 lowest;
	u32 missing; /* bytes before the lowest one */
	u32 filled;
	u32 rest_start;
	u32 rest_end;
	u32 holes;
	u32 differs; /* was a byte found that does? */
	u32 unused;
};

#define FAMILIAR_HEADS 8  /* a power of two */
#define FAMILIAR_LEAST 32 /* bytes of a head: four words */
#define FAMILIAR_MAX 512  /* a power of two */

/* The head of a response that has a Content-Length and a body, if only an empty one: see http1/familiar.h. */
struct familiar_head {
	u64 end; /* in bytes from its start; 0: none was seen yet, and no content ends there */
	u64 digits_end; /* of its length; there are at most eight */
	u64 digits;     /* which of the eight bytes before that are digits */
	u64 last;       /* these eight bytes */
	u64 length;     /* what they say */
	u64 status;
	u64 words[FAMILIAR_MAX / 8 + 2];
};

/*
 * A CPU's own: what is counted there, whom data-ready wakes there, and the segment being read, kept
 * across tail calls. TC hooks do not nest.
 */
struct scratch {
	u64 counts[COUNT_COUNT]; /* first: src/otelbpf/kernel/arrays.py reads them */
	u64 waking_sk;           /* the socket; 0: none */
	u64 connection_id;
	u32 place; /* the connection's */
	u32 seq;   /* of the payload's first byte */
	u64 ktime_ns;
	u32 payload_offset; /* into the packet */
	u32 unused;
	u64 payload_length;
	u64 position; /* payload bytes already read */
	u32 fin;
	u32 flow;       /* enum flow */
	u32 continuing; /* this run continues another one */
	s32 ahead;      /* bytes stepped over before it; negative: seen before */
	u32 early;      /* this run is to keep the segment */
	u32 next_slot;  /* of exchanges, to be tried for the next request */
	u64 carry;      /* key of what is carried to the next segment, or from the last one */
	struct piece_key piece; /* the one that is read instead of the packet */
	u64 tcp_ktime_ns;       /* its own */
	struct head_cursor head;
	struct length_cursor length;
	struct route_cursor route;
	struct chunk_cursor chunks;
	struct disorder_cursor disorder;
	struct proxy_cursor proxy;
	struct connection_key asked;
	struct handshake attempt;
	u64 waking_tid; /* of the task that brings waking_sk's data, or is interrupted by them */
	struct bpf_sock_tuple tuple;
	u32 unused_2;
	u64 found_at[FOUND_COUNT];
	u64 found_length[FOUND_COUNT];
	u8 found_times[8]; /* may wrap: 256 lines of one name find room in no window */
	u8 window[WINDOW_MASK + 1 + CARRY_MAX + 88];
	struct familiar_head familiar[FAMILIAR_HEADS];
	u8 unused_either[48];
} __attribute__((aligned(64))); /* no two CPUs write to one cache line */

ASSERT_BYTES(scratch, SCRATCH_BYTES);

DEFINE_ARRAY(struct scratch, scratches)

static __always_inline struct scratch *own_scratch(void)
{
	struct scratch *s = &scratches()[bpf_get_smp_processor_id() & CPU_MASK];

	/* Else clang would add it up anew wherever it is needed. */
	asm("" : "+r"(s));
	return s;
}

static __always_inline void count_in(struct scratch *s, u32 counter, u32 n)
{
	/* Per CPU, but a softirq may come between the halves of a plain addition. */
	__sync_fetch_and_add(&s->counts[counter], n);
}

static __always_inline void count_many(u32 counter, u32 n) { count_in(own_scratch(), counter, n); }

static __always_inline void count(u32 counter) { count_many(counter, 1); }
