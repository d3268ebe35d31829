/* SPDX-License-Identifier: Apache-2.0 */
/*
 * otelbpf_plugin._marker: hands marks to whoever listens, and nothing else.
 *
 * The probes' single argument points to a struct otelbpf_mark on this thread's stack.
 */
#define Py_LIMITED_API 0x03090000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>

#include <linux/types.h>

#include "mark.h"
#include "usdt.h"

#define ADDRESSES_SIZE offsetof(struct otelbpf_mark, trace_flags)

_Static_assert(sizeof(struct otelbpf_mark) == 80, "the kernel's programs know 80 bytes");
_Static_assert(ADDRESSES_SIZE == 36, "both addresses and ports come first");

USDT_SEMAPHORE(otelbpf_listening_semaphore);

/* Each probe is one place, the entry of a function, however often the function is called. */
static __attribute__((noinline)) void request_start(struct otelbpf_mark *mark)
{
	USDT_PROBE(otelbpf, request_start, otelbpf_listening_semaphore, mark);
}

static __attribute__((noinline)) void request_end(struct otelbpf_mark *mark)
{
	USDT_PROBE(otelbpf, request_end, otelbpf_listening_semaphore, mark);
}

static bool read_mark(PyObject *object, struct otelbpf_mark *mark)
{
	Py_ssize_t size;
	char *bytes;

	if (PyBytes_AsStringAndSize(object, &bytes, &size) < 0)
		return false;
	if (size != sizeof(*mark)) {
		PyErr_Format(PyExc_ValueError, "a mark has %zu bytes, not %zd", sizeof(*mark), size);
		return false;
	}
	memcpy(mark, bytes, sizeof(*mark));
	return true;
}

PyDoc_STRVAR(listening_doc,
"listening() -> bool\n\n"
"Is a program attached to the probes? The kernel keeps count.");

static PyObject *listening(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
	return PyBool_FromLong(otelbpf_listening_semaphore > 0);
}

PyDoc_STRVAR(start_doc,
"start(mark: bytes) -> bool\n\n"
"Says that the application's span of a request has started.\n\n"
"Args:\n"
"    mark: a struct otelbpf_mark, MARK_SIZE bytes; it is copied.\n"
"Returns:\n"
"    Did a program that listens find the request?\n"
"Raises:\n"
"    ValueError: the mark has another size.\n"
"Source:\n"
"    bpf/mark.h.");

static PyObject *start(PyObject *Py_UNUSED(module), PyObject *bytes)
{
	struct otelbpf_mark mark;

	if (!read_mark(bytes, &mark))
		return NULL;
	mark.joined = 0;
	request_start(&mark);
	/* Not what the compiler remembers of it: the kernel may have written it. */
	return PyBool_FromLong(*(volatile __u32 *)&mark.joined != 0);
}

PyDoc_STRVAR(end_doc,
"end(mark: bytes) -> None\n\n"
"Says that the span of the mark that start() was given has ended.\n\n"
"Raises:\n"
"    ValueError: the mark has another size than MARK_SIZE.");

static PyObject *end(PyObject *Py_UNUSED(module), PyObject *bytes)
{
	struct otelbpf_mark mark;

	if (!read_mark(bytes, &mark))
		return NULL;
	request_end(&mark);
	Py_RETURN_NONE;
}

/* An address as a mark has it: IPv4 as IPv4-mapped IPv6, the port in host order. */
static bool put_address(const struct sockaddr_storage *from, __u8 address[16], __u16 *port)
{
	if (from->ss_family == AF_INET) {
		const struct sockaddr_in *ipv4 = (const struct sockaddr_in *)from;

		memset(address, 0, 10);
		memset(address + 10, 0xff, 2);
		memcpy(address + 12, &ipv4->sin_addr, 4);
		*port = ntohs(ipv4->sin_port);
		return true;
	}
	if (from->ss_family == AF_INET6) {
		const struct sockaddr_in6 *ipv6 = (const struct sockaddr_in6 *)from;

		memcpy(address, &ipv6->sin6_addr, 16);
		*port = ntohs(ipv6->sin6_port);
		return true;
	}
	return false;
}

static bool find_addresses(int fd, struct otelbpf_mark *mark)
{
	struct sockaddr_storage peer, local;
	socklen_t peer_size = sizeof(peer), local_size = sizeof(local), protocol_size = sizeof(int);
	int protocol;

	return getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &protocol_size) == 0 &&
	       protocol == IPPROTO_TCP &&
	       getpeername(fd, (struct sockaddr *)&peer, &peer_size) == 0 &&
	       getsockname(fd, (struct sockaddr *)&local, &local_size) == 0 &&
	       put_address(&peer, mark->peer_address, &mark->peer_port) &&
	       put_address(&local, mark->local_address, &mark->local_port);
}

PyDoc_STRVAR(addresses_doc,
"addresses(fd: int) -> bytes | None\n\n"
"The two ends of a connection: a mark's first 36 bytes.\n\n"
"Returns:\n"
"    None: this is no file descriptor of a connected TCP socket.\n"
"Raises:\n"
"    TypeError: this is no number.");

static PyObject *addresses(PyObject *Py_UNUSED(module), PyObject *number)
{
	struct otelbpf_mark mark;
	int overflow;
	long fd = PyLong_AsLongAndOverflow(number, &overflow);

	if (fd == -1 && PyErr_Occurred())
		return NULL;
	if (overflow || fd < 0 || fd > INT_MAX || !find_addresses((int)fd, &mark))
		Py_RETURN_NONE;
	return PyBytes_FromStringAndSize((const char *)&mark, ADDRESSES_SIZE);
}

static PyMethodDef methods[] = {
	{"listening", listening, METH_NOARGS, listening_doc},
	{"start", start, METH_O, start_doc},
	{"end", end, METH_O, end_doc},
	{"addresses", addresses, METH_O, addresses_doc},
	{0},
};

static int add_constants(PyObject *module)
{
	return PyModule_AddIntConstant(module, "MARK_SIZE", sizeof(struct otelbpf_mark));
}

static PyModuleDef_Slot slots[] = {
	{Py_mod_exec, add_constants},
	{0},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "otelbpf_plugin._marker",
	.m_doc = PyDoc_STR("Hands marks of requests to the programs that listen for them."),
	.m_methods = methods,
	.m_slots = slots,
};

PyMODINIT_FUNC PyInit__marker(void)
{
	return PyModuleDef_Init(&definition);
}
