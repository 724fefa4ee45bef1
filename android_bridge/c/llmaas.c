/* llmaas.c: see llmaas.h. From the top: errors, bytes, msgpack, the connection, requests, operations.
 *
 * Law: whatever the daemon sends gives a reply or an error, never more memory than MOST_FRAME and MOST_ANSWER bound.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* struct ucred, MSG_NOSIGNAL */
#endif
#include "llmaas.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifdef LLMAAS_SLOTS
#include "_slots.c" /* -I llmaas/slots of the checkout */

#define SLOT_HEADER 4096
#define SLOT_SPIN_NS 200000
#endif

#define PROTOCOL 1
#define FIRST_FRAME (4u << 20)  /* largest body until the hello names another limit */
#define MOST_FRAME (64u << 20)  /* largest body whatever the hello says */
#define MOST_ANSWER (64u << 20) /* bytes of an answer that can be told again */
#define MOST_DEPTH 8
#define MOST_ITEMS (1u << 17)
#define MOST_TRIES 8 /* how often one request is made again: it may be what ends the daemon */
#define TIMEOUT_MS 10000

/* ---- errors ------------------------------------------------------------------------------------------------------ */

static int fail(llmaas_error *error, enum llmaas_fault fault, const char *code, const char *hint, const char *format,
                ...) {
    if (error != NULL) {
        va_list args;
        memset(error, 0, sizeof *error);
        snprintf(error->code, sizeof error->code, "%s", code);
        snprintf(error->hint, sizeof error->hint, "%s", hint);
        va_start(args, format);
        vsnprintf(error->message, sizeof error->message, format, args);
        va_end(args);
        error->fault = fault;
        error->retryable = strcmp(code, "not_serving") == 0;
        error->n_tokens = -1;
    }
    return -1;
}

static int out_of_memory(llmaas_error *error) {
    return fail(error, LLMAAS_MACHINE, "no_memory", "Give this program more memory.", "this program has no memory left");
}

static int malformed(llmaas_error *error, const char *what) {
    return fail(error, LLMAAS_CALLER, "malformed_frame", "Use a client and a daemon that speak the same protocol.",
                "the daemon sent what cannot be read: %s", what);
}

static bool is(const llmaas_error *error, const char *code) { return strcmp(error->code, code) == 0; }

/* ---- bytes that grow --------------------------------------------------------------------------------------------- */

typedef struct {
    uint8_t *data;
    size_t size, room;
    bool failed; /* there was no memory: what was written since is missing */
} bytes;

static bool grow(bytes *b, size_t more) {
    if (b->failed || more > SIZE_MAX / 2 - b->size) {
        b->failed = true;
        return false;
    }
    if (b->size + more > b->room) {
        size_t room = b->room < 256 ? 256 : b->room;
        while (room < b->size + more)
            room *= 2;
        uint8_t *data = realloc(b->data, room);
        if (data == NULL) {
            b->failed = true;
            return false;
        }
        b->data = data;
        b->room = room;
    }
    return true;
}

static void put(bytes *b, const void *data, size_t size) {
    if (size > 0 && grow(b, size)) {
        memcpy(b->data + b->size, data, size);
        b->size += size;
    }
}

/* `width` bytes of a number, the highest first. */
static void put_number(bytes *b, uint64_t value, int width) {
    uint8_t data[8];
    for (int i = 0; i < width; i++)
        data[i] = (uint8_t)(value >> (8 * (width - 1 - i)));
    put(b, data, (size_t)width);
}

static void put_byte(bytes *b, unsigned value) { put_number(b, value, 1); }

/* ---- msgpack: writing -------------------------------------------------------------------------------------------- */

static void put_map(bytes *b, size_t n) {
    if (n < 16)
        put_byte(b, 0x80 | (unsigned)n);
    else {
        put_byte(b, 0xde);
        put_number(b, n, 2);
    }
}

static void put_list(bytes *b, size_t n) {
    if (n < 16)
        put_byte(b, 0x90 | (unsigned)n);
    else if (n <= 0xffff) {
        put_byte(b, 0xdc);
        put_number(b, n, 2);
    } else {
        put_byte(b, 0xdd);
        put_number(b, n, 4);
    }
}

static void put_text(bytes *b, const char *text) {
    size_t n = strlen(text);
    if (n < 32)
        put_byte(b, 0xa0 | (unsigned)n);
    else if (n <= 0xff) {
        put_byte(b, 0xd9);
        put_number(b, n, 1);
    } else if (n <= 0xffff) {
        put_byte(b, 0xda);
        put_number(b, n, 2);
    } else if (n <= 0xffffffff) {
        put_byte(b, 0xdb);
        put_number(b, n, 4);
    } else {
        b->failed = true;
        return;
    }
    put(b, text, n);
}

static void put_int(bytes *b, uint64_t value) {
    if (value < 0x80)
        put_byte(b, (unsigned)value);
    else if (value <= 0xff) {
        put_byte(b, 0xcc);
        put_number(b, value, 1);
    } else if (value <= 0xffff) {
        put_byte(b, 0xcd);
        put_number(b, value, 2);
    } else if (value <= 0xffffffff) {
        put_byte(b, 0xce);
        put_number(b, value, 4);
    } else {
        put_byte(b, 0xcf);
        put_number(b, value, 8);
    }
}

static void put_double(bytes *b, double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    put_byte(b, 0xcb);
    put_number(b, bits, 8);
}

static void put_bool(bytes *b, bool value) { put_byte(b, value ? 0xc3 : 0xc2); }

/* ---- msgpack: reading -------------------------------------------------------------------------------------------- */

enum kind { NIL, BOOL, INT, FLOAT, TEXT, BIN, LIST, MAP };

/* One value as it stands in a body that check_body has found good. */
typedef struct {
    enum kind kind;
    int64_t number; /* BOOL, INT. Integers beyond int64 are its end */
    double real;
    const uint8_t *data; /* TEXT, BIN: its bytes. LIST, MAP: its first item */
    size_t size;         /* bytes, or items */
    const uint8_t *end;  /* LIST, MAP: of the body */
} value;

