/* When a side looks before it sleeps, with a clock of this program's own: a line for each case, which the test
 * compares. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static int fake_clock(clockid_t clock, struct timespec *to);
#define clock_gettime fake_clock
#include "_slots.c"

enum { RING = 4096 };
static _Alignas(64) unsigned char memory[4096 + 2 * RING];
static slot_end end;
static int64_t now, step;
static int asked, answer_at; /* how often the clock was asked; when the other side writes */

static int fake_clock(clockid_t clock, struct timespec *to) {
    (void)clock;
    now += ++asked == 3 ? step : 1000;
    if (asked == answer_at)
        atomic_fetch_add((word *)(void *)(memory + end.in_written), 1);
    to->tv_sec = now / 1000000000;
    to->tv_nsec = now % 1000000000;
    return 0;
}

static void begin(void) {
    slot_end fresh = {.base = memory, .size = RING, .state = 64, .in_ring = 4096 + RING, .in_written = 256,
                      .in_taken = 320, .out_ring = 4096, .out_written = 128, .out_taken = 192, .my_sleep = 384,
                      .its_sleep = 448};
    memset(memory, 0, sizeof memory);
    memory[64] = OPEN_STATE;
    end = fresh;
}

/* One wait. It is answered after a look of some microseconds if `answered`; the thread is off its CPU for `off_ns`
 * meanwhile. Whether it looked. */
static int looks(int answered, int64_t off_ns) {
    unsigned char byte;
    step = off_ns;
    asked = 0;
    answer_at = answered ? 5 : -1;
    slots_wait(&end, READABLE, 100000, 0);
    int looked = asked > 0;
    if (answered && !looked)
        atomic_fetch_add((word *)(void *)(memory + end.in_written), 1);
    while (slots_read(&end, &byte, 1) == 1)
        ;
    return looked;
}

static int until_it_looks(int answered, int64_t off_ns) {
    int n = 0;
    while (!looks(answered, off_ns))
        n++;
    return n;
}

int main(void) {
    begin();
    printf("in vain:");
    for (int i = 0; i < 8; i++)
        printf(" %d", until_it_looks(0, 1000));
    printf("\noff its CPU for 2 ms:");
    begin();
    for (int i = 0; i < 6; i++)
        printf(" %d", until_it_looks(1, 2000000));
    printf("\nafter many that were not: %d", until_it_looks(1, 1000));
    for (int i = 0; i < 1024; i++)
        if (!looks(1, 1000))
            abort();
    looks(1, 2000000);
    printf(" %d\noff its CPU for 50 us:", until_it_looks(1, 1000));
    begin();
    int seen = 0;
    for (int i = 0; i < 2000; i++)
        seen += looks(1, 50000);
    printf(" %d of 2000\n", seen);
    return 0;
}
