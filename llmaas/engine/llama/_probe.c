/* A callback for llama.cpp's graph (llama_context_params.cb_eval) that copies the queries of chosen tokens out.
 *
 * Law: switched off, it says no to every node at once, and the graph runs in one go as if there were no callback.
 * No allocation, no Python, no ggml headers: engine/llama/query_probe.py gives it the four functions of ggml that it needs.
 *
 * ggml asks once for each node of a ubatch's graph, in order, whether the callback wants to see it (ask), computes up
 * to one that it wants, and shows it. A batch's ubatches come one after the other and keep the order of its tokens.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    int32_t on;
    int32_t layers;
    int64_t row;           /* floats of one token's queries in one layer */
    int64_t wanted;        /* tokens to copy */
    const int32_t *tokens; /* [wanted] their places in the batch, ascending */
    float *out;            /* [wanted][layers][row] */
    int64_t *passed;       /* [layers] tokens of the batch whose queries went by; below zero: not as expected */
    const char *(*name)(const void *tensor);
    const char *(*operation)(const void *tensor);
    size_t (*bytes)(const void *tensor);
    void (*get)(const void *tensor, void *to, size_t offset, size_t bytes);
} Probe;

/* The layer whose queries, after RoPE, the node is; -1 for every other node. */
static int32_t layer_of(const Probe *p, const void *tensor) {
    const char *digits = p->name(tensor);
    int32_t layer = 0;
    if (strncmp(digits, "Qcur-", 5) != 0) return -1;
    digits += 5;
    do {
        if (*digits < '0' || *digits > '9') return -1;
        layer = 10 * layer + (*digits - '0');
        if (layer >= p->layers) return -1;
    } while (*++digits);
    /* The name is given again at every stage from the product with the weights on. */
    return strcmp(p->operation(tensor), "ROPE") == 0 ? layer : -1;
}

/* The wanted tokens before place `end` of the batch. */
static int64_t wanted_before(const Probe *p, int64_t end) {
    int64_t n = 0;
    while (n < p->wanted && p->tokens[n] < end) n++;
    return n;
}

static bool probe_eval(const void *tensor, bool ask, void *user) {
    Probe *p = user;
    if (!p->on) return !ask;
    const int32_t layer = layer_of(p, tensor);
    if (layer < 0) return !ask;

    const size_t row = (size_t)p->row * sizeof(float), bytes = p->bytes(tensor);
    const int64_t begin = p->passed[layer], end = begin + (int64_t)(bytes / row);
    if (begin < 0 || bytes % row != 0) {
        p->passed[layer] = -1;
        return !ask;
    }
    const int64_t first = wanted_before(p, begin), last = wanted_before(p, end);
    if (ask && first < last) return true;
    p->passed[layer] = end;
    if (ask) return false;
    for (int64_t i = first; i < last; i++)
        p->get(tensor, p->out + (i * p->layers + layer) * p->row, (size_t)(p->tokens[i] - begin) * row, row);
    return true;
}

/* Changes with every change of Probe. */
EXPORT int probe_version(void) { return 1; }

EXPORT intptr_t probe_callback(void) { return (intptr_t)probe_eval; }
