/* Products of Q4_1 weights with the inputs of several tokens, by AVX2 or by AVX-512. Included by _tiles.c alone.
 *
 * Law: a result has the bits that ggml_vec_dot_q4_1_q8_1 gives on such a CPU: of each block eight sums of four products
 * each, as integers; these times the product of both scales, added block by block; and the eight added up in ggml's
 * order. So tokens may be computed in any company.
 */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

/* ggml-common.h: 32 weights q * d + m, and 32 inputs q * d, with s = d * their sum. Halves are f16. */
typedef struct {
    uint16_t d, m;
    uint8_t q[16];
} Weights;
typedef struct {
    uint16_t d, s;
    int8_t q[32];
} Inputs;

enum { TOKENS = 8, WIDEST = 64 * 1024 };

/* A block of all tokens of a tile, one behind the other: so much is read for each row of weights. Of the last, only as
 * many tokens are stored as there are pairs of. */
typedef struct {
    float d[TOKENS], s[TOKENS];
    int8_t q[TOKENS][32];
} Block;

static inline size_t block_size(int pairs) { return offsetof(Block, q) + 64 * (size_t)pairs; }
static inline const Block *block_at(const uint8_t *blocks, int pairs, int64_t i) {
    return (const Block *)(blocks + i * (int64_t)block_size(pairs));
}

/* `n` tokens of `k` blocks each into `to`; zeros for those that are missing of `pairs`. */
AVX2 static void gather(const Inputs *from, int64_t apart, int n, int pairs, int64_t k, uint8_t *to) {
    for (int64_t i = 0; i < k; i++, to += block_size(pairs)) {
        uint16_t d[TOKENS] = {0}, s[TOKENS] = {0};
        Block *block = (Block *)to;
        for (int t = 0; t < n; t++) {
            const Inputs *x = from + t * apart + i;
            d[t] = x->d, s[t] = x->s;
            memcpy(block->q[t], x->q, sizeof x->q);
        }
        for (int t = n; t < 2 * pairs; t++) memset(block->q[t], 0, sizeof block->q[t]);
        _mm256_storeu_ps(block->d, _mm256_cvtph_ps(_mm_loadu_si128((const void *)d)));
        _mm256_storeu_ps(block->s, _mm256_cvtph_ps(_mm_loadu_si128((const void *)s)));
    }
}

