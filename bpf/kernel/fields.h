/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Reading the kernel's own structures: one accessor for each field. */
#pragma once

#include "abi/records.h"
#include "kernel/structures.h"
#include "kernel/verifier.h"

#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LAST_ACK 9
#define TCP_LISTEN 10
#define EPIPE 32
#define ECONNRESET 104
#define ECONNREFUSED 111

/*
 * Tracepoints and function entries hand on typed pointers, which the verifier
 * lets a program follow; a kprobe has mere numbers, and must copy.
 */
enum access { DIRECT, BY_COPY };

static __always_inline void copy_bytes(void *to, u32 size, u64 address)
{
	if (bpf_probe_read_kernel(to, size, (void *)address))
		__builtin_memset(to, 0, size);
}

#define DEFINE_LOAD(type)                                                        \
	static __always_inline type load_##type(u64 address, enum access access) \
	{                                                                        \
		type value;                                                      \
                                                                                 \
		if (access == DIRECT)                                            \
			return *(type *)address;                                 \
		copy_bytes(&value, sizeof(value), address);                      \
		return value;                                                    \
	}

DEFINE_LOAD(u16)
DEFINE_LOAD(u32)
DEFINE_LOAD(u64)

static __always_inline u32 task_tid(u64 task)
{
	return load_u32(FIELD(task, task_struct, pid), DIRECT);
}

static __always_inline u32 task_tgid(u64 task)
{
	return load_u32(FIELD(task, task_struct, tgid), DIRECT);
}

static __always_inline u64 current_task(void) { return (u64)bpf_get_current_task_btf(); }

/* A task's process. */
static __always_inline void name_process(struct process *p, u64 task)
{
	u64 leader = load_u64(FIELD(task, task_struct, group_leader), DIRECT);
	u64 mm = load_u64(FIELD(task, task_struct, mm), DIRECT);

	p->start_boottime_ns = load_u64(FIELD(leader, task_struct, start_boottime), DIRECT);
	p->cgroup_id = bpf_get_current_cgroup_id();
	p->stack = load_u64(FIELD(mm, mm_struct, start_stack), DIRECT);
	((u64 *)p->comm)[0] = load_u64(FIELD(leader, task_struct, comm), DIRECT);
	((u64 *)p->comm)[1] = load_u64(FIELD_AT(leader, task_struct, comm, 8), DIRECT);
}

/* A socket's TCP part; 0 where it has none. Follow it as the socket was followed. */
static __always_inline u64 tcp_sock(u64 sk, enum access access)
{
	return access == DIRECT ? (u64)bpf_skc_to_tcp_sock((void *)sk) : sk;
}

/* One of MPTCP's has the addresses of TCP's. */
static __always_inline bool is_tcp(u64 sk, enum access access)
{
	return load_u16(FIELD(sk, sock, sk_protocol), access) == IPPROTO_TCP;
}

static __always_inline u32 tcp_rcv_nxt(u64 tp, enum access access)
{
	return load_u32(FIELD(tp, tcp_sock, rcv_nxt), access);
}

/* Payload, without what was repeated. */
static __always_inline u64 tcp_bytes_received(u64 tp, enum access access)
{
	return load_u64(FIELD(tp, tcp_sock, bytes_received), access);
}

/* Of the side that asked for the connection its SYN is one. */
static __always_inline u64 tcp_bytes_acked(u64 tp, enum access access)
{
	return load_u64(FIELD(tp, tcp_sock, bytes_acked), access);
}

static __always_inline u32 tcp_copied_seq(u64 tp, enum access access)
{
	return load_u32(FIELD(tp, tcp_sock, copied_seq), access);
}

/* To the verifiers of 6.1 and 6.12 a number whose bytes were swapped has no bound. */
static __always_inline u64 bounded_port(u64 port)
{
	asm volatile("" : "+r"(port));
	return port & 0xffff;
}

static __always_inline u16 tcp_bound_port(u64 tp, enum access access)
{
	u16 port = load_u16(FIELD(tp, inet_sock, inet_sport), access);

	return bounded_port(__builtin_bswap16(port));
}

static __always_inline u32 tcp_write_seq(u64 tp, enum access access)
{
	return load_u32(FIELD(tp, tcp_sock, write_seq), access);
}

/* How much of a message to be sent is still to be copied from it. */
static __always_inline u32 message_left(u64 message, enum access access)
{
	u64 iterator = FIELD(message, msghdr, msg_iter);

	return load_u64(FIELD(iterator, iov_iter, count), access);
}

static __always_inline u32 tcp_snd_una(u64 tp, enum access access)
{
	return load_u32(FIELD(tp, tcp_sock, snd_una), access);
}

/* Of a connection that is being asked for: the sequence numbers of both SYNs. */
static __always_inline u32 request_rcv_isn(u64 request)
{
	return load_u32(FIELD(request, tcp_request_sock, rcv_isn), DIRECT);
}

