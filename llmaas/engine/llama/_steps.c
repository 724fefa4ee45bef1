/* Decode steps in a row: llama_decode, a draw per sequence, and the drawn tokens into the next batch.
 *
 * Law: the same calls in the same order as one step after another from Python. No allocation, no Python, no headers of
 * llama.cpp: engine/llama/decode_run.py gives it the functions that it needs and checks the sizes of what is shared.
 *
 * A step streams all weights through the caches, so Python code between two steps finds nothing in them: 5 us of
 * bytecode take 100. So what is drawn is written to a pipe meanwhile, in records of whole rows (engine/row_pipe.py).
 */
#define _POSIX_C_SOURCE 200809L
#define _DARWIN_C_SOURCE
#define _FILE_OFFSET_BITS 64
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

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

typedef struct { /* an open file, and what it was like when it was loaded */
    int64_t size, modified_ns, changed_ns;
    int32_t fd;
} Mark;

typedef struct {
    void *context;
    Batch batch;                   /* one token for each sequence, all of which draw */
    void **samplers;               /* [n_tokens]; NULL: the likeliest token */
    int32_t *drawn;                /* [ahead + most][n_tokens]; the first rows were drawn before */
    const void *vocab;
    const volatile int32_t *halt;  /* not 0: begin no more steps */
    int32_t *probe;                /* set to what `sampled` says before each step, if not NULL */
    const uint8_t *sampled;        /* [most] */
    const Mark *marks;             /* [n_marks] nothing is told that was computed with another file */
    int64_t (*faults)(void);       /* how many pages were missing so far; NULL: nobody knows */
    int64_t known_faults;          /* of these nothing is to be feared */
    double seconds;                /* begin no step later than this; while telling: than the next time to tell */
    double first, every;           /* seconds until rows are told, and between two times */
    double since;                  /* seconds since they were told last */
    int32_t pipe;                  /* where rows are told, or -1 */
    int32_t number, before;        /* of the records; rows of this number that were told before */
    int32_t ahead;                 /* rows that were drawn before, and are told with the first */
    int32_t told;                  /* rows that were told, those ahead among them */
    int32_t n_marks;
    int32_t most;                  /* steps */
    int32_t status;                /* of the last llama_decode, or NO_NUMBERS */
    int32_t last;                  /* the highest token id */
    int32_t (*decode)(void *context, Batch batch);
    int32_t (*sample)(void *sampler, void *context, int32_t index);
    bool (*ends)(const void *vocab, int32_t token); /* whether the token ends an answer */
    const float *(*logits)(void *context, int32_t index);
} Run;

#define NO_NUMBERS (-1000)
#define SLOW 2.0 /* a step that took so many times what those before it did ends a row that tells */

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

#ifdef __APPLE__
#define st_mtim st_mtimespec
#define st_ctim st_ctimespec
#endif

static int64_t ns(struct timespec t) { return 1000000000 * (int64_t)t.tv_sec + t.tv_nsec; }

/* Whether the model's files may be others than those that were loaded; who says for sure is Python. */
static bool changed(const Run *run) {
    for (int32_t i = 0; i < run->n_marks; i++) {
        const Mark *mark = &run->marks[i];
        struct stat s;
        if (fstat(mark->fd, &s) != 0 || (int64_t)s.st_size != mark->size) return true;
        if (ns(s.st_mtim) != mark->modified_ns || ns(s.st_ctim) != mark->changed_ns) return true;
    }
    return run->faults && run->faults() != run->known_faults;
}

/* Write the rows before `stop` that were not told yet. False if they cannot be told so: the run is to end. */
static bool tell(Run *run, int32_t stop, int32_t n) {
    char record[PIPE_BUF < 4096 ? PIPE_BUF : 4096]; /* as much as a pipe takes whole, or not at all */
    const int32_t head[4] = {run->number, run->before + run->told, stop - run->told, n};
    const size_t bytes = sizeof(int32_t) * (size_t)n * (size_t)head[2];
    if (sizeof head + bytes > sizeof record || changed(run)) return false;
    memcpy(record, head, sizeof head);
    memcpy(record + sizeof head, run->drawn + (size_t)run->told * (size_t)n, bytes);
    if (write(run->pipe, record, sizeof head + bytes) < 0) return false; /* nobody reads for long */
    run->told = stop;
    return true;
}

/* Returns how many steps were done. A step that fails leaves the batch as it was for it, and its code in status. */
EXPORT int32_t steps_run(Run *run) {
    Batch *batch = &run->batch;
    const int32_t n = batch->n_tokens;
    const bool tells = run->pipe >= 0;
    const double begin = now(), end = begin + run->seconds;
    double before = begin, due = tells ? begin + run->first : end, told = begin;
    int32_t *drawn = run->drawn + (size_t)run->ahead * (size_t)n;
    run->told = 0;
    for (int32_t step = 0; step < run->most;) {
        if (run->probe) *run->probe = run->sampled[step];
        run->status = run->decode(run->context, *batch);
        if (run->status == 0 && !numbers(run, n)) run->status = NO_NUMBERS;
        if (run->status != 0) return step;
        bool over = false;
        for (int32_t i = 0; i < n; i++) {
            void *sampler = run->samplers[i];
            const int32_t token = sampler ? run->sample(sampler, run->context, i)
                                          : steps_likeliest(run->logits(run->context, i), run->last + 1);
            *drawn++ = batch->token[i] = token;
            batch->pos[i]++;
            over |= run->ends(run->vocab, token);
        }
        step++;
        const double t = now();
        const bool slow = tells && step > 1 && (t - before) * (step - 1) > SLOW * (before - begin);
        before = t;
        run->since = t - told;
        if (over || *run->halt || slow) return step;
        if (t > due) {
            if (!tells || t > end || step == run->most || !tell(run, run->ahead + step, n)) return step;
            told = t;
            due = t + run->every;
        }
    }
    return run->most;
}

/* Changes with every change of Run. */
EXPORT int steps_version(void) { return 5; }

EXPORT int steps_size(void) { return (int)sizeof(Run); }
