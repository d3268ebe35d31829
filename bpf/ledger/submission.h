/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * A request's life: begun by its first byte, stamped by the hooks, and at last
 * submitted or counted as lost, exactly once.
 */

/* ---- requests in flight ---- */

static __always_inline struct exchange *in_flight(struct connection *conn, u64 ordinal)
{
	u32 slot = conn->slot[ordinal & (IN_FLIGHT_MAX - 1)];
	struct exchange *x = exchange_at(slot);

	return NULL_UNLESS(x && x->state == EXCHANGE_IN_FLIGHT + conn->id &&
			   x->record.ordinal == ordinal, x);
}

/* Was it sent to an upstream? */
static __always_inline bool is_outgoing(const struct exchange *x)
{
	return CLIENTS && x->record.flags & CLIENT;
}

/* Has the last byte come of the request, or of an upstream's response? */
static __always_inline bool inbound_is_whole(const struct exchange *x)
{
	return x->record.flags & (is_outgoing(x) ? REQUEST_ANSWERED : REQUEST_RECEIVED);
}

/* The request whose bytes, or whose response's, are passing now. */
static __always_inline struct exchange *current_exchange(struct connection *conn, enum flow flow)
{
	return in_flight(conn, CARRIES_REQUESTS(flow) ? conn->begun - 1 : conn->answered);
}

static __always_inline u32 *inbound_retransmits(struct exchange *x)
{
	return is_outgoing(x) ? &x->record.response_retransmits : &x->record.request_retransmits;
}

/* The request whose own bytes, or whose response's, have come in last. */
static __always_inline struct exchange *latest_arrival(struct connection *conn)
{
	return in_flight(conn, conn->arrived - 1);
}

static __always_inline struct parser *parser_of(struct connection *conn, enum flow flow)
{
	return IS_OUTBOUND(flow) ? &conn->outbound : &conn->inbound;
}

/*
 * Has the packet come from another interface than the flow's last new bytes? Where it brings none
 * itself it is one of theirs, which passes a bridge after the bridge's port, or a bond after its slave.
 */
static __always_inline bool passed_another(const struct __sk_buff *skb, const struct connection *conn,
					   enum direction direction)
{
	return skb->ifindex != conn->interface[direction];
}

/* Takes a free slot; nobody finds it until begin_request() has filled it. */
static __always_inline struct exchange *claim(u32 slot)
{
	struct exchange *x = exchange_at(slot);

	if (x && __sync_val_compare_and_swap(&x->state, EXCHANGE_FREE, EXCHANGE_FINISHING)
		 == EXCHANGE_FREE)
		return x;
	return NULL;
}

#define CLAIM_TRIES 16	/* beyond the first one */

/*
 * The next one, as the agent frees them in turn; else from anywhere in the table, so that
 * long-lived requests do not form a wall.
 */
static __always_inline struct exchange *claim_any(struct scratch *s, u32 *slot)
{
	u32 next = s->next_slot;
	struct exchange *x;
	u64 i;

	BOUNDED_LOOP
	for (i = 0; i <= CLAIM_TRIES; i++) {
		*slot = next % MAX_EXCHANGES;
		x = claim(*slot);
		if (x) {
			s->next_slot = *slot + 1;
			return x;
		}
		next = i ? next + 1 : bpf_get_prandom_u32();
	}
	return NULL;
}

/*
 * The slot that the connection had last is warm, and free unless the agent is still to read it:
 * in vain where all requests are kept.
 */
static __always_inline struct exchange *claim_warm(const struct connection *conn, u32 *slot)
{
	if (SAMPLER_KEEPS_ALL)
		return NULL;
	*slot = conn->home;
	return claim(conn->home);
}

#define WORD_OF(field) (__builtin_offsetof(struct request_record, field) / 8)

/*
 * Clears all but what comes first, which each request has, and the texts, whose lengths say how much
 * of them counts; of the request line the first word, which is looked at without. By words of eight
 * bytes: of a memset() clang would make twice as many of four.
 */
static __always_inline void clear(struct request_record *r)
{
	volatile u64 *words = (volatile u64 *)r;
	u32 i;

#pragma unroll
	for (i = WORD_OF(stamp_ktime_ns); i <= WORD_OF(request_line); i++)
		words[i] = 0;
}

/*
 * The request whose first byte is `seq`, and came, or was written, at `first`.
 * NULL: it is counted as lost.
 */
