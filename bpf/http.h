/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * HTTP/1 framing: where a message starts and ends. It reads lines, not
 * characters: newlines are found eight bytes at a time, and of the head only
 * the lines named in enum found are looked at; the body is never read.
 *
 * The parser takes segments as they come. A segment may hold half a line or
 * several messages; what one program run cannot finish is continued by a tail
 * call, and what the next segment must finish is kept in struct parser.
 */

#define BYTES(x) (0x0101010101010101ULL * (x))
#define LETTERS_LOWER BYTES(0x20)

/* Eight characters as the little-endian word that a load of them gives. */
#define WORD(a, b, c, d, e, f, g, h) \
	((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | \
	 (u64)(e) << 32 | (u64)(f) << 40 | (u64)(g) << 48 | (u64)(h) << 56)
#define FIRST_BYTES(n) ((1ULL << (8 * (n))) - 1)

static __always_inline u64 word_at(const struct scratch *s, u32 at)
{
	return *(u64 *)(s->window + (at & WINDOW_MASK));
}

static __always_inline u8 byte_at(const struct scratch *s, u32 at)
{
	return s->window[at & WINDOW_MASK];
}

/* Marks the bytes of word that are newlines; the lowest mark is exact. */
static __always_inline u64 newlines(u64 word)
{
	u64 x = word ^ BYTES('\n');

	return (x - BYTES(1)) & ~x & BYTES(0x80);
}

/* Marks the bytes of word that are c, all of them exactly. */
static __always_inline u64 equal(u64 word, u8 c)
{
	u64 x = word ^ BYTES(c);

	return ~(((x & BYTES(0x7f)) + BYTES(0x7f)) | x | BYTES(0x7f));
}

/* Marks the bytes of word that are neither space nor tab. */
static __always_inline u64 not_blank(u64 word)
{
	return ~(equal(word, ' ') | equal(word, '\t')) & BYTES(0x80);
}

/* The index of the lowest marked byte: BPF has no count-trailing-zeros. */
static __always_inline u32 lowest(u64 marks)
{
	return ((((marks - 1) & ~marks & BYTES(1)) * BYTES(1)) >> 56) - 1;
}

static __always_inline bool starts_a_request(u32 first_four)
{
	switch (first_four) {
	case 0x20544547:	/* "GET " */
	case 0x54534f50:	/* "POST" */
	case 0x20545550:	/* "PUT " */
	case 0x44414548:	/* "HEAD" */
	case 0x454c4544:	/* "DELETE" */
	case 0x43544150:	/* "PATCH" */
	case 0x4954504f:	/* "OPTIONS" */
		return true;
	}
	return false;
}

static __always_inline void lose_framing(struct connection *conn)
{
	conn->inbound.state = PARSER_LOST;
	conn->outbound.state = PARSER_LOST;
	conn->inbound.carried = 0;
	conn->outbound.carried = 0;
	lose_requests(conn);
}

static __always_inline void count_as_not_http(struct connection *conn)
{
	if (!conn->inbound.counted) {
		conn->inbound.counted = 1;
		count(COUNT_CONNECTIONS_NOT_HTTP);
	}
}

static __always_inline void turn_off(struct connection *conn)
{
	conn->inbound.state = PARSER_OFF;
	conn->outbound.state = PARSER_OFF;
	count_as_not_http(conn);
}

/* ---- the ends of messages ---- */

static __always_inline void start_message(struct parser *p)
{
	p->state = PARSER_FIRST_LINE;
	p->remaining = 0;
	p->carried = 0;
	p->skip_line = 0;
	p->message_flags = 0;
	p->status = 0;
}

static __always_inline void end_request(struct connection *conn, struct scratch *s,
					struct exchange *x)
{
	u64 last;

	conn->inbound.state = PARSER_BETWEEN;
	if (!x)
		return;
	x->request_end = s->seq + s->position;
	last = mark_of(&conn->arrivals, x->request_end - 1);
	if (last != x->record.stamp_ktime_ns[STAMP_NIC])
		x->record.stamp_ktime_ns[STAMP_NIC_LAST] = last;
	x->record.flags |= REQUEST_RECEIVED;
}

static __always_inline void end_response(struct connection *conn, struct scratch *s,
					 struct exchange *x)
{
	u64 last;

	conn->outbound.state = PARSER_BETWEEN;
	if (x) {
		x->response_end = s->seq + s->position;
		if (s->ktime_ns != x->record.stamp_ktime_ns[STAMP_TC_OUT])
			x->record.stamp_ktime_ns[STAMP_TC_OUT_LAST] = s->ktime_ns;
		last = mark_of(&conn->writes, x->response_end - 1);
		if (last != x->record.stamp_ktime_ns[STAMP_WRITE])
			x->record.stamp_ktime_ns[STAMP_WRITE_LAST] = last;
		x->record.flags |= REQUEST_ANSWERED;
	}
	conn->answered++;
}

static __always_inline void end_message(struct connection *conn, struct scratch *s,
					struct exchange *x, enum direction direction)
{
	if (direction == INBOUND)
		end_request(conn, s, x);
	else
		end_response(conn, s, x);
}

/* ---- heads ---- */

/* Notes where the value of a line of interest lies. */
static __always_inline void note_line(struct scratch *s, volatile struct head_cursor *v,
				      u32 at, u32 length)
{
	u64 start = word_at(s, at) | LETTERS_LOWER;
	u64 next = word_at(s, at + 8) | LETTERS_LOWER;
	u32 found;

	if (v->state == PARSER_FIRST_LINE) {
		v->state = PARSER_HEADERS;
		found = FOUND_FIRST_LINE;
	} else if ((start & FIRST_BYTES(5)) == WORD('h', 'o', 's', 't', ':', 0, 0, 0)) {
		found = FOUND_HOST;
		at += 5;
		length -= 5;
	} else if (start == WORD('c', 'o', 'n', 't', 'e', 'n', 't', '-') &&
		   (next & FIRST_BYTES(7)) == WORD('l', 'e', 'n', 'g', 't', 'h', ':', 0)) {
		found = FOUND_CONTENT_LENGTH;
		at += 15;
		length -= 15;
	} else if (start == WORD('t', 'r', 'a', 'n', 's', 'f', 'e', 'r') &&
		   next == WORD('-', 'e', 'n', 'c', 'o', 'd', 'i', 'n')) {
		found = FOUND_TRANSFER_ENCODING;
		at += 18;
		length -= 18;
	} else if (start == WORD('u', 's', 'e', 'r', '-', 'a', 'g', 'e') &&
		   (next & FIRST_BYTES(3)) == WORD('n', 't', ':', 0, 0, 0, 0, 0)) {
		found = FOUND_USER_AGENT;
		at += 11;
		length -= 11;
	} else if (start == WORD('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r') &&
		   (next & FIRST_BYTES(4)) == WORD('e', 'n', 't', ':', 0, 0, 0, 0)) {
		found = FOUND_TRACEPARENT;
		at += 12;
		length -= 12;
	} else {
		return;
	}
	found &= 7;
	s->found_at[found] = at;
	s->found_length[found] = length;
}

/* Strips up to seven spaces and tabs before a header's value, and eight after it. */
static __always_inline void strip(u32 *at, u32 *length, const struct scratch *s)
{
	u64 text;
	u32 n;

	n = at_most(*length, lowest(not_blank(word_at(s, *at))));
	*at += n;
	*length -= n;
	text = not_blank(word_at(s, *at + *length - 8));
	text |= text >> 8;
	text |= text >> 16;
	text |= text >> 32;
	n = 8 - ((text >> 7) * BYTES(1) >> 56);
	*length -= at_most(*length, n);
}

/* Copies a piece of the window, cut to max; max is a multiple of 8. */
static __always_inline void capture(u8 *to, u16 *to_length, u32 max, struct scratch *s, u32 found)
{
	u32 at = s->found_at[found], length = s->found_length[found];

	if (length == 0)
		return;
	if (found != FOUND_FIRST_LINE)
		strip(&at, &length, s);
	if (length == 0)
		return;
	*to_length = length;
	bpf_probe_read_kernel(to, at_most(max, length), s->window + (at & WINDOW_MASK));
}

/* Content-Length's digits; -1 where the value is not a number. */
static __always_inline int read_length(struct scratch *s, u64 *value)
{
	u32 at = s->found_at[FOUND_CONTENT_LENGTH], length = s->found_length[FOUND_CONTENT_LENGTH];
	u64 n = 0;
	int i;

	strip(&at, &length, s);
	if (length == 0 || length > 18)
		return -1;
	BOUNDED_LOOP
	for (i = 0; i < 18; i++) {
		u8 digit = byte_at(s, at + i) - '0';

		if (i >= length)
			break;
		if (digit > 9)
			return -1;
		n = n * 10 + digit;
	}
	*value = n;
	return 0;
}

/* Is the last coding "chunked"? */
static __always_inline bool is_chunked(struct scratch *s)
{
	u32 at = s->found_at[FOUND_TRANSFER_ENCODING], length = s->found_length[FOUND_TRANSFER_ENCODING];

	strip(&at, &length, s);
	if (length < 7)
		return false;
	return ((word_at(s, at + length - 7) | LETTERS_LOWER) & FIRST_BYTES(7)) ==
	       WORD('c', 'h', 'u', 'n', 'k', 'e', 'd', 0);
}

/* What the noted lines say. -1: this is not HTTP/1. */
static __always_inline int take_request_lines(struct scratch *s, struct connection *conn,
					      struct exchange *x)
{
	u32 length = s->found_length[FOUND_FIRST_LINE], at = s->found_at[FOUND_FIRST_LINE];
	u64 start, version;

	if (length) {
		start = word_at(s, at);
		if (length < CARRY_MAX) {
			version = word_at(s, at + length - 8);
			if (length < 12 ||	/* "X / HTTP/1.1" */
			    (version & FIRST_BYTES(7)) != WORD('H', 'T', 'T', 'P', '/', '1', '.', 0))
				return -1;
			if (x)
				x->record.http_minor = (version >> 56) - '0';
		} else if (x) {
			x->record.http_minor = 1;
		}
		if ((start & FIRST_BYTES(5)) == WORD('H', 'E', 'A', 'D', ' ', 0, 0, 0))
			conn->head_requests |= 1ULL << ((conn->begun - 1) & 63);
	}
	if (!x)
		return 0;
	capture(x->record.request_line, &x->record.request_line_length, REQUEST_LINE_MAX,
		s, FOUND_FIRST_LINE);
	capture(x->record.host, &x->record.host_length, HOST_MAX, s, FOUND_HOST);
	capture(x->record.user_agent, &x->record.user_agent_length, USER_AGENT_MAX,
		s, FOUND_USER_AGENT);
	capture(x->record.traceparent, &x->record.traceparent_length, TRACEPARENT_MAX,
		s, FOUND_TRACEPARENT);
	return 0;
}

static __always_inline int take_status_line(struct scratch *s, struct parser *p)
{
	u32 length = s->found_length[FOUND_FIRST_LINE], at = s->found_at[FOUND_FIRST_LINE];
	u32 status;

	if (!length)
		return 0;
	if (length < 12 || (word_at(s, at) & FIRST_BYTES(7)) !=
			   WORD('H', 'T', 'T', 'P', '/', '1', '.', 0))
		return -1;
	status = (byte_at(s, at + 9) - '0') * 100 + (byte_at(s, at + 10) - '0') * 10 +
		 (byte_at(s, at + 11) - '0');
	if (status < 100 || status > 999)
		return -1;
	p->status = status;
	return 0;
}

/* The request's head is whole: how long is its body? */
static __always_inline void begin_request_body(struct connection *conn, struct scratch *s,
					       struct exchange *x)
{
	struct parser *p = &conn->inbound;

	if (x)
		x->head_whole = 1;
	if (p->message_flags & MESSAGE_CHUNKED) {
		p->state = PARSER_CHUNK_SIZE;
		p->remaining = 0;
		if (x)
			x->record.flags |= REQUEST_CHUNKED;
	} else if (p->remaining) {
		p->state = PARSER_BODY;
		if (x)
			x->record.request_body_bytes = p->remaining;
	} else {
		end_request(conn, s, x);
	}
}

/* After 101, or 2xx to CONNECT, the connection belongs to another protocol. */
static __always_inline bool ends_http(const struct exchange *x, u32 status)
{
	if (status == 101)
		return true;
	return x && status / 100 == 2 && *(u64 *)x->record.request_line ==
					 WORD('C', 'O', 'N', 'N', 'E', 'C', 'T', ' ');
}

static __always_inline void begin_response_body(struct connection *conn, struct scratch *s,
						struct exchange *x)
{
	struct parser *p = &conn->outbound;
	bool to_head = conn->head_requests >> (conn->answered & 63) & 1;

	if (p->status < 200 && p->status != 101) {
		/* An interim response: the real one is still to come. */
		p->state = PARSER_BETWEEN;
		if (x) {
			x->record.stamp_ktime_ns[STAMP_TC_OUT] = 0;
			x->record.stamp_ktime_ns[STAMP_WRITE] = 0;
			x->record.response_bytes = 0;
		}
		return;
	}
	if (x)
		x->record.status = p->status;
	if (ends_http(x, p->status)) {
		if (x)
			x->record.flags |= UPGRADED;
		end_response(conn, s, x);
		turn_off(conn);
	} else if (to_head || p->status == 204 || p->status == 304) {
		end_response(conn, s, x);
	} else if (p->message_flags & MESSAGE_CHUNKED) {
		p->state = PARSER_CHUNK_SIZE;
		p->remaining = 0;
		if (x)
			x->record.flags |= RESPONSE_CHUNKED;
	} else if (p->message_flags & MESSAGE_HAS_LENGTH) {
		if (x)
			x->record.response_body_bytes = p->remaining;
		if (p->remaining)
			p->state = PARSER_BODY;
		else
			end_response(conn, s, x);
	} else {
		p->state = PARSER_UNTIL_CLOSE;
		if (x)
			x->record.flags |= RESPONSE_UNTIL_CLOSE;
	}
}

static __always_inline void consume(struct scratch *s, struct exchange *x, u32 n,
				    enum direction direction)
{
	s->position += n;
	if (!x)
		return;
	x->activity_ktime_ns = s->ktime_ns;
	if (direction == INBOUND)
		x->record.request_bytes += n;
	else
		x->record.response_bytes += n;
}

/*
 * Loads what the last segment left unfinished and the bytes that follow it.
 * Returns the number of new bytes, 0 on failure.
 */
static __always_inline u32 load_window(struct __sk_buff *skb, struct scratch *s,
				       struct connection *conn, struct parser *p,
				       enum direction direction)
{
	u32 carried = p->carried & (CARRY_MAX - 1);
	u32 n = s->payload_length - s->position;
	struct carry *carry;
	u64 key;

	if (carried) {
		key = conn->id << 1 | direction;
		carry = carries.lookup(&key);
		if (!carry)
			return 0;
		bpf_probe_read_kernel(s->window, CARRY_MAX, carry->bytes);
	}
	if (n > WINDOW_MAX)
		n = WINDOW_MAX;
	n = ((n - 1) & (WINDOW_MAX - 1)) + 1;
	if (bpf_skb_load_bytes(skb, s->payload_offset + s->position, s->window + carried, n))
		return 0;
	return n;
}

/*
 * Notes the lines of interest in the window, up to its end or the head's.
 *
 * What the loop carries lives in the map, not in registers: a loaded value is
 * unknown to the verifier, so each turn looks the same to it and it need not
 * walk every path through every turn.
 */
static __always_inline void scan_lines(struct scratch *s)
{
	volatile struct head_cursor *v = &s->head;
	u64 marks;
	int i;

	BOUNDED_LOOP
	for (i = 0; i < (WINDOW_MAX + CARRY_MAX) / 8 + 64; i++) {
		u32 at = v->at, length, line;

		if (at >= v->total)
			break;
		marks = newlines(word_at(s, at));
		if (!marks) {
			v->at = at + 8;
			continue;
		}
		at += lowest(marks);
		v->at = at + 1;
		if (at >= v->total)
			break;
		line = v->line;
		v->line = at + 1;
		length = at - line;
		if (length && byte_at(s, at - 1) == '\r')
			length--;
		if (v->skip) {
			v->skip = 0;
		} else if (length) {
			note_line(s, v, line, length);
		} else if (v->state == PARSER_HEADERS) {
			v->end = at + 1;
			break;
		}
	}
}

/*
 * A request may begin with the window's first byte; false where it cannot. An
 * empty line before it, which some clients send after a body, is stepped over.
 */
static __always_inline bool begin_inbound(struct scratch *s, struct connection *conn)
{
	u8 first = byte_at(s, 0);

	if (first == '\r' || first == '\n') {
		s->position++;
		return true;
	}
	if (first < 'A' || first > 'Z') {
		if (!conn->begun)
			count_as_not_http(conn);
		return false;
	}
	/* The preface of HTTP/2 was made to look like a request. */
	if (s->payload_length - s->position >= 4 &&
	    (word_at(s, 0) & FIRST_BYTES(4)) == WORD('P', 'R', 'I', ' ', 0, 0, 0, 0)) {
		turn_off(conn);
		return true;
	}
	start_message(&conn->inbound);
	begin_request(conn, &s->key, s->seq + s->position, s->ktime_ns);
	return true;
}

static __always_inline bool begin_outbound(struct scratch *s, struct connection *conn)
{
	struct exchange *x;

	if (!before(conn->answered, conn->begun)) {
		count(COUNT_RESPONSES_UNASKED);
		return false;
	}
	start_message(&conn->outbound);
	x = in_flight(conn, conn->answered);
	if (x) {
		x->record.stamp_ktime_ns[STAMP_TC_OUT] = s->ktime_ns;
		x->record.stamp_ktime_ns[STAMP_WRITE] = mark_of(&conn->writes, s->seq + s->position);
	}
	return true;
}

/*
 * Reads lines up to the end of the head or of the window. Returns 0, or -1 when
 * the bytes are no HTTP/1 message or one was too odd to follow.
 */
static __always_inline int read_head(struct __sk_buff *skb, struct scratch *s,
				     struct connection *conn, struct parser *p,
				     enum direction direction)
{
	volatile struct head_cursor *v = &s->head;
	u32 carried, total, loaded, partial, line;
	struct exchange *x;
	u64 key;

	loaded = load_window(skb, s, conn, p, direction);
	if (!loaded)
		return -1;
	if (p->state == PARSER_BETWEEN) {
		if (direction == INBOUND ? !begin_inbound(s, conn) : !begin_outbound(s, conn))
			return -1;
		if (p->state != PARSER_FIRST_LINE)
			return 0;
	}
	v->loaded = loaded;
	v->at = p->carried;
	v->total = p->carried + loaded;
	v->state = p->state;
	v->skip = p->skip_line;
	v->line = 0;
	v->end = 0;
	__builtin_memset(s->found_length, 0, sizeof(s->found_length));
	scan_lines(s);

	x = in_flight(conn, direction == INBOUND ? conn->begun - 1 : conn->answered);
	carried = p->carried;
	total = v->total;
	loaded = v->loaded;
	p->carried = 0;
	line = v->line;
	if (v->end) {
		consume(s, x, v->end - carried, direction);
	} else {
		partial = total - line;
		if (partial < CARRY_MAX && !v->skip && v->at >= total &&
		    s->position + loaded == s->payload_length) {
			/* The next segment finishes this line. */
			key = conn->id << 1 | direction;
			carries.update(&key, (struct carry *)(s->window + (line & WINDOW_MASK)));
			p->carried = partial;
			consume(s, x, loaded, direction);
		} else if (line && (v->at < total || (partial < CARRY_MAX && !v->skip))) {
			/* The next run starts again at this line. */
			consume(s, x, line - carried, direction);
		} else {
			/* A line too long to keep: its start is all that is looked at. */
			if (!v->skip)
				note_line(s, v, line, CARRY_MAX);
			v->skip = 1;
			consume(s, x, loaded, direction);
		}
	}
	p->state = v->state;
	p->skip_line = v->skip;

	if (direction == INBOUND ? take_request_lines(s, conn, x) : take_status_line(s, p))
		return -1;
	if (s->found_length[FOUND_TRANSFER_ENCODING] && is_chunked(s))
		p->message_flags |= MESSAGE_CHUNKED;
	if (s->found_length[FOUND_CONTENT_LENGTH]) {
		if (read_length(s, &p->remaining))
			return -1;
		p->message_flags |= MESSAGE_HAS_LENGTH;
	}
	if (v->end) {
		if (direction == INBOUND)
			begin_request_body(conn, s, x);
		else
			begin_response_body(conn, s, x);
	}
	return 0;
}

/* ---- bodies ---- */

static __always_inline void read_body(struct scratch *s, struct connection *conn,
				      struct parser *p, struct exchange *x,
				      enum direction direction)
{
	u32 n = s->payload_length - s->position;

	if (p->remaining <= n)
		n = p->remaining;
	p->remaining -= n;
	consume(s, x, n, direction);
	if (!p->remaining)
		end_message(conn, s, x, direction);
}

/*
 * The size in a chunk's first line, at the start of word, if that is one to six
 * hexadecimal digits and CRLF and not zero; 0 for any other line.
 */
static __always_inline u32 plain_chunk_size(u64 word, u32 *line_length)
{
	u64 marks = newlines(word), digits, letters, values, characters, wrong;
	u32 count = lowest(marks) - 1, unused_bits = 64 - 8 * count;

	if (!marks || count < 1 || count > 6 || (u8)(word >> 8 * count) != '\r')
		return 0;
	*line_length = count + 2;
	/* All digits at once: the last one in the highest byte, none in the lowest. */
	digits = word << unused_bits;
	letters = digits >> 6 & BYTES(1);
	values = (digits & BYTES(0x0f)) + 9 * letters;
	characters = values + BYTES('0') + ('a' - '0' - 10) * letters;
	wrong = values & BYTES(0xf0);		/* letters beyond 'f' */
	wrong |= ((values + BYTES(6)) >> 4 & BYTES(1)) ^ letters;	/* ':', '@' ... */
	wrong |= (characters ^ (digits | letters << 5)) >> unused_bits;
	if (wrong)
		return 0;
	values = __builtin_bswap64(values);
	values = (values | values >> 4) & 0x00ff00ff00ff00ffULL;
	values = (values | values >> 8) & 0x0000ffff0000ffffULL;
	return values | values >> 16;
}

#define CHUNK_STEPS 128
#define CHUNK_WINDOW 64		/* a power of two */

/*
 * Steps over chunks: one at a time where its first line is plain, else that line
 * byte by byte.
 * Its state lives in the map for the reason given at scan_lines().
 */
static __always_inline int read_chunks(struct __sk_buff *skb, struct scratch *s,
				       struct connection *conn, struct parser *p,
				       struct exchange *x, enum direction direction)
{
	volatile struct chunk_cursor *v = &s->chunks;
	u32 length = s->payload_length, n, digit, position, at = 0, line_length = 0;
	int i, ended = 0;
	u8 c;

	v->position = s->position;
	v->window_start = 0;
	v->window_end = 0;
	v->body_bytes = 0;
	v->remaining = p->remaining;
	v->state = p->state;
	BOUNDED_LOOP
	for (i = 0; i < CHUNK_STEPS; i++) {
		position = v->position;
		if (position >= length)
			break;
		if (v->state != PARSER_CHUNK_DATA) {
			n = length - position;
			if (position + at_most(8, n) > v->window_end || position < v->window_start) {
				if (n > CHUNK_WINDOW)
					n = CHUNK_WINDOW;
				n = ((n - 1) & (CHUNK_WINDOW - 1)) + 1;
				if (bpf_skb_load_bytes(skb, s->payload_offset + position,
						       s->window, n))
					return -1;
				v->window_start = position;
				v->window_end = position + n;
			}
			at = (position - v->window_start) & (CHUNK_WINDOW - 1);
		}
		if (v->state == PARSER_CHUNK_SIZE && !v->remaining &&
		    position + 8 <= v->window_end) {
			n = plain_chunk_size(*(u64 *)(s->window + at), &line_length);
			if (n) {
				v->body_bytes += n;
				v->remaining = n + 2;
				v->state = PARSER_CHUNK_DATA;
				position += line_length;
			}
		}
		if (v->state == PARSER_CHUNK_DATA) {
			n = length - position;
			if (v->remaining <= n) {
				n = v->remaining;
				v->state = PARSER_CHUNK_SIZE;
			}
			v->remaining -= n;
			v->position = position + n;
			continue;
		}
		c = s->window[at];
		v->position = position + 1;
		if (v->state == PARSER_TRAILER_START) {
			if (c == '\n') {
				ended = 1;
				break;
			}
			if (c != '\r')
				v->state = PARSER_TRAILER_LINE;
		} else if (v->state == PARSER_TRAILER_LINE) {
			if (c == '\n')
				v->state = PARSER_TRAILER_START;
		} else if (c == '\n') {		/* the size line is whole */
			v->state = PARSER_TRAILER_START;
			if (v->remaining) {
				v->body_bytes += v->remaining;
				v->remaining += 2;
				v->state = PARSER_CHUNK_DATA;
			}
		} else if (v->state == PARSER_CHUNK_SIZE) {
			digit = c - '0';
			if (digit > 9)
				digit = (c | 0x20) - 'a' + 10;
			if (digit < 16 && (c <= '9' || digit >= 10)) {
				if (v->remaining >> 56)
					return -1;
				v->remaining = v->remaining << 4 | digit;
			} else if (c == ';' || c == ' ' || c == '\t' || c == '\r') {
				v->state = PARSER_CHUNK_EXTENSION;
			} else {
				return -1;
			}
		}
	}
	p->state = v->state;
	p->remaining = v->remaining;
	if (x) {
		if (direction == INBOUND)
			x->record.request_body_bytes += v->body_bytes;
		else
			x->record.response_body_bytes += v->body_bytes;
	}
	consume(s, x, v->position - s->position, direction);
	if (ended)
		end_message(conn, s, x, direction);
	return 0;
}
