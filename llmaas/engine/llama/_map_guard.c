/* Keeps the process alive when a mapped file is cut, or a sector of it cannot be read: zeros instead of SIGBUS.
 *
 * Law: what it does in a signal handler is one mmap and one counter; a fault anywhere else goes to whoever handled
 * SIGBUS before. Who reads the zeros must ask for the counter afterwards.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define MOST 64

/* An end is written last and read first: CPUs such as ARM's may show two stores to another core in either order, and a
 * new end with an old beginning would guard what is not ours. 0: nothing is guarded by this entry. */
static uintptr_t begins[MOST], ends[MOST];
static int64_t faults;
static uintptr_t page;
static struct sigaction before;

static void on_fault(int number, siginfo_t *info, void *context) {
    const uintptr_t at = (uintptr_t)info->si_addr;
    const int saved = errno;
    for (int i = 0; i < MOST; i++) {
        const uintptr_t end = __atomic_load_n(&ends[i], __ATOMIC_ACQUIRE);
        if (at >= end || at < __atomic_load_n(&begins[i], __ATOMIC_RELAXED)) continue;
        void *start = (void *)(at & ~(page - 1));
        if (mmap(start, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != start) break;
        __atomic_add_fetch(&faults, 1, __ATOMIC_SEQ_CST);
        errno = saved;
        return;
    }
    if (before.sa_flags & SA_SIGINFO) before.sa_sigaction(number, info, context);
    else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) sigaction(number, &before, NULL);
    else before.sa_handler(number);
}

/* Guards the addresses begin .. end-1. Returns the number to give to guard_remove, or -1 if there is no more room. */
EXPORT int guard_add(uintptr_t begin, uintptr_t end) {
    if (!page) {
        struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        page = (uintptr_t)sysconf(_SC_PAGESIZE);
        sigemptyset(&action.sa_mask);
        if (sigaction(SIGBUS, &action, &before)) return -1;
    }
    for (int i = 0; i < MOST; i++) {
        if (__atomic_load_n(&ends[i], __ATOMIC_RELAXED)) continue;
        __atomic_store_n(&begins[i], begin, __ATOMIC_RELAXED);
        __atomic_store_n(&ends[i], end, __ATOMIC_RELEASE);
        return i;
    }
    return -1;
}

EXPORT void guard_remove(int i) { __atomic_store_n(&ends[i], 0, __ATOMIC_RELEASE); }

/* How many pages were replaced by zeros until now. */
EXPORT int64_t guard_faults(void) { return __atomic_load_n(&faults, __ATOMIC_SEQ_CST); }

EXPORT int guard_version(void) { return 1; }
