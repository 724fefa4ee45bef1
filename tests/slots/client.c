/* A C client by the transport that its second argument says: what it says of everything is compared by the test. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmaas.h"

static llmaas_error error;

static int failed(const char *what) {
    printf("%s: %s: %s\n", what, error.code, error.message);
    return 1;
}

static int on_piece(void *data, const char *text, size_t size) {
    (void)data;
    fwrite(text, 1, size, stdout);
    return 0;
}

static int on_message(void *data, const char *role, const char *text, size_t size, int continues) {
    (void)role, (void)text, (void)continues;
    *(size_t *)data += size;
    return 0;
}

static int cancel(void *data, const char *text, size_t size) {
    (void)data, (void)text, (void)size;
    return 1;
}

int main(int argc, char **argv) {
    llmaas_options options = {.socket = argv[1], .app = "c", .transport = argc > 2 ? argv[2] : NULL};
    llmaas *client = llmaas_connect(&options, &error);
    if (client == NULL)
        return failed("connect");
    if (llmaas_create(client, "inbox", NULL, &error) != 0)
        return failed("create");
    llmaas_message said = {"user", "count 9"};
    llmaas_generation generation = LLMAAS_GENERATION;
    generation.messages = &said;
    generation.n_messages = 1;
    generation.max_tokens = 8;
    if (llmaas_generate(client, "inbox", &generation, on_piece, NULL, NULL, &error) != 0)
        return failed("generate");
    puts("");
    for (int i = 0; i < 3000; i++)
        if (llmaas_ping(client, &error) != 0)
            return failed("ping");
    size_t length = 6000, told = 0; /* larger than the ring */
    char *text = malloc(length + 1);
    memset(text, 'y', length);
    text[length] = 0;
    if (llmaas_create(client, "large", text, &error) != 0)
        return failed("create large");
    if (llmaas_show(client, "large", on_message, &told, &error) != 0)
        return failed("show");
    printf("%zu of %zu bytes\n", told, length);
    said.content = "wait";
    if (llmaas_generate(client, "inbox", &generation, cancel, NULL, NULL, &error) == 0)
        return 1;
    printf("%s\n", error.code);
    llmaas_close(client);
    free(text);
    return 0;
}
