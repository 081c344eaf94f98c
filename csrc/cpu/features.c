/* Which instruction sets may be used here: CPUID says what the processor has, XCR0 what the system saves. */
#define _GNU_SOURCE
#include "cpu.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

const char *const cpu_isa_names[] = {"amx", "avx512bf16", "avx512", "avx2", "portable", NULL};

#if defined(__x86_64__)

static uint64_t saved_registers(void) {
    unsigned a, d;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (uint64_t)d << 32 | a;
}

/* Linux hands out the 8 KiB of tile registers only to a process that asks. Asking twice is harmless. */
static bool amx_permitted(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

static bool all(unsigned word, unsigned bits) {
    return (word & bits) == bits;
}

struct cpu_features cpu_features(void) {
    struct cpu_features f = {false, false, false, false};
    unsigned a, b, c, d, sub_a, sub_b, sub_c, sub_d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !all(c, bit_OSXSAVE | bit_FMA | bit_AVX | bit_F16C)) return f;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
    if (!__get_cpuid_count(7, 1, &sub_a, &sub_b, &sub_c, &sub_d)) sub_a = 0;
    enum { YMM = 0x6, ZMM = 0xe6, TILES = 0x60000 };
    enum { SUB_AVX512BF16 = 1 << 5, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
    uint64_t saved = saved_registers();
    f.avx2_fma = (saved & YMM) == YMM && all(b, bit_AVX2);
    f.avx512 = f.avx2_fma && (saved & ZMM) == ZMM && all(b, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL);
    f.avx512bf16 = f.avx512 && all(sub_a, SUB_AVX512BF16);
#if defined(EMULATE_AMX)
    f.amx_bf16 = f.avx512bf16; /* bench/amx_model.h stands in for the tiles */
#else
    f.amx_bf16 = f.avx512bf16 && (saved & TILES) == TILES && all(d, AMX_BF16 | AMX_TILE) && amx_permitted();
#endif
    return f;
}

#else

struct cpu_features cpu_features(void) {
    return (struct cpu_features){false, false, false, false};
}

#endif

bool cpu_isa_available(const char *name) {
    struct cpu_features f = cpu_features();
    if (!strcmp(name, "amx")) return f.amx_bf16;
    if (!strcmp(name, "avx512bf16")) return f.avx512bf16;
    if (!strcmp(name, "avx512")) return f.avx512;
    if (!strcmp(name, "avx2")) return f.avx2_fma;
    return !strcmp(name, "portable");
}
