/* c-chat: a chat that is still there tomorrow. Each line of stdin is a question; Ctrl-C ends an answer, Ctrl-D the chat.
 *
 *     c-chat [CONTEXT]
 */
#define _POSIX_C_SOURCE 200809L
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmaas.h"

static llmaas *client;
static volatile sig_atomic_t answering;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    if (!answering)
        _exit(130);
    llmaas_interrupt(client);
}

static int print_piece(void *data, const char *text, size_t size) {
    (void)data;
    fwrite(text, 1, size, stdout);
    return fflush(stdout); /* not 0 ends the answer: nobody reads it any more */
}

static int print_error(const llmaas_error *error) {
    fprintf(stderr, "c-chat: %s: %s\n        %s\n", error->code, error->message, error->hint);
    return 1;
}

static int chat(const char *name) {
    llmaas_error error;
    char *line = NULL;
    size_t room = 0;
    if (llmaas_create(client, name, "You are brief.", &error) != 0)
        return print_error(&error);
    while (getline(&line, &room, stdin) > 0) {
        llmaas_message question = {"user", line};
        llmaas_generation generation = LLMAAS_GENERATION;
        line[strcspn(line, "\n")] = 0;
        if (line[0] == 0)
            continue;
        generation.messages = &question;
        generation.n_messages = 1;
        generation.max_tokens = 256;
        generation.temperature = 0.7;
        answering = 1;
        int failed = llmaas_generate(client, name, &generation, print_piece, NULL, NULL, &error);
        answering = 0;
        if (!failed)
            puts("");
        else if (strcmp(error.code, "cancelled") == 0)
            puts(" [cancelled]");
        else {
            free(line);
            return print_error(&error);
        }
        fflush(stdout);
    }
    free(line);
    return 0;
}

int main(int argc, char **argv) {
    llmaas_options options = {.app = "c-chat", .retry_ms = 10000};
    llmaas_error error;
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    client = llmaas_connect(&options, &error);
    if (client == NULL)
        return print_error(&error);
    sigaction(SIGINT, &action, NULL);
    fprintf(stderr, "%s, app %s\n", llmaas_hello(client)->model, llmaas_hello(client)->app);
    int code = chat(argc > 1 ? argv[1] : "chat");
    llmaas_close(client);
    return code;
}
