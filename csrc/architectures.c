/* The architectures that run here: a new one is a file of its own and a line in this list. */
#include "architecture.h"

const struct architecture *const architectures[] = {&rwkv6, &rwkv7, NULL};
