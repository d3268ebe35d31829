/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What of the kernel's interface to BPF is used here: uapi/linux/bpf.h, which never changes it. An
 * object made with this is the same everywhere, whatever headers the machine has that makes it. BCC
 * brings its own.
 */
#pragma once

#include <linux/types.h>

#define BPF_ANY 0
#define BPF_F_CURRENT_NETNS (-1L)

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
};

enum bpf_func_id {
	BPF_FUNC_map_lookup_elem = 1,
	BPF_FUNC_map_update_elem = 2,
	BPF_FUNC_map_delete_elem = 3,
	BPF_FUNC_ktime_get_ns = 5,
	BPF_FUNC_get_prandom_u32 = 7,
	BPF_FUNC_get_smp_processor_id = 8,
	BPF_FUNC_tail_call = 12,
	BPF_FUNC_get_current_pid_tgid = 14,
	BPF_FUNC_skb_load_bytes = 26,
	BPF_FUNC_skb_pull_data = 39,
	BPF_FUNC_get_current_cgroup_id = 80,
	BPF_FUNC_sk_release = 86,
	BPF_FUNC_skc_lookup_tcp = 99,
	BPF_FUNC_tcp_check_syncookie = 100,
	BPF_FUNC_probe_read_user = 112,
	BPF_FUNC_probe_read_kernel = 113,
	BPF_FUNC_probe_read_user_str = 114,
	BPF_FUNC_probe_read_kernel_str = 115,
	BPF_FUNC_get_netns_cookie = 122,
	BPF_FUNC_seq_write = 127,
	BPF_FUNC_skc_to_tcp_sock = 137,
	BPF_FUNC_skc_to_tcp_request_sock = 139,
	BPF_FUNC_get_current_task_btf = 158,
	BPF_FUNC_get_attach_cookie = 174,
	BPF_FUNC_task_pt_regs = 175,
	BPF_FUNC_loop = 181,
};

struct __sk_buff {
	u32 len;
	u32 unused_1[9];
	u32 ifindex;
	u32 unused_2[8];
	u32 data;
	u32 data_end;
	u32 unused_3[20];
	u32 gso_segs;
	struct bpf_sock *sk;
};

struct xdp_md {
	u32 data;
	u32 data_end;
};

struct bpf_sock {
	u32 unused_1;
	u32 family;
	u32 unused_2[4];
	u32 src_ip4;
	u32 src_ip6[4];
	u32 src_port;
	__be16 dst_port;
	u16 unused_3;
	u32 dst_ip4;
	u32 dst_ip6[4];
};

struct bpf_sock_tuple {
	union {
		struct {
			u32 saddr;
			u32 daddr;
			u16 sport;
			u16 dport;
		} ipv4;
		struct {
			u32 saddr[4];
			u32 daddr[4];
			u16 sport;
			u16 dport;
		} ipv6;
	};
};

struct bpf_sockopt {
	struct bpf_sock *sk;
	void *optval;
	void *optval_end;
	s32 level;
	s32 optname;
	s32 optlen;
	s32 retval;
};

struct bpf_raw_tracepoint_args {
	u64 args[1];
};
