/* Nonsense in the words of a slot, for both sides: cc -fsanitize=address,undefined fuzz_rings.c && ./a.out STATES SEED.
 *
 * The slot is a block of malloc of exactly its size, so that the sanitizer finds whatever is read or written outside of
 * it. Every state has random words, a random position, and random calls. In every second state another thread writes to
 * all words meanwhile.
 */
#include "../../llmaas/slots/_slots.c"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { HEADER = 4096, RING = 4096, SIZE = HEADER + 2 * RING };
static const uint32_t WORDS[] = {64, 128, 192, 256, 320, 384, 448};
enum { N_WORDS = sizeof WORDS / sizeof *WORDS };

static uint64_t state;

static uint32_t draw(void) { /* xorshift */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static uint32_t nonsense(uint32_t near) {
    switch (draw() % 5) {
    case 0:
        return draw();
    case 1:
        return near + RING + draw() % 5 - 2;
    case 2:
        return near - draw() % 5;
    case 3:
        return draw() % 16;
    default:
        return near + draw() % (RING + 1);
    }
}

static slot_end side(unsigned char *base, int service) {
    slot_end client = {.base = base, .size = RING, .state = 64, .in_ring = HEADER + RING, .in_written = 256,
                       .in_taken = 320, .out_ring = HEADER, .out_written = 128, .out_taken = 192, .my_sleep = 384,
                       .its_sleep = 448};
    slot_end serving = {.base = base, .size = RING, .state = 64, .in_ring = HEADER, .in_written = 128,
                        .in_taken = 192, .out_ring = HEADER + RING, .out_written = 256, .out_taken = 320,
                        .my_sleep = 448, .its_sleep = 384};
    return service ? serving : client;
}

static _Atomic int stop;

static void *scribble(void *slot) {
    unsigned char *base = slot;
    uint32_t value = 1;
    while (!atomic_load(&stop)) {
        for (int i = 0; i < N_WORDS; i++) {
            value = value * 1664525u + 1013904223u;
            atomic_store_explicit((word *)(void *)(base + WORDS[i]), i % 2 ? value : value % (2 * RING),
                                  memory_order_relaxed);
        }
    }
    return NULL;
}

static void check(int good, const char *what) {
    if (!good) {
        fprintf(stderr, "wrong: %s\n", what);
        abort();
    }
}

static void one_state(unsigned char *base, unsigned char *other) {
    slot_end e = side(base, (int)(draw() % 2));
    e.taken = draw() % 3 ? draw() : 0xfffffff0u + draw() % 32;
    e.written = draw() % 3 ? draw() : 0xfffffff0u + draw() % 32;
    for (int i = 0; i < N_WORDS; i++) {
        uint32_t near = WORDS[i] == e.in_written ? e.taken : WORDS[i] == e.out_taken ? e.written - RING / 2 : 0;
        atomic_store((word *)(void *)(base + WORDS[i]), nonsense(near));
    }
    for (uint32_t calls = 1 + draw() % 6; calls > 0; calls--) {
        uint32_t n = draw() % (2 * RING);
        int64_t found;
        switch (draw() % 6) {
        case 0:
            found = slots_read(&e, other, n);
            check(found == BROKEN || (found >= 0 && found <= n && found <= RING), "bytes read");
            break;
        case 1:
            found = slots_write(&e, other, n);
            check(found == BROKEN || (found >= 0 && found <= n && found <= RING), "bytes written");
            break;
        case 2:
            found = slots_ready(&e, (int)(draw() % 4));
            check(found >= BROKEN && found <= 7, "ready");
            break;
        case 3:
            found = slots_sleep(&e, (int)draw());
            check(found >= BROKEN && found <= 7, "sleep");
            break;
        case 4:
            found = slots_wait(&e, (int)(draw() % 4), draw() % 2 ? 100 : 0, 1000);
            check(found >= BROKEN && found <= 15, "wait");
            break;
        default:
            draw() % 2 ? slots_awake(&e) : slots_finish(&e);
        }
    }
}

static unsigned char *new_slot(void) {
    void *base = NULL;
    check(posix_memalign(&base, 4096, SIZE) == 0, "memory");
    return memset(base, 0, SIZE);
}

int main(int argc, char **argv) {
    long states = argc > 1 ? atol(argv[1]) : 10000;
    state = 0x9e3779b97f4a7c15u ^ (argc > 2 ? (uint64_t)atol(argv[2]) : 1u);
    unsigned char *shared = new_slot();
    pthread_t thread;
    pthread_create(&thread, NULL, scribble, shared);
    for (long i = 0; i < states; i++) {
        unsigned char *own = new_slot(), *other = malloc(2 * RING);
        memset(other, 'x', 2 * RING);
        one_state(i % 2 ? shared : own, other);
        free(other);
        free(own);
    }
    atomic_store(&stop, 1);
    pthread_join(thread, NULL);
    free(shared);
    printf("%ld states\n", states);
    return 0;
}