static bool is_utf8(const uint8_t *s, size_t n) {
    for (size_t i = 0; i < n;) {
        uint8_t c = s[i];
        size_t more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
        if ((c >= 0x80 && c < 0xc2) || c > 0xf4)
            return false;
        if (more > n - i - 1)
            return false;
        for (size_t k = 1; k <= more; k++)
            if ((s[i + k] & 0xc0) != 0x80)
                return false;
        /* No form that is too long, no surrogates, nothing above U+10FFFF. */
        if ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f) || (c == 0xf0 && s[i + 1] < 0x90) ||
            (c == 0xf4 && s[i + 1] > 0x8f))
            return false;
        i += more + 1;
    }
    return true;
}

static uint64_t big_endian(const uint8_t *p, size_t width) {
    uint64_t n = 0;
    while (width-- > 0)
        n = n << 8 | *p++;
    return n;
}

static value nothing(void) {
    value v = {NIL, 0, 0, NULL, 0, NULL};
    return v;
}

/* Read the numbers behind a head of 0xc2 to 0xdf. The bytes of the number are there. */
static void read_number(uint8_t head, const uint8_t *p, size_t width, value *v) {
    uint64_t raw = big_endian(p, width);
    if (head == 0xca) {
        uint32_t bits = (uint32_t)raw;
        float real;
        memcpy(&real, &bits, 4);
        v->kind = FLOAT;
        v->real = (double)real;
    } else if (head == 0xcb) {
        v->kind = FLOAT;
        memcpy(&v->real, &raw, 8);
    } else {
        v->kind = INT;
        if (head <= 0xcf) /* unsigned */
            v->number = raw > INT64_MAX ? INT64_MAX : (int64_t)raw;
        else if (width == 8 || !(raw >> (8 * width - 1)))
            memcpy(&v->number, &raw, 8);
        else
            v->number = (int64_t)raw - ((int64_t)1 << (8 * width));
        v->real = (double)v->number;
    }
}

/* The value at *p, without its items; moves *p behind its head and bytes. False: it is cut short or not allowed. */
static bool read_value(const uint8_t **p, const uint8_t *end, value *v) {
    *v = nothing();
    if (*p >= end)
        return false;
    uint8_t head = *(*p)++;
    size_t left = (size_t)(end - *p), width = 0;
    if (head < 0x80 || head >= 0xe0) {
        v->kind = INT;
        v->number = head < 0x80 ? head : head - 256;
        v->real = (double)v->number;
        return true;
    }
    if (head < 0xc0) {
        v->kind = head < 0x90 ? MAP : head < 0xa0 ? LIST : TEXT;
        v->size = head & (head < 0xa0 ? 0x0f : 0x1f);
    } else if (head == 0xc0) {
        return true;
    } else if (head == 0xc2 || head == 0xc3) {
        v->kind = BOOL;
        v->number = head == 0xc3;
        return true;
    } else if (head >= 0xca && head <= 0xd3) {
        static const uint8_t widths[] = {4, 8, 1, 2, 4, 8, 1, 2, 4, 8};
        width = widths[head - 0xca];
        if (width > left)
            return false;
        read_number(head, *p, width, v);
        *p += width;
        return true;
    } else {
        if (head >= 0xc4 && head <= 0xc6) {
            v->kind = BIN;
            width = (size_t)1 << (head - 0xc4);
        } else if (head >= 0xd9 && head <= 0xdb) {
            v->kind = TEXT;
            width = (size_t)1 << (head - 0xd9);
        } else if (head >= 0xdc) {
            v->kind = head < 0xde ? LIST : MAP;
            width = head & 1 ? 4 : 2;
        } else
            return false; /* 0xc1, and extensions */
        if (width > left)
            return false;
        v->size = (size_t)big_endian(*p, width);
        *p += width;
        left -= width;
    }
    v->data = *p;
    v->end = end;
    if (v->kind == LIST || v->kind == MAP)
        return v->size <= MOST_ITEMS && v->size <= left;
    if (v->size > left || (v->kind == TEXT && !is_utf8(*p, v->size)))
        return false;
    *p += v->size;
    return true;
}

/* Look at a value and all that is in it; moves *p behind it. */
static bool check_value(const uint8_t **p, const uint8_t *end, int depth) {
    value v;
    if (!read_value(p, end, &v))
        return false;
    if (v.kind != LIST && v.kind != MAP)
        return true;
    if (depth > MOST_DEPTH)
        return false;
    for (size_t i = 0; i < v.size; i++) {
        value key;
        if (v.kind == MAP && (!read_value(p, end, &key) || key.kind != TEXT))
            return false;
        if (!check_value(p, end, depth + 1))
            return false;
    }
    return true;
}

/* Whether a body is one msgpack map as the protocol has it. */
static bool check_body(const uint8_t *body, size_t size, value *map) {
    const uint8_t *p = body, *end = body + size;
    if (!check_value(&p, end, 1) || p != end)
        return false;
    p = body;
    return read_value(&p, end, map) && map->kind == MAP;
}

/* The next item of a list or map that was checked. */
static value next_item(const uint8_t **p, const value *in) {
    value v;
    read_value(p, in->end, &v);
    return v;
}

static void skip_items(const uint8_t **p, const value *v) {
    if (v->kind != LIST && v->kind != MAP)
        return;
    for (size_t i = 0; i < v->size * (v->kind == MAP ? 2 : 1); i++) {
        value item = next_item(p, v);
        skip_items(p, &item);
    }
}

/* The value of a key; NIL if it is not there, or `map` is no map. */
static value get(const value *map, const char *key) {
    if (map->kind != MAP)
        return nothing();
    const uint8_t *p = map->data;
    for (size_t i = 0; i < map->size; i++) {
        value name = next_item(&p, map), v = next_item(&p, map);
        if (name.size == strlen(key) && memcmp(name.data, key, name.size) == 0)
            return v;
        skip_items(&p, &v);
    }
    return nothing();
}

