/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A head that was read before need not be read again: servers answer with the same one, but for the number
 * that their Content-Length is, until their clock's next second. Each processor keeps some of those that it
 * read, and compares. Whose they were is no matter: the same bytes say the same.
 */
#pragma once

#include "http1/message.h"
#include "http1/values.h"

/* Where a connection's are kept that have been read here. */
static __always_inline struct familiar_head *familiar_place(struct scratch *s,
							    const struct connection *conn)
{
	struct familiar_head *head = &s->familiar[conn->place & (FAMILIAR_HEADS - 1)];

	/* Else clang would add it up anew wherever it is needed. */
	asm("" : "+r"(head));
	return head;
}

/* Sets the length that a head says. */
static __always_inline void set_length(struct familiar_head *head, u64 last, u64 length)
{
	u64 at = (head->digits_end - 8) & (FAMILIAR_MAX - 1);

	head->last = last;
	head->length = length;
	*(u64 *)((u8 *)head->words + at) = last;
}

/* Keeps a response's head, if the window has all of it, and it says how long the content is that follows. */
static __always_inline void remember_head(struct scratch *s, const struct connection *conn,
					  const struct parser *p)
{
	u64 at = s->found_at[FOUND_CONTENT_LENGTH], length = s->found_length[FOUND_CONTENT_LENGTH];
	struct familiar_head *head;

	if (!length || !s->found_length[FOUND_FIRST_LINE] ||
	    s->found_times[FOUND_TRANSFER_ENCODING] || s->head.end < FAMILIAR_LEAST ||
	    s->head.end > FAMILIAR_MAX || p->message_flags & MESSAGE_UNCLEAR_LENGTH ||
	    p->status < 200 || has_no_content(p->status))
		return;
	strip(&at, &length, s);
	if (length > DIGITS_AT_ONCE)
		return;
	head = familiar_place(s, conn);
	head->end = s->head.end;
	head->status = p->status;
	head->digits_end = at + length;
	head->digits = ~0ULL << (64 - 8 * length);
	bpf_probe_read_kernel(head->words, FAMILIAR_MAX, s->window);
	set_length(head, word_at(s, at + length - 8), p->remaining);
}

#define UNFAMILIAR (1ULL << 63)

/* How long the content is if the window begins with this head; more than any segment: it does not. */
static __always_inline u64 length_of_familiar(const struct scratch *s, struct familiar_head *head)
{
	u64 last = word_at(s, head->digits_end - 8), length;

	if (last == head->last)
		return head->length;
	if ((last ^ head->last) & ~head->digits)
		return UNFAMILIAR;
	length = number_in((last ^ BYTES('0')) & head->digits);
	if (length == NOT_A_NUMBER)
		return UNFAMILIAR;
	set_length(head, last, length);
	return length;
}

#define FOUR_DIFFER(a, b) \
	((a)[0] != (b)[0] || (a)[1] != (b)[1] || (a)[2] != (b)[2] || (a)[3] != (b)[3])

/* Compares four words, unless they have the head's end: its last four are compared for these. */
#define COMPARE(at)                                        \
	do {                                               \
		if (end <= 8 * ((at) + 4))                 \
			goto last;                         \
		if (FOUR_DIFFER(came + (at), kept + (at))) \
			return false;                      \
	} while (0)
#define COMPARE_MANY(at)           \
	do {                       \
		COMPARE(at);       \
		COMPARE((at) + 4); \
		COMPARE((at) + 8); \
	} while (0)

/* Does the window begin with it? */
static __always_inline bool is_familiar(const struct scratch *s, const struct familiar_head *head,
					u64 end)
{
	const u64 *came = (const u64 *)s->window, *kept = head->words;

	/* Else clang would load them anew for each word. */
	asm("" : "+r"(came), "+r"(kept));
	COMPARE_MANY(0);
	COMPARE_MANY(12);
	COMPARE_MANY(24);
	COMPARE_MANY(36);
	COMPARE_MANY(48);
last:
	end = (end - FAMILIAR_LEAST) & (FAMILIAR_MAX - 1);
	came = (const u64 *)((const u8 *)came + end);
	kept = (const u64 *)((const u8 *)kept + end);
	return !FOUR_DIFFER(came, kept);
}

/*
 * Reads the head of a response that is the one that is kept, and its content, which has to end with the
 * segment. False, and nothing was read, where it is another one.
 */
static __always_inline bool read_familiar_head(struct scratch *s, struct connection *conn,
					       struct parser *p, struct exchange *x, enum flow flow)
{
	struct familiar_head *head = familiar_place(s, conn);
	u64 end = head->end, length;

	if (conn->head_requests | conn->connect_requests)
		return false;
	length = length_of_familiar(s, head);
	/* So all of it is in the window, too. */
	if (end + length != s->payload_length - s->position || !is_familiar(s, head, end))
		return false;
	if (x)
		x->record.status = head->status;
	add_content(x, length, flow);
	consume(s, x, end + length, flow);
	p->state = PARSER_ENDED;
	return true;
}
