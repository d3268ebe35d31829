/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The programs at the card, at traffic control and where a socket's state changes as a program of this
 * machine, built with sanitizers. Everything of bpf/ that they consist of is the real thing; here is what
 * stands in for the kernel: maps and helpers, packets and sockets.
 *
 * It is told of conversations on its input and says on its output what came of each:
 *
 *	in	u32 events; for each: u32 enum event, u32 linear bytes, u32 bytes, u32 within, and these: a
 *		frame, or a struct state_change. Not 0, `within` has it happen on another processor, within
 *		the next event that has 0 there: when that asks for its n-th help of the kernel's.
 *	out	u64 counts[COUNT_COUNT]; u32 records; struct request_record of each; struct forwarded_text of
 *		each, and what is at its place where it has none
 *
 * At a conversation's end all is swept that is in flight, and forgotten.
 */

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* bpf/shim has its own. */
#undef __always_inline
#undef NULL

#include "kernel/structures.h"

struct host_object {
	struct net net;
	struct sock_common sock_common;
	struct sock sock;
	struct socket socket;
	struct file file;
	struct inet_sock inet_sock;
	struct tcp_request_sock tcp_request_sock;
	struct tcp_sock tcp_sock;
	struct iov_iter iov_iter;
	struct msghdr msghdr;
	struct mm_struct mm_struct;
	struct thread_struct thread_struct;
	struct task_struct task_struct;
	struct sk_buff sk_buff;
	struct dst_entry dst_entry;
	struct net_device net_device;
};

#include "hooks/socket.c"
#include "hooks/sweep.c"
#include "hooks/tc.c"
#include "hooks/xdp.c"

/* Who builds it says which. */
#ifndef FORWARDED_ASKED_FOR
#define FORWARDED_ASKED_FOR HEADER_NONE
#endif

#define SERVER_PORT 8080
#define UPSTREAM_PORT 9090
#define NETNS_COOKIE 1
#define PACKET_MOST (1 << 16)
#define PACKET_END \
	0x20000000 /* fits the 32 bits that a context has for it; nothing is mapped from there on */
#define TAIL_CALLS 33

enum event {
	TO_SERVER,
	FROM_SERVER,
	FROM_UPSTREAM,
	TO_UPSTREAM,
	STATE_CHANGES,
	ARRIVES, /* at the card alone: traffic control will have it later */
	EVENTS
};

/* As inet_sock_set_state tells it. */
struct state_change {
	u32 earlier;
	u32 state;
	u32 peer_be32;
	u32 local_be32;
	u16 peer_port;
	u16 local_port;
	u32 rcv_nxt;
	u32 write_seq;
	u32 error;
};

