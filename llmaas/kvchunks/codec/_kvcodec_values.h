/* Values (V). _kvcodec.c includes this file once for each instruction set, after _kvcodec_lanes.h; VARIANT names the
 * copy. The format is that of kernels_numpy.py. */

/* A function for each number of bits, so that shifts and masks are constants. */
#define FOR_BITS(call) \
    switch (bits) { \
    case 2: call(2); break; \
    case 3: call(3); break; \
    case 4: call(4); break; \
    case 5: call(5); break; \
    case 6: call(6); break; \
    default: call(8); break; \
    }

/* -- rotation by a Hadamard matrix ------------------------------------------------------------------ */

/* swapped + v * signs, for signs of 1 and -1. A fused operation rounds once, but the product is exact: the same result. */
INLINE VARIANT(Wide) VARIANT(turn)(VARIANT(Wide) swapped, VARIANT(Wide) v, VARIANT(Wide) signs) {
#if defined(AVX512)
    return (VARIANT(Wide))_mm512_fmadd_ps((__m512)v, (__m512)signs, (__m512)swapped);
#elif defined(NEON)
    return (VARIANT(Wide))vfmaq_f32((float32x4_t)swapped, (float32x4_t)v, (float32x4_t)signs);
#else
    return swapped + v * signs;
#endif
}

/* Sums and differences of values that are h = 1, 2, 4 ... n / 2 apart, in this order; n <= 128. */
INLINE void VARIANT(mix)(VARIANT(Wide) *v, const int n) {
    for (int i = 0; i < n / WIDE; i++) {
#if WIDE == 16
        const VARIANT(Wide) odd = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};
        const VARIANT(Wide) pair = {1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1};
        const VARIANT(Wide) four = {1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1};
        const VARIANT(Wide) eight = {1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1};
        v[i] = VARIANT(turn)(SWAP_1(v[i]), v[i], odd);
        v[i] = VARIANT(turn)(SWAP_2(v[i]), v[i], pair);
        v[i] = VARIANT(turn)(SWAP_4(v[i]), v[i], four);
        v[i] = VARIANT(turn)(SWAP_8(v[i]), v[i], eight);
#elif WIDE == 8
        const VARIANT(Wide) odd = {1, -1, 1, -1, 1, -1, 1, -1}, pair = {1, 1, -1, -1, 1, 1, -1, -1};
        const VARIANT(Wide) four = {1, 1, 1, 1, -1, -1, -1, -1};
        v[i] = VARIANT(turn)(SWAP_1(v[i]), v[i], odd);
        v[i] = VARIANT(turn)(SWAP_2(v[i]), v[i], pair);
        v[i] = VARIANT(turn)(SWAP_4(v[i]), v[i], four);
#else
        const VARIANT(Wide) odd = {1, -1, 1, -1}, pair = {1, 1, -1, -1};
        v[i] = VARIANT(turn)(SWAP_1(v[i]), v[i], odd);
        v[i] = VARIANT(turn)(SWAP_2(v[i]), v[i], pair);
#endif
    }
#define STAGE(h) \
    for (int i = 0; i < n / WIDE; i += 2 * (h)) \
        for (int j = i; j < i + (h) && j + (h) < n / WIDE; j++) { \
            const VARIANT(Wide) a = v[j], b = v[j + (h)]; \
            v[j] = a + b; \
            v[j + (h)] = a - b; \
        }
    if (n > WIDE) { STAGE(1) }
    if (n > 2 * WIDE) { STAGE(2) }
    if (n > 4 * WIDE) { STAGE(4) }
    if (n > 8 * WIDE) { STAGE(8) }
    if (n > 16 * WIDE) { STAGE(16) }
#undef STAGE
}

INLINE void VARIANT(butterflies)(float *restrict x, const int n) {
    VARIANT(Wide) v[LANES / WIDE];
    memcpy(v, x, 4 * (size_t)n);
    VARIANT(mix)(v, n);
    memcpy(x, v, 4 * (size_t)n);
}

