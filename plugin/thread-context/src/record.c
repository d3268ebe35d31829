// SPDX-License-Identifier: Apache-2.0
// OpenTelemetry's thread context (OTEP 4947): a variable that readers outside of the process find by
// its name, and for each thread a record that it points to for good. Whether there is anything in
// the record is up to its own `valid`.
#include <stdint.h>

struct record {
	uint8_t trace_id[16];
	uint8_t span_id[8];
	uint8_t valid;
	uint8_t trace_flags;
	uint16_t attributes_size;
};

__attribute__((visibility("default"))) __thread struct record *otel_thread_ctx_v1;
static __thread struct record own;

// The calling thread's, published from here on.
__attribute__((visibility("default"))) struct record *otelbpf_thread_record(void)
{
	otel_thread_ctx_v1 = &own;
	return &own;
}
