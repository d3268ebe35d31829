/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The ways to build these programs. Little else here needs to know of them.
 *
 * - By clang, once, as an object for libbpf: src/otelbpf/kernel/objects.py.
 * - By BCC, when the agent starts (BCC_BUILD): src/otelbpf/kernel/compiler.py. Of it only the compiler
 *   is used: maps are made by the agent, which tells it their descriptors, FD_<name>.
 * - By any compiler, as a program of this machine whose every step sanitizers watch (HOST_BUILD):
 *   tests/unit/host. What stands in for the kernel is there.
 *
 * What type and size a map has is said once, by MAP(), from which src/otelbpf/kernel/records.py is
 * generated.
 */
#pragma once

#ifdef BCC_BUILD

/*
 * Where BCC may not see the addresses of the kernel's functions (that takes CAP_SYSLOG) it thinks that
 * there are no such helpers, and defines them as the older one, which the kernel does not have here.
 */
#undef bpf_probe_read_kernel
#undef bpf_probe_read_kernel_str
#undef bpf_probe_read_user
#undef bpf_probe_read_user_str

/* As in uapi/linux/bpf.h. */
#define PSEUDO_MAP_FD 1
#define PSEUDO_MAP_VALUE 2

#define MAP(map_type, name, key_type, value_type, count)
#define MAP_OF(name) bpf_pseudo_fd(PSEUDO_MAP_FD, FD_##name)
#define PROGRAM(section_name)

static void *(*map_lookup)(u64 map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*map_update)(u64 map, const void *key, const void *value,
			  u64 flags) = (void *)BPF_FUNC_map_update_elem;
static long (*map_delete)(u64 map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static long (*tail_call)(void *context, u64 map, u32 index) = (void *)BPF_FUNC_tail_call;

#else

#include "kernel/uapi.h"

#ifdef HOST_BUILD
#include <host.h>
#else
#define HELPER(result, name, ...) \
	static result (*bpf_##name)(__VA_ARGS__) __attribute__((unused)) = (void *)BPF_FUNC_##name
#define SECTION(name) __attribute__((section(name), used))
/* As libbpf reads it from the object's BTF. */
#define MAP(map_type, name, key_type, value_type, count) \
	struct {                                         \
		int (*type)[BPF_MAP_TYPE_##map_type];    \
		int (*max_entries)[count];               \
		key_type *key;                           \
		value_type *value;                       \
	} name SECTION(".maps");
/* What the agent fills before the programs are loaded. */
#define READ_ONLY const
#endif

HELPER(u64, ktime_get_ns, void);
HELPER(u32, get_prandom_u32, void);
HELPER(u32, get_smp_processor_id, void);
HELPER(u64, get_current_pid_tgid, void);
HELPER(u64, get_current_cgroup_id, void);
HELPER(void *, get_current_task_btf, void);
HELPER(u64, get_attach_cookie, void *context);
HELPER(u64, get_netns_cookie, void *context);
HELPER(long, task_pt_regs, void *task);
HELPER(void *, skc_lookup_tcp, void *context, struct bpf_sock_tuple *tuple, u32 size, u64 netns,
       u64 flags);
HELPER(long, sk_release, void *sk);
HELPER(long, tcp_check_syncookie, void *sk, void *ip, u32 ip_length, void *tcp, u32 tcp_length);
HELPER(void *, skc_to_tcp_sock, void *sk);
HELPER(void *, skc_to_tcp_request_sock, void *sk);
HELPER(long, probe_read_kernel, void *to, u32 size, const void *from);
HELPER(long, probe_read_kernel_str, void *to, u32 size, const void *from);
HELPER(long, probe_read_user, void *to, u32 size, const void *from);
HELPER(long, probe_read_user_str, void *to, u32 size, const void *from);
HELPER(long, skb_load_bytes, const void *skb, u32 offset, void *to, u32 size);
HELPER(long, skb_pull_data, void *skb, u32 size);
HELPER(long, seq_write, void *file, const void *data, u32 size);
HELPER(void *, map_lookup_elem, void *map, const void *key);
HELPER(long, map_update_elem, void *map, const void *key, const void *value, u64 flags);
HELPER(long, map_delete_elem, void *map, const void *key);
HELPER(long, loop, u32 count, void *step, void *context, u64 flags);
HELPER(long, tail_call, void *context, void *map, u32 index);

#define map_lookup bpf_map_lookup_elem
#define map_update bpf_map_update_elem
#define map_delete bpf_map_delete_elem
#define tail_call bpf_tail_call

#define PT_REGS_PARM1(registers) ((registers)->di)
#define PT_REGS_PARM2(registers) ((registers)->si)

#define MAP_OF(name) (&(name))
/* Who wants the types alone has another one: none is compiled then. */
#ifndef PROGRAM
#define PROGRAM(section_name) SECTION(section_name)
#endif

char programs_license[] SECTION("license") = "GPL";

#endif

/* Nobody who is not asked for a client's programs has BCC compile them. */
#ifdef BCC_BUILD
#define WITH_CLIENTS CLIENTS
#else
#define WITH_CLIENTS 1
#endif

#define UNUSED __attribute__((unused))

#define LOOKUP(map, key) map_lookup(MAP_OF(map), key)
#define UPDATE(map, key, value) map_update(MAP_OF(map), key, value, BPF_ANY)
#define DELETE(map, key) map_delete(MAP_OF(map), key)
#define TAIL_CALL(context, map, index) tail_call(context, MAP_OF(map), index)