static bool says(const value *v, const char *text) {
    return v->kind == TEXT && v->size == strlen(text) && memcmp(v->data, text, v->size) == 0;
}

/* The text of a value, or "", cut to whole characters that fit. */
static void copy_text(char *to, size_t room, value v) {
    size_t n = v.kind == TEXT ? v.size : 0;
    if (n >= room) {
        n = room - 1;
        while (n > 0 && (v.data[n] & 0xc0) == 0x80)
            n--;
    }
    if (n > 0)
        memcpy(to, v.data, n);
    to[n] = 0;
}

static int64_t number_or(value v, int64_t otherwise) { return v.kind == INT ? v.number : otherwise; }

/* ---- the connection ---------------------------------------------------------------------------------------------- */

struct llmaas {
    int fd;      /* -1: not connected */
    int wake[2]; /* a pipe: a byte in it interrupts the call that runs */
    char path[sizeof ((struct sockaddr_un *)0)->sun_path];
    char *app, *token; /* NULL: none */
    uint32_t daemon_uid;
    int timeout_ms, retry_ms;
    size_t max_frame;
    uint64_t last_id;
    uint64_t cancel_id; /* of the last cancel, whose own reply may come at any time */
    bytes in;    /* what came and was not read yet */
    size_t done; /* bytes at the beginning of `in` that were read */
    llmaas_server server;
    bool wants_slot;
#ifdef LLMAAS_SLOTS
    slot_end slot; /* its base is NULL if there is none */
    uint64_t slot_size;
    bool hung_up; /* the daemon has closed the socket: what it wrote before is in the slot */
#endif
};

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void hang_up(llmaas *c) {
#ifdef LLMAAS_SLOTS
    if (c->slot.base != NULL)
        slots_unmap(c->slot.base, c->slot_size);
    c->slot.base = NULL;
#endif
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->in.size = c->done = 0;
}

#define SERVE "Start the daemon with 'llmaas serve', or give its socket."

static int lost(llmaas *c, llmaas_error *error, const char *why) {
    hang_up(c);
    return fail(error, LLMAAS_MACHINE, "not_serving", SERVE, "the connection to the daemon at %s was lost: %s", c->path,
                why);
}

