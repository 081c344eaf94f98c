/* A fixed set of threads that a worker owns. The caller is one of them, so one thread means no thread is made.
 *
 * Work is a number of items handed out one by one; which thread takes which item never shows in the results, because an
 * item writes what no other item touches. Waiting threads spin for some microseconds, as the next step of a pass comes
 * that soon, and then sleep: spinning on loses 5 to 20 times when the host takes a core away. */
#ifndef RWKVSTS_CPU_TEAM_H
#define RWKVSTS_CPU_TEAM_H

#include "../base.h"

struct team;

typedef void team_work(void *context, int item, int thread);

enum status team_open(int threads, struct team **out, struct error *e);
void team_close(struct team *p);

/* Runs work(context, item, thread) for items 0 .. items-1 and returns when all are done. */
void team_run(struct team *p, int items, team_work *work, void *context);

#endif
