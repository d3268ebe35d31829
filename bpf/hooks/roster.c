/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Run while the agent reads its roster, once for each program that is loaded: what it is called, and
 * whether an agent of otelbpf has loaded it. The agent may read that once it has given up its rights;
 * to ask the kernel for a program by its number takes CAP_SYS_ADMIN.
 */

#include "abi/records.h"
#include "kernel/fields.h"

#define MAPS_MOST 64 /* of one program; the verifier wants to see an end */
#define MAP_NAME_WORDS 2

static __always_inline bool is_our_map(u64 map)
{
	u64 name[MAP_NAME_WORDS];

	copy_bytes(name, sizeof(name), map + OFFSET_BPF_MAP_NAME);
	return name[0] == OUR_MAP_NAME(0) && name[1] == OUR_MAP_NAME(1);
}

PROGRAM("iter/bpf_prog") int listed_program(u64 *arguments)
{
	u64 meta = arguments[0], program = arguments[1], aux, maps, map;
	struct listed_program listed = {};
	u32 count, i;

	/* Once more at the end, of none. */
	if (!program)
		return 0;
	aux = load_u64(program + OFFSET_BPF_PROG_AUX, DIRECT);
	maps = load_u64(aux + OFFSET_BPF_PROG_AUX_USED_MAPS, DIRECT);
	count = load_u32(aux + OFFSET_BPF_PROG_AUX_USED_MAP_CNT, DIRECT);
	listed.id = load_u32(aux + OFFSET_BPF_PROG_AUX_ID, DIRECT);
	copy_bytes(listed.name, sizeof(listed.name), aux + OFFSET_BPF_PROG_AUX_NAME);
	BOUNDED_LOOP
	for (i = 0; i < MAPS_MOST; i++) {
		if (i >= count)
			break;
		copy_bytes(&map, sizeof(map), maps + i * sizeof(map));
		listed.is_ours |= is_our_map(map);
	}
	bpf_seq_write((void *)load_u64(meta + OFFSET_BPF_ITER_META_SEQ, DIRECT), &listed,
		      sizeof(listed));
	return 0;
}