static __always_inline struct exchange *begin_request(struct scratch *s, struct connection *conn,
						      u32 seq, u64 first, enum flow flow)
{
	u64 ordinal = conn->begun;
	u32 slot;
	struct exchange *x;

	count_in(s, COUNT_SEEN, 1);
	conn->begun = ordinal + 1;
	if (!IS_CLIENTS(flow))
		conn->arrived = ordinal + 1;
	conn->head_requests &= ~(1ULL << (ordinal & 63));
	if (ordinal - conn->finished >= IN_FLIGHT_MAX) {
		count(COUNT_LOST_PIPELINE_FULL);
		return NULL;
	}
	x = claim_warm(conn, &slot);
	if (!x)
		x = claim_any(s, &slot);
	if (!x) {
		conn->slot[ordinal & (IN_FLIGHT_MAX - 1)] = NO_SLOT;
		count(COUNT_LOST_TABLE_FULL);
		return NULL;
	}
	conn->home = slot;
	conn->slot[ordinal & (IN_FLIGHT_MAX - 1)] = slot;

	clear(&x->record);
	x->head_whole = 0;
	x->left_again = 0;
	x->inbound_start = seq;
	x->activity_ktime_ns = s->ktime_ns;
	x->slot = slot;
	x->record.connection_id = conn->id;
	x->record.ordinal = ordinal;
	copy_address(x->record.peer_address, conn->key.peer_address);
	copy_address(x->record.local_address, conn->key.local_address);
	x->record.peer_port = conn->key.peer_port;
	x->record.local_port = conn->key.local_port;
	if (IS_CLIENTS(flow))
		x->record.flags = CLIENT;
	x->record.stamp_ktime_ns[IS_CLIENTS(flow) ? STAMP_WRITE : STAMP_NIC] = first;
	x->record.stamp_ktime_ns[IS_CLIENTS(flow) ? STAMP_TC_OUT : STAMP_TC] = s->ktime_ns;
	/* Other CPUs may find it from here on, and find it whole. */
	asm volatile("" : : : "memory");
	x->state = EXCHANGE_IN_FLIGHT + conn->id;
	return x;
}

static __always_inline bool take_out_of_flight(struct exchange *x)
{
	u64 in_flight = EXCHANGE_IN_FLIGHT + x->record.connection_id;

	return __sync_val_compare_and_swap(&x->state, in_flight, EXCHANGE_FINISHING) == in_flight;
}

/*
 * Leaves it in its slot for the agent, which looks for it now and then: to wake the agent would cost
 * each request more than all else. False: too many wait there already.
 */
static __always_inline bool hand_over(const struct exchange *x)
{
	struct ring_ends *ends = ring_ends();
	u64 at;

	if (ends->submitted - ends->read >= RING_MAX)
		return false;
	at = __sync_fetch_and_add(&ends->submitted, 1) & (RING_SLOTS - 1);
	/* The record is whole before anybody is shown it. */
	asm volatile("" : : : "memory");
	ring()[at] = x->slot + 1;
	return true;
}

/*
 * How a request ended: only those that went as they should are added up here, and of
 * several that end at once, which is rare, only the first: the verifier need not walk
 * that way for each.
 */
enum ending { ORDERLY, IRREGULAR };
#define FIRST_ONLY(turn) ((turn) ? IRREGULAR : ORDERLY)

static __always_inline void submit(struct exchange *x, enum ending ending)
{
	bool slow = false;

	if (!take_out_of_flight(x))
		return;
	if (SERIES && ending == ORDERLY && add_to_series(x, &slow))
		x->record.flags |= IN_SERIES;
	if (x->record.flags & SAMPLED || slow || (KEEP_ERRORS && has_failed(&x->record))) {
		x->record.flags |= KEPT;
	} else if (!SERIES || x->record.flags & IN_SERIES) {
		count(COUNT_SAMPLED_OUT);
		x->state = EXCHANGE_FREE;
		return;
	}
	if (!hand_over(x)) {
		count(COUNT_LOST_RING_FULL);
		x->state = EXCHANGE_FREE;
	}
}

static __always_inline void abandon(struct exchange *x, u32 reason)
{
	if (!take_out_of_flight(x))
		return;
	count(reason);
	x->state = EXCHANGE_FREE;
}

/* The peer has all bytes before ack_seq: report the responses that end there. */
static __always_inline void acknowledge(struct connection *conn, u32 ack_seq, u64 now)
{
	struct exchange *x;
	u64 i;

	BOUNDED_LOOP
	for (i = 0; i < IN_FLIGHT_MAX; i++) {
		if (conn->finished >= conn->answered)
			return;
		x = in_flight(conn, conn->finished);
		if (x) {
			if (before(ack_seq, x->outbound_end))
				return;
			if (!x->record.stamp_ktime_ns[STAMP_ACKED])
				x->record.stamp_ktime_ns[STAMP_ACKED] = now;
			/* Answered early: the rest of its body is still to come. */
			if (!(x->record.flags & REQUEST_RECEIVED))
				return;
			submit(x, FIRST_ONLY(i));
		}
		conn->finished++;
	}
}

