/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the agent tells the programs while they run. */
#pragma once

#include "abi/settings.h"
#include "state/arrays.h"

ASSERT_BYTES(settings, SETTINGS_BYTES);

DEFINE_ARRAY(struct settings, settings)
DEFINE_ARRAY(u8, measured_ports) /* by port: 1 where a server has it that is measured */
DEFINE_ARRAY(u8, upstream_ports) /* by port: enum upstream_port */
DEFINE_ARRAY(struct proxy_network, proxy_networks)
