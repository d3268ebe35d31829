/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Text, eight characters at a time: the payload is looked at in little-endian
 * words of the window that it is loaded into.
 */

#define BYTES(x) (0x0101010101010101ULL * (x))
#define LETTERS_LOWER BYTES(0x20)

/* Eight characters as the little-endian word that a load of them gives. */
#define WORD(a, b, c, d, e, f, g, h) \
	((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | \
	 (u64)(e) << 32 | (u64)(f) << 40 | (u64)(g) << 48 | (u64)(h) << 56)
#define CRLF ('\r' | '\n' << 8)
#define FIRST_BYTES(n) ((1ULL << (8 * (n))) - 1)

static __always_inline u64 word_at(const struct scratch *s, u64 at)
{
	return *(u64 *)(s->window + (at & WINDOW_MASK));
}

static __always_inline u16 two_at(const struct scratch *s, u64 at)
{
	return *(u16 *)(s->window + (at & WINDOW_MASK));
}

static __always_inline u8 byte_at(const struct scratch *s, u64 at)
{
	return s->window[at & WINDOW_MASK];
}

/* Marks the bytes of word that are newlines; the lowest mark is exact. */
static __always_inline u64 newlines(u64 word)
{
	u64 x = word ^ BYTES('\n');

	return (x - BYTES(1)) & ~x & BYTES(0x80);
}

/*
 * Marks every CR and LF of word. So cheap a test marks other bytes too: the rest
 * of those below ' ', and those from 0xa0 on, each of which may hide a 0x1f after
 * it, but no CR or LF.
 */
static __always_inline u64 maybe_line_ends(u64 word)
{
	return ~(word + BYTES(0x80 - ' ')) & BYTES(0x80);
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
static __always_inline u64 lowest(u64 marks)
{
	return ((((marks - 1) & ~marks & BYTES(1)) * BYTES(1)) >> 56) - 1;
}
