/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which requests become spans. A trace that nobody has decided about is kept or not by
 * the low half of its id, a caller's by its sampled flag, an application's by what the
 * application said; what was slow or failed is kept beside them, if that is wanted.
 *
 * Set by the loader: PARENT_BASED, SAMPLER_BOUND (new traces below it are kept),
 * SAMPLER_KEEPS_ALL, KEEP_ERRORS, SLOW_NS, and ID_KEY_0 and ID_KEY_1, with which
 * src/otelbpf/ids.py names the traces that start here, too.
 */

#define TRACEPARENT_LENGTH 55
#define TRACE_FLAG_SAMPLED 1

/* ---- the ids of new traces: SipHash-1-3 of the request's name ---- */

#define SIPHASH_END_TRACE_LOW 0xdd
#define ROTATE(word, bits) ((word) << (bits) | (word) >> (64 - (bits)))

struct siphash { u64 a, b, c, d; };

static __always_inline void siphash_round(struct siphash *h)
{
	h->a += h->b;
	h->c += h->d;
	h->b = ROTATE(h->b, 13) ^ h->a;
	h->d = ROTATE(h->d, 16) ^ h->c;
	h->a = ROTATE(h->a, 32);
	h->c += h->b;
	h->a += h->d;
	h->b = ROTATE(h->b, 17) ^ h->c;
	h->d = ROTATE(h->d, 21) ^ h->a;
	h->c = ROTATE(h->c, 32);
}

static __always_inline void siphash_take(struct siphash *h, u64 word)
{
	h->d ^= word;
	siphash_round(h);
	h->a ^= word;
}

/* The low half of the id of the trace that a request starts. */
static __always_inline u64 new_trace_id_low(u64 connection_id, u32 ordinal)
{
	struct siphash h = {
		.a = ID_KEY_0 ^ 0x736f6d6570736575ULL, .b = ID_KEY_1 ^ 0x646f72616e646f6dULL,
		.c = ID_KEY_0 ^ 0x6c7967656e657261ULL, .d = ID_KEY_1 ^ 0x7465646279746573ULL,
	};

	siphash_take(&h, connection_id);
	siphash_take(&h, ordinal);
	siphash_take(&h, 16ULL << 56);		/* the message's length */
	h.c ^= SIPHASH_END_TRACE_LOW;
	siphash_round(&h);
	siphash_round(&h);
	siphash_round(&h);
	return (h.a ^ h.b ^ h.c ^ h.d) ? : 1;
}

/* ---- the caller's traceparent ---- */

/* Eight hexadecimal digits at once, in the order of their bytes in memory. */
struct hex {
	u64 faults;		/* 0: all are lower-case digits */
	u64 octets;		/* each in the lower half of 16 bits */
};

static __always_inline struct hex read_hex(u64 text)
{
	u64 letters = text >> 6 & BYTES(1);
	u64 values = (text & BYTES(0x0f)) + letters * 9;
	struct hex h = {
		/* '0' to '9' are 0x30 and up, 'a' to 'f' 0x61 and up. */
		.faults = ((text & BYTES(0xf0)) ^ (BYTES(0x30) + letters * 0x30)) |
			  ((values + BYTES(6)) >> 4 & BYTES(1)) ^ letters | (values & BYTES(0xf0)),
		.octets = (values << 4 | values >> 8) & 0x00ff00ff00ff00ffULL,
	};

	return h;
}

/* The number that the octets of eight digits are. */
static __always_inline u64 number_of(struct hex h)
{
	u64 word = h.octets;

	word = (word | word >> 8) & 0x0000ffff0000ffffULL;
	return __builtin_bswap32((u32)(word | word >> 16));
}

struct caller {
	bool valid;
	bool sampled;
	u64 trace_id_low;
};

/* Source: W3C Trace Context, section 3.2. A later version may append fields after a dash. */
static __always_inline struct caller read_traceparent(const struct request_record *r)
{
	const u8 *text = r->traceparent;
	struct hex t0 = read_hex(*(u64 *)(text + 3)), t1 = read_hex(*(u64 *)(text + 11));
	struct hex t2 = read_hex(*(u64 *)(text + 19)), t3 = read_hex(*(u64 *)(text + 27));
	struct hex p0 = read_hex(*(u64 *)(text + 36)), p1 = read_hex(*(u64 *)(text + 44));
	u16 version = *(u16 *)text, flags = *(u16 *)(text + 53);
	struct hex rest = read_hex(version | (u64)flags << 16 | BYTES('0') << 32);
	u16 length = r->traceparent_length;
	struct caller c = {};

	if (t0.faults | t1.faults | t2.faults | t3.faults | p0.faults | p1.faults | rest.faults |
	    (text[2] ^ '-') | (text[35] ^ '-') | (text[52] ^ '-'))
		return c;
	if (length != TRACEPARENT_LENGTH &&
	    (length < TRACEPARENT_LENGTH || version == ('0' | '0' << 8) || text[55] != '-'))
		return c;
	c.valid = version != ('f' | 'f' << 8) && (p0.octets | p1.octets) &&
		  (t0.octets | t1.octets | t2.octets | t3.octets);
	c.sampled = rest.octets >> 16 & TRACE_FLAG_SAMPLED;
	c.trace_id_low = number_of(t2) << 32 | number_of(t3);
	return c;
}

/* ---- the decision ---- */

static __always_inline bool keeps_trace(u64 trace_id_low)
{
	return SAMPLER_KEEPS_ALL || trace_id_low < SAMPLER_BOUND;
}

static __always_inline void set_sampled(struct exchange *x, bool sampled)
{
	if (sampled)
		x->record.flags |= SAMPLED;
	else
		x->record.flags &= ~SAMPLED;
}

/* The request's whole head is known, and nobody but its caller can have decided yet. */
static __always_inline void sample(struct exchange *x)
{
	bool to_be_read = PARENT_BASED || (!SAMPLER_KEEPS_ALL && SAMPLER_BOUND);
	struct caller c = {};

	if (to_be_read && x->record.traceparent_length >= TRACEPARENT_LENGTH)
		c = read_traceparent(&x->record);
	if (PARENT_BASED && c.valid)
		set_sampled(x, c.sampled);
	else if (SAMPLER_KEEPS_ALL || !SAMPLER_BOUND)
		set_sampled(x, SAMPLER_KEEPS_ALL);
	else
		set_sampled(x, keeps_trace(c.valid ? c.trace_id_low
					   : new_trace_id_low(x->record.connection_id,
							      x->record.ordinal)));
}

/* The thread that handles it says that it is of another trace; a caller's decision stands. */
static __always_inline void sample_published(struct exchange *x)
{
	struct caller c = {};

	if (SAMPLER_KEEPS_ALL || !SAMPLER_BOUND)
		return;
	if (x->record.traceparent_length >= TRACEPARENT_LENGTH)
		c = read_traceparent(&x->record);
	if (!c.valid)
		set_sampled(x, keeps_trace(__builtin_bswap64(((u64 *)x->record.trace_id)[1])));
}

static __always_inline bool has_failed(const struct request_record *r)
{
	if (!(r->flags & REQUEST_ANSWERED))
		return true;
	return r->status >= (CLIENTS && r->flags & CLIENT ? 400 : 500);
}
