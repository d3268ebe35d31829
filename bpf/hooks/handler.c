/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Handlers: functions of the server, in any language, by uprobes. What a thread
 * handles is the request that it read last; in Go, what the goroutine read last,
 * since that may change threads in between.
 *
 * A call is told from others by its stack pointer. What is called within a
 * handler is a part of it, and a call that never returns (an exception, a
 * longjmp) is over once another one begins at the same depth or above it.
 */

#include "abi/settings.h"
#include "kernel/registers.h"
#include "ledger/stamps.h"
#include "state/exchange.h"
#include "state/reader.h"
#include "state/scratch.h"

MAP(ARRAY, python_sites, u32, struct python_site, PYTHON_SITES)

static __always_inline struct exchange *named_request(const struct request_name *name,
						      bool unanswered)
{
	struct connection *conn = connection_named(name);

	if (!conn || (unanswered && name->ordinal < conn->answered))
		return NULL;
	return in_flight(conn, name->ordinal);
}

/* depth: how far below the stack's end, or any number that is larger the deeper a call is. */
static __always_inline void begin_call(struct handling *h, u64 depth)
{
	struct exchange *x = named_request(&h->last_read, true);

	if (depth <= h->depth)
		h->depth = 0;
	if (!x || x->record.stamp_ktime_ns[STAMP_HANDLER_START])
		return;
	x->record.stamp_ktime_ns[STAMP_HANDLER_START] = bpf_ktime_get_ns();
	h->handled = h->last_read;
	h->depth = depth;
}

static __always_inline void end_call(struct handling *h, u64 depth)
{
	struct exchange *x;

	if (!h->depth || h->depth != depth)
		return;
	h->depth = 0;
	/* A handler that sends the response itself may return when all is over. */
	x = named_request(&h->handled, false);
	if (x && !x->record.stamp_ktime_ns[STAMP_HANDLER_END])
		x->record.stamp_ktime_ns[STAMP_HANDLER_END] = bpf_ktime_get_ns();
}

static __always_inline struct handling *handling_of_thread(void)
{
	u32 tid = (u32)bpf_get_current_pid_tgid();
	struct reader *r = reader_at(tid);

	return NULL_UNLESS(r->tid == tid, &r->handling);
}

static __always_inline int handle_start(struct handling *h, u64 depth)
{
	if (h)
		begin_call(h, depth);
	return 0;
}

static __always_inline int handle_end(struct handling *h, u64 depth)
{
	if (h)
		end_call(h, depth);
	return 0;
}

/* A pair of USDT probes may lie in different functions: its calls do not nest. */
#define DEPTH_OF_USDT 1

PROGRAM("kprobe") int probed_usdt_start(struct pt_regs *ctx UNUSED)
{
	return handle_start(handling_of_thread(), DEPTH_OF_USDT);
}

PROGRAM("kprobe") int probed_usdt_end(struct pt_regs *ctx UNUSED)
{
	return handle_end(handling_of_thread(), DEPTH_OF_USDT);
}

/* At a function's first instruction, at its return instructions, and after it returned. */
PROGRAM("kprobe") int probed_start(struct pt_regs *ctx)
{
	return handle_start(handling_of_thread(), -ctx->sp);
}

PROGRAM("kprobe") int probed_end(struct pt_regs *ctx)
{
	return handle_end(handling_of_thread(), -ctx->sp);
}

PROGRAM("kprobe") int probed_return(struct pt_regs *ctx)
{
	return handle_end(handling_of_thread(), -(ctx->sp - sizeof(u64)));
}

static __always_inline u64 usdt_pointer(struct pt_regs *ctx, const struct usdt_argument *argument)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), (u8 *)ctx + (argument->at & 255));
	value += argument->displacement;
	if (argument->in_memory && bpf_probe_read_user(&value, sizeof(value), (void *)value))
		return 0;
	return value;
}

/*
 * Are these bytes at an address of the process's? `wanted` has zeros behind them, as far as whole words.
 *
 * They are compared where they are, a word at a time: a uprobe's program may be preempted by another one
 * on its processor, so that no memory of that is its own, and must do with 64 bytes of stack
 * (tests/unit/test_uprobe_programs.py).
 */
