/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* From a segment to the next bytes: what of it was seen before, and what is missing before it. */
#pragma once

#include "http1/message.h"
#include "stream/continuations.h"
#include "stream/disorder.h"
#include "stream/packet.h"

/*
 * TC may see an acknowledgement some packets before TCP does, which until then
 * may send again what has been reported.
 */
static __always_inline void add_retransmits(struct exchange *x, u32 n, enum flow flow)
{
	if (!x)
		count_many(COUNT_RETRANSMITS_LATE, n);
	else if (CARRIES_REQUESTS(flow))
		x->record.request_retransmits += n;
	else
		x->record.response_retransmits += n;
}

#define TCP_OPTIONS_MAX 40
#define ALIGNED_TIMESTAMP 0x0a080101 /* two NOPs, kind 8, 10 bytes; as every Linux aligns it */
#define ALIGNED_SACK 0x00050101      /* two NOPs, kind 5; any length */
#define ANY_LENGTH 0x00ffffff

/* What is looked at of a segment's options. */
struct tcp_options {
	u32 tsval; /* 0: there are no time stamps, or not where they are looked for */
	u32 tsecr;
	bool duplicate; /* it acknowledges a duplicate: RFC 2883 */
	u8 unused[3];
};

/*
 * Time stamps and the first block of a selective acknowledgement, where they lie as they mostly do:
 * at the options' start, which is 12, 24, 32 or 40 bytes before the payload. The window is free here.
 */
static __always_inline struct tcp_options read_options(struct __sk_buff *skb,
						       const struct segment *seg, struct scratch *s)
{
	const u32 *words = (const u32 *)s->window;
	struct tcp_options o = {};
	u32 at = seg->payload_offset - TCP_OPTIONS_MAX;

	s->window[0] = 0;
	if (bpf_skb_load_bytes(skb, at, s->window, TCP_OPTIONS_MAX))
		return o;
	at = words[7] == ALIGNED_TIMESTAMP   ? 7
	     : words[4] == ALIGNED_TIMESTAMP ? 4
	     : words[2] == ALIGNED_TIMESTAMP ? 2
	     : words[0] == ALIGNED_TIMESTAMP ? 0
					     : 10;
	if (at == 10)
		return o;
	words += at;
	o.tsval = __builtin_bswap32(words[1]);
	o.tsecr = __builtin_bswap32(words[2]);
	o.duplicate = at < 7 && (words[3] & ANY_LENGTH) == ALIGNED_SACK &&
		      before(__builtin_bswap32(words[4]), seg->ack_seq);
	return o;
}

/*
 * A part of a response leaves again after its last byte: the client has it whole later, unless that
 * turns out to be in vain.
 */
static __always_inline void leave_again(struct __sk_buff *skb, const struct segment *seg,
					struct scratch *s, struct exchange *x)
{
	if (!x || !(x->record.flags & REQUEST_ANSWERED))
		return;
	if (!x->left_again) {
		x->left_ktime_ns = x->record.stamp_ktime_ns[STAMP_TC_OUT_LAST];
		x->left_again_tsval = read_options(skb, seg, s).tsval;
	}
	x->left_again++;
	x->record.stamp_ktime_ns[STAMP_TC_OUT_LAST] = s->ktime_ns;
}

/*
 * The client acknowledges a response of which a part had left again. That was in vain if the first
 * one had come through: the acknowledgement echoes a time stamp from before, or says that what came
 * again was a duplicate. So TCP probes whether the last segment was lost, where a client merely
 * takes its time to acknowledge it.
 */
static __always_inline void judge_leaving_again(struct __sk_buff *skb, const struct segment *seg,
						struct scratch *s, struct exchange *x)
{
	struct tcp_options o;

	if (!x || !x->left_again || before(seg->ack_seq, x->outbound_end))
		return;
	o = read_options(skb, seg, s);
	if ((o.tsecr && x->left_again_tsval && before(o.tsecr, x->left_again_tsval)) ||
	    (o.duplicate && x->left_again == 1))
		x->record.stamp_ktime_ns[STAMP_TC_OUT_LAST] = x->left_ktime_ns;
	x->left_again = 0;
}

/* Does the segment begin where the last one ended, as most do? */
static __always_inline bool is_next(const struct parser *p, const struct segment *seg)
{
	return seg->seq == p->next_seq && seg->payload_length;
}

/*
 * Brings the parser to this segment, which is not is_next(). Returns how many of its bytes were seen
 * before (all of them: it is a retransmission), or -1 where bytes before it are
 * missing and the parser needs them.
 */
