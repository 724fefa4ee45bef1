/* Makes the C client do what the lines of stdin say: see ../../conformance/README.md. It is compiled together with the
 * library's source, so that it can show how frames are read. */
#include "../llmaas.c"

static llmaas *client;
static llmaas_options options;

static void print_field(const char *text, size_t size) {
    putchar('\t');
    for (size_t i = 0; i < size; i++) {
        if (text[i] == '\\' || text[i] == '\n' || text[i] == '\t')
            putchar('\\');
        putchar(text[i] == '\n' ? 'n' : text[i] == '\t' ? 't' : text[i]);
    }
}

static void print_text(const char *text) { print_field(text, strlen(text)); }

static void print_number(int64_t number) { printf("\t%lld", (long long)number); }

static void end_line(void) {
    putchar('\n');
    fflush(stdout);
}

static void print_failure(const llmaas_error *error) {
    printf("failed");
    print_text(error->code);
    print_text(error->retryable ? "yes" : "no");
    print_text(error->message);
    print_text(error->hint);
    end_line();
}

static FILE *json;

static void print_json(const value *v, const uint8_t **p);

static void print_json_text(const uint8_t *data, size_t size) {
    fputc('"', json);
    for (size_t i = 0; i < size; i++) {
        if (data[i] == '"' || data[i] == '\\')
            fprintf(json, "\\%c", data[i]);
        else if (data[i] < 0x20)
            fprintf(json, "\\u%04x", data[i]);
        else
            fputc(data[i], json);
    }
    fputc('"', json);
}

static void print_json_items(const value *v, const uint8_t **p) {
    fputc(v->kind == MAP ? '{' : '[', json);
    for (size_t i = 0; i < v->size; i++) {
        if (i > 0)
            fputc(',', json);
        value item = next_item(p, v);
        print_json(&item, p);
        if (v->kind == MAP) {
            fputc(':', json);
            item = next_item(p, v);
            print_json(&item, p);
        }
    }
    fputc(v->kind == MAP ? '}' : ']', json);
}

static void print_json(const value *v, const uint8_t **p) {
    switch (v->kind) {
    case NIL: fprintf(json, "null"); break;
    case BOOL: fprintf(json, v->number ? "true" : "false"); break;
    case INT: fprintf(json, "%lld", (long long)v->number); break;
    case FLOAT: fprintf(json, "%.17g", v->real); break;
    case TEXT: print_json_text(v->data, v->size); break;
    case BIN:
        fprintf(json, "\"bin:");
        for (size_t i = 0; i < v->size; i++)
            fprintf(json, "%02x", v->data[i]);
        fputc('"', json);
        break;
    case LIST:
    case MAP: print_json_items(v, p); break;
    }
}

/* Read a whole frame as `receive` does, from a socket pair that holds its bytes. */
static void decode(const char *hex) {
    size_t n = strlen(hex) / 2;
    int pair[2];
    llmaas c = {0};
    llmaas_error error;
    value map;
    c.max_frame = FIRST_FRAME;
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    uint8_t *all = malloc(n + 1);
    for (size_t i = 0; i < n; i++) {
        unsigned byte;
        sscanf(hex + 2 * i, "%2x", &byte);
        all[i] = (uint8_t)byte;
    }
    if (write(pair[1], all, n) != (ssize_t)n) /* the socket's buffer holds it */
        abort();
    free(all);
    close(pair[1]);
    c.fd = pair[0];
    if (receive(&c, now_ms() + 1000, &map, &error) != 0) {
        print_failure(&error);
    } else {
        const uint8_t *p = map.data;
        char *text;
        size_t size;
        json = open_memstream(&text, &size);
        print_json(&map, &p);
        fclose(json);
        printf("json");
        print_field(text, size);
        end_line();
        free(text);
    }
    hang_up(&c);
    free(c.in.data);
}

static void print_frame(const request *r, uint64_t id) {
    bytes frame = frame_of(id, r);
    printf("frame\t");
    for (size_t i = 0; i < frame.size; i++)
        printf("%02x", frame.data[i]);
    end_line();
    free(frame.data);
}

static void encode(const char *what) {
    llmaas_message messages[] = {{"user", "Gr\u00fc\u00dfe \U0001F600"}};
    if (strcmp(what, "ping") == 0) {
        request r = new_request("ping");
        print_frame(&r, 3);
        free_request(&r);
    } else if (strcmp(what, "create") == 0) {
        request r = new_request("create");
        text_field(&r, "name", "inbox");
        text_field(&r, "system", "You are brief. You sort mails into folders.");
        field(&r, "exist_ok"), put_bool(&r.fields, true);
        print_frame(&r, 300);
        free_request(&r);
    } else {
        request r = new_request("generate");
        text_field(&r, "context", "inbox");
        messages_field(&r, messages, 1);
        int_field(&r, "max_tokens", 70000);
        real_field(&r, "temperature", 0.5);
        print_frame(&r, 5000000000);
        free_request(&r);
    }
}

struct answer {
    bytes text;
    int n_pieces;
    int cancel;
};

static int on_piece(void *data, const char *text, size_t size) {
    struct answer *a = data;
    if (text[size] != 0 || !is_utf8((const uint8_t *)text, size))
        abort();
    put(&a->text, text, size);
    a->n_pieces++;
    return a->cancel;
}

