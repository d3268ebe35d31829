/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What an application says of a request that it handles, when its own span of it
 * starts and when it ends: by setsockopt() on the request's connection, with a
 * level and options that the kernel does not know and a program answers.
 *
 *	setsockopt(fd, OTELBPF_MARK_LEVEL, OTELBPF_MARK_START, &mark, sizeof(mark))
 *
 *	0		the request was found, and will have the span of this id
 *	EPERM		the port is measured, but this is no request that is known
 *	ENOPROTOOPT	nobody measures this port
 *
 * An application that cannot reach the connection's own socket uses any other
 * one of its network namespace, and gives the addresses. The plugin (plugin/)
 * has a copy of this file.
 */
#ifndef OTELBPF_MARK_H
#define OTELBPF_MARK_H

#define OTELBPF_MARK_LEVEL 0x6f74
#define OTELBPF_MARK_START 1
#define OTELBPF_MARK_END 2	/* with the mark of its start */

struct otelbpf_mark {
	__u8 trace_id[16];		/* of the application's span */
	__u8 span_id[8];		/* new: of the request's span, the application's parent */
	__u8 parent_span_id[8];		/* of the caller's span; 0: there is none */
	__u8 peer_address[16];		/* IPv4 as IPv4-mapped IPv6 */
	__u8 local_address[16];
	__u16 peer_port;		/* host order; 0: the socket is the connection's own */
	__u16 local_port;
	__u32 trace_flags;		/* of the application's span */
};

#endif