/* Rotate every block of a row of 64 (or, for blocks of 128, of 128) values. */
INLINE void VARIANT(rotate)(float *restrict x, int block) {
    if (block == 64) {
        VARIANT(butterflies)(x, 64);
    } else if (block == 128) {
        VARIANT(butterflies)(x, 64);
        VARIANT(butterflies)(x + 64, 64);
        for (int j = 0; j < 64; j++) {
            const float a = x[j], b = x[j + 64];
            x[j] = a + b;
            x[j + 64] = a - b;
        }
    } else if (block == 32) {
        for (int i = 0; i < LANES; i += 32) VARIANT(butterflies)(x + i, 32);
    } else if (block == 16) {
        for (int i = 0; i < LANES; i += 16) VARIANT(butterflies)(x + i, 16);
    } else {
        for (int h = 1; h < block; h *= 2)
            for (int i = 0; i < LANES; i += 2 * h)
                for (int j = i; j < i + h; j++) {
                    const float a = x[j], b = x[j + h];
                    x[j] = a + b;
                    x[j + h] = a - b;
                }
    }
}

/* -- one step for each token and 64 neighbours ------------------------------------------------------ */

/* Sums have eight columns, however wide the machine's vectors are: they are added in the same order everywhere. Eight
 * values are a vector, or two where it has only 4. */
#define COLUMNS (WIDE < 8 ? WIDE : 8)
typedef float VARIANT(Part) __attribute__((vector_size(4 * COLUMNS), aligned(4), may_alias));
typedef int32_t VARIANT(PartInts) __attribute__((vector_size(4 * COLUMNS), aligned(4), may_alias));

INLINE float VARIANT(total)(const VARIANT(Part) *columns) {
    const float *x = (const float *)columns;
    const float a = x[0] + x[4], b = x[1] + x[5], c = x[2] + x[6], d = x[3] + x[7];
    return (a + c) + (b + d);
}

/* The level nearest to the magnitude of a rotated value: level k is s * (1 + curve * s * s) steps, s = 2 k + 1. */
INLINE VARIANT(PartInts) VARIANT(nearest)(VARIANT(Part) magnitude, float inverse, const int bits) {
    const VARIANT(Part) u = magnitude * inverse;
    const int half = 1 << (bits - 1);
    if (CURVE(bits) > 0) {
        VARIANT(PartInts) k = {0};
#define COUNT(i) if (i < half) k -= u > EDGE(i, CURVE(bits));
        COUNT(1) COUNT(2) COUNT(3) COUNT(4) COUNT(5) COUNT(6) COUNT(7) COUNT(8)
        COUNT(9) COUNT(10) COUNT(11) COUNT(12) COUNT(13) COUNT(14) COUNT(15)
#undef COUNT
        return k;
    }
    VARIANT(PartInts) k = __builtin_convertvector(u * 0.5f, VARIANT(PartInts));
    const VARIANT(PartInts) over = k > half - 1;
    return (k & ~over) | ((half - 1) & over);
}

/* Try a step: returns the squared error of its codes; `fitted` is the least-squares step for these codes. */
INLINE float VARIANT(try_row)(
    const float *restrict magnitude, const float *restrict mask, float step, float *restrict fitted, const int bits
) {
    const float inverse = step > 0 ? 1.0f / step : 0.0f;
    VARIANT(Part) error[8 / COLUMNS] = {{0}}, products[8 / COLUMNS] = {{0}}, squares[8 / COLUMNS] = {{0}};
    for (int i = 0; i < LANES; i += 8)
        for (int j = 0; j < 8 / COLUMNS; j++) {
            const int c = i + j * COLUMNS;
            const VARIANT(Part) x = *(const VARIANT(Part) *)(magnitude + c);
            const VARIANT(PartInts) k = VARIANT(nearest)(x, inverse, bits);
            const VARIANT(Part) s = __builtin_convertvector(2 * k + 1, VARIANT(Part));
            const VARIANT(Part) level = LEVEL(s, CURVE(bits)) * *(const VARIANT(Part) *)(mask + c);
            const VARIANT(Part) off = x - level * step;
            error[j] += off * off;
            products[j] += x * level;
            squares[j] += level * level;
        }
    *fitted = VARIANT(total)(products) / VARIANT(total)(squares);
    return VARIANT(total)(error);
}