static __always_inline s64 align(struct __sk_buff *skb, struct scratch *s, struct connection *conn,
				 const struct segment *seg, u64 ordinal, enum flow flow)
{
	struct parser *p = parser_of(conn, flow);
	u32 end = seg->seq + seg->payload_length, missing;
	struct exchange *x;

	if (seg->seq == p->next_seq)
		return 0;
	x = in_flight(conn, ordinal);
	if (before(seg->seq, p->next_seq)) {
		missing = before(p->next_seq, end) ? p->next_seq - seg->seq : seg->payload_length;
		s->ahead = -missing;
		if (missing == seg->payload_length && passed_another(skb, conn, IS_OUTBOUND(flow)))
			return missing;
		if (IS_OUTBOUND(flow)) {
			add_retransmits(x, skb->gso_segs ?: 1, flow);
			if (!CARRIES_REQUESTS(flow))
				leave_again(skb, seg, s, x);
		} else if (x && !p->disorder) { /* else it may fill a hole */
			add_retransmits(x, 1, flow);
		}
		return missing;
	}
	missing = seg->seq - p->next_seq;
	/* What is kept is stepped to first: tc_kept() does that. */
	if (!p->kept && step_over(p, x, missing, flow)) {
		s->ahead = missing;
		if (!IS_OUTBOUND(flow))
			p->holes++;
		return 0;
	}
	return p->state == PARSER_UNTIL_CLOSE ? 0 : -1;
}

static __always_inline void fill_scratch(struct scratch *s, const struct segment *seg,
					 u64 seen_before)
{
	s->seq = seg->seq;
	s->payload_offset = seg->payload_offset;
	s->payload_length = seg->payload_length;
	s->position = seen_before;
	s->fin = seg->tcp_flags & TCP_FIN;
}

/* Can this segment end a response that only the end of the connection ends? */
static __always_inline bool may_end_response(const struct parser *p, const struct segment *seg,
					     enum flow flow)
{
	return !CARRIES_REQUESTS(flow) && seg->tcp_flags & TCP_FIN &&
	       p->state == PARSER_UNTIL_CLOSE;
}

/* An inbound segment that is not is_next(), as take_inbound() has it. */
static __always_inline bool take_inbound_other(struct __sk_buff *skb, struct scratch *s,
					       struct connection *conn, const struct segment *seg,
					       enum flow flow)
{
	s64 seen_before = align(skb, s, conn, seg, conn->arrived - 1, flow);
	struct parser *p = &conn->inbound;
	bool repeats = seen_before > 0, is_early = seen_before < 0, is_known;

	/* The same packet, at another interface. */
	is_known = seen_before >= seg->payload_length && !may_end_response(p, seg, flow) &&
		   (!repeats || passed_another(skb, conn, INBOUND));
	if (is_known && !p->disorder)
		return false;
	fill_scratch(s, seg, seen_before);
	if (repeats || is_early || is_known) {
		hand_on(s, conn, flow);
		s->early = is_early;
		TAIL_CALL(skb, continuations,
			  (repeats && !is_known ? CONTINUE_REPEATED : CONTINUE_DISORDER) +
				  OF_ROLE(flow));
		return false; /* not reached */
	}
	return true;
}

/*
 * An inbound segment of a connection that is followed. True: there is something to read, which `s`
 * then describes.
 */
static __always_inline bool take_inbound(struct __sk_buff *skb, struct scratch *s,
					 struct connection *conn, const struct segment *seg,
					 enum flow flow)
{
	struct parser *p = &conn->inbound;

	s->ahead = 0;
	if (is_next(p, seg))
		fill_scratch(s, seg, 0);
	else if (!take_inbound_other(skb, s, conn, seg, flow))
		return false;
	p->next_seq = seg->seq + seg->payload_length;
	conn->interface[INBOUND] = skb->ifindex;
	return true;
}

/*
 * The one that an outbound segment belongs to that is not is_next(): what is sent again to the first
 * response not yet acknowledged, or to the first request not yet answered.
 */
static __always_inline u64 sent_for(const struct connection *conn, const struct segment *seg,
				    enum flow flow)
{
	bool again = before(seg->seq, conn->outbound.next_seq);

	if (CARRIES_REQUESTS(flow))
		return again ? conn->answered : conn->begun - 1;
	return again ? conn->finished : conn->answered;
}

/* The same for an outbound segment. If what is missing must be known, framing is lost. */
static __always_inline bool take_outbound(struct __sk_buff *skb, struct scratch *s,
					  struct connection *conn, const struct segment *seg,
					  enum flow flow)
{
	struct parser *p = &conn->outbound;
	s64 seen_before = 0;

	s->ahead = 0;
	if (!is_next(p, seg)) {
		seen_before = align(skb, s, conn, seg, sent_for(conn, seg, flow), flow);
		if (seen_before >= seg->payload_length && !may_end_response(p, seg, flow))
			return false;
		if (seen_before < 0) {
			p->state = PARSER_LOST;
			return true;
		}
	}
	fill_scratch(s, seg, seen_before);
	conn->interface[OUTBOUND] = skb->ifindex;
	if (before(p->next_seq, seg->seq + seg->payload_length))
		p->next_seq = seg->seq + seg->payload_length;
	return true;
}
