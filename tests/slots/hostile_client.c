/* A client that writes nonsense into its slot: hostile_client SOCKET APP STATES SEED. It connects as any client, and
 * then writes, again and again, any words, bytes, frames and lengths into the slot that the service has mapped, and
 * rings. Each state waits until the service has heard the bell, and so has looked at it. When the service hangs up it connects
 * anew. Prints how often that was.
 */
#define _GNU_SOURCE
#include <linux/sockios.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "llmaas.c"

enum { WORDS = 7 };
static const uint32_t PLACES[WORDS] = {64, 128, 192, 256, 320, 384, 448};
static uint64_t chance;

static uint32_t draw(void) { /* xorshift */
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return (uint32_t)(chance >> 16);
}

static void set(llmaas *c, uint32_t place, uint32_t to) { atomic_store(at(&c->slot, place), to); }

static uint32_t word_of(llmaas *c, uint32_t place) { return atomic_load(at(&c->slot, place)); }

/* A frame that is good, or nearly. Its length is nearly always right: after a part of a frame nothing is heard for
 * 50 ms. */
static uint32_t some_frame(uint8_t *to) {
    static const uint8_t frames[][24] = {"\0\0\0\x0d\x82\xa2id\1\xa2op\xa4ping",
                                         "\0\0\0\x0e\x82\xa2id\2\xa2op\xa5stats",
                                         "\0\0\0\x0d\x82\xa2id\3\xa2op\xa4list"};
    uint32_t which = draw() % 3, size = which == 1 ? 18 : 17;
    memcpy(to, frames[which], size);
    if (draw() % 8 == 0)
        to[4 + draw() % (size - 4)] = (uint8_t)draw();
    else if (draw() % 64 == 0)
        to[draw() % 4] = (uint8_t)draw();
    return size;
}

static void put_frames(llmaas *c, int sloppy) {
    slot_end *e = &c->slot;
    uint32_t near = word_of(c, e->out_taken), n = 0;
    uint8_t some[96];
    for (uint32_t i = draw() % 4; i < 4; i++)
        n += some_frame(some + n);
    for (uint32_t i = 0; i < n; i++) /* where they belong: the ring wraps around */
        e->base[e->out_ring + (near + i) % e->size] = some[i];
    set(c, e->out_written, near + n + (uint32_t)sloppy);
    set(c, e->in_taken, word_of(c, e->in_written)); /* all was read */
}

/* Write one state; it has no effect on the service until the bell. */
static void scribble(llmaas *c) {
    slot_end *e = &c->slot;
    uint32_t near = word_of(c, e->out_taken), size = e->size;
    switch (draw() % 16) {
    case 0:
        set(c, PLACES[draw() % WORDS], draw());
        break;
    case 1: /* just as much as there can be, or too much */
        set(c, e->out_written, near + size + draw() % 3 - 1);
        break;
    case 2: /* as if it had read what was never written */
        set(c, e->in_taken, word_of(c, e->in_written) + draw() % 3);
        break;
    case 3: /* more than was put there, which may be anything */
        put_frames(c, (int)(draw() % 64));
        break;
    case 4: /* the header, and the service's own ring and words */
        e->base[draw() % 24] = (uint8_t)draw();
        e->base[e->in_ring + draw() % size] = (uint8_t)draw();
        set(c, draw() % 2 ? e->in_written : e->out_taken, draw());
        break;
    case 5: /* how the service sleeps, and whether the client does */
        set(c, draw() % 2 ? e->its_sleep : e->my_sleep, draw() % 16);
        put_frames(c, 0);
        break;
    default:
        put_frames(c, 0);
    }
}

/* Ring, and wait until the bell was heard. 0 if the service has hung up. */
static int ring(llmaas *c) {
    int left = 1;
    if (send(c->fd, "", 1, MSG_NOSIGNAL) != 1)
        return 0;
    for (int i = 0; left > 0; i++) {
        char bell;
        ssize_t n = recv(c->fd, &bell, 1, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN) || ioctl(c->fd, SIOCOUTQ, &left) != 0)
            return 0;
        if (left > 0)
            i < 100 ? (void)sched_yield() : (void)usleep(200);
    }
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 5)
        return 2;
    llmaas_options options = {.socket = argv[1], .app = argv[2], .transport = "slots", .retry_ms = 20000};
    llmaas_error error;
    long states = atol(argv[3]), connections = 0;
    chance = 0x9e3779b97f4a7c15u ^ (uint64_t)atol(argv[4]);
    while (states > 0) {
        llmaas *client = llmaas_connect(&options, &error);
        if (client == NULL) {
            fprintf(stderr, "%s: %s\n", error.code, error.message);
            return 1;
        }
        connections++;
        for (uint32_t i = draw() % 64; i > 0 && states > 0; i--) {
            scribble(client);
            states--;
            if (!ring(client))
                break;
        }
        llmaas_close(client);
    }
    printf("%ld\n", connections);
    return 0;
}