#define CHECK(condition)                                                   \
	do {                                                               \
		if (!(condition)) {                                        \
			fprintf(stderr, "host: not so: %s\n", #condition); \
			abort();                                           \
		}                                                          \
	} while (0)

/* ---- maps ---- */

static struct host_map *used_maps;

static void free_entry(struct host_entry *e)
{
	free(e->key);
	free(e->value);
	free(e);
}

/* There is one processor here. */
static bool is_array(const struct host_map *map)
{
	return map->type == BPF_MAP_TYPE_ARRAY || map->type == BPF_MAP_TYPE_PERCPU_ARRAY;
}

/* The one that was looked up or updated last comes first. False: there is no room for one more. */
static bool make_room(struct host_map *map)
{
	struct host_entry **last = &map->entries;
	u32 n;

	for (n = 1; *last && n < map->most; n++)
		last = &(*last)->next;
	if (!*last)
		return true;
	CHECK(!is_array(map) && !(*last)->next);
	if (map->type != BPF_MAP_TYPE_LRU_HASH)
		return false;
	free_entry(*last);
	*last = NULL;
	return true;
}

/* A block of its own for each value: so what is beyond it, or has gone, is nobody's. NULL: no room. */
static struct host_entry *add_entry(struct host_map *map, const void *key)
{
	struct host_entry *e;

	if (!make_room(map))
		return NULL;
	e = calloc(1, sizeof(*e));
	CHECK(e);
	if (!map->is_used) {
		map->is_used = 1;
		map->next = used_maps;
		used_maps = map;
	}
	e->key = malloc(map->key_size);
	e->value = calloc(1, map->value_size);
	CHECK(e->key && e->value);
	memcpy(e->key, key, map->key_size);
	e->next = map->entries;
	map->entries = e;
	return e;
}

static struct host_entry **place_of_entry(struct host_map *map, const void *key)
{
	struct host_entry **at = &map->entries;

	while (*at && memcmp((*at)->key, key, map->key_size))
		at = &(*at)->next;
	return at;
}

static struct host_entry *find_entry(struct host_map *map, const void *key)
{
	struct host_entry **at = place_of_entry(map, key), *e = *at;

	if (!e)
		return is_array(map) && *(u32 *)key < map->most ? add_entry(map, key) : NULL;
	*at = e->next;
	e->next = map->entries;
	map->entries = e;
	return e;
}

static void *bpf_map_lookup_elem(void *map, const void *key)
{
	struct host_entry *e = find_entry(map, key);

	return e ? e->value : NULL;
}

static long bpf_map_delete_elem(void *map, const void *key)
{
	struct host_entry **at = place_of_entry(map, key), *e = *at;

	if (!e)
		return -1;
	*at = e->next;
	free_entry(e);
	return 0;
}

/* Not in place: who still has the old value must not look at it. */
static long bpf_map_update_elem(void *map, const void *key, const void *value, u64 flags)
{
	struct host_map *m = map;
	struct host_entry *e;
	u8 *copy = malloc(m->value_size);

	CHECK(copy && flags == BPF_ANY && !is_array(m));
	memcpy(copy, value, m->value_size);
	bpf_map_delete_elem(m, key);
	e = add_entry(m, key);
	if (e)
		memcpy(e->value, copy, m->value_size);
	free(copy);
	return e ? 0 : -7;
}

static void forget_maps(void)
{
	struct host_map *map;
	struct host_entry *e;

	while ((map = used_maps)) {
		used_maps = map->next;
		map->is_used = 0;
		while ((e = map->entries)) {
			map->entries = e->next;
			free_entry(e);
		}
	}
}

/* ---- helpers ---- */

static u64 now_ns, random_state;
static u32 processor;

static void yield(void);

/* Each look at the clock finds it later. */
static u64 bpf_ktime_get_ns(void)
{
	yield();
	return now_ns += 1000;
}

static u32 bpf_get_smp_processor_id(void) { return processor; }

static u32 bpf_get_prandom_u32(void)
{
	random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
	return random_state >> 32;
}

static long bpf_probe_read_kernel(void *to, u32 size, const void *from)
{
	memcpy(to, from, size);
	return 0;
}

static long bpf_loop(u32 count, void *step, void *context, u64 flags)
{
	u64 turn;

	CHECK(!flags);
	for (turn = 0; turn < count; turn++)
		if (((long (*)(u64, void *))step)(turn, context))
			break;
	return turn;
}

static void *bpf_skc_to_tcp_sock(void *sk) { return sk; }

/* What a socket tells of is known from its state; the kernel has no others here. */
static void *bpf_skc_lookup_tcp(void *context UNUSED, struct bpf_sock_tuple *tuple UNUSED, u32 size,
				u64 netns, u64 flags)
{
	CHECK((size == 12 || size == 36) && netns == (u64)BPF_F_CURRENT_NETNS && !flags);
	return NULL;
}

/* These are asked where a process does something, and here none does. */
#define NEVER_ASKED(result, name, ...)                       \
	static result bpf_##name(__VA_ARGS__)                \
	{                                                    \
		CHECK(!"asked by what passes an interface"); \
		return (result)0;                            \
	}

NEVER_ASKED(u64, get_current_pid_tgid, void)
NEVER_ASKED(u64, get_current_cgroup_id, void)
NEVER_ASKED(void *, get_current_task_btf, void)
NEVER_ASKED(long, task_pt_regs, void *task UNUSED)
NEVER_ASKED(long, sk_release, void *sk UNUSED)
NEVER_ASKED(long, tcp_check_syncookie, void *sk UNUSED, void *ip UNUSED, u32 ip_length UNUSED,
	    void *tcp UNUSED, u32 tcp_length UNUSED)
NEVER_ASKED(void *, skc_to_tcp_request_sock, void *sk UNUSED)
NEVER_ASKED(long, probe_read_user, void *to UNUSED, u32 size UNUSED, const void *from UNUSED)

/* ---- packets ---- */

static u8 *packet; /* the bytes of the one that passes; a block of its own, too */
static u32 packet_length;

static long bpf_skb_load_bytes(const void *skb UNUSED, u32 offset, void *to, u32 size)
{
	yield();
	if (offset > packet_length || size > packet_length - offset) {
		memset(to, 0, size);
		return -14;
	}
	memcpy(to, packet + offset, size);
	return 0;
}

static long bpf_skb_pull_data(void *skb, u32 size)
{
	struct __sk_buff *s = skb;
	u32 linear = s->data_end - s->data;

	if (size > packet_length)
		return -12;
	if (size > linear) {
		s->data = s->data_end - size;
		memcpy((void *)(long)s->data, packet, size);
	}
	return 0;
}

static jmp_buf next_program;
static u32 tail_calls;

static int (*const continued_by[CONTINUATION_COUNT])(struct __sk_buff *) = {
	[CONTINUE_INBOUND] = tc_ingress,
	[CONTINUE_OUTBOUND] = tc_egress,
	[CONTINUE_CHUNKS] = tc_chunks,
	[CONTINUE_DISORDER] = tc_disorder,
	[CONTINUE_KEPT] = tc_kept,
	[CONTINUE_KEPT_CHUNKS] = tc_kept_chunks,
	[CONTINUE_ADMIT] = tc_admit,
	[CONTINUE_GRANT] = tc_grant,
	[CONTINUE_REPEATED] = tc_repeated,
	[CONTINUATIONS_EACH + CONTINUE_INBOUND] = tc_client_ingress,
	[CONTINUATIONS_EACH + CONTINUE_OUTBOUND] = tc_client_egress,
	[CONTINUATIONS_EACH + CONTINUE_CHUNKS] = tc_client_chunks,
	[CONTINUATIONS_EACH + CONTINUE_DISORDER] = tc_client_disorder,
	[CONTINUATIONS_EACH + CONTINUE_KEPT] = tc_client_kept,
	[CONTINUATIONS_EACH + CONTINUE_KEPT_CHUNKS] = tc_client_kept_chunks,
	[CONTINUATIONS_EACH + CONTINUE_ADMIT] = tc_client_admit,
	[CONTINUATIONS_EACH + CONTINUE_GRANT] = tc_client_grant,
	[CONTINUATIONS_EACH + CONTINUE_REPEATED] = tc_client_repeated,
};

/* As the kernel's, it comes back only if it may not. */
static long bpf_tail_call(void *context UNUSED, void *map, u32 index)
{
	CHECK(map == &continuations && index < CONTINUATION_COUNT);
	if (tail_calls == TAIL_CALLS)
		return -1;
	tail_calls++;
	longjmp(next_program, index + 1);
}

static void run_tc(struct __sk_buff *skb, int (*program)(struct __sk_buff *))
{
	int next;

	tail_calls = 0;
	next = setjmp(next_program);
	CHECK((next ? continued_by[next - 1] : program)(skb) == TC_NEXT);
}

/* The first `linear` bytes are where a program may look at them, with nothing behind them. */
static void pass(enum event how, u32 linear)
{
	static int (*const programs[EVENTS])(struct __sk_buff *) = {
		[TO_SERVER] = tc_ingress,
		[FROM_SERVER] = tc_egress,
		[FROM_UPSTREAM] = tc_client_ingress,
		[TO_UPSTREAM] = tc_client_egress,
	};
	struct __sk_buff skb = {
		.len = packet_length,
		.ifindex = 1,
		.data = PACKET_END - linear,
		.data_end = PACKET_END,
		.gso_segs = 1,
	};
	struct xdp_md xdp = { .data = skb.data, .data_end = skb.data_end };

	CHECK(linear <= PACKET_MOST);
	memcpy((void *)(long)skb.data, packet, linear);
	/* A card's driver has it all in one piece. */
	if ((how == TO_SERVER || how == FROM_UPSTREAM || how == ARRIVES) && linear == packet_length)
		CHECK(xdp_arrival(&xdp) == XDP_VERDICT_PASS);
	if (how != ARRIVES)
		run_tc(&skb, programs[how]);
}

/* ---- sockets ---- */

static void change_state(const struct state_change *change)
{
	static struct host_object net = { .net.net_cookie = NETNS_COOKIE };
	struct host_object socket = {
		.sock_common = {
			.skc_daddr = change->peer_be32,
			.skc_rcv_saddr = change->local_be32,
			.skc_dport = __builtin_bswap16(change->peer_port),
			.skc_num = change->local_port,
			.skc_family = AF_INET,
			.skc_state = change->state,
			.skc_net.net = (struct net *)&net,
		},
		.sock = { .sk_err = change->error, .sk_protocol = IPPROTO_TCP },
		.inet_sock.inet_sport = __builtin_bswap16(change->local_port),
		.tcp_sock = {
			.rcv_nxt = change->rcv_nxt,
			.write_seq = change->write_seq,
			.snd_una = change->write_seq,
		},
	};
	u64 arguments[] = { (u64)&socket, change->earlier, change->state };

	traced_state(arguments);
}

/* ---- conversations ---- */

static const struct configuration lengths = {
	.servers = 1,
	.clients = 1,
	.series = 1,
	.cpu_mask = 1,
	.connection_sets = 1,
	.connections = WAYS,
	.socket_mask = 0,
	.max_exchanges = 64,
	.ring_max = 64,
	.ring_mask = 63,
	.series_rows = 1,
	.proxy_networks = 3,
	.forwarded_header = FORWARDED_ASKED_FOR,
};

static const struct proxy_network proxies[] = {
	/* fd00::/8, which nobody is of here; 198.51.100.0/24 and 203.0.113.7. */
	{ { 0xfd }, { 0xff } },
	{ { [10] = 0xff, 0xff, 198, 51, 100 }, { [0 ... 14] = 0xff } },
	{ { [10] = 0xff, 0xff, 203, 0, 113, 7 }, { [0 ... 15] = 0xff } },
};

/* As long as the programs are told, to the byte. */
#define NEW_ARRAY(name, count)                                       \
	do {                                                         \
		free(name##_array);                                  \
		name##_array = calloc(count, sizeof(*name##_array)); \
		CHECK(name##_array);                                 \
	} while (0)

static void begin_conversation(void)
{
	u32 i;

	now_ns = 1000000000;
	random_state = 1;
	configuration_data = lengths;
	if (getenv("CONNECTION_SETS"))
		configuration_data.connection_sets = atoi(getenv("CONNECTION_SETS"));
	configuration_data.connections = CONNECTION_SETS * WAYS;
	NEW_ARRAY(scratches, CPU_MASK + 1);
	NEW_ARRAY(connections, CONNECTIONS);
	NEW_ARRAY(connection_tags, CONNECTION_SETS);
	NEW_ARRAY(socket_places, SOCKET_MASK + 1);
	NEW_ARRAY(exchanges, MAX_EXCHANGES);
	NEW_ARRAY(forwarded_texts, MAX_EXCHANGES);
	NEW_ARRAY(ring, RING_MASK + 1);
	NEW_ARRAY(ring_ends, 1);
	NEW_ARRAY(notices, 1);
	NEW_ARRAY(series, SERIES_ROWS);
	NEW_ARRAY(series_sets, SERIES_SETS);
	NEW_ARRAY(stage_orders, STAGE_ORDERS);
	NEW_ARRAY(connection_sums, 2);
	NEW_ARRAY(settings, 1);
	NEW_ARRAY(measured_ports, PORTS);
	NEW_ARRAY(upstream_ports, PORTS);
	NEW_ARRAY(proxy_networks, PROXY_NETWORKS_MOST);
	memcpy(proxy_networks(), proxies, sizeof(proxies));
	for (i = 0; i < 5; i++)
		settings()->hash_factors[i] = PLACE_FACTOR + 2 * i;
	settings()->route_hash_start = 1;
	settings()->route_hash_factor = PLACE_FACTOR;
	settings()->netns_cookie = NETNS_COOKIE;
	settings()->sampler_keeps = KEEPS_ALL;
	settings()->is_complete = 1;
	measured_ports()[SERVER_PORT] = 1;
	upstream_ports()[UPSTREAM_PORT] = UPSTREAM_ANYWHERE;
}

/* Nobody has said anything for long. */
static void sweep_all(void)
{
	u32 zero = 0, slot;
	struct sweep_order *order = LOOKUP(sweep_orders, &zero);

	now_ns += 1000000000;
	*order = (struct sweep_order){ .waited_ktime_ns = now_ns, .idle_ktime_ns = now_ns };
	for (slot = 0; slot < MAX_EXCHANGES; slot++) {
		order->slot = slot;
		sweep(NULL);
		CHECK(exchanges()[slot].state < EXCHANGE_IN_FLIGHT);
	}
}

static bool take(void *to, size_t size) { return fread(to, 1, size, stdin) == size; }

static void say(const void *what, size_t size) { CHECK(fwrite(what, 1, size, stdout) == size); }

static void say_what_came(void)
{
	u32 records = ring_ends()->submitted, i;

	for (i = 0; i < COUNT_COUNT; i++)
		scratches()[0].counts[i] += scratches()[1].counts[i];
	say(scratches()->counts, sizeof(scratches()->counts));
	say(&records, sizeof(records));
	for (i = 0; i < records; i++)
		say(&exchanges()[ring()[i] - 1].record, sizeof(struct request_record));
	for (i = 0; i < records; i++)
		say(&forwarded_texts()[ring()[i] - 1], sizeof(struct forwarded_text));
	CHECK(!fflush(stdout));
}

struct happening {
	u32 event, linear, length, within;
	u8 *data;
};

#define MEANWHILE_MOST 8

static struct happening meanwhile[MEANWHILE_MOST];
static u32 meanwhile_count, helps;

static void happen(const struct happening *h)
{
	packet = h->data;
	packet_length = h->length;
	if (h->event != STATE_CHANGES) {
		pass(h->event, h->linear);
	} else {
		CHECK(h->length == sizeof(struct state_change));
		change_state((const struct state_change *)packet);
	}
	free(h->data);
}

/* The kernel helps one processor; another one does something meanwhile. */
static void yield(void)
{
	static u8 linear[PACKET_MOST];
	void *mapped = (void *)(long)(PACKET_END - PACKET_MOST);
	u8 *of_packet = packet;
	u32 of_length = packet_length, of_calls = tail_calls, i;
	jmp_buf of_program;

	if (processor || !meanwhile_count)
		return;
	helps++;
	for (i = 0; i < meanwhile_count; i++) {
		if (meanwhile[i].within != helps)
			continue;
		memcpy(linear, mapped, PACKET_MOST);
		memcpy(&of_program, &next_program, sizeof(jmp_buf));
		processor = 1;
		happen(&meanwhile[i]);
		processor = 0;
		meanwhile[i].within = 0;
		memcpy(&next_program, &of_program, sizeof(jmp_buf));
		memcpy(mapped, linear, PACKET_MOST);
		packet = of_packet;
		packet_length = of_length;
		tail_calls = of_calls;
	}
}

static void take_event(void)
{
	struct happening h;
	u32 i;

	CHECK(take(&h, __builtin_offsetof(struct happening, data)) && h.event < EVENTS &&
	      h.linear <= h.length);
	h.data = malloc(h.length);
	CHECK(h.data && take(h.data, h.length));
	if (h.within) {
		CHECK(meanwhile_count < MEANWHILE_MOST);
		meanwhile[meanwhile_count++] = h;
		return;
	}
	helps = 0;
	happen(&h);
	for (i = 0; i < meanwhile_count; i++)
		CHECK(!meanwhile[i].within); /* else it asked for less help */
	meanwhile_count = 0;
}

int main(void)
{
	u32 events;

	CHECK(mmap((void *)(long)(PACKET_END - PACKET_MOST), PACKET_MOST, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != MAP_FAILED);
	while (take(&events, sizeof(events))) {
		begin_conversation();
		while (events--)
			take_event();
		sweep_all();
		say_what_came();
		forget_maps();
	}
	return 0;
}
