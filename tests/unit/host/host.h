/* SPDX-License-Identifier: Apache-2.0 */
/* What bpf/target.h says of the third target, this machine: maps and helpers are of host.c. */
#pragma once

#define HELPER(result, name, ...) static result bpf_##name(__VA_ARGS__) __attribute__((unused))
#define SECTION(name)
#define READ_ONLY
#define MAP(map_type, name, key_type, value_type, count)                                 \
	static struct host_map name __attribute__((unused)) = { BPF_MAP_TYPE_##map_type, \
								sizeof(key_type),        \
								sizeof(value_type),      \
								count,                   \
								0,                       \
								NULL,                    \
								NULL };

/* All of the kernel's structures are parts of one here: host.c has it. */
#define FIELD(base, of, field) ((u64)(base) + __builtin_offsetof(struct host_object, of.field))
#define FIELD_AT(base, of, field, index) (FIELD(base, of, field) + (index))

/* The one looked up or updated last comes first. */
struct host_entry {
	struct host_entry *next;
	u8 *key;
	u8 *value;
};

struct host_map {
	u32 type; /* enum bpf_map_type */
	u32 key_size;
	u32 value_size;
	u32 most;
	u64 is_used;
	struct host_entry *entries;
	struct host_map *next; /* of those that have entries */
};
