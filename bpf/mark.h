/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What an application says of a request that it handles. The plugin's native
 * module (plugin/) and the programs that read it share this file.
 *
 * The application calls otelbpf:request_start with a pointer to a mark when its
 * server span starts. If the request is found, the program writes `joined` before
 * the call returns: only then is there a span between the caller's and the
 * application's. It calls otelbpf:request_end with the same mark when its span
 * ends.
 */
#ifndef OTELBPF_MARK_H
#define OTELBPF_MARK_H

struct otelbpf_mark {
	__u8 peer_address[16];		/* IPv4 as IPv4-mapped IPv6 */
	__u8 local_address[16];
	__u16 peer_port;		/* host order; 0: the request that this thread read last */
	__u16 local_port;
	__u32 trace_flags;		/* of the application's span */
	__u8 trace_id[16];		/* of the application's span */
	__u8 span_id[8];		/* new: of the request's span, which is to be the parent */
	__u8 parent_span_id[8];		/* of the caller's span; 0: there is none */
	__u32 joined;			/* written by the kernel */
	__u32 unused;
};

#endif
