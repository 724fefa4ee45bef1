/* Round trips of clients that sleep until a bell comes by the socket: trips SOCKET APP CLIENTS EACH SEED. Each client
 * is a thread with a slot, and makes so many. One that is not woken waits for ever. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "llmaas.h"

static const char *path, *app;
static long each;

static void *run(void *seed) {
    llmaas_options options = {.socket = path, .app = app, .transport = "slots", .retry_ms = 20000};
    llmaas_error error;
    uint64_t state = 0x9e3779b97f4a7c15u ^ (uint64_t)(uintptr_t)seed;
    llmaas *client = llmaas_connect(&options, &error);
    int failed = client == NULL;
    for (long i = 0; i < each && !failed; i++) {
        failed = llmaas_ping(client, &error) != 0;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if (state % 8 == 0) { /* so that the service falls asleep meanwhile, or just now */
            struct timespec pause = {0, (long)(state >> 40) % 300000};
            nanosleep(&pause, NULL);
        }
    }
    if (failed)
        fprintf(stderr, "%s: %s\n", error.code, error.message);
    llmaas_close(client);
    return failed ? seed : NULL;
}

int main(int argc, char **argv) {
    if (argc != 6)
        return 2;
    path = argv[1];
    app = argv[2];
    each = atol(argv[4]);
    int clients = atoi(argv[3]), failed = 0;
    pthread_t threads[64];
    if (clients < 1 || clients > 64)
        return 2;
    for (int i = 0; i < clients; i++)
        if (pthread_create(&threads[i], NULL, run, (void *)(uintptr_t)(atol(argv[5]) * 64 + i + 1)) != 0)
            return 2;
    for (int i = 0; i < clients; i++) {
        void *found;
        pthread_join(threads[i], &found);
        failed += found != NULL;
    }
    return failed != 0;
}
