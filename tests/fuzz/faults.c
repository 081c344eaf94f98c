/* Memory and threads that are refused on demand: preloaded before Python, for faults.py.
 *
 * Counts what code between two addresses, the core's, asks the system for, fails the n-th such request, and counts the
 * blocks that it has not given back. Assumes glibc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static uintptr_t low, high;
static atomic_long asked, fail_at, kept;

void faults_watch(uintptr_t from, uintptr_t to) {
    low = from;
    high = to;
}

/* The n-th request from now on fails; 0: none. */
void faults_arm(long n) {
    atomic_store(&asked, 0);
    atomic_store(&fail_at, n);
}

long faults_asked(void) {
    return atomic_load(&asked);
}

long faults_kept(void) {
    return atomic_load(&kept);
}

static int watched(const void *caller) {
    return (uintptr_t)caller >= low && (uintptr_t)caller < high;
}

static int refused(const void *caller) {
    return watched(caller) && atomic_fetch_add(&asked, 1) + 1 == atomic_load(&fail_at);
}

#define CALLER __builtin_return_address(0)

static void *counted(void *p, const void *caller) {
    if (p && watched(caller)) atomic_fetch_add(&kept, 1);
    return p;
}

static void *no_memory(void) {
    errno = ENOMEM;
    return NULL;
}

void *malloc(size_t n) {
    return refused(CALLER) ? no_memory() : counted(__libc_malloc(n), CALLER);
}

void *calloc(size_t n, size_t size) {
    return refused(CALLER) ? no_memory() : counted(__libc_calloc(n, size), CALLER);
}

void *realloc(void *p, size_t n) {
    if (refused(CALLER)) return no_memory();
    return p ? __libc_realloc(p, n) : counted(__libc_malloc(n), CALLER);
}

void *aligned_alloc(size_t align, size_t n) {
    return refused(CALLER) ? no_memory() : counted(__libc_memalign(align, n), CALLER);
}

void free(void *p) {
    if (p && watched(CALLER)) atomic_fetch_sub(&kept, 1);
    __libc_free(p);
}

void *mmap(void *at, size_t n, int protection, int flags, int file, off_t offset) {
    static void *(*real)(void *, size_t, int, int, int, off_t);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "mmap");
    if (!refused(CALLER)) return real(at, n, protection, flags, file, offset);
    errno = ENOMEM;
    return MAP_FAILED;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *argument) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    return refused(CALLER) ? EAGAIN : real(thread, attributes, start, argument);
}
