/* The codec's inner loops: f16 slabs <-> packed codes.
 *
 * kernels_channels.py (K) and kernels_numpy.py (V) describe the formats and are the oracles. Every result here, coded
 * or decoded, is bit for bit what numpy makes there; hence no -ffast-math and no contraction.
 *
 * Law: no allocation, no state, no alignment beyond that of a byte. The caller (kernels_native.py) has checked every
 * size. This is plain C11 that gcc and clang vectorise. Only f16 conversion needs special instructions; bit tricks
 * replace them where they are missing. On x86 the loops are compiled three times and chosen at run time, so that one
 * wheel serves every CPU. On 64-bit ARM they are compiled once, since every such CPU has NEON.
 */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "numbers in chunks begin with their lowest byte: this machine is served by the numpy kernels"
#endif
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__aarch64__)
#include <arm_neon.h>
#define NEON 1
#endif

#define LANES 64 /* channels that a loop handles at a time */
#define GROUP 64 /* values that share a step */
#define UNIT 8   /* tokens that are packed together: b bits of 8 tokens are b bytes */
#define LARGEST_BLOCK 128
#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))
/* Before a loop whose vectors are to stay in registers: with 4 values each there are more than gcc unrolls unasked. */
#if defined(NEON) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 32")
#else
#define UNROLL
#endif

typedef struct {
    ptrdiff_t layer_stride, token_stride; /* bytes */
    ptrdiff_t layers, tokens, dim;
} Shape;

/* How RoPE rotates keys (RopeRotation in kernels_channels.py); table is NULL where keys are not rotated. */
typedef struct {
    const float *table;  /* [kinds][GROUP][cosines, signed sines][head] */
    const uint8_t *kind; /* [layers] */
    ptrdiff_t head, pairs;
    int halves;
} Rope;

INLINE ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
INLINE ptrdiff_t parts(ptrdiff_t n, ptrdiff_t size) { return (n + size - 1) / size; }

/* Fetch the cache lines of the row that will be written a unit of rows from now: otherwise writing waits for them, above
 * all where the next layer begins, since it lies elsewhere. Of each row, `bytes` from `part` on. */
INLINE void fetch_ahead(
    const Shape *s, const uint8_t *x, ptrdiff_t layer, ptrdiff_t token, ptrdiff_t part, ptrdiff_t bytes
) {
    token += UNIT;
    if (token >= s->tokens) {
        token -= s->tokens;
        if (++layer >= s->layers || token >= s->tokens) return;
    }
    const uint8_t *row = x + layer * s->layer_stride + token * s->token_stride + part;
    for (ptrdiff_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 1);
}

/* Levels of a rotated value, in steps: s * (1 + curve * s * s) for odd s. The edge i is midway between two levels. */
#define CURVE(bits) ((bits) == 2 ? 0.014f : (bits) == 3 ? 0.008f : (bits) == 4 ? 0.0018f : (bits) == 5 ? 0.0003f : 0.0f)
#define LEVEL(s, curve) ((s) * (1.0f + (curve) * ((s) * (s))))
#define EDGE(i, curve) (0.5f * (LEVEL(2.0f * (i) - 1.0f, curve) + LEVEL(2.0f * (i) + 1.0f, curve)))
/* The first step that is tried, relative to the step that reaches the largest value. */
#define START(bits) ((bits) == 2 ? 0.65f : (bits) == 3 ? 0.85f : 1.0f)


