/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The kernel's own structures, as far as they are read, in an order that means nothing: where a field
 * lies in the running kernel comes from its BTF. Of an object libbpf puts that into the instructions
 * (CO-RE), which wants them to be as long as what is loaded; BCC is told OFFSET_<struct>_<field>, of all
 * that are here.
 */
#pragma once

#include "target.h"

#ifdef BCC_BUILD
#define FIELD(base, of, field) ((base) + OFFSET_##of##_##field)
#define FIELD_AT(base, of, field, index) (FIELD(base, of, field) + (index))
#else
#ifndef HOST_BUILD
/* Its address, from that of the structure. */
#define FIELD(base, of, field) \
	((u64)__builtin_preserve_access_index(&((const struct of *)(base))->field))
/* A byte's of an array: what lies behind the first one is then an offset like any other. */
#define FIELD_AT(base, of, field, index) FIELD(base, of, field[index])

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
#endif

struct in6_addr {
	u8 unused[16];
};

typedef struct {
	struct net *net;
} possible_net_t;

struct net {
	u64 net_cookie;
};

struct sock_common {
	u32 skc_daddr;
	u32 skc_rcv_saddr;
	u32 skc_hash;
	u16 skc_dport;
	u16 skc_num;
	u16 skc_family;
	u8 skc_state;
	u8 unused[5];
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct sock {
	int sk_err;
	int sk_rx_dst_ifindex; /* since 5.16; before, inet_sock had it by another name */
	struct dst_entry *sk_dst_cache;
	struct socket *sk_socket;
	u16 sk_protocol;
	u8 sk_shutdown;
	u8 unused[5];
};

struct socket {
	struct file *file;
};

struct file {
	u32 f_flags;
};

struct inet_sock {
	u16 inet_sport;
};

struct tcp_request_sock {
	u32 rcv_isn;
	u32 snt_isn;
};

struct tcp_sock {
	u64 bytes_received;
	u64 bytes_acked;
	u32 rcv_nxt;
	u32 copied_seq;
	u32 snd_una;
	u32 write_seq;
};

struct iov_iter {
	u64 count;
};

struct msghdr {
	struct iov_iter msg_iter;
};

struct mm_struct {
	u64 start_stack;
};

struct thread_struct {
	u64 fsbase;
};

struct task_struct {
	u32 pid;
	u32 tgid;
	u32 flags;
	u32 unused;
	struct mm_struct *mm;
	struct task_struct *group_leader;
	u64 start_boottime;
	u8 comm[16];
	struct thread_struct thread;
};

struct sk_buff {
	u8 cb[48];
};

struct dst_entry {
	struct net_device *dev;
};

struct net_device {
	int ifindex;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};

struct bpf_prog_aux {
	struct bpf_map **used_maps;
	u32 used_map_cnt;
	u32 id;
	u8 name[16];
};

struct bpf_prog {
	struct bpf_prog_aux *aux;
};

struct bpf_map {
	u8 name[16];
};

#ifndef HOST_BUILD
#pragma clang attribute pop
#endif
#endif