static __always_inline u32 request_snt_isn(u64 request)
{
	return load_u32(FIELD(request, tcp_request_sock, snt_isn), DIRECT);
}

struct byte_range {
	u32 start, end;
};

/* Once TCP has looked at a segment, its control block holds the range. */
static __always_inline struct byte_range skb_byte_range(u64 skb, enum access access)
{
	struct byte_range range;

	if (access == DIRECT) {
		range.start = load_u32(FIELD(skb, sk_buff, cb), DIRECT);
		range.end = load_u32(FIELD_AT(skb, sk_buff, cb, 4), DIRECT);
	} else {
		copy_bytes(&range, sizeof(range), FIELD(skb, sk_buff, cb));
	}
	return range;
}

static __always_inline void map_ipv4(u8 *address, u32 be32)
{
	u64 *words = (u64 *)address;

	words[0] = 0;
	words[1] = 0xffff0000 | (u64)be32 << 32; /* ::ffff:0:0/96, on little-endian machines */
}

static __always_inline void copy_address(u8 *to, const u8 *from)
{
	((u64 *)to)[0] = ((const u64 *)from)[0];
	((u64 *)to)[1] = ((const u64 *)from)[1];
}

static __always_inline void load_ipv6(u8 *to, u64 address, enum access access)
{
	u32 *words = (u32 *)to;
	int i;

	if (access == BY_COPY) {
		copy_bytes(to, 16, address);
		return;
	}
#pragma unroll
	for (i = 0; i < 4; i++)
		words[i] = load_u32(address + 4 * i, DIRECT);
}

static __always_inline u16 sock_local_port(u64 sk, enum access access)
{
	return load_u16(FIELD(sk, sock_common, skc_num), access);
}

static __always_inline u16 sock_peer_port(u64 sk, enum access access)
{
	return __builtin_bswap16(load_u16(FIELD(sk, sock_common, skc_dport), access));
}

/* Why it ended; 0: somebody closed it. */
static __always_inline u32 sock_error(u64 sk) { return load_u32(FIELD(sk, sock, sk_err), DIRECT); }

static __always_inline u8 sock_state(u64 sk, enum access access)
{
	u8 state = 0;

	if (access == DIRECT)
		return *(volatile u8 *)FIELD(sk, sock_common, skc_state);
	copy_bytes(&state, sizeof(state), FIELD(sk, sock_common, skc_state));
	return state;
}

/* Which directions its own side has shut down. */
static __always_inline u8 sock_shutdown(u64 sk)
{
	return *(volatile u8 *)FIELD(sk, sock, sk_shutdown);
}

/* The interface that the socket's packets come in by; 0: not known. */
static __always_inline u32 sock_interface_in(u64 sk, enum access access)
{
	return load_u32(FIELD(sk, sock, sk_rx_dst_ifindex), access);
}

/* The one that they leave by. The pointers on the way may change meanwhile. */
static __always_inline u32 sock_interface_out(u64 sk)
{
	u64 route = load_u64(FIELD(sk, sock, sk_dst_cache), BY_COPY);
	u64 device = route ? load_u64(FIELD(route, dst_entry, dev), BY_COPY) : 0;

	return device ? load_u32(FIELD(device, net_device, ifindex), BY_COPY) : 0;
}

/* The kernel's own hash of an established connection. */
static __always_inline u32 sock_hash(u64 sk, enum access access)
{
	return load_u32(FIELD(sk, sock_common, skc_hash), access);
}

/* Addresses only; 0, or -1 for a socket that is neither IPv4 nor IPv6. */
static __always_inline int sock_addresses(u64 sk, u8 *peer, u8 *local, enum access access)
{
	u16 family = load_u16(FIELD(sk, sock_common, skc_family), access);

	if (family == AF_INET) {
		map_ipv4(peer, load_u32(FIELD(sk, sock_common, skc_daddr), access));
		map_ipv4(local, load_u32(FIELD(sk, sock_common, skc_rcv_saddr), access));
		return 0;
	}
	if (family == AF_INET6) {
		load_ipv6(peer, FIELD(sk, sock_common, skc_v6_daddr), access);
		load_ipv6(local, FIELD(sk, sock_common, skc_v6_rcv_saddr), access);
		return 0;
	}
	return -1;
}

#define O_NONBLOCK 04000

/* Do reads of the socket wait for data, unless they ask not to? */
static __always_inline bool sock_blocks(u64 sk, enum access access)
{
	u64 socket = load_u64(FIELD(sk, sock, sk_socket), access);
	u64 file = socket ? load_u64(FIELD(socket, socket, file), access) : 0;

	return file && !(load_u32(FIELD(file, file, f_flags), access) & O_NONBLOCK);
}
