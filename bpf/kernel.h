/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Reading the kernel's own structures: one accessor for each field. Where a
 * field lies in the running kernel comes from its BTF, as OFFSET_* set by the
 * loader (src/otelbpf/fields.py), so nothing here depends on a version.
 */

/* A loop that stays a loop: unrolled it would only make the verifier's way longer. */
#define BOUNDED_LOOP _Pragma("clang loop unroll(disable)")

#define AF_INET 2
#define AF_INET6 10

/* At most max, in a way that the verifier can follow and the compiler cannot undo. */
static __always_inline u64 at_most(u64 max, u64 value)
{
	asm volatile("" : "+r"(value));
	if (value > max)
		value = max;
	asm volatile("" : "+r"(value));
	return value;
}

static __always_inline u32 read_u32(u64 address)
{
	u32 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
}

static __always_inline u64 read_u64(u64 address)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
}

static __always_inline u32 tcp_rcv_nxt(u64 sk) { return read_u32(sk + OFFSET_TCP_SOCK_RCV_NXT); }
static __always_inline u32 tcp_copied_seq(u64 sk) { return read_u32(sk + OFFSET_TCP_SOCK_COPIED_SEQ); }
static __always_inline u32 tcp_write_seq(u64 sk) { return read_u32(sk + OFFSET_TCP_SOCK_WRITE_SEQ); }
static __always_inline u32 task_tid(u64 task) { return read_u32(task + OFFSET_TASK_STRUCT_PID); }

static __always_inline u16 inet_sport(u64 sk)
{
	return __builtin_bswap16(read_u32(sk + OFFSET_INET_SOCK_SPORT));
}

struct byte_range { u32 start, end; };

/* Once TCP has looked at a segment, its control block holds the range. */
static __always_inline struct byte_range skb_byte_range(u64 skb)
{
	struct byte_range range = {};

	bpf_probe_read_kernel(&range, sizeof(range), (void *)(skb + OFFSET_SK_BUFF_CB));
	return range;
}

/*
 * Is this the namespace that is measured? Told by its cookie, which is never
 * used twice (an inode number is, while sockets of a dead namespace linger);
 * its struct net is then remembered.
 */
static __always_inline bool is_measured_netns(u64 net)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	if (!s)
		return false;
	if (s->netns_pointer)
		return s->netns_pointer == net;
	if (read_u64(net + OFFSET_NET_COOKIE) != NETNS_COOKIE)
		return false;
	s->netns_pointer = net;
	return true;
}

/*
 * The part of a socket that says whose it is, read in one go; what only IPv6
 * has comes after it and is read only then.
 */
struct socket_identity {
	u8 common[SOCK_COMMON_READ] __attribute__((aligned(8)));
};

static __always_inline void read_identity(struct socket_identity *id, u64 sk)
{
	bpf_probe_read_kernel(id, sizeof(*id), (void *)sk);
}

static __always_inline u16 identity_local_port(const struct socket_identity *id)
{
	return *(u16 *)(id->common + OFFSET_SOCK_COMMON_NUM);
}

static __always_inline u16 identity_peer_port(const struct socket_identity *id)
{
	return __builtin_bswap16(*(u16 *)(id->common + OFFSET_SOCK_COMMON_DPORT));
}

static __always_inline u64 identity_net(const struct socket_identity *id)
{
	return *(u64 *)(id->common + OFFSET_SOCK_COMMON_NET);
}

static __always_inline void map_ipv4(u8 *address, u32 be32)
{
	u32 *words = (u32 *)address;

	words[0] = 0;
	words[1] = 0;
	words[2] = 0xffff0000;	/* ::ffff:0:0/96, on little-endian machines */
	words[3] = be32;
}

/* Addresses only; 0, or -1 for a socket that is neither IPv4 nor IPv6. */
static __always_inline int identity_addresses(const struct socket_identity *id, u64 sk,
					      u8 *peer, u8 *local)
{
	u16 family = *(u16 *)(id->common + OFFSET_SOCK_COMMON_FAMILY);

	if (family == AF_INET) {
		map_ipv4(peer, *(u32 *)(id->common + OFFSET_SOCK_COMMON_DADDR));
		map_ipv4(local, *(u32 *)(id->common + OFFSET_SOCK_COMMON_RCV_SADDR));
		return 0;
	}
	if (family == AF_INET6) {
		bpf_probe_read_kernel(peer, 16, (void *)(sk + OFFSET_SOCK_COMMON_V6_DADDR));
		bpf_probe_read_kernel(local, 16, (void *)(sk + OFFSET_SOCK_COMMON_V6_RCV_SADDR));
		return 0;
	}
	return -1;
}

/*
 * The key of a measured server's socket; -1 for every other socket. A socket
 * that closes has given its port back already: then inet_sport still names it.
 */
static __always_inline int server_key(u64 sk, bool closing, struct connection_key *key)
{
	struct socket_identity id;

	read_identity(&id, sk);
	key->local_port = closing ? inet_sport(sk) : identity_local_port(&id);
	if (!IS_MEASURED_PORT(key->local_port))
		return -1;
	key->peer_port = identity_peer_port(&id);
	if (identity_addresses(&id, sk, key->peer_address, key->local_address))
		return -1;
	return is_measured_netns(identity_net(&id)) ? 0 : -1;
}
