// SPDX-License-Identifier: Apache-2.0
// An HTTP/1.1 server with a handler to probe: handle_request() sleeps for the milliseconds that the
// path starts with (/25/name), and what was sent comes back.
//
//   handler PORT          a thread for each connection
//   handler PORT epoll    one thread and an event loop, so that requests wait for one another
//
// cc -O2 -pthread handler.c -o handler
// With -DPUBLISH and publish.c it also publishes a thread context while it answers.
#define _GNU_SOURCE
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifdef PUBLISH
void publish(const char *path);
#else
static void publish(const char *path)
{
	(void)path;
}
#endif

enum { REQUEST_MAX = 1 << 16, EVENTS = 64 };

struct connection {
	int fd;
	size_t used;
	char bytes[REQUEST_MAX];
};

struct answer {
	int status;
	size_t size;
	char body[REQUEST_MAX + 1];
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

// What is probed. Not static, so that a stripped build can still be given its name.
__attribute__((noinline, noclone))
int handle_request(const char *path, const char *body, size_t body_size, struct answer *answer)
{
	long ms = strtol(path + 1, NULL, 10);
	struct timespec left = { ms / 1000, ms % 1000 * 1000000 };
	size_t length = strlen(path);

	while (nanosleep(&left, &left))
		;
	memcpy(answer->body, path, length);
	answer->body[length] = '\n';
	memcpy(answer->body + length + 1, body, body_size);
	answer->size = length + 1 + body_size;
	answer->status = length >= 8 && !strcmp(path + length - 8, "/missing") ? 404 : 200;
	return answer->status;
}

static int send_all(int fd, const char *bytes, size_t size)
{
	while (size) {
		ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);

		if (sent <= 0)
			return -1;
		bytes += sent;
		size -= sent;
	}
	return 0;
}

// Answers the first request if all of it is there: 1 if it was, 0 if not, -1 at the end.
static int answer_one(struct connection *connection)
{
	char *end = memmem(connection->bytes, connection->used, "\r\n\r\n", 4), *length, *path, *after;
	char head[128];
	size_t body_size = 0, size;
	struct answer *answer;
	int sent;

	if (!end)
		return connection->used == REQUEST_MAX ? -1 : 0;
	*end = '\0';
	length = strcasestr(connection->bytes, "\r\nContent-Length:");
	if (length)
		body_size = strtoul(length + 17, NULL, 10);
	size = end + 4 - connection->bytes + body_size;
	if (size > REQUEST_MAX)
		return -1;
	if (connection->used < size) {
		*end = '\r';
		return 0;
	}
	path = strchr(connection->bytes, ' ');
	after = path ? strchr(path + 1, ' ') : NULL;
	if (!after)
		return -1;
	*after = '\0';

	answer = malloc(sizeof(*answer));
	if (!answer)
		die("malloc");
	publish(path + 1);
	handle_request(path + 1, end + 4, body_size, answer);
	sent = snprintf(head, sizeof(head), "HTTP/1.1 %d %s\r\nContent-Length: %zu\r\n\r\n",
			answer->status, answer->status == 200 ? "OK" : "Not Found", answer->size);
	sent = send_all(connection->fd, head, sent);
	if (!sent && strncmp(connection->bytes, "HEAD ", 5))
		sent = send_all(connection->fd, answer->body, answer->size);
	publish(NULL);
	free(answer);
	connection->used -= size;
	memmove(connection->bytes, connection->bytes + size, connection->used);
	return sent ? -1 : 1;
}

// Reads once, and answers what is complete by then: -1 at the end.
static int serve_some(struct connection *connection)
{
	ssize_t got = recv(connection->fd, connection->bytes + connection->used,
			   REQUEST_MAX - connection->used, 0);
	int answered;

	if (got <= 0)
		return -1;
	connection->used += got;
	while ((answered = answer_one(connection)) > 0)
		;
	return answered;
}

static struct connection *accept_one(int listener)
{
	struct connection *connection = calloc(1, sizeof(*connection));

	if (!connection)
		die("calloc");
	connection->fd = accept(listener, NULL, NULL);
	if (connection->fd < 0)
		die("accept");
	return connection;
}

static void end(struct connection *connection)
{
	close(connection->fd);
	free(connection);
}

static void *serve(void *argument)
{
	struct connection *connection = argument;

	while (!serve_some(connection))
		;
	end(connection);
	return NULL;
}

static void serve_by_threads(int listener)
{
	for (;;) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, serve, accept_one(listener)))
			die("pthread_create");
		pthread_detach(thread);
	}
}

static void watch(int loop, int fd, struct connection *connection)
{
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = connection };

	if (epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

static void serve_by_events(int listener)
{
	struct epoll_event events[EVENTS];
	int loop = epoll_create1(0);

	watch(loop, listener, NULL);
	for (;;) {
		int count = epoll_wait(loop, events, EVENTS, -1);

		for (int i = 0; i < count; i++) {
			struct connection *connection = events[i].data.ptr;

			if (!connection) {
				connection = accept_one(listener);
				watch(loop, connection->fd, connection);
			} else if (serve_some(connection)) {
				end(connection);
			}
		}
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT };
	int listener = socket(AF_INET6, SOCK_STREAM, 0), on = 1, off = 0;

	if (argc < 2) {
		fputs("usage: handler PORT [epoll]\n", stderr);
		return 2;
	}
	address.sin6_port = htons(atoi(argv[1]));
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 128))
		die("listen");
	if (argc > 2 && !strcmp(argv[2], "epoll"))
		serve_by_events(listener);
	serve_by_threads(listener);
}
