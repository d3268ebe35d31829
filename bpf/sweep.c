/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Run by the agent, not by a hook: ends one request that has long been silent. */

int sweep(struct __sk_buff *skb)
{
	struct connection_key key = {};
	struct sweep_order *order;
	struct connection *conn;
	struct exchange *x;
	int zero = 0;

	order = sweep_orders.lookup(&zero);
	if (!order)
		return 0;
	x = exchange_at(order->slot);
	if (!x || x->state < EXCHANGE_IN_FLIGHT || x->activity_ktime_ns > order->before_ktime_ns)
		return 0;
	copy_address(key.peer_address, x->record.peer_address);
	copy_address(key.local_address, x->record.local_address);
	key.peer_port = x->record.peer_port;
	key.local_port = x->record.local_port;
	conn = find_connection(&key);
	if (conn && conn->id == x->record.connection_id)
		x->record.flags |= conn->flags;
	if (x->record.flags & REQUEST_ANSWERED) {
		submit(x, IRREGULAR);
	} else if (!conn || conn->id != x->record.connection_id) {
		abandon(x, COUNT_LOST_EVICTED);
	} else if (order->flag == AGENT_STOPPED) {
		abandon(x, COUNT_LOST_STOPPED);
	} else if (!x->head_whole) {
		abandon(x, COUNT_LOST_CLOSED);
	} else {
		x->record.flags |= order->flag;
		submit(x, IRREGULAR);
	}
	return 0;
}
