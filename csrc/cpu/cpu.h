/* What the rest of the program may know of the CPU backend beyond backend.h: which kernels this processor can run. */
#ifndef RWKVSTS_CPU_H
#define RWKVSTS_CPU_H

#include "../backend.h"

/* True where both the processor has the instructions and the operating system saves their registers. Model names
 * and numbers are never looked at: hypervisors report those of other generations. */
struct cpu_features {
    bool avx2_fma, avx512, avx512bf16, amx_bf16;
};
struct cpu_features cpu_features(void);

/* The names that device_options.isa takes, best first, NULL at the end; and whether this machine can run one. */
extern const char *const cpu_isa_names[];
bool cpu_isa_available(const char *name);

#endif
