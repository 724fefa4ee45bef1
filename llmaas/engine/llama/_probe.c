/* A callback for llama.cpp's graph (llama_context_params.cb_eval) that copies the queries of chosen tokens out.
 *
 * Law: switched off, it says no to every node at once, and the graph runs in one go as if there were no callback.
 * No allocation, no Python, no ggml headers: engine/llama/query_probe.py gives it the four functions of ggml that it
 * needs.
 *
 * ggml asks once for each node of a ubatch's graph, in order, whether the callback wants to see it (ask). It computes
 * the graph up to a node that is wanted, and calls again to show it. A batch's ubatches come one after the other and
 * keep the order of its tokens.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

#define UNEXPECTED (-1) /* in Probe.passed: the layer's queries are not as they are in other models */

typedef struct {
    int32_t on;
    int32_t layers;
    int64_t row;           /* floats of one token's queries in one layer */
    int64_t wanted;        /* tokens to copy */
    const int32_t *tokens; /* [wanted] their places in the batch, ascending */
    float *out;            /* [wanted][layers][row] */
    int64_t *passed;       /* [layers] tokens of the batch whose queries went by, or UNEXPECTED */
    const char *(*name)(const void *tensor);
    const char *(*operation)(const void *tensor);
    size_t (*bytes)(const void *tensor);
    void (*get)(const void *tensor, void *to, size_t offset, size_t bytes);
} Probe;

/* Whether the node holds the queries of a layer, after RoPE; if so, which layer's. */
static bool is_query(const Probe *p, const void *tensor, int32_t *layer) {
    const char *digits = p->name(tensor);
    int32_t number = 0;
    if (strncmp(digits, "Qcur-", 5) != 0) return false;
    digits += 5;
    do {
        if (*digits < '0' || *digits > '9') return false;
        number = 10 * number + (*digits - '0');
        if (number >= p->layers) return false;
    } while (*++digits);
    *layer = number;
    /* Every stage has this name, from the product with the weights on. */
    return strcmp(p->operation(tensor), "ROPE") == 0;
}

/* How many wanted tokens come before place `end` of the batch. */
static int64_t wanted_before(const Probe *p, int64_t end) {
    int64_t n = 0;
    while (n < p->wanted && p->tokens[n] < end) n++;
    return n;
}

/* Asked, the answer is whether to show the node. Shown a node, it is whether to go on: always. */
static bool probe_eval(const void *tensor, bool ask, void *user) {
    Probe *p = user;
    int32_t layer;
    if (!p->on || !is_query(p, tensor, &layer)) return !ask;

    const size_t row = (size_t)p->row * sizeof(float), bytes = p->bytes(tensor);
    const int64_t begin = p->passed[layer], end = begin + (int64_t)(bytes / row);
    if (begin == UNEXPECTED || bytes % row != 0) {
        p->passed[layer] = UNEXPECTED;
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
