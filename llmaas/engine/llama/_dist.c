/* The last link of a llama.cpp sampler chain: draws a token by its chance; see seeded_draw.py.
 *
 * Law: which token is drawn depends on the seed, on how many tokens were accepted, on how often this one was drawn anew
 * since, and on the candidates. No allocation, no headers of llama.cpp: seeded_draw.py checks the sizes of what is
 * shared.
 */
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct { /* llama_token_data */
    int32_t id;
    float logit;
    float p;
} Candidate;

typedef struct { /* llama_token_data_array */
    Candidate *data;
    size_t size;
    int64_t selected;
    bool sorted;
} Candidates;

typedef struct {
    uint64_t seed;
    uint32_t accepted; /* tokens of the answer so far */
    uint32_t tries;    /* draws since the last of them */
} Dist;

typedef struct { /* llama_sampler */
    const void *iface;
    Dist *dist;
} Sampler;

/* ``mix`` of mixing.py. */
static uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t z = a + (b + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* In [0, 1). */
static double uniform(const Dist *dist) {
    return (double)(mix(mix(dist->seed, dist->accepted), dist->tries) >> 11) * 0x1p-53;
}

EXPORT void dist_apply(Sampler *sampler, Candidates *all) {
    all->selected = -1;
    if (all->size == 0) return;
    float most = -INFINITY;
    for (size_t i = 0; i < all->size; i++)
        if (all->data[i].logit > most) most = all->data[i].logit;
    double sum = 0;
    for (size_t i = 0; i < all->size; i++) sum += exp((double)all->data[i].logit - (double)most);
    const double wanted = uniform(sampler->dist) * sum;
    double passed = 0;
    sampler->dist->tries++;
    for (size_t i = 0; i < all->size; i++) {
        const double weight = exp((double)all->data[i].logit - (double)most);
        all->data[i].p = (float)(weight / sum);
        if (weight > 0 && passed <= wanted) all->selected = (int64_t)i; /* the last one whose part begins before it */
        passed += weight;
    }
}

EXPORT void dist_accept(Sampler *sampler, int32_t token) {
    (void)token;
    sampler->dist->accepted++;
    sampler->dist->tries = 0;
}

/* Changes with every change of what is shared. */
EXPORT int dist_version(void) { return 1; }

EXPORT int dist_size(void) { return (int)(sizeof(Dist) + sizeof(Candidate) + sizeof(Candidates)); }
