/* Clients that are killed: victims SOCKET APP KILLS SEED. Each is a process that connects, gets a slot, and uses it in
 * every way until it is killed (SIGKILL) at a random instant; a few live at a time. A victim that ends by itself is a
 * fault: it prints what failed. Prints how many were killed before they had a slot, and how many while they used it.
 *
 * Processes are forked, not started: 10,000 interpreters would take an hour.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "llmaas.h"

enum { AT_ONCE = 6, LONG = 3000 };
static uint64_t state;
static _Atomic int *connected; /* shared: of each place, whether its victim has a slot */

static uint32_t draw(void) { /* xorshift */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static int on_piece(void *data, const char *text, size_t size) {
    (void)data, (void)text, (void)size;
    return draw() % 64 == 0; /* now and then it is cancelled */
}

static int on_message(void *data, const char *role, const char *text, size_t size, int continues) {
    (void)data, (void)role, (void)text, (void)size, (void)continues;
    return 0;
}

static int use(llmaas *client, const char *name, llmaas_error *error) {
    static char text[LONG + 1]; /* more than half of a ring of 4096 bytes */
    memset(text, 'x', LONG);
    llmaas_message message = {"user", text};
    llmaas_generation generation = LLMAAS_GENERATION;
    generation.messages = &message;
    generation.n_messages = 1;
    switch (draw() % 6) {
    case 0:
        message.content = "count 300";
        return llmaas_generate(client, name, &generation, on_piece, NULL, NULL, error) != 0 &&
               strcmp(error->code, "cancelled") != 0;
    case 1:
        return llmaas_append(client, name, &message, 1, NULL, error);
    case 2:
        return llmaas_show(client, name, on_message, NULL, error);
    case 3:
        return llmaas_delete(client, name, error) || llmaas_create(client, name, NULL, error);
    default:
        return llmaas_ping(client, error);
    }
}

static void live(const char *path, const char *app, int place) {
    llmaas_options options = {.socket = path, .app = app, .transport = "slots", .retry_ms = 20000};
    llmaas_error error;
    char name[16];
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* when one has failed the others go, too */
    snprintf(name, sizeof name, "v%d", place);
    llmaas *client = llmaas_connect(&options, &error); /* busy while slots of others are being freed */
    if (client != NULL) {
        atomic_store(&connected[place], 1);
        /* The delete of one that was killed may still be done after this one's create. */
        while (llmaas_create(client, name, NULL, &error) == 0) {
            while (use(client, name, &error) == 0)
                ;
            if (strcmp(error.code, "unknown_context") != 0)
                break;
        }
    }
    fprintf(stderr, "a client failed: %s: %s\n", error.code, error.message);
    _exit(1);
}

static pid_t born(const char *path, const char *app, int place) {
    atomic_store(&connected[place], 0);
    pid_t child = fork();
    if (child == 0) {
        state ^= (uint64_t)getpid() << 20;
        live(path, app, place);
    }
    return child;
}

int main(int argc, char **argv) {
    if (argc != 5)
        return 2;
    long kills = atol(argv[3]), early = 0, died = 0;
    state = 0x9e3779b97f4a7c15u ^ (uint64_t)atol(argv[4]);
    connected = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (connected == MAP_FAILED)
        return 2;
    pid_t victims[AT_ONCE] = {0};
    for (long i = 0; i < kills + AT_ONCE; i++) {
        int place = (int)(i % AT_ONCE), how;
        if (victims[place] > 0) {
            /* Some of them soon, so that they have not got a slot yet. */
            struct timespec pause = {0, (long)(draw() % (draw() % 3 ? 12000000 : 500000))};
            nanosleep(&pause, NULL);
            kill(victims[place], SIGKILL);
            if (waitpid(victims[place], &how, 0) != victims[place] || !WIFSIGNALED(how))
                return 1;
            died++;
            early += !atomic_load(&connected[place]);
        }
        victims[place] = i < kills ? born(argv[1], argv[2], place) : 0;
    }
    printf("%ld %ld\n", early, died - early);
    return 0;
}
