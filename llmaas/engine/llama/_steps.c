/* Decode steps in a row: llama_decode, a draw per sequence, and the drawn tokens into the next batch.
 *
 * Law: the same calls in the same order as one step after another from Python. No allocation, no Python, no headers of
 * llama.cpp: engine/llama/decode_run.py gives it the functions that it needs and checks the sizes of what is shared.
 *
 * A step streams all weights through the caches, so Python code between two steps finds nothing in them: 5 us of
 * bytecode take 100.
 */
#define _POSIX_C_SOURCE 199309L
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct { /* llama_batch */
    int32_t n_tokens;
    int32_t *token;
    float *embd;
    int32_t *pos;
    int32_t *n_seq_id;
    int32_t **seq_id;
    int8_t *logits;
} Batch;

typedef struct {
    void *context;
    Batch batch;                   /* one token for each sequence, all of which draw */
    void **samplers;               /* [n_tokens]; NULL: the likeliest token */
    int32_t *drawn;                /* [most][n_tokens] */
    const void *vocab;
    const volatile int32_t *halt;  /* not 0: begin no more steps */
    int32_t *probe;                /* set to 1 before the last of all steps, if not NULL */
    double seconds;                /* begin no step later than this */
    int32_t most;                  /* steps */
    int32_t status;                /* of the last llama_decode, or NO_NUMBERS */
    int32_t last;                  /* the highest token id */
    int32_t (*decode)(void *context, Batch batch);
    int32_t (*sample)(void *sampler, void *context, int32_t index);
    bool (*ends)(const void *vocab, int32_t token); /* whether the token ends an answer */
    const float *(*logits)(void *context, int32_t index);
} Run;

#define NO_NUMBERS (-1000)

#define BLOCK 256 /* logits */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A NaN in what the model computed makes all logits NaN; samplers are not made for that. */
static bool numbers(const Run *run, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        const float *row = run->logits(run->context, i);
        if (!row || row[0] != row[0] || row[run->last] != row[run->last]) return false;
    }
    return true;
}

/* What llama.cpp's greedy sampler selects: the first of the highest logits. That copies them all before it looks at
 * them, which takes a hundredth of a small model's step. n: at least 1. */
EXPORT int32_t steps_likeliest(const float *row, int32_t n) {
    int32_t likeliest = 0;
    for (int32_t at = 0; at < n; at += BLOCK) {
        const int32_t stop = at + BLOCK < n ? at + BLOCK : n;
        int32_t higher = 0; /* counted, since that loop becomes vector code; mostly there are none */
        for (int32_t i = at; i < stop; i++) higher += row[i] > row[likeliest];
        for (int32_t i = at; higher && i < stop; i++)
            if (row[i] > row[likeliest]) likeliest = i;
    }
    return likeliest;
}

/* Returns how many steps were done. A step that fails leaves the batch as it was for it, and its code in status. */
EXPORT int32_t steps_run(Run *run) {
    Batch *batch = &run->batch;
    const int32_t n = batch->n_tokens;
    const double end = now() + run->seconds;
    for (int32_t step = 0; step < run->most;) {
        if (run->probe && step == run->most - 1) *run->probe = 1;
        run->status = run->decode(run->context, *batch);
        if (run->status == 0 && !numbers(run, n)) run->status = NO_NUMBERS;
        if (run->status != 0) return step;
        bool over = false;
        for (int32_t i = 0; i < n; i++) {
            void *sampler = run->samplers[i];
            const int32_t token = sampler ? run->sample(sampler, run->context, i)
                                          : steps_likeliest(run->logits(run->context, i), run->last + 1);
            run->drawn[step * n + i] = batch->token[i] = token;
            batch->pos[i]++;
            over |= run->ends(run->vocab, token);
        }
        step++;
        if (over || *run->halt || now() > end) return step;
    }
    return run->most;
}

/* Changes with every change of Run. */
EXPORT int steps_version(void) { return 4; }

EXPORT int steps_size(void) { return (int)sizeof(Run); }
