/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Handlers: functions of the server, in any language, by uprobes. What a thread
 * handles is the request that it read last; in Go, what the goroutine read last,
 * since that may change threads in between.
 *
 * A call is told from others by its stack pointer. What is called within a
 * handler is a part of it, and a call that never returns (an exception, a
 * longjmp) is over once another one begins at the same depth or above it.
 *
 * Compiled only where a handler is asked for (HANDLERS).
 */
#ifdef HANDLERS

static __always_inline struct exchange *named_request(const struct request_name *name,
						      bool unanswered)
{
	struct connection *conn;

	if (!name->connection_id)
		return NULL;
	conn = connection_at(name->place);
	if (!conn || conn->id != name->connection_id ||
	    (unanswered && before(name->ordinal, conn->answered)))
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
	u32 tid = (u32)bpf_get_current_pid_tgid(), slot = tid & (READER_SLOTS - 1);
	struct reader *r = readers.lookup(&slot);

	return r && r->tid == tid ? &r->handling : NULL;
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

int probed_usdt_start(struct pt_regs *ctx)
{
	return handle_start(handling_of_thread(), DEPTH_OF_USDT);
}

int probed_usdt_end(struct pt_regs *ctx)
{
	return handle_end(handling_of_thread(), DEPTH_OF_USDT);
}

/* At a function's first instruction, at its return instructions, and after it returned. */
int probed_handler_start(struct pt_regs *ctx)
{
	return handle_start(handling_of_thread(), -ctx->sp);
}

int probed_handler_end(struct pt_regs *ctx)
{
	return handle_end(handling_of_thread(), -ctx->sp);
}

int probed_handler_return(struct pt_regs *ctx)
{
	return handle_end(handling_of_thread(), -(ctx->sp - sizeof(u64)));
}

#ifdef GO_HANDLERS
/* The same in Go, where r14 points to the goroutine, which begins with the bounds of its stack. */
static __always_inline struct handling *handling_of_goroutine(u64 g)
{
	struct goroutine_key key = { .g = g, .tgid = bpf_get_current_pid_tgid() >> 32 };

	return goroutines.lookup(&key);
}

/* Stacks move when they grow, their ends with them. */
static __always_inline u64 depth_in_go(struct pt_regs *ctx)
{
	u64 stack_end;

	if (bpf_probe_read_user(&stack_end, sizeof(stack_end), (void *)(ctx->r14 + sizeof(u64))))
		return 0;
	return stack_end - ctx->sp;
}

int probed_go_start(struct pt_regs *ctx)
{
	return handle_start(handling_of_goroutine(ctx->r14), depth_in_go(ctx));
}

int probed_go_end(struct pt_regs *ctx)
{
	return handle_end(handling_of_goroutine(ctx->r14), depth_in_go(ctx));
}

#endif
#endif