/* A FIN or RST: by the first one the connection began to end. */
static __always_inline void note_ending(struct connection *conn, u32 how)
{
	conn->flags |= how;
	if (!conn->ending)
		conn->ending = how;
}

/* From now on no response can become whole that is not. */
static __always_inline void end_responses(struct connection *conn, u64 now)
{
	if (!conn->ended_ktime_ns)
		conn->ended_ktime_ns = now;
}

/* Of a message that never became whole, the latest read was not its last. */
static __always_inline void forget_last_read(struct exchange *x)
{
	if (!inbound_is_whole(x))
		x->record.stamp_ktime_ns[STAMP_READ_LAST] = 0;
}

/*
 * The request ends with its connection. If it began when no answer could come any more it ends when
 * that is told, which is now.
 */
static __always_inline void end_with(const struct connection *conn, struct exchange *x, u64 now)
{
	u64 ended = conn->ended_ktime_ns;
	u64 begun = x->record.stamp_ktime_ns[is_outgoing(x) ? STAMP_TC_OUT : STAMP_TC];

	x->record.flags |= conn->ending;
	if (!(x->record.flags & REQUEST_ANSWERED))
		x->record.stamp_ktime_ns[STAMP_ENDED] = ended > begun ? ended : now;
	forget_last_read(x);
}

/* Ends all requests in flight: those worth a record are submitted, the others lost. */
static __always_inline void end_requests(struct connection *conn, bool framing_lost, u64 now)
{
	struct exchange *x;
	u64 i;

	BOUNDED_LOOP
	for (i = 0; i < IN_FLIGHT_MAX; i++) {
		if (conn->finished >= conn->begun)
			return;
		x = in_flight(conn, conn->finished);
		if (x) {
			if (!framing_lost)
				end_with(conn, x, now);
			if (framing_lost ? x->record.flags & REQUEST_ANSWERED : x->head_whole)
				submit(x, IRREGULAR);
			else
				abandon(x, framing_lost ? COUNT_LOST_PARSER : COUNT_LOST_CLOSED);
		}
		conn->finished++;
	}
	conn->finished = conn->begun;	/* what was beyond was never tracked */
}

/*
 * Nothing more will be learned of the requests in flight: those that were
 * answered, and those cut off after a whole head, are still worth a record.
 */
static __always_inline void close_requests(struct connection *conn, u64 now)
{
	end_requests(conn, false, now);
}

/* Framing was lost: which bytes belong to which request is no longer known. */
static __always_inline void lose_requests(struct connection *conn)
{
	end_requests(conn, true, 0);
}

/* ---- stamps of the socket hooks ---- */

/*
 * Requests that were reported, or never tracked, want no stamps any more. A
 * cursor that lags behind them would come to a later request too late.
 */
static __always_inline void skip_finished(const struct connection *conn, u64 *cursor)
{
	if (*cursor < conn->finished)
		*cursor = conn->finished;
}

/*
 * TCP took the bytes in range. Not always in order: a request whose first byte
 * it has not taken yet is looked at again. What is queued it has taken before.
 * True: there is such a request before these bytes.
 */
static __always_inline bool stamp_tcp(struct connection *conn, struct byte_range range, u64 now)
{
	bool all_taken = true;
	struct exchange *x;
	u64 ordinal;
	u64 i;

	skip_finished(conn, &conn->tcp);
	ordinal = conn->tcp;
	BOUNDED_LOOP
	for (i = 0; i < IN_FLIGHT_MAX; i++, ordinal++) {
		if (ordinal >= conn->arrived)
			break;
		x = in_flight(conn, ordinal);
		if (x && !x->record.stamp_ktime_ns[STAMP_TCP] &&
		    !x->record.stamp_ktime_ns[STAMP_QUEUED]) {
			if (!before(x->inbound_start, range.end))
				break;
			if (!before(x->inbound_start, range.start))
				x->record.stamp_ktime_ns[STAMP_TCP] = now;
			else
				all_taken = false;
		}
		if (all_taken)
			conn->tcp = ordinal + 1;
	}
	return !all_taken;
}

/* All bytes before rcv_nxt are on the receive queue, in order. */
static __always_inline void stamp_queued(struct connection *conn, u32 rcv_nxt, u64 now)
{
	struct exchange *x;
	u64 i;

	skip_finished(conn, &conn->queued);
	BOUNDED_LOOP
	for (i = 0; i < IN_FLIGHT_MAX; i++) {
		if (conn->queued >= conn->arrived)
			return;
		x = in_flight(conn, conn->queued);
		if (x) {
			if (!before(x->inbound_start, rcv_nxt))
				return;
			x->record.stamp_ktime_ns[STAMP_QUEUED] = now;
		}
		conn->queued++;
	}
}

