/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Sequence numbers. */
#pragma once

#include "target.h"

/* Sequence numbers wrap; compare them as the kernel does. */
static __always_inline bool before(u32 a, u32 b) { return (s32)(a - b) < 0; }
