/* Puts each thread of an OpenMP team on a CPU of its own, and lets it go again; see threads_apart.py.
 *
 * Law: each function is called once by each thread of a team at the same time. It changes where threads run, and
 * nothing else; what the kernel refuses stays as it was.
 */
#define _GNU_SOURCE
#include <sched.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST 64

typedef struct {
    int next; /* threads that have a CPU so far */
    int n;    /* CPUs: at most MOST, and as many as there are threads */
    int cpus[MOST];
} Apart;

static void put(const int *cpus, int n) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int i = 0; i < n; i++)
        if (cpus[i] >= 0 && cpus[i] < CPU_SETSIZE) CPU_SET(cpus[i], &set);
    sched_setaffinity(0, sizeof(set), &set); /* 0: the calling thread */
}

EXPORT void apart_begin(void *data) {
    Apart *apart = data;
    const int i = __atomic_fetch_add(&apart->next, 1, __ATOMIC_RELAXED);
    if (i < apart->n) put(apart->cpus + i, 1);
}

EXPORT void apart_end(void *data) {
    const Apart *apart = data;
    put(apart->cpus, apart->n);
}

EXPORT int apart_version(void) { return 1; }
