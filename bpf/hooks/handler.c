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
PROGRAM("kprobe") int probed_handler_start(struct pt_regs *ctx)
{
	return handle_start(handling_of_thread(), -ctx->sp);
}

PROGRAM("kprobe") int probed_handler_end(struct pt_regs *ctx)
{
	return handle_end(handling_of_thread(), -ctx->sp);
}

PROGRAM("kprobe") int probed_handler_return(struct pt_regs *ctx)
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

static __always_inline bool same_bytes(const u8 *a, const u8 *b, u32 length)
{
	u32 i;

	BOUNDED_LOOP
	for (i = 0; i < length; i++)
		if (a[i] != b[i])
			return false;
	return true;
}

/* Is the path at this address the file's name, or does it end with that after a slash? */
static __always_inline bool is_file(const struct python_site *site, u64 address)
{
	u64 wanted = at_most(PYTHON_FILE_MAX - 1, site->file_length); /* the slash included */
	u8 text[PYTHON_FILE_MAX], name[PYTHON_FILE_MAX] = { '/' };
	u64 end = address;
	s64 length;
	u32 i;

	BOUNDED_LOOP
	for (i = 0; i < 32; i++) {
		length = bpf_probe_read_user_str(text, sizeof(text), (void *)end);
		if (length <= 0)
			return false;
		end += length - 1;
		if (length < (s64)sizeof(text))
			break;
	}
	if (wanted < 2 || end - address < wanted - 1)
		return false;
	/* Bounded once more, as the verifier of 6.1 has forgotten by now that it is. */
	if (end - address == wanted - 1) {
		if (bpf_probe_read_user(name + 1, at_most(PYTHON_FILE_MAX - 1, wanted - 1),
					(void *)address))
			return false;
	} else if (bpf_probe_read_user(name, at_most(PYTHON_FILE_MAX - 1, wanted),
				       (void *)(end - wanted))) {
		return false;
	}
	return same_bytes(name, site->file_name, sizeof(name));
}

/* Is it a call of the function that this site is for? */
static __always_inline bool is_python_call(struct pt_regs *ctx)
{
	u32 index = bpf_get_attach_cookie(ctx);
	struct python_site *site = LOOKUP(python_sites, &index);
	u8 name[PYTHON_NAME_MAX] = {};

	if (!site)
		return false;
	if (bpf_probe_read_user_str(name, sizeof(name),
				    (void *)usdt_pointer(ctx, &site->function)) <= 0 ||
	    !same_bytes(name, site->function_name, sizeof(name)))
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
