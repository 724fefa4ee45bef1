/* The state words and rings of a slot: see docs/slots.md. One slot_end is one side of one slot, in this process;
 * NULL one that is no more, which is BROKEN.
 *
 * Law: what the other side may write is read once, into a local variable, and checked before it is used. Positions of
 * this side are kept in slot_end, which the other side cannot reach, and are only ever written to the slot. So whatever
 * stands in the slot, nothing is read or written outside its two rings, and no call takes longer than one ring is long
 * (or than the time that its caller allows).
 *
 * Rejected: to keep only positions in the slot, and use them from there. The other side could move them between a check
 * and the use.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* syscall */
#endif
#include <errno.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SLOTS_ABI 3 /* as in library.py: raised with every change of a function or of slot_end */

/* What calls return: bits, or BROKEN. */
enum { READABLE = 1, ROOM = 2, ENDED = 4, INTERRUPTED = 8, BROKEN = -1 };
/* A side's sleep word: 0 while it is awake, else what it waits for (READABLE, ROOM), and how it is to be woken. */
enum { ON_FUTEX = 4, ASLEEP = 8 };
enum { OPEN_STATE = 1, ENDED_STATE = 2 };
enum { ROBBED_NS = 300000 };

typedef struct {
    unsigned char *base; /* the slot */
    uint32_t size;       /* bytes of each ring, a power of two */
    /* Where in the slot things are. */
    uint32_t state;
    uint32_t in_ring, in_written, in_taken;
    uint32_t out_ring, out_written, out_taken;
    uint32_t my_sleep, its_sleep;
    /* Private: how many bytes this side has taken and written, modulo 2^32. */
    uint32_t taken, written;
    uint32_t bell; /* set: the other side sleeps, and is to be woken by its socket. Whoever does so clears it. */
    /* Whether this side looks for the other's next bytes before it sleeps; see slots_may_look. */
    uint32_t stays;   /* it looks now, in turns of an event loop */
    uint32_t in_vain; /* how often it has looked in vain, less a quarter of how often not; 0 to 6 */
    uint32_t skip;    /* so many of the next times it does not look */
    uint32_t robbed;  /* it was off its CPU while it looked last */
    uint32_t crowded; /* how often that has been so, lately */
    uint32_t calm;    /* how often it has not, since */
} slot_end;

typedef _Atomic uint32_t word;

static word *at(const slot_end *e, uint32_t offset) { return (word *)(void *)(e->base + offset); }

static uint32_t least(uint64_t a, uint32_t b) { return a < b ? (uint32_t)a : b; }

/* Bytes that may be taken; above `size` if the other side wrote nonsense. */
static uint32_t filled(const slot_end *e) {
    return atomic_load_explicit(at(e, e->in_written), memory_order_acquire) - e->taken;
}

/* Bytes that the other side has not taken; above `size` if it wrote nonsense. */
static uint32_t untaken(const slot_end *e) {
    return e->written - atomic_load_explicit(at(e, e->out_taken), memory_order_acquire);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

/* Not private to this process: the other side is another one. */
static long futex(word *w, int op, uint32_t value, const void *timeout) {
    return syscall(SYS_futex, w, op, value, timeout, NULL, 0);
}

static void wake(slot_end *e) {
    uint32_t slept = atomic_exchange_explicit(at(e, e->its_sleep), 0, memory_order_seq_cst);
    if (slept & ON_FUTEX)
        futex(at(e, e->its_sleep), FUTEX_WAKE, 1, NULL);
    else if (slept)
        e->bell = 1;
}

/* Wake the other side if it sleeps and waits for one of `bits`. The fence is the counterpart of the one in
 * slots_sleep: either this side sees that the other sleeps, or the other one sees what was written before. */
static void wake_if(slot_end *e, uint32_t bits) {
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(at(e, e->its_sleep), memory_order_relaxed) & bits)
        wake(e);
}

int slots_abi(void) { return SLOTS_ABI; }