#ifdef LLMAAS_SLOTS
/* What the socket's calls would return: nothing was done is EAGAIN. */
static ssize_t slot_result(llmaas *c, int64_t n) {
    if (c->slot.bell) { /* a full socket has bells that were not heard yet */
        c->slot.bell = 0;
        ssize_t rung = send(c->fd, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        (void)rung;
    }
    if (n > 0)
        return (ssize_t)n;
    errno = n == 0 ? EAGAIN : EPROTO;
    return -1;
}

/* Look for a moment, then say that this side sleeps until a bell comes by the socket: whether it may. */
static bool may_sleep(llmaas *c, int wants) {
    if (slots_may_look(&c->slot)) {
        int found = slots_spin(&c->slot, wants, SLOT_SPIN_NS);
        slots_looked(&c->slot, found);
        if (found)
            return false;
    }
    return slots_sleep(&c->slot, wants) == 0;
}

/* A bell has come, or the end. */
static void hear_bells(llmaas *c) {
    char bells[256];
    ssize_t n;
    while ((n = recv(c->fd, bells, sizeof bells, MSG_DONTWAIT)) > 0)
        ;
    c->hung_up |= n == 0 || (errno != EAGAIN && errno != EINTR);
}
#endif

/* Wait until the connection can be used. 1: it can. 0: the time is up. 2: the call was interrupted. -1: failed. */
static int wait_for(llmaas *c, short events, int64_t late, bool interruptible) {
    for (;;) {
#ifdef LLMAAS_SLOTS
        bool by_slot = c->slot.base != NULL;
        if (by_slot && (c->hung_up || !may_sleep(c, events == POLLIN ? READABLE : ROOM)))
            return 1;
        short socket_events = by_slot ? POLLIN : events; /* a bell */
#else
        short socket_events = events;
#endif
        int64_t left = late < 0 ? -1 : late - now_ms();
        struct pollfd on[2] = {{c->fd, socket_events, 0}, {c->wake[0], POLLIN, 0}};
        int n = poll(on, interruptible ? 2 : 1, late < 0 ? -1 : left > 0 ? (int)left : 0);
        if (n < 0 && errno != EINTR)
            return -1;
#ifdef LLMAAS_SLOTS
        if (by_slot)
            slots_awake(&c->slot);
        if (by_slot && n > 0 && on[0].revents)
            hear_bells(c);
#endif
        if (n > 0 && interruptible && on[1].revents) {
            char byte[64];
            while (read(c->wake[0], byte, sizeof byte) > 0)
                ;
            return 2;
        }
        if (n > 0)
            return 1;
        if (late >= 0 && now_ms() >= late)
            return 0;
    }
}

#ifdef LLMAAS_SLOTS
/* As slot_result, if nothing could be done: whether anything ever can. Who only tried again would do so for ever. */
static ssize_t slot_idle(llmaas *c, int wants) {
    int found = slots_ready(&c->slot, wants);
    if (found == BROKEN)
        return slot_result(c, BROKEN);
    return c->hung_up || found == ENDED ? (errno = EPIPE, -1) : slot_result(c, 0);
}
#endif

/* Send and receive as send(2) and recv(2) that do not wait. */
static ssize_t put_bytes(llmaas *c, const uint8_t *data, size_t size) {
#ifdef LLMAAS_SLOTS
    if (c->slot.base != NULL) {
        int64_t n = c->hung_up ? 0 : slots_write(&c->slot, data, size);
        return n == 0 ? slot_idle(c, ROOM) : slot_result(c, n);
    }
#endif
    return send(c->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static ssize_t get_bytes(llmaas *c, uint8_t *data, size_t size) {
#ifdef LLMAAS_SLOTS
    if (c->slot.base != NULL) {
        int64_t n = slots_read(&c->slot, data, size);
        ssize_t found = n == 0 ? slot_idle(c, READABLE) : slot_result(c, n);
        return found < 0 && errno == EPIPE ? 0 : found;
    }
#endif
    return recv(c->fd, data, size, MSG_DONTWAIT);
}

static int send_all(llmaas *c, const bytes *data, llmaas_error *error) {
    int64_t late = now_ms() + c->timeout_ms;
    for (size_t at = 0; at < data->size;) {
        ssize_t n = put_bytes(c, data->data + at, data->size - at);
        if (n >= 0)
            at += (size_t)n;
        else if (errno == EAGAIN || errno == EINTR) {
            if (wait_for(c, POLLOUT, late, false) != 1)
                return lost(c, error, "it takes no bytes");
        } else
            /* The daemon may have said why it hung up: what it sent is read before the loss is told. */
            return shutdown(c->fd, SHUT_WR), 0;
    }
    return 0;
}

/* Read one frame. `late`: until when; -1: as long as it takes. 0: `map` is its body, which holds until the next call.
 * 2: interrupted. -1: failed, and the connection is closed. */
static int receive(llmaas *c, int64_t late, value *map, llmaas_error *error) {
    bytes *in = &c->in;
    if (c->done > 0) {
        memmove(in->data, in->data + c->done, in->size - c->done);
        in->size -= c->done;
        c->done = 0;
    }
    for (;;) {
        if (in->size >= 4) {
            size_t size = (size_t)big_endian(in->data, 4);
            if (size > c->max_frame) {
                hang_up(c);
                return fail(error, LLMAAS_CALLER, "frame_too_large", "Use a client that suits the daemon.",
                            "the daemon announced a frame of %zu bytes; at most %zu are read", size, c->max_frame);
            }
            if (in->size - 4 >= size) {
                c->done = 4 + size;
                if (check_body(in->data + 4, size, map))
                    return 0;
                hang_up(c);
                return malformed(error, "a frame is no msgpack map");
            }
        }
        int ready = wait_for(c, POLLIN, late, late < 0);
        if (ready == 2)
            return 2;
        if (ready != 1)
            return lost(c, error, ready == 0 ? "it does not answer in time" : strerror(errno));
        if (!grow(in, 65536)) {
            hang_up(c);
            in->failed = false;
            return out_of_memory(error);
        }
        ssize_t n = get_bytes(c, in->data + in->size, 65536);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (n <= 0)
            return lost(c, error, n == 0 ? "it was closed" : strerror(errno));
        in->size += (size_t)n;
    }
}

/* The error of a failed reply. */
static int error_from(const value *map, llmaas_error *error) {
    llmaas_error found;
    memset(&found, 0, sizeof found);
    copy_text(found.code, sizeof found.code, get(map, "code"));
    copy_text(found.message, sizeof found.message, get(map, "message"));
    copy_text(found.hint, sizeof found.hint, get(map, "hint"));
    value fault = get(map, "fault"), retryable = get(map, "retryable");
    found.fault = says(&fault, "caller") ? LLMAAS_CALLER : says(&fault, "machine") ? LLMAAS_MACHINE : LLMAAS_SERVICE;
    found.retryable = retryable.kind == BOOL && retryable.number;
    found.n_generated = number_or(get(map, "n_generated"), 0);
    found.n_tokens = number_or(get(map, "n_tokens"), -1);
    if (found.code[0] == 0)
        return malformed(error, "a failure without a code");
    if (error != NULL)
        *error = found;
    return -1;
}

static int refuse_stranger(llmaas *c, llmaas_error *error) {
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
        return lost(c, error, strerror(errno));
    if (peer.uid == geteuid() || peer.uid == 0 || (c->daemon_uid != 0 && peer.uid == c->daemon_uid))
        return 0;
    hang_up(c);
    return fail(error, LLMAAS_MACHINE, "not_trusted",
                "Nothing was sent. If that user is to run the daemon, give it as daemon_uid (LLMAAS_DAEMON_UID).",
                "whoever serves %s runs as user %u, neither as you (user %u) nor as root", c->path, (unsigned)peer.uid,
                (unsigned)geteuid());
}

static int open_socket(llmaas *c, llmaas_error *error) {
    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, c->path, sizeof c->path);
    c->max_frame = FIRST_FRAME;
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        return lost(c, error, strerror(errno));
    struct timeval most = {c->timeout_ms / 1000, (c->timeout_ms % 1000) * 1000}; /* connect(2) heeds it */
    setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) != 0) {
        int why = errno;
        hang_up(c);
        return fail(error, LLMAAS_MACHINE, "not_serving", SERVE, "no daemon serves %s: %s", c->path, strerror(why));
    }
    return refuse_stranger(c, error);
}

#ifdef LLMAAS_SLOTS
static int no_slot(llmaas_error *error, const char *what) {
    return fail(error, LLMAAS_MACHINE, "machine", "Use the socket.", "what the daemon passed is no slot: %s", what);
}

/* Map the slot that came as `fd`, if it is one. */
static int map_slot(llmaas *c, int fd, uint64_t generation, llmaas_error *error) {
    struct stat facts;
    int seals = fcntl(fd, F_GET_SEALS);
    if (fstat(fd, &facts) != 0 || seals < 0 || !(seals & F_SEAL_SHRINK) || facts.st_size <= SLOT_HEADER)
        return no_slot(error, "it may be cut while it is in use");
    uint32_t most = (uint32_t)((facts.st_size - SLOT_HEADER) / 2), header[4]; /* a device's memory may have more */
    unsigned char *base = slots_map(fd, (uint64_t)facts.st_size);
    if (base == NULL)
        return out_of_memory(error);
    memcpy(header, base + 8, sizeof header); /* version, bytes of a ring, generation, owner */
    uint32_t ring = header[1];
    if (memcmp(base, "llmaasSL", 8) != 0 || header[0] != 1 || ring < SLOT_HEADER || ring > most ||
        (ring & (ring - 1)) != 0 || header[2] != (uint32_t)generation) {
        slots_unmap(base, (uint64_t)facts.st_size);
        return no_slot(error, "its header is another's");
    }
    slot_end client = {.base = base, .size = ring, .state = 64, .in_ring = SLOT_HEADER + ring, .in_written = 256,
                       .in_taken = 320, .out_ring = SLOT_HEADER, .out_written = 128, .out_taken = 192,
                       .my_sleep = 384, .its_sleep = 448};
    c->slot = client;
    c->slot_size = (uint64_t)facts.st_size;
    c->hung_up = false;
    return 0;
}

