/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The two directions of a connection, and what they carry. */
#pragma once

#include "configuration.h"

enum direction { INBOUND = 0, OUTBOUND = 1 };

/*
 * One direction of a connection and what it carries, which the role decides that
 * this side has in it: a server's requests come in, a client's go out.
 */
enum flow { REQUESTS_IN = 0, RESPONSES_OUT = 1, RESPONSES_IN = 2, REQUESTS_OUT = 3 };

#define IS_OUTBOUND(flow) ((flow) & 1)
#define IS_CLIENTS(flow) (WITH_CLIENTS && ((flow) & 2))
#define CARRIES_REQUESTS(flow) (!IS_OUTBOUND(flow) == !IS_CLIENTS(flow))
