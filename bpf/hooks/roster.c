/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Run while the agent reads its roster, once for each program that is loaded: what it is called, and
 * whether an agent of otelbpf has loaded it. The agent may read that once it has given up its rights;
 * to ask the kernel for a program by its number takes CAP_SYS_ADMIN.
 */

#include "abi/records.h"
#include "kernel/fields.h"
#include "kernel/verifier.h"
#include "state/settings.h"

#define MAPS_MOST 64 /* of one program */
#define MAP_NAME_WORDS 2

static __always_inline bool is_our_map(u64 map)
{
	u64 name[MAP_NAME_WORDS];

	copy_bytes(name, sizeof(name), FIELD(map, bpf_map, name));
	return name[0] == settings()->our_map_name[0] && name[1] == settings()->our_map_name[1];
}

struct used_maps {
	u64 first; /* address of a pointer */
	u64 count;
	u64 is_ours;
};

STEP look_at_map(u64 turn, struct used_maps *maps)
{
	u64 map;

	if (turn >= maps->count)
		return 1;
	copy_bytes(&map, sizeof(map), maps->first + turn * sizeof(map));
	maps->is_ours |= is_our_map(map);
	return 0;
}

PROGRAM("iter/bpf_prog") int listed_program(u64 *arguments)
{
	u64 meta = arguments[0], program = arguments[1], aux;
	struct listed_program listed = {};
	struct used_maps maps = {};

	/* Once more at the end, of none. */
	if (!program)
		return 0;
	aux = load_u64(FIELD(program, bpf_prog, aux), DIRECT);
	maps.first = load_u64(FIELD(aux, bpf_prog_aux, used_maps), DIRECT);
	maps.count = load_u32(FIELD(aux, bpf_prog_aux, used_map_cnt), DIRECT);
	listed.id = load_u32(FIELD(aux, bpf_prog_aux, id), DIRECT);
	copy_bytes(listed.name, sizeof(listed.name), FIELD(aux, bpf_prog_aux, name));
	REPEAT(MAPS_MOST, look_at_map, &maps);
	listed.is_ours = maps.is_ours;
	bpf_seq_write((void *)load_u64(FIELD(meta, bpf_iter_meta, seq), DIRECT), &listed,
		      sizeof(listed));
	return 0;
}
