/* A fixed set of threads that a worker owns. The caller is one of them, so one thread means no thread is made.
 *
 * Work is a number of units handed out in spans; which thread takes which never shows in the results, because a unit
 * writes what no other unit touches, and reads what none of the same round writes. Waiting threads spin for some
 * microseconds, as the next step of a pass comes that soon, and then sleep: spinning on loses 5 to 20 times when the host
 * takes a core away. */
#ifndef RWKVSTS_CPU_TEAM_H
#define RWKVSTS_CPU_TEAM_H

#include "../base.h"

struct team;

struct span {
    int first, count; /* units */
};
typedef void team_work(void *context, struct span span, int thread);

enum status team_open(int threads, struct team **out, struct error *e);
void team_close(struct team *p);

/* Runs work over units 0 .. units-1 and returns when all are done. Spans have `most` units, and fewer towards the end: what
 * is left is shared out among as many spans as there are threads, so that a slow processor keeps nobody waiting for long. */
void team_run(struct team *p, int units, int most, team_work *work, void *context);

#endif
