/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* BCC sizes ring buffers in pages of 4 KiB, which is right on x86-64. */
#define PAGE_SIZE 4096