static void generate(const char *name, const char *tokens, const char *grammar, const char *text, int cancel) {
    llmaas_generation g = LLMAAS_GENERATION;
    llmaas_message message = {"user", text};
    struct answer a = {{0}, 0, cancel};
    llmaas_done done;
    llmaas_error error;
    g.messages = &message;
    g.n_messages = 1;
    g.max_tokens = atoi(tokens);
    g.grammar = grammar;
    if (llmaas_generate(client, name, &g, on_piece, &a, &done, &error) == 0) {
        printf("answer");
        print_text(done.reason);
        print_number(done.n_tokens);
        print_number(a.n_pieces);
        print_field((const char *)a.text.data, a.text.size);
        end_line();
    } else if (cancel && is(&error, "cancelled")) {
        printf("cancelled");
        print_field((const char *)a.text.data, a.text.size);
        end_line();
    } else
        print_failure(&error);
    free(a.text.data);
}

static bytes shown;

static int on_message(void *data, const char *role, const char *text, size_t size, int continues) {
    (void)data;
    if (!continues) {
        put(&shown, "\t", 1);
        put(&shown, role, strlen(role));
        put(&shown, "\t", 1);
    }
    for (size_t i = 0; i < size; i++) {
        const char *escaped = text[i] == '\\' ? "\\\\" : text[i] == '\n' ? "\\n" : text[i] == '\t' ? "\\t" : NULL;
        escaped ? put(&shown, escaped, 2) : put(&shown, text + i, 1);
    }
    return 0;
}

static int on_context(void *data, const char *name, const char *id, int64_t n_tokens) {
    (void)data;
    if (strlen(id) != 16 || n_tokens < 0)
        abort();
    put(&shown, "\t", 1);
    put(&shown, name, strlen(name));
    return 0;
}

static void print_shown(const char *what, int failed, const llmaas_error *error) {
    if (failed)
        print_failure(error);
    else {
        printf("%s", what);
        fwrite(shown.data, 1, shown.size, stdout);
        end_line();
    }
    shown.size = 0;
}

static void print_ok(int failed, const llmaas_error *error) {
    if (failed)
        print_failure(error);
    else {
        printf("ok");
        end_line();
    }
}

static void obey(char **word) {
    llmaas_error error;
    if (strcmp(word[0], "decode") == 0) {
        decode(word[1]);
        return;
    }
    if (strcmp(word[0], "encode") == 0) {
        encode(word[1]);
        return;
    }
    if (strcmp(word[0], "to") == 0) {
        static char place[4096];
        llmaas_close(client);
        client = NULL;
        snprintf(place, sizeof place, "%s", word[1]);
        options.socket = place;
        print_ok(0, NULL);
        return;
    }
    if (client == NULL && (client = llmaas_connect(&options, &error)) == NULL) {
        print_failure(&error);
        return;
    }
    if (strcmp(word[0], "hello") == 0) {
        printf("hello");
        print_text(llmaas_hello(client)->model);
        end_line();
    } else if (strcmp(word[0], "create") == 0)
        print_ok(llmaas_create(client, word[1], word[2][0] ? word[2] : NULL, &error), &error);
    else if (strcmp(word[0], "ask") == 0)
        generate(word[1], word[2], NULL, word[3], 0);
    else if (strcmp(word[0], "constrained") == 0)
        generate(word[1], word[2], word[3], word[4], 0);
    else if (strcmp(word[0], "cancel") == 0)
        generate(word[1], "600", NULL, word[2], 1);
    else if (strcmp(word[0], "show") == 0)
        print_shown("messages", llmaas_show(client, word[1], on_message, NULL, &error), &error);
    else if (strcmp(word[0], "list") == 0)
        print_shown("contexts", llmaas_list(client, on_context, NULL, &error), &error);
    else if (strcmp(word[0], "hint") == 0)
        print_ok(llmaas_hint(client, word[1], &error), &error);
    else if (strcmp(word[0], "delete") == 0)
        print_ok(llmaas_delete(client, word[1], &error), &error);
    else
        abort();
}

/* Fields are parted by tabs; "\n", "\t" and "\\" stand for what they stand for in C. */
static int split(char *line, char **word, int most) {
    int n = 0;
    char *to = line;
    word[n++] = line;
    for (char *from = line; *from && *from != '\n'; from++) {
        if (*from == '\t') {
            *to++ = 0;
            if (n == most)
                abort();
            word[n++] = to;
        } else if (*from == '\\') {
            from++;
            *to++ = *from == 'n' ? '\n' : *from == 't' ? '\t' : *from;
        } else
            *to++ = *from;
    }
    *to = 0;
    return n;
}

int main(int argc, char **argv) {
    if (argc != 5)
        return 2;
    options.socket = argv[1];
    options.app = argv[2][0] ? argv[2] : NULL;
    options.token = argv[3];
    options.retry_ms = atoi(argv[4]) * 1000;
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) {
        char *word[8] = {"", "", "", "", "", "", "", ""};
        split(line, word, 8);
        obey(word);
    }
    free(line);
    free(shown.data);
    llmaas_close(client);
    return 0;
}
