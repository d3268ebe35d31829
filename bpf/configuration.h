/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the loader knows when BCC compiles: macros of its own. Who reads these files with plain clang
 * has stand-ins for them here, so that each file is whole.
 */
#pragma once

#include "target.h"

#ifndef BCC_BUILD

/* Parts: 0, or not defined, where nobody asks for them. */
#define SERVERS 1   /* are ports measured? */
#define CLIENTS 1   /* are there upstreams? */
#define SERIES 1    /* are all requests to be added up? */
#define HANDLERS    /* are there handlers to be found? */
#define GO_HANDLERS /* in Go? */

/* What is measured: bpf/state/measured.h. */
#define NETNS_COOKIE 1ULL
#define IS_MEASURED_PORT(port) ((port) == 80)
#define IS_UPSTREAM_PORT(port) ((port) == 9000)
#define IS_UPSTREAM(port, address) ((port) == 9000 && (address)[0] == 0)

/* What is kept: bpf/ledger/sampling.h. */
#define PARENT_BASED 1
#define SAMPLER_KEEPS_ALL 0
#define SAMPLER_BOUND 1ULL
#define KEEP_ERRORS 1
#define KEEP_4XX 0
#define ID_KEY_0 1ULL
#define ID_KEY_1 1ULL

/* Drawn by lot: bpf/state/connections.h, bpf/ledger/route.h. */
#define HASH_FACTOR(i) (2ULL * (i) + 1)
#define ROUTE_HASH_START 1ULL
#define ROUTE_HASH_FACTOR 1ULL

/* How long the tables are: bpf/state/arrays.h. */
#define CPU_SLOTS 2
#define WAYS 8
#define CONNECTION_SETS 1024
#define SOCKET_SLOTS 1024
#define READER_SLOTS 1024
#define MAX_EXCHANGES 1024
#define RING_MAX 1024
#define RING_SLOTS 1024
#define MAX_SERIES 1024
#define SERIES_SETS 1024
#define STAGE_ORDERS 256

/* What a map of an agent's is called: bpf/hooks/roster.c. */
#define OUR_MAP_NAME(i) ((u64)(i))

/* Where the kernel has its fields: bpf/kernel/fields.h. */
#define OFFSET_BPF_ITER_META_SEQ 0
#define OFFSET_BPF_MAP_NAME 0
#define OFFSET_BPF_PROG_AUX 0
#define OFFSET_BPF_PROG_AUX_ID 0
#define OFFSET_BPF_PROG_AUX_NAME 0
#define OFFSET_BPF_PROG_AUX_USED_MAPS 0
#define OFFSET_BPF_PROG_AUX_USED_MAP_CNT 0
#define OFFSET_DST_ENTRY_DEV 0
#define OFFSET_FILE_F_FLAGS 0
#define OFFSET_INET_SOCK_SPORT 0
#define OFFSET_MM_STRUCT_START_STACK 0
#define OFFSET_MSGHDR_ITER_COUNT 0
#define OFFSET_NET_COOKIE 0
#define OFFSET_NET_DEVICE_IFINDEX 0
#define OFFSET_SK_BUFF_CB 0
#define OFFSET_SOCKET_FILE 0
#define OFFSET_SOCK_COMMON_DADDR 0
#define OFFSET_SOCK_COMMON_DPORT 0
#define OFFSET_SOCK_COMMON_FAMILY 0
#define OFFSET_SOCK_COMMON_HASH 0
#define OFFSET_SOCK_COMMON_NET 0
#define OFFSET_SOCK_COMMON_NUM 0
#define OFFSET_SOCK_COMMON_RCV_SADDR 0
#define OFFSET_SOCK_COMMON_STATE 0
#define OFFSET_SOCK_COMMON_V6_DADDR 0
#define OFFSET_SOCK_COMMON_V6_RCV_SADDR 0
#define OFFSET_SOCK_DST_CACHE 0
#define OFFSET_SOCK_ERR 0
#define OFFSET_SOCK_RX_IFINDEX 0
#define OFFSET_SOCK_SHUTDOWN 0
#define OFFSET_SOCK_SOCKET 0
#define OFFSET_TASK_STRUCT_COMM 0
#define OFFSET_TASK_STRUCT_FLAGS 0
#define OFFSET_TASK_STRUCT_FSBASE 0
#define OFFSET_TASK_STRUCT_GROUP_LEADER 0
#define OFFSET_TASK_STRUCT_MM 0
#define OFFSET_TASK_STRUCT_PID 0
#define OFFSET_TASK_STRUCT_START_BOOTTIME 0
#define OFFSET_TCP_SOCK_COPIED_SEQ 0
#define OFFSET_TCP_SOCK_RCV_NXT 0
#define OFFSET_TCP_SOCK_SND_UNA 0
#define OFFSET_TCP_SOCK_WRITE_SEQ 0

#endif
