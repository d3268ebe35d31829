# SPDX-License-Identifier: Apache-2.0
"""Moments in which the kernel ran no tracing programs at all.

There are kernels that run none while certain tasks are on the processor, for example the threads
of a sandbox's first process. What comes to pass then, be it only that a packet is taken in an
interrupt, has no stamps of tracepoints, and nothing counts them as missed. Such a moment shows: a
task was switched to, and it was never seen to leave.
"""

from __future__ import annotations

import ctypes
import os

from otelbpf.kernel.btf import Btf
from support.compiled import compiled

_SOURCE = """
BPF_PERCPU_ARRAY(on_processor, u32, 1);	/* the task's number and one; 0: not known */
BPF_ARRAY(unseen, u64, 1);

static __always_inline u32 number(u64 task)
{
	u32 tid = 0;

	bpf_probe_read_kernel(&tid, sizeof(tid), (void *)(task + OFFSET_PID));
	return tid + 1;
}

int watch(struct bpf_raw_tracepoint_args *ctx)
{
	int zero = 0;
	u32 *task = on_processor.lookup(&zero);
	u64 *n = unseen.lookup(&zero);

	if (!task || !n)
		return 0;
	if (*task && *task != number(ctx->args[1]))
		__sync_fetch_and_add(n, 1);
	*task = number(ctx->args[2]);
	return 0;
}
"""


class Unseen:
    """Watches the scheduler from when it is made."""

    def __init__(self) -> None:
        with Btf.of_kernel() as btf:
            offset = btf.offset_of("task_struct", "pid")
        self._bpf = compiled(_SOURCE, f"-DOFFSET_PID={offset}")
        self._bpf.attach_raw_tracepoint(tp=b"sched_switch", fn_name=b"watch")

    def close(self) -> None:
        self._bpf.cleanup()

    def moments(self) -> int:
        """How many there were."""
        _pass_all_processors()
        return self._bpf[b"unseen"][ctypes.c_int(0)].value


class Watch:
    """Whether the kernel kept its tracing programs from running during the test under way."""

    def __init__(self) -> None:
        self._unseen = Unseen()
        self.begin()

    def begin(self) -> None:
        """A test begins."""
        self._moments_before = self._unseen.moments()

    def spoiled(self) -> bool:
        """Can that be why the test failed?"""
        return self._unseen.moments() > self._moments_before

    def close(self) -> None:
        """Watches no more."""
        self._unseen.close()


def _pass_all_processors() -> None:
    """A switch of tasks on each: only the next one shows that another was not seen."""
    processors = os.sched_getaffinity(0)
    try:
        for processor in processors:
            os.sched_setaffinity(0, {processor})
    finally:
        os.sched_setaffinity(0, processors)