/* The better of two steps for 64 values, and their codes. Padding has the value 0 and the mask 0. */
INLINE float VARIANT(fit_row)(
    const float *restrict x, const float *restrict mask, uint8_t *restrict code, const int bits
) {
    const int most = (1 << bits) - 1, half = 1 << (bits - 1);
    float magnitude[LANES], columns[8] = {0}, fitted, best_error = 0, best_step = 0, top = 0;
    for (int c = 0; c < LANES; c++) magnitude[c] = x[c] < 0 ? -x[c] : x[c];
    for (int i = 0; i < LANES; i += 8)
        for (int c = 0; c < 8; c++) columns[c] = GREATER(magnitude[i + c], columns[c]);
    for (int c = 0; c < 8; c++) top = columns[c] > top ? columns[c] : top;
    float step = VARIANT(float_of)(VARIANT(half_of)(top * (START(bits) / LEVEL((float)most, CURVE(bits)))));
    for (int attempt = 0; attempt < 2; attempt++) {
        const float error = VARIANT(try_row)(magnitude, mask, step, &fitted, bits);
        if (attempt == 0 || error < best_error) {
            best_error = error;
            best_step = step;
        }
        step = VARIANT(float_of)(VARIANT(half_of)(fitted));
    }
    const float inverse = best_step > 0 ? 1.0f / best_step : 0.0f;
    int32_t k[LANES];
    for (int c = 0; c < LANES; c += COLUMNS)
        *(VARIANT(PartInts) *)(k + c) = VARIANT(nearest)(*(VARIANT(Part) *)(magnitude + c), inverse, bits);
    for (int c = 0; c < LANES; c++) code[c] = (uint8_t)(x[c] < 0 ? half - 1 - k[c] : half + k[c]);
    return best_step;
}

INLINE void VARIANT(levels)(const uint8_t *restrict code, float *restrict y, const int bits) {
    for (int c = 0; c < LANES; c++) {
        const float s = (float)(2 * (int32_t)code[c] - ((1 << bits) - 1));
        y[c] = LEVEL(s, CURVE(bits));
    }
}

INLINE void VARIANT(encode_rotated_at)(
    const uint8_t *x, const Shape *s, int block, float norm, uint8_t *out, const int bits
) {
    const ptrdiff_t groups = parts(s->dim, GROUP), units = parts(s->tokens, UNIT);
    const ptrdiff_t span = block > LANES ? block : LANES;
    for (ptrdiff_t l = 0; l < s->layers; l++) {
        uint8_t *steps = out, *packed = steps + 2 * groups * s->tokens;
        for (ptrdiff_t u = 0; u < units; u++)
            for (ptrdiff_t from = 0; from < s->dim; from += span) {
                uint8_t code[LARGEST_BLOCK / LANES][UNIT][LANES];
                const ptrdiff_t tiles = parts(least(s->dim - from, span), LANES);
                memset(code, 0, sizeof code);
                for (ptrdiff_t t = u * UNIT; t < least(s->tokens, (u + 1) * UNIT); t++) {
                    float row[LARGEST_BLOCK], mask[LANES];
                    for (ptrdiff_t i = 0; i < tiles; i++) {
                        const ptrdiff_t at = from + i * LANES;
                        const uint8_t *values = x + l * s->layer_stride + t * s->token_stride + 2 * at;
                        VARIANT(load)(values, least(s->dim - at, LANES), row + i * LANES);
                    }
                    VARIANT(rotate)(row, block);
                    for (ptrdiff_t i = 0; i < tiles; i++) {
                        const ptrdiff_t at = from + i * LANES;
                        for (int c = 0; c < LANES; c++) {
                            row[i * LANES + c] *= norm;
                            mask[c] = c < s->dim - at ? 1.0f : 0.0f;
                        }
                        const float step = VARIANT(fit_row)(row + i * LANES, mask, code[i][t % UNIT], bits);
                        const uint16_t half = VARIANT(half_of)(step);
                        memcpy(steps + 2 * (t * groups + at / GROUP), &half, 2);
                    }
                }
                for (ptrdiff_t i = 0; i < tiles; i++) {
                    const ptrdiff_t at = from + i * LANES;
                    VARIANT(pack)(code[i], packed + u * bits * s->dim + at, s->dim, least(s->dim - at, LANES), bits);
                }
            }
        out = packed + units * bits * s->dim;
    }
}

