/* AMX-BF16. */
#if defined(__x86_64__)
#include "kernels.h"
void kernels_amx(struct kernels *k) {
    (void)k;
}
#endif