static __always_inline bool same_text(u64 address, const u8 *wanted, u32 length, u32 most)
{
	u64 word, n;
	u32 i;

	BOUNDED_LOOP
	for (i = 0; i < most; i += sizeof(word)) {
		if (i >= length)
			return true;
		word = 0;
		n = at_most(sizeof(word), length - i);
		/* What is shorter may end where nothing can be read any more. */
		if (bpf_probe_read_user(&word, n, (void *)(address + i)) ||
		    word != *(const u64 *)(wanted + i))
			return false;
	}
	return true;
}

struct python_path {
	u8 text[PYTHON_FILE_MAX];
};

/* What is written there nobody reads: it is of all threads, and its length alone is asked for. */
MAP(ARRAY, python_paths, u32, struct python_path, 1)

/* Where a text ends, by the zero behind it; 0: it cannot be told. */
static __always_inline u64 end_of_text(u64 address)
{
	struct python_path *path;
	u32 zero = 0, i;
	s64 length;

	path = LOOKUP(python_paths, &zero);
	if (!path)
		return 0;
	BOUNDED_LOOP
	for (i = 0; i < 32; i++) {
		length = bpf_probe_read_user_str(path->text, sizeof(path->text), (void *)address);
		if (length <= 0)
			return 0;
		address += length - 1;
		if (length < (s64)sizeof(path->text))
			return address;
	}
	return 0;
}

/* Is the path at this address the file's name, or does it end with that after a slash? */
static __always_inline bool is_file(const struct python_site *site, u64 address)
{
	u64 end = end_of_text(address), start = end - site->file_length;
	u8 before = 0;

	if (!end || start < address)
		return false;
	if (start > address &&
	    (bpf_probe_read_user(&before, 1, (void *)(start - 1)) || before != '/'))
		return false;
	return same_text(start, site->file_name, site->file_length + 1, PYTHON_FILE_MAX);
}

/* Is it a call of the function that this site is for? */
static __always_inline bool is_python_call(struct pt_regs *ctx)
{
	u32 index = bpf_get_attach_cookie(ctx);
	struct python_site *site = LOOKUP(python_sites, &index);

	if (!site || !same_text(usdt_pointer(ctx, &site->function), site->function_name,
				site->function_length + 1, PYTHON_NAME_MAX))
		return false;
	return !site->file_length || is_file(site, usdt_pointer(ctx, &site->file));
}

/* Of CPython's own probes: each call of a Python function has a frame on the stack of its own. */
PROGRAM("kprobe") int probed_python_start(struct pt_regs *ctx)
{
	return is_python_call(ctx) ? handle_start(handling_of_thread(), -ctx->sp) : 0;
}

PROGRAM("kprobe") int probed_python_end(struct pt_regs *ctx)
{
	return is_python_call(ctx) ? handle_end(handling_of_thread(), -ctx->sp) : 0;
}

/* The same in Go, where r14 points to the goroutine, which begins with the bounds of its stack. */
static __always_inline struct handling *handling_of_goroutine(u64 g)
{
	struct goroutine_key key = { .g = g, .tgid = bpf_get_current_pid_tgid() >> 32 };

	return LOOKUP(goroutines, &key);
}

/* Stacks move when they grow, their ends with them. */
static __always_inline u64 depth_in_go(struct pt_regs *ctx)
{
	u64 stack_end;

	if (bpf_probe_read_user(&stack_end, sizeof(stack_end), (void *)(ctx->r14 + sizeof(u64))))
		return 0;
	return stack_end - ctx->sp;
}

PROGRAM("kprobe") int probed_go_start(struct pt_regs *ctx)
{
	return handle_start(handling_of_goroutine(ctx->r14), depth_in_go(ctx));
}

PROGRAM("kprobe") int probed_go_end(struct pt_regs *ctx)
{
	return handle_end(handling_of_goroutine(ctx->r14), depth_in_go(ctx));
}