#if defined(AVX512)
/* All levels of 4 bits or fewer, in steps: they fill one register. */
INLINE __m512 VARIANT(all_levels)(const int bits) {
#define AT(c) LEVEL((float)(2 * (c) - ((1 << bits) - 1)), CURVE(bits))
    return _mm512_setr_ps(
        AT(0), AT(1), AT(2), AT(3), AT(4), AT(5), AT(6), AT(7), AT(8), AT(9), AT(10), AT(11), AT(12), AT(13), AT(14),
        AT(15)
    );
#undef AT
}
#endif

/* The levels of AT_ONCE codes, in steps. */
INLINE void VARIANT(levels_at)(const uint8_t *code, VARIANT(Wide) *x, const int bits) {
#if defined(AVX512)
    if (bits <= 4) {
        const __m512i which = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)code));
        *x = (VARIANT(Wide))_mm512_permutexvar_ps(which, VARIANT(all_levels)(bits));
        return;
    }
#endif
    VARIANT(take)(code, x);
    for (int i = 0; i < VECTORS; i++) {
        /* Whole numbers of at most 9 bits: exact in whatever order they are computed. */
        const VARIANT(Wide) s = x[i] * 2.0f - (float)((1 << bits) - 1);
        x[i] = LEVEL(s, CURVE(bits));
    }
}

#if defined(AVX512)
/* A unit packs codes of 4 bits in rows: a byte has the codes of two tokens, four apart. */
#define NIBBLES(bits) ((bits) == 4)
#else
#define NIBBLES(bits) 0
#endif

/* One token's values in a block of n = 64 or 128, from codes to f16. `packed`: the unit's rows of `dim` bytes, which
 * are read in place of `code` if they are NIBBLES. */
INLINE void VARIANT(values_of_codes)(
    const uint8_t *packed, ptrdiff_t dim, uint8_t code[][UNIT][LANES], float step[][UNIT], ptrdiff_t t, float norm,
    uint8_t *x, const int bits, const int n
) {
    VARIANT(Wide) v[LARGEST_BLOCK / WIDE];
    (void)packed, (void)dim;
    for (int i = 0; i < n / LANES; i++) {
        const float scale = step[i][t] * norm;
#if defined(AVX512)
        if (NIBBLES(bits)) {
            /* Of an index only the lower four bits count. The products are those of levels and scale. */
            const __m512 scaled = _mm512_mul_ps(VARIANT(all_levels)(bits), _mm512_set1_ps(scale));
            const uint8_t *row = packed + t % 4 * dim + i * LANES;
            for (int c = 0; c < LANES; c += AT_ONCE) {
                const __m512i two = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(row + c)));
                const __m512i which = _mm512_srl_epi32(two, _mm_cvtsi32_si128((int)(t / 4 * 4)));
                v[(i * LANES + c) / WIDE] = (VARIANT(Wide))_mm512_permutexvar_ps(which, scaled);
            }
            continue;
        }
#endif
        UNROLL
        for (int c = 0; c < LANES; c += AT_ONCE) {
            VARIANT(Wide) *levels = v + (i * LANES + c) / WIDE;
            VARIANT(levels_at)(code[i][t] + c, levels, bits);
            for (int j = 0; j < VECTORS; j++) levels[j] *= scale;
        }
    }