static uint64_t page(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

static uint64_t whole_pages(uint64_t size) { return (size + page() - 1) / page() * page(); }

/* Map a slot; NULL and errno if that fails. A page on either side of it belongs to nothing, so that a read or a write
 * that left the slot would end this process, and touch no other memory. */
unsigned char *slots_map(int fd, uint64_t size) {
    uint64_t room = whole_pages(size) + 2 * page();
    unsigned char *guard = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (guard == MAP_FAILED)
        return NULL;
    unsigned char *base = mmap(guard + page(), size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    if (base != MAP_FAILED)
        return base;
    int why = errno;
    munmap(guard, room);
    errno = why;
    return NULL;
}

void slots_unmap(unsigned char *base, uint64_t size) { munmap(base - page(), whole_pages(size) + 2 * page()); }

/* Give the slot's pages back to the system, also if the other side keeps it mapped: it reads zeros from then on. */
void slots_discard(unsigned char *base, uint64_t size) { madvise(base, size, MADV_REMOVE); }

uint64_t slots_end_size(void) { return sizeof(slot_end); }

/* Copy as many of `n` bytes into the ring as there is room for; how many, or BROKEN. */
int64_t slots_write(slot_end *e, const unsigned char *data, uint64_t n) {
    if (e == NULL)
        return BROKEN;
    uint32_t used = untaken(e);
    if (used > e->size)
        return BROKEN;
    uint32_t count = least(n, e->size - used);
    if (count == 0)
        return 0;
    uint32_t place = e->written & (e->size - 1), first = least(count, e->size - place);
    memcpy(e->base + e->out_ring + place, data, first);
    memcpy(e->base + e->out_ring, data + first, count - first);
    e->written += count;
    atomic_store_explicit(at(e, e->out_written), e->written, memory_order_release);
    wake_if(e, READABLE);
    return count;
}

/* Copy at most `n` bytes out of the ring; how many, or BROKEN. */
int64_t slots_read(slot_end *e, unsigned char *to, uint64_t n) {
    if (e == NULL)
        return BROKEN;
    uint32_t there = filled(e);
    if (there > e->size)
        return BROKEN;
    uint32_t count = least(n, there);
    if (count == 0)
        return 0;
    uint32_t place = e->taken & (e->size - 1), first = least(count, e->size - place);
    memcpy(to, e->base + e->in_ring + place, first);
    memcpy(to + first, e->base + e->in_ring, count - first);
    e->taken += count;
    atomic_store_explicit(at(e, e->in_taken), e->taken, memory_order_release);
    if (there - count <= e->size / 2) /* else it would be woken for each small piece of room */
        wake_if(e, ROOM);
    return count;
}

/* What there is of what is wanted: READABLE, ROOM (half of the ring); ENDED: and nothing to read; or BROKEN. */
int slots_ready(const slot_end *e, int wants) {
    if (e == NULL)
        return BROKEN;
    uint32_t there = filled(e), used = untaken(e);
    if (there > e->size || used > e->size)
        return BROKEN;
    int found = (there ? READABLE : 0) | (used <= e->size / 2 ? ROOM : 0);
    if (!there && atomic_load_explicit(at(e, e->state), memory_order_acquire) != OPEN_STATE) {
        there = filled(e); /* what was written before the end */
        if (there > e->size)
            return BROKEN;
        return there ? READABLE & wants : ENDED;
    }
    return found & wants;
}

static int fall_asleep(slot_end *e, int wants, uint32_t how) {
    atomic_store_explicit(at(e, e->my_sleep), how | ASLEEP | (uint32_t)wants, memory_order_seq_cst);
    atomic_thread_fence(memory_order_seq_cst);
    int found = slots_ready(e, wants);
    if (found)
        atomic_store_explicit(at(e, e->my_sleep), 0, memory_order_relaxed);
    return found;
}

/* Say that this side sleeps until it is rung; but not if there is what it wants: then it stays awake, and that is
 * returned. */
int slots_sleep(slot_end *e, int wants) { return e == NULL ? BROKEN : fall_asleep(e, wants & (READABLE | ROOM), 0); }

void slots_awake(slot_end *e) {
    if (e != NULL)
        atomic_store_explicit(at(e, e->my_sleep), 0, memory_order_relaxed);
}

/* Look at a slot for `spin_ns`; as slots_ready. A look at the clock that is so late after the one before shows that
 * this thread had to leave its CPU meanwhile, to others that computed for long: what the kernel does in between takes
 * 10 to 50 us.
 *
 * Rejected: the kernel's count of such switches (ru_nivcsw). It counts the short ones, too, and those at times when
 * nobody looked, so that sides slept most of the time on idle machines.
 */
int slots_spin(slot_end *e, int wants, int64_t spin_ns) {
    int found = slots_ready(e, wants);
    if (found || spin_ns <= 0)
        return found;
    int64_t begin = now_ns(), before = begin, now = begin;
    do {
        for (int i = 0; i < 32 && !found; i++) {
            relax();
            found = slots_ready(e, wants);
        }
        now = now_ns();
        e->robbed |= now - before > ROBBED_NS;
        before = now;
    } while (!found && now - begin < spin_ns);
    return found;
}

/* Whether to look for the other side's next bytes before sleeping. Who does must say by slots_looked what came of it.
 * After a look in vain there is none the next time, after two none the next three times, and so on, up to 63; four that
 * were of use make up for one in vain.
 * Where others want the CPU, there is none for the next 256 to 2048 times: who looks takes it from them, perhaps from
 * the other side, and is made to wait for it by the scheduler afterwards. */
int slots_may_look(slot_end *e) {
    if (e == NULL || e->skip == 0)
        return e != NULL;
    e->skip--;
    return 0;
}

void slots_looked(slot_end *e, int found) {
    if (e == NULL)
        return;
    if (e->robbed) {
        e->robbed = e->calm = 0;
        e->crowded += e->crowded < 4;
        e->skip = 128u << e->crowded;
    } else if (found) {
        if (++e->calm % 4 == 0 && e->in_vain > 0)
            e->in_vain--;
        if (e->calm == 1024)
            e->crowded = 0;
    } else {
        e->in_vain += e->in_vain < 6;
        e->skip = (1u << e->in_vain) - 1;
    }
}

/* For a side with an event loop, which looks once in each turn: bytes have come, `soon` after this side's last ones.
 * Whether to stay awake for the next ones. */
int slots_came(slot_end *e, int soon) {
    if (e == NULL)
        return 0;
    if (e->stays)
        slots_looked(e, 1);
    e->stays = soon && slots_may_look(e);
    return (int)e->stays;
}

/* None have come for so long that this side sleeps. */
void slots_stayed_in_vain(slot_end *e) {
    if (e == NULL || !e->stays)
        return;
    e->stays = 0;
    slots_looked(e, 0);
}

static int wait_asleep(slot_end *e, int wants, int64_t timeout_ns) {
    int found;
    wants &= READABLE | ROOM;
    if ((found = fall_asleep(e, wants, ON_FUTEX)))
        return found;
    /* The kernel's old timespec, which SYS_futex takes, whatever time_t the C library has. */
    const long timeout[2] = {(long)(timeout_ns / 1000000000), (long)(timeout_ns % 1000000000)};
    long slept = futex(at(e, e->my_sleep), FUTEX_WAIT, ON_FUTEX | ASLEEP | (uint32_t)wants, timeout);
    int interrupted = slept < 0 && errno == EINTR;
    slots_awake(e);
    found = slots_ready(e, wants);
    return found ? found : interrupted ? INTERRUPTED : 0;
}

/* Look for `spin_ns`, if slots_may_look, then sleep for `timeout_ns` at most. What there is then (0: nothing yet, or
 * the time is up); INTERRUPTED: a signal came. */
int slots_wait(slot_end *e, int wants, int64_t spin_ns, int64_t timeout_ns) {
    if (e == NULL)
        return BROKEN;
    if (spin_ns > 0 && slots_may_look(e)) {
        int found = slots_spin(e, wants, spin_ns);
        slots_looked(e, found);
        if (found)
            return found;
    }
    return wait_asleep(e, wants, timeout_ns);
}

/* This side ends: nothing more is written. The other side is woken. */
void slots_finish(slot_end *e) {
    if (e == NULL)
        return;
    atomic_store_explicit(at(e, e->state), ENDED_STATE, memory_order_release);
    wake_if(e, ASLEEP);
}
