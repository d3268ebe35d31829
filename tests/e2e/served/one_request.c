// SPDX-License-Identifier: Apache-2.0
// A process for one request, which then is gone.
//
//   one_request serve PORT       answers the first request that comes, and crashes
//   one_request ask PORT PATH    asks 127.0.0.1, reads the answer, and ends
//
// cc -O2 one_request.c -o one_request
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

static void check(int failed, const char *what)
{
	if (failed) {
		perror(what);
		exit(1);
	}
}

static void serve(int port)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int yes = 1, listener = socket(AF_INET6, SOCK_STREAM, 0), connection;
	char request[4096];

	check(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)), "setsockopt");
	check(bind(listener, (struct sockaddr *)&address, sizeof(address)), "bind");
	check(listen(listener, 16), "listen");
	connection = accept(listener, NULL, NULL);
	check(connection < 0, "accept");
	check(read(connection, request, sizeof(request)) <= 0, "read");
	check(write(connection, answer, sizeof(answer) - 1) < 0, "write");
	_exit(3);
}

static void ask(int port, const char *path)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port),
				       .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int connection = socket(AF_INET, SOCK_STREAM, 0);
	char text[4096];

	check(connect(connection, (struct sockaddr *)&address, sizeof(address)), "connect");
	snprintf(text, sizeof(text), "GET %s HTTP/1.1\r\nHost: asked\r\nConnection: close\r\n\r\n",
		 path);
	check(write(connection, text, strlen(text)) < 0, "write");
	while (read(connection, text, sizeof(text)) > 0)
		;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(atoi(argv[2]));
	else if (argc == 4 && !strcmp(argv[1], "ask"))
		ask(atoi(argv[2]), argv[3]);
	return 0;
}