#if defined(NEON)
    if (n == LARGEST_BLOCK) { /* twice the registers: half of it at a time stays in them */
        VARIANT(mix)(v, n / 2);
        VARIANT(mix)(v + n / 2 / WIDE, n / 2);
        for (int i = 0; i < n / 2 / WIDE; i++) {
            const VARIANT(Wide) a = v[i], b = v[i + n / 2 / WIDE];
            v[i] = a + b;
            v[i + n / 2 / WIDE] = a - b;
        }
    } else
#endif
        VARIANT(mix)(v, n);
    UNROLL
    for (int i = 0; i < n; i += AT_ONCE) VARIANT(put)(v + i / WIDE, x + 2 * i);
}

INLINE void VARIANT(decode_rotated_at)(
    const uint8_t *data, const Shape *s, int block, float norm, uint8_t *x, const int bits
) {
    const ptrdiff_t groups = parts(s->dim, GROUP), units = parts(s->tokens, UNIT);
    const ptrdiff_t span = block > LANES ? block : LANES;
    for (ptrdiff_t l = 0; l < s->layers; l++) {
        const uint8_t *steps = data, *packed = steps + 2 * groups * s->tokens;
        for (ptrdiff_t u = 0; u < units; u++)
            for (ptrdiff_t from = 0; from < s->dim; from += span) {
                uint8_t code[LARGEST_BLOCK / LANES][UNIT][LANES];
                float step[LARGEST_BLOCK / LANES][UNIT];
                const uint8_t *unit = packed + u * bits * s->dim + from;
                const int whole = FUSED && block >= LANES && s->dim - from >= block;
                const ptrdiff_t tiles = parts(least(s->dim - from, span), LANES);
                const ptrdiff_t first = u * UNIT, tokens = least(s->tokens - first, UNIT);
                for (ptrdiff_t i = 0; i < tiles; i++) {
                    const ptrdiff_t at = from + i * LANES;
                    uint16_t half[UNIT] = {0};
                    if (!NIBBLES(bits) || !whole)
                        VARIANT(unpack)(unit + i * LANES, s->dim, least(s->dim - at, LANES), code[i], bits);
                    for (ptrdiff_t t = 0; t < tokens; t++)
                        memcpy(half + t, steps + 2 * ((first + t) * groups + at / GROUP), 2);
                    VARIANT(unit_to_float)(half, step[i]);
                }
                for (ptrdiff_t t = 0; t < tokens; t++) {
                    float row[LARGEST_BLOCK];
                    uint8_t *values = x + l * s->layer_stride + (first + t) * s->token_stride + 2 * from;
                    fetch_ahead(s, x, l, first + t, 2 * from, 2 * least(s->dim - from, span));
                    if (whole) {
                        if (block == LANES)
                            VARIANT(values_of_codes)(unit, s->dim, code, step, t, norm, values, bits, LANES);
                        else VARIANT(values_of_codes)(unit, s->dim, code, step, t, norm, values, bits, LARGEST_BLOCK);
                        continue;
                    }
                    for (ptrdiff_t i = 0; i < tiles; i++) {
                        const float scale = step[i][t] * norm;
                        VARIANT(levels)(code[i][t], row + i * LANES, bits);
                        for (int c = 0; c < LANES; c++) row[i * LANES + c] *= scale;
                    }
                    VARIANT(rotate)(row, block);
                    for (ptrdiff_t i = 0; i < tiles; i++) {
                        const ptrdiff_t at = from + i * LANES;
                        VARIANT(store)(row + i * LANES, values + 2 * i * LANES, least(s->dim - at, LANES));
                    }
                }
            }
        data = packed + units * bits * s->dim;
    }
}

static void VARIANT(encode_rotated)(const uint8_t *x, const Shape *s, int bits, int block, float norm, uint8_t *out) {
#define CALL(b) VARIANT(encode_rotated_at)(x, s, block, norm, out, b)
    FOR_BITS(CALL)
#undef CALL
}

static void VARIANT(decode_rotated)(const uint8_t *data, const Shape *s, int bits, int block, float norm, uint8_t *x) {
#define CALL(b) VARIANT(decode_rotated_at)(data, s, block, norm, x, b)
    FOR_BITS(CALL)
#undef CALL
}

#undef FOR_BITS