/* Receive the beginning of the reply, and the descriptor with it; -1 if there is none. */
static int receive_descriptor(llmaas *c) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    bytes *in = &c->in;
    if (wait_for(c, POLLIN, now_ms() + c->timeout_ms, false) != 1 || !grow(in, 4096))
        return -1;
    struct iovec part = {in->data + in->size, 4096};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t n = recvmsg(c->fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n > 0)
        in->size += (size_t)n;
    struct cmsghdr *found = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    int fd = -1;
    if (found != NULL && found->cmsg_type == SCM_RIGHTS && found->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(found), sizeof fd);
    return fd;
}

/* Go on by shared memory. Nothing but the hello was sent before. */
static int open_slot(llmaas *c, llmaas_error *error) {
    static const uint8_t request[] = "\0\0\0\x0d\x82\xa2id\0\xa2op\xa4slot";
    bytes frame = {0};
    put(&frame, request, sizeof request - 1);
    int done = frame.failed ? out_of_memory(error) : send_all(c, &frame, error);
    free(frame.data);
    if (done != 0)
        return -1;
    if (c->done > 0) { /* the hello was read */
        memmove(c->in.data, c->in.data + c->done, c->in.size - c->done);
        c->in.size -= c->done;
        c->done = 0;
    }
    int fd = receive_descriptor(c);
    value map;
    done = receive(c, now_ms() + c->timeout_ms, &map, error);
    if (done == 0) {
        value type = get(&map, "type"), result = get(&map, "result");
        if (says(&type, "failed"))
            done = error_from(&map, error);
        else if (fd < 0)
            done = no_slot(error, "there is none");
        else
            done = map_slot(c, fd, (uint64_t)number_or(get(&result, "generation"), -1), error);
    }
    if (fd >= 0)
        close(fd);
    return done;
}
#else
static int open_slot(llmaas *c, llmaas_error *error) {
    (void)c;
    return fail(error, LLMAAS_CALLER, "bad_request", "Compile llmaas.c with LLMAAS_SLOTS, or use the socket.",
                "this library was compiled without slots");
}
#endif

/* Open the connection, and say hello. */
static int connect_now(llmaas *c, llmaas_error *error) {
    if (open_socket(c, error) != 0)
        return -1;
    bytes hello = {0};
    put_number(&hello, 0, 4);
    put_map(&hello, 3u + (c->app != NULL) + (c->token != NULL));
    put_text(&hello, "op"), put_text(&hello, "hello");
    put_text(&hello, "version"), put_int(&hello, PROTOCOL);
    put_text(&hello, "client"), put_text(&hello, "llmaas-c/" LLMAAS_VERSION);
    if (c->app != NULL)
        put_text(&hello, "app"), put_text(&hello, c->app);
    if (c->token != NULL)
        put_text(&hello, "token"), put_text(&hello, c->token);
    int done = hello.failed ? out_of_memory(error) : 0;
    for (int i = 0; done == 0 && i < 4; i++)
        hello.data[i] = (uint8_t)((hello.size - 4) >> (24 - 8 * i));
    value map;
    if (done == 0)
        done = send_all(c, &hello, error);
    free(hello.data);
    if (done == 0)
        done = receive(c, now_ms() + c->timeout_ms, &map, error);
    if (done == 0) {
        value type = get(&map, "type"), limits = get(&map, "limits");
        if (says(&type, "failed"))
            done = error_from(&map, error);
        else if (!says(&type, "hello") || number_or(get(&map, "version"), 0) != PROTOCOL)
            done = fail(error, LLMAAS_CALLER, "version_mismatch", "Upgrade the older one of client and daemon.",
                        "what answers at %s does not speak protocol version %d of llmaas", c->path, PROTOCOL);
        int64_t most = number_or(get(&limits, "max_frame"), FIRST_FRAME);
        c->max_frame = most > 0 && most < MOST_FRAME ? (size_t)most : MOST_FRAME;
        copy_text(c->server.server, sizeof c->server.server, get(&map, "server"));
        copy_text(c->server.model, sizeof c->server.model, get(&map, "model"));
        copy_text(c->server.app, sizeof c->server.app, get(&map, "app"));
    }
    if (done == 0 && c->wants_slot)
        done = open_slot(c, error);
    if (done != 0)
        hang_up(c);
    return done;
}

