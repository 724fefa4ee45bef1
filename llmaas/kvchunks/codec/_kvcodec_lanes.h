/* f16 conversion, rows of 64 lanes, and packing. _kvcodec.c includes this file once for each instruction set; VARIANT
 * names the copy. */

/* -- f16 ------------------------------------------------------------------------------------ */

INLINE float VARIANT(float_of)(uint16_t half) {
#if defined(F16C)
    return _cvtsh_ss(half);
#elif defined(NEON)
    __fp16 h;
    memcpy(&h, &half, sizeof h);
    return (float)h;
#else
    /* For finite values only: a multiplication moves the exponent, which also works for subnormals. */
    union { uint32_t u; float f; } x = {(uint32_t)(half & 0x7fff) << 13};
    x.f *= 0x1p112f;
    x.u |= (uint32_t)(half & 0x8000) << 16;
    return x.f;
#endif
}

INLINE uint16_t VARIANT(half_of)(float value) {
#if defined(F16C)
    return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(NEON)
    const __fp16 h = (__fp16)value;
    uint16_t half;
    memcpy(&half, &h, sizeof half);
    return half;
#else
    /* float_to_half_fast3_rtne by Fabian Giesen, without its branches. */
    const union { float f; uint32_t u; } in = {value};
    const uint32_t sign = in.u & 0x80000000u, f = in.u ^ sign;
    const union { uint32_t u; float f; } magnitude = {f};
    const union { float f; uint32_t u; } shifted = {magnitude.f + 0.5f};
    const uint32_t subnormal = shifted.u - 0x3f000000u;
    const uint32_t normal = (f + 0xc8000fffu + ((f >> 13) & 1)) >> 13;
    const uint32_t enormous = f > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t h = f < (113u << 23) ? subnormal : f >= (143u << 23) ? enormous : normal;
    return (uint16_t)(h | sign >> 16);
#endif
}

#if defined(NEON)
INLINE uint16x8_t halves_of(float32x4_t a, float32x4_t b) {
    return vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(a), b));
}
#endif

INLINE void VARIANT(to_float)(const uint16_t *restrict half, float *restrict x) {
#if defined(AVX512)
    for (int c = 0; c < LANES; c += 16)
        _mm512_storeu_ps(x + c, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(half + c))));
#elif defined(F16C)
    for (int c = 0; c < LANES; c += 8)
        _mm256_storeu_ps(x + c, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(half + c))));
#elif defined(NEON)
    for (int c = 0; c < LANES; c += 8) {
        const float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(half + c));
        vst1q_f32(x + c, vcvt_f32_f16(vget_low_f16(h)));
        vst1q_f32(x + c + 4, vcvt_high_f32_f16(h));
    }
#else
    for (int c = 0; c < LANES; c++) x[c] = VARIANT(float_of)(half[c]);
#endif
}

/* As to_float, for the 8 tokens of a unit. */
INLINE void VARIANT(unit_to_float)(const uint16_t *restrict half, float *restrict x) {
#if defined(F16C)
    _mm256_storeu_ps(x, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)half)));
#else
    for (int t = 0; t < UNIT; t++) x[t] = VARIANT(float_of)(half[t]);
#endif
}

INLINE void VARIANT(to_half)(const float *restrict x, uint16_t *restrict half) {
#if defined(AVX512)
    for (int c = 0; c < LANES; c += 16)
        _mm256_storeu_si256(
            (__m256i *)(half + c), _mm512_cvtps_ph(_mm512_loadu_ps(x + c), _MM_FROUND_TO_NEAREST_INT)
        );
#elif defined(F16C)
    for (int c = 0; c < LANES; c += 8)
        _mm_storeu_si128((__m128i *)(half + c), _mm256_cvtps_ph(_mm256_loadu_ps(x + c), _MM_FROUND_TO_NEAREST_INT));
#elif defined(NEON)
    for (int c = 0; c < LANES; c += 8)
        vst1q_u16(half + c, halves_of(vld1q_f32(x + c), vld1q_f32(x + c + 4)));
#else
    for (int c = 0; c < LANES; c++) half[c] = VARIANT(half_of)(x[c]);
#endif
}

INLINE void VARIANT(load)(const uint8_t *src, ptrdiff_t width, float *restrict x) {
    uint16_t half[LANES];
    if (width == LANES) {
        memcpy(half, src, sizeof half);
    } else {
        memset(half, 0, sizeof half);
        memcpy(half, src, 2 * (size_t)width);
    }
    VARIANT(to_float)(half, x);
}