AVX2 INLINE __m256i nibbles(const uint8_t *q) {
    const __m128i x = _mm_loadu_si128((const void *)q);
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(x), _mm_srli_epi16(x, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

/* d and m in the first two places, and what comes of the first weights behind. */
AVX2 INLINE __m128 scales(const Weights *x) { return _mm_cvtph_ps(_mm_loadl_epi64((const void *)x)); }

AVX2 INLINE float sum_of(__m256 x) {
    __m128 sum = _mm_add_ps(_mm256_extractf128_ps(x, 1), _mm256_castps256_ps128(x));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

/* `rows` rows of weights, `apart` blocks from one to the next, times the tokens in `blocks`: to c[token][row]. */
AVX2 INLINE void tile_avx2(
    int rows, int pairs, const Weights *a, int64_t apart, const uint8_t *blocks, int64_t k, int n, float *c,
    int64_t c_apart
) {
    __m256 sums[2][4], mins[2];
    for (int r = 0; r < rows; r++) {
        mins[r] = _mm256_setzero_ps();
        for (int t = 0; t < 2 * pairs; t++) sums[r][t] = _mm256_setzero_ps();
    }
    for (int64_t i = 0; i < k; i++) {
        const Block *b = block_at(blocks, pairs, i);
        for (int r = 0; r < rows; r++) {
            const Weights *x = a + r * apart + i;
            const __m256i q = nibbles(x->q);
            const __m128 dm = scales(x);
            const __m256 d = _mm256_broadcastss_ps(dm), m = _mm256_broadcastss_ps(_mm_movehdup_ps(dm));
            mins[r] = _mm256_fmadd_ps(m, _mm256_loadu_ps(b->s), mins[r]);
            for (int t = 0; t < 2 * pairs; t++) {
                const __m256i two = _mm256_maddubs_epi16(q, _mm256_loadu_si256((const void *)b->q[t]));
                const __m256 four = _mm256_cvtepi32_ps(_mm256_madd_epi16(two, _mm256_set1_epi16(1)));
                sums[r][t] = _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_broadcast_ss(b->d + t)), four, sums[r][t]);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        float m[TOKENS];
        _mm256_storeu_ps(m, mins[r]);
        for (int t = 0; t < 2 * pairs; t++)
            if (t < n) c[t * c_apart + r] = sum_of(sums[r][t]) + m[t];
    }
}

/* Of each of eight tokens, two in each of `x`, sum_of, plus its `m`. */
AVX512 INLINE __m256 sums_of(const __m512 x[4], __m256 m) {
    const __m512i order = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 14, 10, 6, 2, 12, 8, 4, 0);
    __m512 low = _mm512_shuffle_f32x4(x[0], x[1], 0x88), high = _mm512_shuffle_f32x4(x[0], x[1], 0xDD);
    const __m512 first = _mm512_add_ps(high, low);
    low = _mm512_shuffle_f32x4(x[2], x[3], 0x88), high = _mm512_shuffle_f32x4(x[2], x[3], 0xDD);
    const __m512 last = _mm512_add_ps(high, low);
    const __m512 two = _mm512_add_ps(_mm512_shuffle_ps(first, last, 0x44), _mm512_shuffle_ps(first, last, 0xEE));
    const __m512 one = _mm512_add_ps(two, _mm512_movehdup_ps(two));
    return _mm256_add_ps(_mm512_castps512_ps256(_mm512_permutexvar_ps(order, one)), m);
}

/* As tile_avx2, with two tokens in each register. */
AVX512 INLINE void tile_avx512(
    int rows, int pairs, const Weights *a, int64_t apart, const uint8_t *blocks, int64_t k, int n, float *c,
    int64_t c_apart
) {
    __m512 sums[4][4];
    __m256 mins[4];
    for (int r = 0; r < rows; r++) {
        mins[r] = _mm256_setzero_ps();
        for (int p = 0; p < 4; p++) sums[r][p] = _mm512_setzero_ps();
    }
    const __m512i halves = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    for (int64_t i = 0; i < k; i++) {
        const Block *b = block_at(blocks, pairs, i);
        __m512 of_tokens[4];
        for (int p = 0; p < pairs; p++) {
            const __m512i pair = _mm512_add_epi32(halves, _mm512_set1_epi32(2 * p));
            of_tokens[p] = _mm512_permutexvar_ps(pair, _mm512_castps256_ps512(_mm256_loadu_ps(b->d)));
        }
        for (int r = 0; r < rows; r++) {
            const Weights *x = a + r * apart + i;
            const __m512i q = _mm512_broadcast_i64x4(nibbles(x->q));
            const __m128 dm = scales(x);
            const __m512 d = _mm512_broadcastss_ps(dm);
            mins[r] = _mm256_fmadd_ps(_mm256_broadcastss_ps(_mm_movehdup_ps(dm)), _mm256_loadu_ps(b->s), mins[r]);
            for (int p = 0; p < pairs; p++) {
                const __m512i inputs = _mm512_loadu_si512(b->q[2 * p]);
                const __m512 four = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), q, inputs));
                sums[r][p] = _mm512_fmadd_ps(_mm512_mul_ps(d, of_tokens[p]), four, sums[r][p]);
            }
        }
    }
    for (int r = 0; r < rows; r++) {
        float of_row[TOKENS];
        _mm256_storeu_ps(of_row, sums_of(sums[r], mins[r]));
        for (int t = 0; t < n; t++) c[t * c_apart + r] = of_row[t];
    }
}

enum { SOME_TOKENS = 64, SOME_ROWS = 192, FEWEST_ROWS = 32 };

typedef struct {
    const Weights *a;
    const Inputs *b;
    float *c;
    int64_t m, n, k, lda, ldb, ldc;
} Product;