static void pause_ms(int64_t ms) {
    struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

/* Connect again, until `late`. */
static int reconnect(llmaas *c, int64_t late, llmaas_error *error) {
    hang_up(c);
    for (int64_t pause = 50;; pause = pause < 500 ? 2 * pause : 1000) {
        llmaas_error why;
        if (connect_now(c, &why) == 0)
            return 0;
        bool not_yet = is(&why, "not_serving") || is(&why, "shutting_down") || is(&why, "busy");
        if (!not_yet || now_ms() + pause > late) {
            if (error != NULL)
                *error = why;
            return -1;
        }
        pause_ms(pause);
    }
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* A request without its id, and what has come back. */
typedef struct {
    bytes fields;
    size_t n_fields;
    bool cancellable;
    bool repeatable; /* it may be made again if nobody knows whether it was carried out */
    llmaas_on_piece *on_piece;
    void *data;
    bytes told;      /* the answer so far, of a request that may be made again */
    size_t again;    /* bytes of `told` that were told again since it was made again */
    bool differs;    /* another answer is told again than had begun */
    bool cancelling; /* the caller wants no more */
} request;

static request new_request(const char *op) {
    request r;
    memset(&r, 0, sizeof r);
    put_text(&r.fields, "op");
    put_text(&r.fields, op);
    r.n_fields = 1;
    return r;
}

static void free_request(request *r) {
    free(r->fields.data);
    free(r->told.data);
}

static void field(request *r, const char *name) {
    put_text(&r->fields, name);
    r->n_fields++;
}

static void text_field(request *r, const char *name, const char *text) {
    if (text != NULL)
        field(r, name), put_text(&r->fields, text);
}

static void int_field(request *r, const char *name, int64_t number) {
    if (number >= 0)
        field(r, name), put_int(&r->fields, (uint64_t)number);
}

static void real_field(request *r, const char *name, double number) {
    if (number >= 0)
        field(r, name), put_double(&r->fields, number);
}

static void messages_field(request *r, const llmaas_message *messages, size_t n) {
    if (n == 0)
        return;
    field(r, "messages");
    put_list(&r->fields, n);
    for (size_t i = 0; i < n; i++) {
        put_map(&r->fields, 2);
        put_text(&r->fields, "role"), put_text(&r->fields, messages[i].role);
        put_text(&r->fields, "content"), put_text(&r->fields, messages[i].content);
    }
}

/* A key by which the daemon knows the request again. */
static void key_field(request *r) {
    uint8_t random[16];
    char key[33];
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return; /* then it is not made again */
    for (int i = 0; i < 16; i++)
        snprintf(key + 2 * i, 3, "%02x", random[i]);
    text_field(r, "idempotency_key", key);
    r->repeatable = true;
}

/* The bytes of a frame: the id, and the fields. Free its data. */
static bytes frame_of(uint64_t id, const request *r) {
    bytes frame = {0};
    put_number(&frame, 0, 4);
    put_map(&frame, r->n_fields + 1);
    put_text(&frame, "id"), put_int(&frame, id);
    put(&frame, r->fields.data, r->fields.size);
    frame.failed |= r->fields.failed;
    for (int i = 0; !frame.failed && i < 4; i++)
        frame.data[i] = (uint8_t)((frame.size - 4) >> (24 - 8 * i));
    return frame;
}

static int send_request(llmaas *c, uint64_t id, const request *r, llmaas_error *error) {
    bytes frame = frame_of(id, r);
    int done;
    if (frame.failed)
        done = out_of_memory(error);
    else if (frame.size - 4 > c->max_frame)
        done = fail(error, LLMAAS_CALLER, "frame_too_large", "Send the text in several appends.",
                    "the request has %zu bytes; at most %zu are allowed", frame.size - 4, c->max_frame);
    else
        done = send_all(c, &frame, error);
    free(frame.data);
    return done;
}

/* Pass a piece on. Of an answer that is told again, what is new. */
static int take_piece(request *r, const value *map, llmaas_error *error) {
    value text = get(map, "text");
    if (text.kind != TEXT)
        return malformed(error, "a piece without text");
    size_t known = r->told.size - r->again, skip = text.size < known ? text.size : known;
    if (skip > 0 && memcmp(r->told.data + r->again, text.data, skip) != 0)
        r->differs = true;
    r->again += skip;
    size_t size = text.size - skip;
    if (size == 0 || r->differs || r->on_piece == NULL)
        return 0;
    if (r->told.size + size > MOST_ANSWER)
        return fail(error, LLMAAS_CALLER, "frame_too_large", "Ask for fewer tokens.", "the answer is too long");
    size_t at = r->told.size;
    put(&r->told, text.data + skip, size);
    put_byte(&r->told, 0);
    if (r->told.failed)
        return out_of_memory(error);
    r->again = --r->told.size;
    if (!r->cancelling && r->on_piece(r->data, (const char *)r->told.data + at, size) != 0)
        r->cancelling = true;
    return 0;
}

static int send_cancel(llmaas *c, uint64_t id, uint64_t target, llmaas_error *error) {
    request r = new_request("cancel");
    int_field(&r, "request", (int64_t)target);
    int done = send_request(c, id, &r, error);
    free_request(&r);
    return done;
}

/* Make a request once. 0: `map` is its done. */
static int try_once(llmaas *c, request *r, value *map, llmaas_error *error) {
    uint64_t id = ++c->last_id;
    bool cancel_sent = false;
    r->again = 0;
    if (send_request(c, id, r, error) != 0)
        return -1;
    for (;;) {
        int got = receive(c, -1, map, error);
        if (got < 0)
            return -1;
        if (got == 2) {
            if (!r->cancellable) {
                hang_up(c);
                return fail(error, LLMAAS_CALLER, "cancelled", "Ask again.", "the call was interrupted");
            }
            r->cancelling = true;
        } else {
            value type = get(map, "type"), of = get(map, "id");
            bool failed = says(&type, "failed"), done = says(&type, "done");
            if (failed && of.kind == NIL) {
                error_from(map, error);
                hang_up(c);
                return -1;
            }
            bool ours = of.kind == INT && (uint64_t)of.number == id;
            bool cancels = of.kind == INT && c->cancel_id != 0 && (uint64_t)of.number == c->cancel_id;
            if (!(failed || done || says(&type, "piece")) || !(ours || cancels)) {
                hang_up(c);
                return malformed(error, "a reply to no request");
            }
            if (ours && done)
                return r->differs ? fail(error, LLMAAS_MACHINE, "not_serving", "It is stored: show the context.",
                                         "the answer that was made anew is not the one that had begun")
                                  : 0;
            if (ours && failed)
                return error_from(map, error);
            if (ours && take_piece(r, map, error) != 0) {
                hang_up(c);
                return -1;
            }
        }
        if (r->cancelling && !cancel_sent) {
            cancel_sent = true;
            c->cancel_id = ++c->last_id;
            if (send_cancel(c, c->cancel_id, id, error) != 0)
                return -1;
        }
    }
}

/* Make a request, and again where that can help. */
static int make(llmaas *c, request *r, value *map, llmaas_error *error) {
    llmaas_error why;
    int64_t late = now_ms() + c->retry_ms, wait = 100;
    for (int tries = 0;;) {
        if (c->fd < 0 && reconnect(c, c->retry_ms ? late : 0, &why) != 0)
            break;
        if (try_once(c, r, map, &why) == 0)
            return 0;
        bool was_lost = is(&why, "not_serving") || is(&why, "shutting_down");
        bool refused = is(&why, "busy") && r->told.size == 0 && why.n_tokens < 0;
        if (was_lost)
            hang_up(c);
        if (c->retry_ms == 0 || r->cancelling || r->differs || !(refused || (was_lost && r->repeatable)))
            break;
        if (was_lost) {
            late = now_ms() + c->retry_ms; /* so long after each loss */
            if (++tries > MOST_TRIES)
                break;
        } else {
            if (now_ms() + wait > late)
                break;
            pause_ms(wait);
            wait = wait < 2500 ? 2 * wait : 5000;
        }
    }
    if (error != NULL)
        *error = why;
    return -1;
}

/* ---- operations -------------------------------------------------------------------------------------------------- */

/* The first place that has a socket: XDG_RUNTIME_DIR, /run/user/UID, /tmp (on Termux TMPDIR). */
static void default_socket(char *path, size_t room) {
    const char *given = getenv("XDG_RUNTIME_DIR"), *tmp = "/tmp";
    unsigned uid = (unsigned)getuid();
    struct stat facts;
    if (given != NULL && given[0] == '/') {
        snprintf(path, room, "%s/llmaas/llmaas.sock", given);
        if (stat(path, &facts) == 0)
            return;
    }
    snprintf(path, room, "/run/user/%u/llmaas/llmaas.sock", uid);
    if (stat(path, &facts) == 0)
        return;
    if (access(tmp, W_OK | X_OK) != 0 && getenv("TMPDIR") != NULL)
        tmp = getenv("TMPDIR");
    snprintf(path, room, "%s/llmaas-%u/llmaas.sock", tmp, uid);
}

static const char *or_variable(const char *given, const char *name) { return given != NULL ? given : getenv(name); }

static int set_up(llmaas *c, const llmaas_options *o, llmaas_error *error) {
    const char *path = or_variable(o->socket, "LLMAAS_SOCKET"), *token = or_variable(o->token, "LLMAAS_TOKEN");
    char found[4096];
    if (path == NULL) {
        default_socket(found, sizeof found);
        path = found;
    }
    if (strlen(path) >= sizeof c->path)
        return fail(error, LLMAAS_CALLER, "bad_request", "Give a shorter path.", "the socket's path has %zu bytes; %zu fit",
                    strlen(path), sizeof c->path - 1);
    memcpy(c->path, path, strlen(path) + 1);
    const char *uid = getenv("LLMAAS_DAEMON_UID");
    c->daemon_uid = o->daemon_uid != 0 || uid == NULL ? o->daemon_uid : (uint32_t)strtoul(uid, NULL, 10);
    c->timeout_ms = o->timeout_ms > 0 ? o->timeout_ms : TIMEOUT_MS;
    c->retry_ms = o->retry_ms > 0 ? o->retry_ms : 0;
    c->wants_slot = o->transport != NULL && strcmp(o->transport, "slots") == 0;
    if (!c->wants_slot && o->transport != NULL && strcmp(o->transport, "socket") != 0)
        return fail(error, LLMAAS_CALLER, "bad_request", "Give NULL, \"socket\" or \"slots\".", "there is no transport %s",
                    o->transport);
    bool has_token = token != NULL && token[0] != 0;
    const char *app = o->app != NULL ? o->app : has_token ? NULL : "c";
    c->token = has_token ? strdup(token) : NULL;
    c->app = app != NULL ? strdup(app) : NULL;
    if ((has_token && c->token == NULL) || (app != NULL && c->app == NULL))
        return out_of_memory(error);
    if (pipe2(c->wake, O_CLOEXEC | O_NONBLOCK) != 0) {
        c->wake[0] = c->wake[1] = -1;
        return fail(error, LLMAAS_MACHINE, "machine", "Close files that are not needed.", "no pipe can be made: %s",
                    strerror(errno));
    }
    return 0;
}

llmaas *llmaas_connect(const llmaas_options *options, llmaas_error *error) {
    static const llmaas_options none;
    llmaas *c = calloc(1, sizeof *c);
    if (c == NULL) {
        out_of_memory(error);
        return NULL;
    }
    c->fd = c->wake[0] = c->wake[1] = -1;
    int done = set_up(c, options != NULL ? options : &none, error);
    if (done == 0)
        done = c->retry_ms ? reconnect(c, now_ms() + c->retry_ms, error) : connect_now(c, error);
    if (done == 0)
        return c;
    llmaas_close(c);
    return NULL;
}

void llmaas_close(llmaas *c) {
    if (c == NULL)
        return;
    hang_up(c);
    for (int i = 0; i < 2; i++)
        if (c->wake[i] >= 0)
            close(c->wake[i]);
    free(c->in.data);
    free(c->app);
    free(c->token);
    free(c);
}

const llmaas_server *llmaas_hello(const llmaas *c) { return &c->server; }

void llmaas_interrupt(llmaas *c) {
    int kept = errno;
    ssize_t written = write(c->wake[1], "", 1);
    (void)written; /* if the pipe is full it is interrupted already */
    errno = kept;
}

/* Make a request whose result does not matter. */
static int make_only(llmaas *c, request *r, llmaas_error *error) {
    value map;
    int done = make(c, r, &map, error);
    free_request(r);
    return done;
}

int llmaas_create(llmaas *c, const char *name, const char *system, llmaas_error *error) {
    request r = new_request("create");
    text_field(&r, "name", name);
    text_field(&r, "system", system);
    field(&r, "exist_ok"), put_bool(&r.fields, true);
    r.repeatable = true;
    return make_only(c, &r, error);
}

int llmaas_hint(llmaas *c, const char *context, llmaas_error *error) {
    request r = new_request("hint");
    text_field(&r, "context", context);
    r.repeatable = true;
    return make_only(c, &r, error);
}

int llmaas_delete(llmaas *c, const char *context, llmaas_error *error) {
    request r = new_request("delete");
    text_field(&r, "context", context);
    return make_only(c, &r, error);
}

int llmaas_ping(llmaas *c, llmaas_error *error) {
    request r = new_request("ping");
    r.repeatable = true;
    return make_only(c, &r, error);
}

/* Make an append or a generate, and read how it ended. */
static int make_call(llmaas *c, request *r, llmaas_done *done, llmaas_error *error) {
    value map;
    r->cancellable = true;
    if (c->retry_ms)
        key_field(r);
    int failed = make(c, r, &map, error);
    if (failed == 0 && done != NULL) {
        value result = get(&map, "result");
        memset(done, 0, sizeof *done);
        copy_text(done->context, sizeof done->context, get(&result, "context"));
        copy_text(done->reason, sizeof done->reason, get(&result, "reason"));
        done->n_tokens = number_or(get(&result, "n_tokens"), 0);
        done->n_prompt = number_or(get(&result, "n_prompt"), 0);
        done->n_generated = number_or(get(&result, "n_generated"), 0);
        done->ttft_ms = get(&result, "ttft_ms").real;
        done->decode_tps = get(&result, "decode_tps").real;
    }
    free_request(r);
    return failed;
}

int llmaas_append(llmaas *c, const char *context, const llmaas_message *messages, size_t n, llmaas_done *done,
                  llmaas_error *error) {
    request r = new_request("append");
    text_field(&r, "context", context);
    messages_field(&r, messages, n);
    return make_call(c, &r, done, error);
}

int llmaas_generate(llmaas *c, const char *context, const llmaas_generation *g, llmaas_on_piece *on_piece, void *data,
                    llmaas_done *done, llmaas_error *error) {
    request r = new_request("generate");
    text_field(&r, "context", context);
    messages_field(&r, g->messages, g->n_messages);
    int_field(&r, "max_tokens", g->max_tokens);
    real_field(&r, "temperature", g->temperature);
    int_field(&r, "top_k", g->top_k);
    real_field(&r, "top_p", g->top_p);
    real_field(&r, "min_p", g->min_p);
    int_field(&r, "seed", g->seed);
    if (g->n_stop > 0) {
        field(&r, "stop");
        put_list(&r.fields, g->n_stop);
        for (size_t i = 0; i < g->n_stop; i++)
            put_text(&r.fields, g->stop[i]);
    }
    text_field(&r, "grammar", g->grammar);
    text_field(&r, "json_schema", g->json_schema);
    int_field(&r, "priority", g->priority);
    real_field(&r, "deadline_s", g->deadline_s);
    text_field(&r, "on_full", g->on_full);
    r.on_piece = on_piece;
    r.data = data;
    return make_call(c, &r, done, error);
}

/* Takes the result of one page; not 0: no more pages are wanted. */
typedef int on_page(void *told, const value *result);

/* Make a request whose result comes in pages. */
static int make_pages(llmaas *c, const char *op, const char *context, on_page *take, void *told, llmaas_error *error) {
    char after[1024] = "";
    for (;;) {
        value map, next, result;
        request r = new_request(op);
        text_field(&r, "context", context);
        text_field(&r, "after", after[0] ? after : NULL);
        r.repeatable = true;
        int done = make(c, &r, &map, error);
        free_request(&r);
        if (done != 0)
            return done;
        next = get(&map, "next"), result = get(&map, "result");
        if (next.kind == TEXT && (next.size == 0 || next.size >= sizeof after))
            return malformed(error, "a page whose next one has no usable name");
        if (take(told, &result) != 0 || next.kind != TEXT)
            return 0;
        copy_text(after, sizeof after, next);
    }
}

struct messages {
    llmaas_on_message *tell;
    void *data;
};

static int take_messages(void *data, const value *result) {
    struct messages *m = data;
    value list = get(result, "messages"), continues = get(result, "continues");
    const uint8_t *p = list.data;
    for (size_t i = 0; list.kind == LIST && i < list.size; i++) {
        value message = next_item(&p, &list), text = get(&message, "content");
        skip_items(&p, &message);
        char role[260];
        copy_text(role, sizeof role, get(&message, "role"));
        /* The text is copied, since no NUL is behind it where it stands. */
        bytes copy = {0};
        put(&copy, text.data, text.kind == TEXT ? text.size : 0);
        put_byte(&copy, 0);
        if (copy.failed) {
            free(copy.data);
            return 1;
        }
        int stop = m->tell(m->data, role, (const char *)copy.data, copy.size - 1, i == 0 && continues.number != 0);
        free(copy.data);
        if (stop != 0)
            return stop;
    }
    return 0;
}

int llmaas_show(llmaas *c, const char *context, llmaas_on_message *on_message, void *data, llmaas_error *error) {
    struct messages told = {on_message, data};
    return make_pages(c, "show", context, take_messages, &told, error);
}

struct contexts {
    llmaas_on_context *tell;
    void *data;
};

static int take_contexts(void *data, const value *list) {
    struct contexts *told = data;
    const uint8_t *p = list->data;
    for (size_t i = 0; list->kind == LIST && i < list->size; i++) {
        value info = next_item(&p, list);
        skip_items(&p, &info);
        char name[1024], id[64];
        copy_text(name, sizeof name, get(&info, "name"));
        copy_text(id, sizeof id, get(&info, "id"));
        int stop = told->tell(told->data, name, id, number_or(get(&info, "n_tokens"), 0));
        if (stop != 0)
            return stop;
    }
    return 0;
}

int llmaas_list(llmaas *c, llmaas_on_context *on_context, void *data, llmaas_error *error) {
    struct contexts told = {on_context, data};
    return make_pages(c, "list", NULL, take_contexts, &told, error);
}
