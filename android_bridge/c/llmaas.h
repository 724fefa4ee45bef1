/* llmaas.h: a blocking client of the llmaas daemon for C programs, without dependencies. Linux and Android.
 *
 * Add llmaas.c to your program, or install both (see README.md). The protocol is docs/protocol.md of llmaas.
 *
 * A client is for one thread at a time; llmaas_interrupt alone may be called from other threads and from signal
 * handlers. Every function that returns int returns 0 if all went well; else it returns -1 and fills in `error`, which
 * may be NULL. All text is UTF-8.
 */
#ifndef LLMAAS_H
#define LLMAAS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LLMAAS_VERSION "0.1.0"

typedef struct llmaas llmaas;

/* Whose fault an error is. */
enum llmaas_fault { LLMAAS_CALLER, LLMAAS_SERVICE, LLMAAS_MACHINE };

/* What went wrong. Programs go by `code` (docs/protocol.md lists them); people read `message` and `hint`. */
typedef struct {
    char code[32];
    char message[512];
    char hint[512];
    enum llmaas_fault fault;
    int retryable;       /* whether the same request may succeed later */
    int64_t n_generated; /* tokens of an answer that were kept */
    int64_t n_tokens;    /* tokens of the context now; -1: it was not said */
} llmaas_error;

/* Where to connect, and as whom. {0} is good: everything by default. */
typedef struct {
    const char *socket;  /* NULL: the variable LLMAAS_SOCKET, else where the daemon serves by default */
    const char *app;     /* the app that contexts belong to. NULL: the token's app; without a token "c" */
    const char *token;   /* the app's token. NULL: the variable LLMAAS_TOKEN; "": none */
    uint32_t daemon_uid; /* user whose daemon is accepted, besides this user's and root's */
    int timeout_ms;      /* of connecting and sending; 0: 10000. An answer may take as long as it takes */
    int retry_ms;        /* how long to try again after a loss or a refusal as busy; 0: not at all */
    const char *transport; /* NULL or "socket"; "slots": shared memory, if llmaas.c was compiled with LLMAAS_SLOTS */
} llmaas_options;

/* What the daemon said of itself. Texts that are longer are cut. */
typedef struct {
    char server[64]; /* "llmaas/0.1.0" */
    char model[256]; /* the name that its makers gave the model */
    char app[128];   /* which app this connection is: "1000/mail" */
} llmaas_server;

typedef struct {
    const char *role; /* "user", "assistant", "system", ... */
    const char *content;
} llmaas_message;

/* What is added to a context, and how the answer is drawn. Begin with LLMAAS_GENERATION; what is negative or NULL is
 * not sent, so that the daemon's default holds. */
typedef struct {
    const llmaas_message *messages;
    size_t n_messages;
    int64_t max_tokens;
    double temperature;
    int64_t top_k;
    double top_p;
    double min_p;
    int64_t seed;
    const char *const *stop;
    size_t n_stop;
    const char *grammar;     /* GBNF */
    const char *json_schema; /* in place of a grammar */
    int64_t priority;        /* 0, the most urgent, to 9 */
    double deadline_s;
    const char *on_full; /* "error" or "shift" */
} llmaas_generation;

#define LLMAAS_GENERATION                                                                                              \
    {NULL, 0, -1, -1, -1, -1, -1, -1, NULL, 0, NULL, NULL, -1, -1, NULL}

/* How an answer, or an append, ended. */
typedef struct {
    char context[32]; /* its id */
    char reason[24];  /* "stop", "length", "context_full", "appended" */
    int64_t n_tokens; /* of the context now */
    int64_t n_prompt;
    int64_t n_generated;
    double ttft_ms;
    double decode_tps;
} llmaas_done;

/* Takes a piece of an answer: whole characters, `size` bytes and a NUL behind them. To return something else than 0
 * cancels the answer. It must not use the client. */
typedef int llmaas_on_piece(void *data, const char *text, size_t size);
/* Takes a message of a context. A long one may come in several calls: with `continues` the text belongs to the message
 * of the call before. */
typedef int llmaas_on_message(void *data, const char *role, const char *text, size_t size, int continues);
/* Takes a context: its name, id, and how many tokens it has. */
typedef int llmaas_on_context(void *data, const char *name, const char *id, int64_t n_tokens);

/* Connect. NULL if that failed. Nothing is sent to a daemon of another user (`not_trusted`). */
llmaas *llmaas_connect(const llmaas_options *options, llmaas_error *error);
/* Close the connection, and free the client; NULL is fine. What still runs is cancelled. */
void llmaas_close(llmaas *client);
const llmaas_server *llmaas_hello(const llmaas *client);

/* The context of this name; it is made, with this system message (or NULL), if there is none. */
int llmaas_create(llmaas *client, const char *name, const char *system, llmaas_error *error);
/* Add messages without an answer. */
int llmaas_append(llmaas *client, const char *context, const llmaas_message *messages, size_t n, llmaas_done *done,
                  llmaas_error *error);
/* Add messages, if there are any, and stream the answer to `on_piece`. If that cancels it, the error is "cancelled".
 * `done` may be NULL. */
int llmaas_generate(llmaas *client, const char *context, const llmaas_generation *generation, llmaas_on_piece *on_piece,
                    void *data, llmaas_done *done, llmaas_error *error);
/* End the call that runs, with the error "cancelled", or the next one. For other threads and signal handlers. */
void llmaas_interrupt(llmaas *client);

/* Tell all messages of a context. If a function returns something else than 0, no more are told. */
int llmaas_show(llmaas *client, const char *context, llmaas_on_message *on_message, void *data, llmaas_error *error);
/* Tell all contexts of the app. */
int llmaas_list(llmaas *client, llmaas_on_context *on_context, void *data, llmaas_error *error);
/* Say that a context will be used soon. */
int llmaas_hint(llmaas *client, const char *context, llmaas_error *error);
int llmaas_delete(llmaas *client, const char *context, llmaas_error *error);
int llmaas_ping(llmaas *client, llmaas_error *error);

#ifdef __cplusplus
}
#endif
#endif