INLINE void VARIANT(store)(const float *restrict x, uint8_t *dst, ptrdiff_t width) {
    uint16_t half[LANES];
    VARIANT(to_half)(x, half);
    if (width == LANES)
        memcpy(dst, half, sizeof half);
    else
        memcpy(dst, half, 2 * (size_t)width);
}

/* Round x to f16 and back. */
INLINE void VARIANT(round_half)(float *restrict x) {
    uint16_t half[LANES];
    VARIANT(to_half)(x, half);
    VARIANT(to_float)(half, x);
}

static int VARIANT(largest)(const uint8_t *x, const Shape *s) {
    uint16_t most[LANES] = {0};
    for (ptrdiff_t l = 0; l < s->layers; l++)
        for (ptrdiff_t t = 0; t < s->tokens; t++) {
            const uint8_t *row = x + l * s->layer_stride + t * s->token_stride;
            for (ptrdiff_t at = 0; at < s->dim; at += LANES) {
                uint16_t half[LANES] = {0};
                if (s->dim - at >= LANES)
                    memcpy(half, row + 2 * at, sizeof half);
                else
                    memcpy(half, row + 2 * at, 2 * (size_t)(s->dim - at));
                for (int c = 0; c < LANES; c++) {
                    /* A signed comparison of 15 bits: SSE2 has no unsigned one. */
                    const int16_t h = (int16_t)(half[c] & 0x7fff), m = (int16_t)most[c];
                    most[c] = (uint16_t)(h > m ? h : m);
                }
            }
        }
    int top = 0;
    for (int c = 0; c < LANES; c++) top = most[c] > top ? most[c] : top;
    return top;
}

/* -- vectors -------------------------------------------------------------------------------- */

#if defined(AVX512)
#define WIDE 16
#elif defined(F16C)
#define WIDE 8
#else
#define WIDE 4
#endif
/* Values that are converted in one go: a vector of them, or two where it has only 4. */
#define AT_ONCE (WIDE < 8 ? 8 : WIDE)
#define VECTORS (AT_ONCE / WIDE)
typedef float VARIANT(Wide) __attribute__((vector_size(4 * WIDE), aligned(4), may_alias));
typedef int32_t VARIANT(Lanes) __attribute__((vector_size(4 * WIDE)));
#ifdef __clang__
#define SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define SHUFFLE(v, ...) __builtin_shuffle(v, (VARIANT(Lanes)){__VA_ARGS__})
#endif
/* Neighbours change places: single values, pairs, fours, eights. */
#if WIDE == 16
#define SWAP_1(v) SHUFFLE(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#define SWAP_2(v) SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define SWAP_4(v) SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define SWAP_8(v) SHUFFLE(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#elif WIDE == 8
#define SWAP_1(v) SHUFFLE(v, 1, 0, 3, 2, 5, 4, 7, 6)
#define SWAP_2(v) SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5)
#define SWAP_4(v) SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3)
#else
#define SWAP_1(v) SHUFFLE(v, 1, 0, 3, 2)
#define SWAP_2(v) SHUFFLE(v, 2, 3, 0, 1)
#endif

INLINE VARIANT(Wide) VARIANT(wide_of)(const float *x) { return *(const VARIANT(Wide) *)x; }

/* From codes to f16 in registers. Without instructions for f16 that is twice as slow as by rows in memory, which gcc
 * vectorises. */
#if defined(F16C) || defined(NEON)
#define FUSED 1
#else
#define FUSED 0
#endif

/* The values of AT_ONCE bytes. */
INLINE void VARIANT(take)(const uint8_t *code, VARIANT(Wide) *x) {
#if defined(AVX512)
    *x = (VARIANT(Wide))_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)code)));
#elif defined(F16C)
    *x = (VARIANT(Wide))_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)code)));
#elif defined(NEON)
    /* One table look-up makes four numbers of 32 bits: an index of 255 gives a zero byte. */
    const uint8x16_t low = {0, 255, 255, 255, 1, 255, 255, 255, 2, 255, 255, 255, 3, 255, 255, 255};
    const uint8x16_t high = {4, 255, 255, 255, 5, 255, 255, 255, 6, 255, 255, 255, 7, 255, 255, 255};
    const uint8x16_t bytes = vcombine_u8(vld1_u8(code), vdup_n_u8(0));
    x[0] = (VARIANT(Wide))vcvtq_f32_u32(vreinterpretq_u32_u8(vqtbl1q_u8(bytes, low)));
    x[1] = (VARIANT(Wide))vcvtq_f32_u32(vreinterpretq_u32_u8(vqtbl1q_u8(bytes, high)));