/*
 * TCP takes a segment, and has queued all bytes before rcv_nxt with earlier ones. Those whose
 * data-ready was missed stay without the stamp: the next one is that of later bytes.
 */
static __always_inline void skip_queued(struct connection *conn, u32 rcv_nxt)
{
	stamp_queued(conn, rcv_nxt, 0);
}

/*
 * How the reading task came to run. It was woken for this request if this very
 * socket woke it after the bytes were queued; it got its CPU for it if the
 * bytes came while it had been woken, by whomever, and was not yet running.
 */
static __always_inline void stamp_wakeup(struct exchange *x, const struct reader *r, u64 sk)
{
	u64 queued = x->record.stamp_ktime_ns[STAMP_QUEUED];

	if (!queued)
		return;
	if (r->sk == sk && r->woken_ktime_ns >= queued)
		x->record.stamp_ktime_ns[STAMP_WOKEN] = r->woken_ktime_ns;
	if (r->running_ktime_ns >= queued &&
	    (r->woken_ktime_ns <= queued || r->sk == sk))
		x->record.stamp_ktime_ns[STAMP_RUNNING] = r->running_ktime_ns;
}

/* The place of a task that reads, which may have been another's. */
static __always_inline struct reader *reader_of(u32 tid)
{
	struct reader *r = reader_at(tid);

	if (r->tid != tid) {
		r->sk = 0;
		r->woken_ktime_ns = NEVER_WOKEN;
		r->tid = tid;
		r->mingles = 0;
		r->handling.last_read.connection_id = 0;
	}
	return r;
}

/* A task reads a request. Has it let go of the one before? */
static __always_inline void take_in_hand(const struct connection *conn, struct reader *r,
					 bool waits)
{
	const struct request_name *last = &r->handling.last_read;
	struct connection *other = connection_at(last->place);

	if (last->connection_id && other && other != conn && other->id == last->connection_id &&
	    last->ordinal >= other->answered)
		r->mingles = 1;
	r->waits = waits;
}

static __always_inline void name_request(struct request_name *name, const struct connection *conn,
					 const struct exchange *x)
{
	name->connection_id = conn->id;
	name->place = conn->place;
	name->ordinal = x->record.ordinal;
}

/* Go keeps the running goroutine's address in r14, where its system calls leave it alone. */
static __always_inline void note_goroutine(const struct connection *conn, const struct exchange *x)
{
#ifdef GO_HANDLERS
	struct pt_regs *regs = (void *)bpf_task_pt_regs(bpf_get_current_task_btf());
	struct handling h = {};
	struct goroutine_key key = { .tgid = x->record.pid };

	bpf_probe_read_kernel(&key.g, sizeof(key.g), &regs->r14);
	name_request(&h.last_read, conn, x);
	goroutines.update(&key, &h);
#endif
}

/* A task reads bytes of a request, or of an upstream's response: the first ones, or others. */
static __always_inline void note_reader(struct connection *conn, struct exchange *x, u64 sk,
					bool first, enum access access)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct reader *r = reader_of((u32)pid_tgid);

	if (!x->record.pid) {
		x->record.pid = pid_tgid >> 32;
		x->record.tid = (u32)pid_tgid;
		name_process(&x->record.process);
	}
	if (first)
		stamp_wakeup(x, r, sk);
	if (is_outgoing(x))
		return;
	if (CLIENTS)
		take_in_hand(conn, r, sock_blocks(sk, access));
	name_request(&r->handling.last_read, conn, x);
	note_goroutine(conn, x);
}

/* The application has read all bytes before copied_seq. */
static __always_inline void stamp_read(struct connection *conn, u64 sk, u32 copied_seq, u64 now,
				       enum access access)
{
	struct exchange *x;
	bool first;
	u64 i;

	skip_finished(conn, &conn->read);
	BOUNDED_LOOP
	for (i = 0; i < IN_FLIGHT_MAX; i++) {
		if (conn->read >= conn->arrived)
			return;
		x = in_flight(conn, conn->read);
		if (x) {
			if (!before(x->inbound_start, copied_seq))
				return;
			first = !x->record.stamp_ktime_ns[STAMP_READ];
			x->record.stamp_ktime_ns[first ? STAMP_READ : STAMP_READ_LAST] = now;
			note_reader(conn, x, sk, first, access);
			if (!inbound_is_whole(x) || before(copied_seq, x->inbound_end))
				return;
		}
		conn->read++;
	}
}