#define VARIANT(name) name##_plain
#include "_kvcodec_variant.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define HAVE_AVX2 1
#define F16C 1
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif
#define VARIANT(name) name##_avx2
#include "_kvcodec_variant.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define AVX512 1
#ifdef __clang__
#pragma clang attribute push( \
    __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2"))), apply_to = function \
)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2")
#endif
#define VARIANT(name) name##_avx512
#include "_kvcodec_variant.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define CHOOSE(isa, name, ...) \
    ((isa) == 2 ? name##_avx512(__VA_ARGS__) : (isa) == 1 ? name##_avx2(__VA_ARGS__) : name##_plain(__VA_ARGS__))
#else
#define HAVE_AVX2 0
#define CHOOSE(isa, name, ...) ((void)(isa), name##_plain(__VA_ARGS__))
#endif

/* To be changed with every change of a signature or of the format. */
EXPORT int kv_version(void) { return 3; }

/* The highest isa that this machine has: 0 is plain C, 1 (x86) is AVX2 with F16C, 2 is AVX-512 (F, BW, DQ, VL, VBMI2). */
EXPORT int kv_isa(void) {
#if HAVE_AVX2
    /* Not by __builtin_cpu_supports: clang's is always false with some linkers. */
    const unsigned wide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    unsigned a, b, c, d, saved, unused;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_F16C)) return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
    (void)unused;
    if ((saved & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return 0;
    return (saved & 0xe6) == 0xe6 && (b & wide) == wide && (c & bit_AVX512VBMI2) ? 2 : 1;
#else
    return 0;
#endif
}

/* The largest |x| as an f16 bit pattern; above 0x7c00 means that there is a NaN. */
EXPORT int kv_largest(int isa, const uint8_t *x, const Shape *shape) { return CHOOSE(isa, largest, x, shape); }

/* Bytes of scratch memory that the two functions below need. */
EXPORT ptrdiff_t kv_scratch(ptrdiff_t dim, int encoding) {
    const ptrdiff_t lanes = parts(dim, LANES) * LANES;
    return lanes * (4 * ((encoding ? GROUP : UNIT) + 6) + 1 + 1 + UNIT + 9);
}

EXPORT void kv_encode_channels(
    int isa, const uint8_t *x, const Shape *shape, int bits, const Rope *rope, const float *weights, void *memory,
    uint8_t *out
) {
    CHOOSE(isa, encode_keys, x, shape, bits, rope, weights, memory, out);
}

/* 0, with x untouched, if the bits of the channels do not add up. */
EXPORT int kv_decode_channels(
    int isa, const uint8_t *data, const Shape *shape, int bits, const Rope *rope, void *memory, uint8_t *x
) {
    return CHOOSE(isa, decode_keys, data, shape, bits, rope, memory, x);
}

EXPORT void kv_encode_rotated(
    int isa, const uint8_t *x, const Shape *shape, int bits, int block, float norm, uint8_t *out
) {
    CHOOSE(isa, encode_rotated, x, shape, bits, block, norm, out);
}

EXPORT void kv_decode_rotated(
    int isa, const uint8_t *data, const Shape *shape, int bits, int block, float norm, uint8_t *x
) {
    CHOOSE(isa, decode_rotated, data, shape, bits, block, norm, x);
}

/* -- several chunks by one call -------------------------------------------------------------------- */

/* Where chunks are decoded to, and what they have in common. The numbers of tokens in the shapes are not looked at. */
typedef struct {
    Shape k_shape, v_shape;
    Rope rope;
    uint8_t *k, *v;
    ptrdiff_t block;
    float norm;
} Slab;

typedef struct {
    const uint8_t *data;              /* its K section, then its V section; in each of them, the sinks first */
    ptrdiff_t k_bytes, first, tokens; /* its first token is number `first` of the slab */
    int32_t k_bits, v_bits;           /* 0: all of it is plain f16 */
    int32_t sinks;                    /* tokens at its beginning that are plain f16 */
    int32_t bad;                      /* will be 1 if the bits of its channels do not add up, otherwise 0 */
} Chunk;

/* One plane of a chunk: its plain rows, and those behind them. */
typedef struct {
    Shape plain, coded;
    const uint8_t *data, *coded_data;
    uint8_t *x, *coded_x;
} Rows;

static Rows rows_of(const Chunk *c, const Shape *plane, int bits, const uint8_t *data, uint8_t *x) {
    Rows rows = {*plane, *plane, data, data, x + c->first * plane->token_stride, NULL};
    rows.plain.tokens = bits ? least(c->sinks, c->tokens) : c->tokens;
    rows.coded.tokens = c->tokens - rows.plain.tokens;
    rows.coded_x = rows.x + rows.plain.tokens * plane->token_stride;
    rows.coded_data += 2 * plane->layers * rows.plain.tokens * plane->dim;
    return rows;
}

static void copy_plain(const Rows *rows) {
    const Shape *s = &rows->plain;
    const uint8_t *from = rows->data;
    for (ptrdiff_t l = 0; l < s->layers; l++)
        for (ptrdiff_t t = 0; t < s->tokens; t++, from += 2 * s->dim)
            memcpy(rows->x + l * s->layer_stride + t * s->token_stride, from, 2 * (size_t)s->dim);
}

/* Returns how many of the chunks are bad. Of these nothing is written. */
EXPORT ptrdiff_t kv_decode_chunks(int isa, const Slab *slab, Chunk *chunks, ptrdiff_t n, void *memory) {
    ptrdiff_t n_bad = 0;
    for (Chunk *c = chunks; c < chunks + n; c++) {
        const Rows k = rows_of(c, &slab->k_shape, c->k_bits, c->data, slab->k);
        const Rows v = rows_of(c, &slab->v_shape, c->v_bits, c->data + c->k_bytes, slab->v);
        c->bad = k.coded.tokens
              && !kv_decode_channels(isa, k.coded_data, &k.coded, c->k_bits, &slab->rope, memory, k.coded_x);
        if (c->bad) {
            n_bad++;
            continue;
        }
        copy_plain(&k);
        copy_plain(&v);
        if (v.coded.tokens)
            kv_decode_rotated(isa, v.coded_data, &v.coded, c->v_bits, (int)slab->block, slab->norm, v.coded_x);
    }
    return n_bad;
}
