/* A service that writes nonsense into the slots of the C client: hostile_service SOCKET STATES SEED, to be compiled
 * with the address sanitizer. A thread serves: it greets, passes a slot, and then writes any words, frames and bytes
 * into it, and rings; the client makes requests meanwhile. Whatever becomes of them, nothing outside of the slot (it
 * lies between pages that belong to nothing) and of the client's own memory may be read or written, and no request may
 * hang once the socket is closed. Prints how many requests ended well, and how many with an error.
 */
#define _GNU_SOURCE
#include <linux/sockios.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#include "llmaas.c"

enum { RING = 4096, SIZE = SLOT_HEADER + 2 * RING, WORDS = 7 };
static const uint32_t PLACES[WORDS] = {64, 128, 192, 256, 320, 384, 448};
static uint8_t HELLO[] = "\0\0\0\0\x84\xa4type\xa5hello\xa7version\1\xa6server\xa1x\xa6limits\x80";
static uint8_t GRANT[] = "\0\0\0\0\x83\xa2id\0\xa4type\xa4" "done\xa6result\x83\xa7version\1\xa6nbytes"
                         "\xcd\x30\0\xaageneration\1";
static uint64_t chance;
static long states;

static uint32_t draw(void) { /* of the serving thread */
    chance ^= chance << 13;
    chance ^= chance >> 7;
    chance ^= chance << 17;
    return (uint32_t)(chance >> 16);
}

static void pass(int to, int fd) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {GRANT, sizeof GRANT - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    if (sendmsg(to, &message, MSG_NOSIGNAL) < 0)
        perror("sendmsg");
}

