/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Run by the agent, not by a hook: looks for the next request that has long been silent, and ends it
 * where nothing else will.
 */

#include "ledger/endings.h"
#include "state/connections.h"

MAP(ARRAY, sweep_orders, u32, struct sweep_order, 1)

/* Is the connection's socket one that is still open, by all that can be known? */
static __always_inline bool has_open_socket(const struct connection *conn)
{
	u64 sk = conn->socket;
	struct connection_key key = {};
	u8 state;

	if (!sk)
		return false;
	/* Its end may have been missed, and its memory be another's by now. */
	state = sock_state(sk, BY_COPY);
	return state && state != TCP_CLOSE &&
	       !measured_key(sk, sock_local_port(sk, BY_COPY), &key, BY_COPY) &&
	       same_key(&conn->key, &key);
}

/*
 * Has its reader still to come? Not where reads of the connection are never seen, though it goes on
 * after whole responses.
 */
static __always_inline bool waits_for_reader(const struct connection *conn,
					     const struct exchange *x)
{
	return is_outgoing(x) && (conn->reads_seen || conn->answered <= 1) && has_open_socket(conn);
}

/* Nobody saw it end: it lasts until its last byte, either way, or until what was seen after that. */
static __always_inline void end_at_last_byte(struct exchange *x)
{
	u64 latest = 0, i;

	BOUNDED_LOOP
	for (i = 0; i < STAMP_ENDED; i++)
		if (x->record.stamp_ktime_ns[i] > latest)
			latest = x->record.stamp_ktime_ns[i];
	if (x->activity_ktime_ns > latest)
		x->record.stamp_ktime_ns[STAMP_ENDED] = x->activity_ktime_ns;
}

/* One whose response is not whole, of a connection that is known. */
static __always_inline void sweep_unanswered(const struct sweep_order *order,
					     const struct connection *conn, struct exchange *x)
{
	/* What is on its way may still make it whole for a moment. */
	bool ended = conn->ended_ktime_ns &&
		     (order->stopped || conn->ended_ktime_ns <= order->waited_ktime_ns);

	if (!order->stopped && !ended &&
	    (conn->ended_ktime_ns || x->activity_ktime_ns > order->idle_ktime_ns ||
	     has_open_socket(conn)))
		return;
	if (order->stopped && !ended) {
		abandon(x, COUNT_LOST_STOPPED);
	} else if (!x->head_bytes) {
		abandon(x, COUNT_LOST_CLOSED);
	} else {
		if (ended) {
			end_with(conn, x, x->activity_ktime_ns);
		} else {
			x->record.flags |= IDLE_TIMEOUT;
			forget_last_read(x);
			end_at_last_byte(x);
		}
		submit(x, IRREGULAR);
	}
}

static __always_inline void sweep_one(const struct sweep_order *order, struct exchange *x)
{
	struct connection_key key = {};
	struct connection *conn;

	copy_address(key.peer_address, x->record.peer_address);
	copy_address(key.local_address, x->record.local_address);
	key.peer_port = x->record.peer_port;
	key.local_port = x->record.local_port;
	conn = find_connection(&key);
	conn = NULL_UNLESS(conn && conn->id == x->record.connection_id, conn);
	if (x->record.flags & REQUEST_ANSWERED) {
		if (!order->stopped && (x->activity_ktime_ns > order->waited_ktime_ns ||
					(conn && waits_for_reader(conn, x))))
			return;
		if (conn)
			x->record.flags |= conn->ending;
		submit(x, IRREGULAR);
	} else if (conn) {
		sweep_unanswered(order, conn, x);
	} else if (order->stopped || x->activity_ktime_ns <= order->waited_ktime_ns) {
		abandon(x, COUNT_LOST_EVICTED);
	}
}

/* Where the sweep is. */
struct sweep_place {
	u64 slot;
	u64 silent_since_ktime_ns;
};

static __always_inline bool is_silent(const struct exchange *x, const struct sweep_place *place)
{
	return x->state >= EXCHANGE_IN_FLIGHT &&
	       x->activity_ktime_ns <= place->silent_since_ktime_ns;
}

/* Is this the end of the table, or a request that is silent? */
STEP sweep_past(u64 turn UNUSED, struct sweep_place *place)
{
	const struct exchange *x = exchange_at(place->slot);

	if (!x || is_silent(x, place))
		return 1;
	place->slot++;
	return 0;
}

/* So many slots are looked at in one run: meanwhile no packet is taken on this processor. */
#define SWEEP_TURNS 1024

PROGRAM("tc") int sweep(struct __sk_buff *skb UNUSED)
{
	struct sweep_place place = {};
	struct sweep_order *order;
	struct exchange *x;
	int zero = 0;
	u64 state;

	order = LOOKUP(sweep_orders, &zero);
	if (!order)
		return SWEEP_THROUGH;
	place.slot = order->slot;
	place.silent_since_ktime_ns = order->waited_ktime_ns;
	if (order->idle_ktime_ns > place.silent_since_ktime_ns)
		place.silent_since_ktime_ns = order->idle_ktime_ns;
	REPEAT(SWEEP_TURNS, sweep_past, &place);
	order->slot = place.slot;
	x = exchange_at(order->slot);
	if (!x)
		return SWEEP_THROUGH;
	state = x->state;
	if (!is_silent(x, &place))
		return SWEEP_GOES_ON;
	order->slot++;
	sweep_one(order, x);
	return x->state == state ? SWEEP_GOES_ON : SWEEP_ENDED_ONE;
}
