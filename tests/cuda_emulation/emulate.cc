/* The fibers of emulate.h, and the few calls of the CUDA runtime that the tests reach. */
#include "emulate.h"

#include <stdlib.h>
#include <ucontext.h>

#include <vector>

enum { STACK = 256 << 10, LANES = 32 };

uint3 emulated_thread, emulated_block;

struct fiber {
    ucontext_t context;
    char *stack;
    bool over;
    unsigned exchanges, barriers; /* how many it has come to */
};

static std::vector<struct fiber> fibers;
static ucontext_t scheduler;
static size_t current;
static const std::function<void()> *body;
/* Of each warp, two turns: a lane may bring the next before another has read the last. */
static std::vector<struct lane_data> brought[2];
static std::vector<unsigned> arrived; /* of each warp, at exchanges in all */
static unsigned at_barrier;

static void start(void) {
    (*body)();
    fibers[current].over = true;
    swapcontext(&fibers[current].context, &scheduler);
}

static void yield(void) {
    size_t mine = current;
    swapcontext(&fibers[mine].context, &scheduler);
}

const struct lane_data *emulate_exchange(const struct lane_data &mine) {
    size_t thread = current, warp = thread / LANES;
    unsigned number = fibers[thread].exchanges++;
    brought[number & 1][thread] = mine;
    arrived[warp]++;
    while (arrived[warp] < (number + 1) * LANES) yield();
    return &brought[number & 1][warp * LANES];
}

void emulate_block_barrier(void) {
    unsigned number = fibers[current].barriers++;
    at_barrier++;
    while (at_barrier < (number + 1) * fibers.size()) yield();
}

static void run_block(int threads) {
    fibers.resize((size_t)threads);
    for (auto &part : brought) part.assign((size_t)threads, {});
    arrived.assign((size_t)threads / LANES, 0);
    at_barrier = 0;
    for (struct fiber &f : fibers) {
        if (!f.stack) f.stack = (char *)malloc(STACK);
        f.over = false;
        f.exchanges = f.barriers = 0;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack;
        f.context.uc_stack.ss_size = STACK;
        f.context.uc_link = NULL;
        makecontext(&f.context, start, 0);
    }
    for (bool alive = true; alive;) {
        alive = false;
        for (current = 0; current < fibers.size(); current++) {
            if (fibers[current].over) continue;
            alive = true;
            emulated_thread = uint3{(unsigned)current, 0, 0};
            swapcontext(&scheduler, &fibers[current].context);
        }
    }
}

void emulate_run(dim3 grid, int threads, const std::function<void()> &kernel) {
    body = &kernel;
    for (unsigned y = 0; y < grid.y; y++)
        for (unsigned x = 0; x < grid.x; x++) {
            emulated_block = uint3{x, y, 0};
            run_block(threads);
        }
}

/* ---- the runtime ------------------------------------------------------------------------------------------------------- */

extern "C" {
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind, cudaStream_t) {
    memcpy(to, from, bytes);
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaGetLastError(void) {
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, enum cudaStreamCaptureMode) {
    abort();
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *) {
    abort();
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *, cudaGraph_t, unsigned long long) {
    abort();
}
cudaError_t cudaGraphDestroy(cudaGraph_t) {
    abort();
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
    abort();
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) {
    abort();
}
}
