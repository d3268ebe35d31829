/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Who reads these files: BCC, which compiles them when the agent starts (BCC_BUILD), or plain clang,
 * for editors, checks and scripts/generate-records. Nothing else here needs to know of the two.
 *
 * Maps are made by the agent, which tells BCC their descriptors, FD_<name>. What type and size they
 * have is said once, by MAP(), from which src/otelbpf/kernel/records.py is generated.
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

#define MAP(map_type, name, key_type, value_type, count)
#define STAND_IN_FD(name)
#define PROGRAM(section_name)

static void *(*map_lookup)(u64 map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*map_update)(u64 map, const void *key, const void *value,
			  u64 flags) = (void *)BPF_FUNC_map_update_elem;
static long (*map_delete)(u64 map, const void *key) = (void *)BPF_FUNC_map_delete_elem;
static long (*tail_call)(void *context, u64 map, u32 index) = (void *)BPF_FUNC_tail_call;

#else

#include <linux/bpf.h>
#include <linux/types.h>

#define HELPER(result, name, ...) \
	static result (*bpf_##name)(__VA_ARGS__) __attribute__((unused)) = (void *)BPF_FUNC_##name

HELPER(u64, ktime_get_ns, void);
HELPER(u32, get_prandom_u32, void);
HELPER(u32, get_smp_processor_id, void);
HELPER(u64, get_current_pid_tgid, void);
HELPER(u64, get_current_cgroup_id, void);
HELPER(void *, get_current_task_btf, void);
HELPER(u64, get_attach_cookie, void *context);
HELPER(u64, get_netns_cookie, void *context);
HELPER(long, task_pt_regs, void *task);
HELPER(void *, skc_to_tcp_sock, void *sk);
HELPER(long, probe_read_kernel, void *to, u32 size, const void *from);
HELPER(long, probe_read_kernel_str, void *to, u32 size, const void *from);
HELPER(long, probe_read_user, void *to, u32 size, const void *from);
HELPER(long, probe_read_user_str, void *to, u32 size, const void *from);
HELPER(long, skb_load_bytes, const void *skb, u32 offset, void *to, u32 size);
HELPER(long, seq_write, void *file, const void *data, u32 size);
HELPER(void *, map_lookup_elem, u64 map, const void *key);
HELPER(long, map_update_elem, u64 map, const void *key, const void *value, u64 flags);
HELPER(long, map_delete_elem, u64 map, const void *key);
HELPER(long, tail_call, void *context, u64 map, u32 index);

#define map_lookup bpf_map_lookup_elem
#define map_update bpf_map_update_elem
#define map_delete bpf_map_delete_elem
#define tail_call bpf_tail_call

/* An instruction that loads what the kernel has behind a descriptor. */
u64 bpf_pseudo_fd(u64 kind, u64 fd) asm("llvm.bpf.pseudo");

#define PT_REGS_PARM1(registers) ((registers)->di)
#define PT_REGS_PARM2(registers) ((registers)->si)

/* A type of nothing that describes the map. */
#define MAP(map_type, name, key_type, value_type, count) \
	struct name##_map {                              \
		u8 type[BPF_MAP_TYPE_##map_type];        \
		u8 key[sizeof(key_type)];                \
		u8 value[sizeof(value_type)];            \
		u8 max_entries[count];                   \
	};                                               \
	STAND_IN_FD(name)
#define STAND_IN_FD(name) enum { FD_##name = -1 };
/* Who wants the types alone has another one: none is compiled then. */
#ifndef PROGRAM
#define PROGRAM(section_name) __attribute__((section(section_name), used))
#endif

#endif

#define UNUSED __attribute__((unused))

/* As in uapi/linux/bpf.h. */
#define PSEUDO_MAP_FD 1
#define PSEUDO_MAP_VALUE 2

#define MAP_OF(name) bpf_pseudo_fd(PSEUDO_MAP_FD, FD_##name)
#define LOOKUP(map, key) map_lookup(MAP_OF(map), key)
#define UPDATE(map, key, value) map_update(MAP_OF(map), key, value, BPF_ANY)
#define DELETE(map, key) map_delete(MAP_OF(map), key)
#define TAIL_CALL(context, map, index) tail_call(context, MAP_OF(map), index)