static unsigned char *new_slot(int *fd) {
    *fd = memfd_create("slot", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (*fd < 0 || ftruncate(*fd, SIZE) != 0 || fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
        abort();
    unsigned char *base = slots_map(*fd, SIZE);
    const uint32_t header[] = {1, RING, 1, 0};
    memcpy(base, "llmaasSL", 8);
    memcpy(base + 8, header, sizeof header);
    base[64] = OPEN_STATE;
    return base;
}

/* A reply to request `id`, as it should be or nearly: done, failed, a piece, pages of messages. */
static uint32_t some_reply(uint8_t *to, uint32_t id) {
    static const struct {
        uint8_t size;
        const char *bytes;
    } replies[] = {
#define REPLY(text) {sizeof text - 1, text}
        REPLY("\0\0\0\0\x83\xa2id\0\xa4type\xa4" "done\xa6result\xc0"),
        REPLY("\0\0\0\0\x83\xa2id\0\xa4type\xa5piece\xa4text\xa3 ab"),
        REPLY("\0\0\0\0\x83\xa2id\0\xa4type\xa6" "failed\xa4" "code\xa8internal"),
        REPLY("\0\0\0\0\x83\xa2id\0\xa4type\xa4" "done\xa6result\x82\xa8messages\x90\xa5" "after\xc0"),
    };
    uint32_t which = draw() % 4, size = replies[which].size;
    memcpy(to, replies[which].bytes, size);
    to[3] = (uint8_t)(size - 4);
    to[8] = (uint8_t)id;
    if (draw() % 3 == 0)
        to[draw() % size] = (uint8_t)draw();
    return size;
}

/* The id of the request that has come, if one has; else as it was. */
static uint32_t asked(slot_end *serving, uint32_t before) {
    uint8_t some[RING];
    int64_t n = slots_read(serving, some, sizeof some);
    for (int64_t i = n - 4; i >= 0; i--)
        if (memcmp(some + i, "\xa2id", 3) == 0)
            return some[i + 3] & 0x7f;
    return before;
}

static void scribble(unsigned char *base, uint32_t id) {
    word *written = (word *)(void *)(base + 256);
    uint32_t near = atomic_load((word *)(void *)(base + 320));
    uint8_t some[256];
    uint32_t n = 0;
    switch (draw() % 16) {
    case 0:
        atomic_store((word *)(void *)(base + PLACES[draw() % WORDS]), draw());
        return;
    case 1:
        atomic_store(written, near + RING + draw() % 3 - 1);
        return;
    case 2:
        atomic_store((word *)(void *)(base + 192), draw() % (2 * RING));
        return;
    case 3:
        for (; n < 64; n++)
            some[n] = (uint8_t)draw();
        break;
    default:
        for (uint32_t i = draw() % 4; i < 4; i++)
            n += some_reply(some + n, id);
    }
    near = atomic_load(written);
    for (uint32_t i = 0; i < n; i++)
        base[SLOT_HEADER + RING + (near + i) % RING] = some[i];
    atomic_store(written, near + n);
}

static void serve_one(int client) {
    uint8_t seen[512];
    int fd;
    struct timeval most = {10, 0};
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &most, sizeof most);
    if (recv(client, seen, sizeof seen, 0) <= 0 || send(client, HELLO, sizeof HELLO - 1, MSG_NOSIGNAL) < 0 ||
        recv(client, seen, sizeof seen, 0) <= 0)
        return;
    unsigned char *base = new_slot(&fd);
    pass(client, fd);
    close(fd);
    slot_end serving = {.base = base, .size = RING, .state = 64, .in_ring = SLOT_HEADER, .in_written = 128,
                        .in_taken = 192, .out_ring = SLOT_HEADER + RING, .out_written = 256, .out_taken = 320,
                        .my_sleep = 448, .its_sleep = 384};
    uint32_t id = 1;
    for (uint32_t i = 1 + draw() % 64; i > 0 && states > 0; i--, states--) {
        id = asked(&serving, id);
        scribble(base, id);
        if (send(client, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno == EPIPE)
            break; /* it has found the slot broken */
        int left = 1; /* bells that it has not heard; it hears none while it works */
        for (int looks = 0; looks < 20 && left > 0 && ioctl(client, SIOCOUTQ, &left) == 0; looks++)
            sched_yield();
    }
    slots_unmap(base, SIZE);
}

static void *serve(void *listener) {
    while (states > 0) {
        int client = accept4(*(int *)listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            abort();
        serve_one(client);
        close(client);
    }
    close(*(int *)listener);
    return NULL;
}

static int on_piece(void *data, const char *text, size_t size) {
    (void)data;
    return text[size] != 0; /* reads all of it */
}

static int on_message(void *data, const char *role, const char *text, size_t size, int continues) {
    (void)data, (void)role, (void)continues;
    return text[size] != 0;
}

static int one_request(llmaas *c, long i, llmaas_error *error) {
    llmaas_generation generation = LLMAAS_GENERATION;
    llmaas_message said = {"user", "Hello."};
    generation.messages = &said;
    generation.n_messages = 1;
    switch (i % 3) {
    case 0:
        return llmaas_ping(c, error);
    case 1:
        return llmaas_generate(c, "inbox", &generation, on_piece, NULL, NULL, error);
    default:
        return llmaas_show(c, "inbox", on_message, NULL, error);
    }
}

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 4 || strlen(argv[1]) >= sizeof address.sun_path)
        return 2;
    strcpy(address.sun_path, argv[1]);
    HELLO[3] = sizeof HELLO - 1 - 4;
    GRANT[3] = sizeof GRANT - 1 - 4;
    states = atol(argv[2]);
    chance = 0x9e3779b97f4a7c15u ^ (uint64_t)atol(argv[3]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 8) != 0)
        return perror("bind"), 2;
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve, &listener) != 0)
        return 2;
    llmaas_options options = {.socket = argv[1], .app = "fuzz", .transport = "slots"};
    llmaas_error error;
    long good = 0, failed = 0;
    for (llmaas *c; (c = llmaas_connect(&options, &error)) != NULL || strcmp(error.code, "not_serving") != 0 ||
                    strstr(error.message, "was lost") != NULL;) {
        /* A client connects again by itself when its connection was lost: until an error comes, or a few were good. */
        for (long i = 0; c != NULL && i < 32; i++) {
            int done = one_request(c, good + failed, &error);
            *(done == 0 ? &good : &failed) += 1;
            if (done != 0 && strcmp(error.code, "internal") != 0)
                break;
        }
        llmaas_close(c);
    }
    pthread_join(thread, NULL);
    printf("%ld %ld\n", good, failed);
    return 0;
}
