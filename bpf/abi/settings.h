/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the agent tells the programs while they run. */
#pragma once

#include <linux/types.h>

struct sweep_order {
	u64 waited_ktime_ns; /* who is silent since this has waited for what should follow at once */
	u64 idle_ktime_ns;   /* who is since this, with no socket that is open, for too long */
	u32 slot;            /* the next one to look at */
	u32 stopped;         /* the agent stops: nothing is waited for any more */
};

/* What came of a run of `sweep`, which is to be run until it is through. */
enum sweep_result {
	SWEEP_GOES_ON,
	SWEEP_ENDED_ONE, /* and goes on */
	SWEEP_THROUGH,
};

/* Where an argument of a USDT probe is. */
struct usdt_argument {
	u16 at; /* of its register, or its address's, in struct pt_regs */
	u16 in_memory;
	s32 displacement;
};

#define PYTHON_NAME_MAX 64
#define PYTHON_FILE_MAX 128
#define PYTHON_SITES 64

/* A place where a Python interpreter tells of all calls, and the one that is meant. */
struct python_site {
	struct usdt_argument file;
	struct usdt_argument function;
	u32 file_length; /* 0: any file */
	u32 function_length;
	u8 function_name[PYTHON_NAME_MAX]; /* with zeros after it */
	u8 file_name[PYTHON_FILE_MAX];     /* the last part of the path, likewise */
};

/* Where each thread of a process has a variable. */
struct thread_variable {
	s64 offset;     /* from the thread's pointer on, or from its block for the module */
	u64 module;     /* its number in the thread's table of blocks; 0: of none */
	u64 generation; /* since which the table has the module */
};

/* What it means that a connection's other side has a port. */
enum upstream_port {
	UPSTREAM_NONE = 0,
	UPSTREAM_BY_ADDRESS = 1, /* it is an upstream if its address is one's, too */
	UPSTREAM_ANYWHERE = 2,   /* it is one */
};

#define UPSTREAMS_MOST 4096

/* Where an upstream is, whose port is not one that makes anybody one. */
struct upstream {
	u8 address[16]; /* IPv4 as IPv4-mapped IPv6 */
	u32 port;
	u32 unused;
};

/* From where connections may begin with a header of the PROXY protocol. */
struct proxy_network {
	u8 address[16]; /* IPv4 as IPv4-mapped IPv6; zeros where the mask has some */
	u8 mask[16];
};

/* Which new traces are kept, where nobody else has decided. */
enum sampler_keeps { KEEPS_NONE, KEEPS_SOME, KEEPS_ALL };

/* All but the first two and what it says of itself is told before anything is attached. */
struct settings {
	u64 netns_pointer; /* struct net of the measured namespace, once seen */
	u32 agent_tgid;
	u32 has_thread_locals; /* is any process in thread_locals? */
	u64 netns_cookie;      /* of the measured namespace */
	u64 sampler_bound;     /* KEEPS_SOME keeps those whose id's low half is below it */
	u32 sampler_keeps;     /* enum sampler_keeps */
	u32 parent_based;      /* what a caller has decided counts more */
	u32 keep_errors;       /* what failed is kept, whatever was decided */
	u32 keep_4xx;          /* and so is what servers have answered with 4xx */
	u64 id_key[2];         /* by which new traces are named */
	/* Drawn by lot, so that nobody outside can foretell what meets in one place. */
	u64 hash_factors[5]; /* odd; of a connection's key */
	u64 route_hash_start;
	u64 route_hash_factor;
	u64 our_map_name[2]; /* of a map that each agent of otelbpf's has */
	u32 is_complete;     /* all is attached: what is not seen from here on is missed */
	u32 unused;
};
