/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the agent tells the programs while they run. */
#pragma once

#include "abi/settings.h"
#include "state/arrays.h"

ASSERT_BYTES(settings, SETTINGS_BYTES);

DEFINE_ARRAY(struct settings, settings)
