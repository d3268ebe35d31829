/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A USDT probe with one argument, a pointer, in the first argument register: a `nop`
 * and a note in the ELF file that tells where it is. systemtap's <sys/sdt.h> writes
 * the same, but is not installed everywhere and leaves the register to the compiler.
 *
 * The note's layout: https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation
 */
#ifndef OTELBPF_USDT_H
#define OTELBPF_USDT_H

#if defined(__x86_64__)
#define USDT_REGISTER "rdi"
#define USDT_ARGUMENT "8@%%rdi"		/* %% is % in an asm template */
#elif defined(__aarch64__)
#define USDT_REGISTER "x0"
#define USDT_ARGUMENT "8@x0"
#else
#error "the marker knows x86-64 and aarch64 only"
#endif

#ifndef __linux__
#error "USDT probes are Linux's"
#endif

/*
 * The kernel adds to a semaphore of this name for each probe that is attached. It
 * does so through a mapping of the file, so the section must hold data, not be .bss.
 */
#define USDT_SEMAPHORE(name) \
	__attribute__((section(".probes"), used, visibility("hidden"))) \
	volatile unsigned short name = 0

/*
 * The addresses are those at link time; whoever reads them compares the note's copy of
 * the address of .stapsdt.base with where that section is, in case the file was
 * prelinked. "memory": the program that listens may write what is pointed to.
 */
#define USDT_PROBE(provider, probe, semaphore, pointer) do { \
	register void *argument_ __asm__(USDT_REGISTER) = (pointer); \
	__asm__ volatile( \
		"990:	nop\n" \
		".pushsection .note.stapsdt,\"\",\"note\"\n" \
		"	.balign 4\n" \
		"	.4byte 992f-991f, 994f-993f, 3\n" \
		"991:	.asciz \"stapsdt\"\n" \
		"992:	.balign 4\n" \
		"993:	.8byte 990b\n" \
		"	.8byte _.stapsdt.base\n" \
		"	.8byte " #semaphore "\n" \
		"	.asciz \"" #provider "\"\n" \
		"	.asciz \"" #probe "\"\n" \
		"	.asciz \"" USDT_ARGUMENT "\"\n" \
		"994:	.balign 4\n" \
		".popsection\n" \
		".ifndef _.stapsdt.base\n" \
		".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n" \
		"	.weak _.stapsdt.base\n" \
		"	.hidden _.stapsdt.base\n" \
		"_.stapsdt.base: .space 1\n" \
		"	.size _.stapsdt.base, 1\n" \
		".popsection\n" \
		".endif\n" \
		: : "r" (argument_) : "memory"); \
} while (0)

#endif