#else
    for (int c = 0; c < AT_ONCE; c++) x[c / WIDE][c % WIDE] = (float)code[c];
#endif
}

/* Write AT_ONCE values as f16. */
INLINE void VARIANT(put)(const VARIANT(Wide) *x, uint8_t *dst) {
#if defined(AVX512)
    _mm256_storeu_si256((__m256i *)dst, _mm512_cvtps_ph((__m512)*x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(F16C)
    _mm_storeu_si128((__m128i *)dst, _mm256_cvtps_ph((__m256)*x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(NEON)
    vst1q_u8(dst, vreinterpretq_u8_u16(halves_of((float32x4_t)x[0], (float32x4_t)x[1])));
#else
    uint16_t half[AT_ONCE];
    for (int c = 0; c < AT_ONCE; c++) half[c] = VARIANT(half_of)(x[c / WIDE][c % WIDE]);
    memcpy(dst, half, sizeof half);
#endif
}

/* The lesser and the greater of two numbers. Which of 0 and -0 it is may differ, and makes no difference to callers. */
#if defined(NEON)
#define LESSER(a, b) __builtin_fminf(a, b)
#define GREATER(a, b) __builtin_fmaxf(a, b)
#else
#define LESSER(a, b) ((a) < (b) ? (a) : (b))
#define GREATER(a, b) ((a) > (b) ? (a) : (b))
#endif

/* -- packing: the bits are a sum of the field widths 8, 4, 2, 1; token t's field lies in row t % width ------ */

#define EACH_TOKEN(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7)

INLINE void VARIANT(unpack_field)(uint8_t row[][LANES], uint8_t code[UNIT][LANES], const int width, const int low) {
#define TAKE(t) \
    for (int c = 0; c < LANES; c++) { \
        const uint8_t field = (uint8_t)((row[t % width][c] >> (t / width * width)) & ((1 << width) - 1)); \
        code[t][c] = low ? (uint8_t)(code[t][c] | field << low) : field; \
    }
    EACH_TOKEN(TAKE)
#undef TAKE
}

INLINE void VARIANT(pack_field)(uint8_t row[][LANES], uint8_t code[UNIT][LANES], const int width, const int low) {
#define PUT(t) \
    for (int c = 0; c < LANES; c++) { \
        const uint8_t field = (uint8_t)(((code[t][c] >> low) & ((1 << width) - 1)) << (t / width * width)); \
        row[t % width][c] = t < width ? field : (uint8_t)(row[t % width][c] | field); \
    }
    EACH_TOKEN(PUT)
#undef PUT
}

INLINE void VARIANT(unpack)(
    const uint8_t *src, ptrdiff_t dim, ptrdiff_t width, uint8_t code[UNIT][LANES], const int bits
) {
    uint8_t row[8][LANES];
    for (int r = 0; r < bits; r++) {
        if (width == LANES)
            memcpy(row[r], src + r * dim, LANES);
        else {
            memset(row[r], 0, LANES);
            memcpy(row[r], src + r * dim, (size_t)width);
        }
    }
    int at = 0;
    if (bits & 8) VARIANT(unpack_field)(row + at, code, 8, at), at += 8;
    if (bits & 4) VARIANT(unpack_field)(row + at, code, 4, at), at += 4;
    if (bits & 2) VARIANT(unpack_field)(row + at, code, 2, at), at += 2;
    if (bits & 1) VARIANT(unpack_field)(row + at, code, 1, at), at += 1;
}

INLINE void VARIANT(pack)(uint8_t code[UNIT][LANES], uint8_t *dst, ptrdiff_t dim, ptrdiff_t width, const int bits) {
    uint8_t row[8][LANES];
    int at = 0;
    if (bits & 8) VARIANT(pack_field)(row + at, code, 8, at), at += 8;
    if (bits & 4) VARIANT(pack_field)(row + at, code, 4, at), at += 4;
    if (bits & 2) VARIANT(pack_field)(row + at, code, 2, at), at += 2;
    if (bits & 1) VARIANT(pack_field)(row + at, code, 1, at), at += 1;
    for (int r = 0; r < bits; r++) memcpy(dst + r * dim, row[r], (size_t)width);
}

#undef EACH_TOKEN
