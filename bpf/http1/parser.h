/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Where the framing of HTTP/1 stands in one flow of a connection. */
#pragma once

#include "target.h"

enum parser_state {
	PARSER_LOST = 0, /* waits for a segment that starts a request */
	PARSER_OFF,      /* not HTTP/1, or not to be measured */
	PARSER_BETWEEN,  /* the next byte starts a message */
	PARSER_FIRST_LINE,
	PARSER_HEADERS,
	PARSER_ENDED, /* of a message, which end_message() then ends */
	PARSER_BODY,  /* `remaining` bytes of known length */
	PARSER_UNTIL_CLOSE,
	PARSER_CHUNK_SIZE,   /* at its first digit */
	PARSER_CHUNK_DIGITS, /* it may have another one */
	PARSER_CHUNK_BLANK,  /* behind it */
	PARSER_CHUNK_CR,     /* at the LF that ends its line */
	PARSER_CHUNK_EXTENSION,
	PARSER_CHUNK_DATA,       /* `remaining` bytes of content */
	PARSER_CHUNK_DATA_CR,    /* at the CR behind it */
	PARSER_CHUNK_DATA_LF,    /* at the LF behind that */
	PARSER_TRAILER_START,    /* at the start of a trailer's line */
	PARSER_TRAILER_START_LF, /* at the LF of an empty one, which is the last */
	PARSER_TRAILER_LINE,
	PARSER_PROXY_HEADER, /* what comes before HTTP: `remaining` bytes, once that is known */
};

enum message_flag {
	MESSAGE_HAS_LENGTH = 1,
	MESSAGE_CODED = 2, /* Transfer-Encoding decides where it ends */
	MESSAGE_CHUNKED = 4,
	MESSAGE_ENDS_HTTP = 8,
	/* It counts only where nothing that comes before it says where the message ends. */
	MESSAGE_UNCLEAR_LENGTH = 16,
	MESSAGE_UNCLEAR_CODING = 32,
	MESSAGE_NOT_FIRST = 64, /* between messages: bytes came before it that are of none */
	MESSAGE_HOST = 128,     /* until its head is read: a request that is told has had one */
	/* From then on, of one that is read in the dark: another one's head may have its end in the body. */
	MESSAGE_MAY_HIDE = 128
};

/*
 * Where the framing of one flow stands. Written by one TC hook alone, and by the socket's where bytes
 * passed none.
 */
struct parser {
	u64 remaining;
	u32 next_seq; /* of the next byte expected */
	u16 carried;  /* bytes of an unfinished line kept in `carries` */
	union {
		u16 status;   /* responses: of the message being read */
		u16 last_two; /* requests in the dark: the body's last bytes that were looked at */
	};
	u8 state;         /* enum parser_state */
	u8 skip_line;     /* the rest of a line too long to keep */
	u8 message_flags; /* enum message_flag */
	u8 counted;       /* this flow was counted as not HTTP */
	union {
		u32 disorder; /* inbound; 0: all bytes came in order */
		struct {
			u16 kept;  /* pieces of early segments, to be read later */
			u16 holes; /* bytes that were stepped over and are still to come */
		};
	};
};
