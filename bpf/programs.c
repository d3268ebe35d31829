/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* All programs, as one text: src/otelbpf/kernel/sources.py puts each file in its place for BCC. */

#include "hooks/handler.c"
#include "hooks/mark.c"
#include "hooks/roster.c"
#include "hooks/sched.c"
#include "hooks/socket.c"
#include "hooks/sweep.c"
#include "hooks/tc.c"
#include "hooks/xdp.c"