/* The rows from `from` to `to`, four (or two) and then one at a time. */
#define ROWS(NAME, TARGET, TILE, AT_ONCE, PAIRS)                                                                       \
    TARGET static void NAME(const Product *p, int64_t from, int64_t to, const uint8_t *blocks, int64_t first, int n) { \
        float *c = p->c + first * p->ldc;                                                                              \
        int64_t r = from;                                                                                              \
        for (; r + AT_ONCE <= to; r += AT_ONCE)                                                                        \
            TILE(AT_ONCE, PAIRS, p->a + r * p->lda, p->lda, blocks, p->k, n, c + r, p->ldc);                           \
        for (; r < to; r++) TILE(1, PAIRS, p->a + r * p->lda, p->lda, blocks, p->k, n, c + r, p->ldc);                 \
    }
ROWS(avx2_of_2, AVX2, tile_avx2, 2, 1)
ROWS(avx2_of_4, AVX2, tile_avx2, 2, 2)
ROWS(avx512_of_2, AVX512, tile_avx512, 4, 1)
ROWS(avx512_of_4, AVX512, tile_avx512, 4, 2)
ROWS(avx512_of_8, AVX512, tile_avx512, 4, 4)

typedef void Multiplier(const Product *p, int64_t from, int64_t to, const uint8_t *blocks, int64_t first, int n);

/* For 1, 2 and 4 pairs of tokens. AVX2 has no registers for 4. */
static Multiplier *const by_avx2[] = {avx2_of_2, avx2_of_4, NULL};
static Multiplier *const by_avx512[] = {avx512_of_2, avx512_of_4, avx512_of_8};

/* How many pairs of tokens at once: no more than there are, and than WIDEST has room for; 0 if that is none. */
static int pairs_of(int64_t n, int64_t k) {
    int pairs = level == PRODUCTS_AVX2 ? 2 : 4;
    while (pairs > 1 && n <= pairs) pairs /= 2;
    while (pairs && k * (int64_t)block_size(pairs) > WIDEST) pairs /= 2;
    return pairs;
}

static void product_part(const Product *p, int pairs, int64_t row, int64_t rows, int64_t token) {
    uint8_t blocks[WIDEST] __attribute__((aligned(64)));
    Multiplier *compute = (level == PRODUCTS_AVX2 ? by_avx2 : by_avx512)[pairs / 2];
    const int64_t last_row = row + rows < p->m ? row + rows : p->m;
    const int64_t last = token + SOME_TOKENS < p->n ? token + SOME_TOKENS : p->n;
    for (int64_t first = token; first < last; first += 2 * pairs) {
        const int n = (int)(last - first < 2 * pairs ? last - first : 2 * pairs);
        gather(p->b + first * p->ldb, p->ldb, n, pairs, p->k, blocks);
        compute(p, row, last_row, blocks, first, n);
    }
}

/* Threads take parts of the product in turns: whoever is done takes the next. ggml has set the number of the next part
 * to the number of threads; but only before the first of the matrices of one product, the one at `wdata`. */
static void product_shared_out(const Thread *thread, const Product *p, int pairs) {
    const bool in_turns = (const void *)p->b == thread->wdata;
    const int64_t some_tokens = over(p->n, SOME_TOKENS);
    int64_t rows = SOME_ROWS;
    while (rows > FEWEST_ROWS && some_tokens * over(p->m, rows) < 4 * thread->nth) rows -= FEWEST_ROWS;
    const int64_t parts = some_tokens * over(p->m, rows);
    for (int64_t i = thread->ith; i < parts; i = in_turns ? next_part(thread->pool, 1) : i + thread->nth)
        product_part(p, pairs, i / some_tokens * rows, rows, i % some_tokens * SOME_TOKENS);
}

static bool multiply(
    const Thread *thread, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
    void *c, int64_t ldc
) {
    const int pairs = n < 2 ? 0 : pairs_of(n, k);
    if (!pairs) return false;
    const Product product = {a, b, c, m, n, k, lda, ldb, ldc};
    product_shared_out(thread, &product, pairs);
    return true;
}
