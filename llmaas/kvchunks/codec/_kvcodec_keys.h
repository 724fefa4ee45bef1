/* Keys (K). _kvcodec.c includes this file once for each instruction set, after _kvcodec_fields.h; VARIANT names the
 * copy. The format and its terms are those of kernels_channels.py: a channel has 0 to 8 bits, cut into fields. */

/* The caller's scratch memory: floats first, then bytes. kv_scratch counts it in the same way. */
typedef struct {
    float *tile;                /* [rows][lanes] a group of tokens (encoding), or a unit of them (decoding) */
    float *row;                 /* [lanes] spare */
    float *step, *low, *spread; /* [lanes] step, minimum and range of each channel */
    float *top;                 /* [lanes] the maximum, later the largest code */
    int32_t *score;             /* [lanes] log2 of the importance, in 1/256; later the factor that shifts the codes */
    int32_t *first;             /* for Map */
    uint8_t *width;             /* [lanes] bits of each channel */
    uint8_t *code;              /* [UNIT][lanes] */
    uint8_t *bytes;             /* for Map */
} VARIANT(Scratch);

INLINE VARIANT(Scratch) VARIANT(carve)(void *memory, ptrdiff_t lanes, ptrdiff_t rows) {
    VARIANT(Scratch) s;
    s.tile = (float *)memory;
    s.row = s.tile + rows * lanes;
    s.step = s.row + lanes;
    s.low = s.step + lanes;
    s.spread = s.low + lanes;
    s.top = s.spread + lanes;
    s.score = (int32_t *)(s.top + lanes);
    s.first = s.score + lanes;
    s.width = (uint8_t *)(s.first + FIELDS * lanes / SIXTEEN);
    s.code = s.width + lanes;
    s.bytes = s.code + UNIT * lanes;
    return s;
}

/* Rotate a row of whole heads by its place in the group: forward, or back with sign -1. */
INLINE void VARIANT(rope_row)(
    float *restrict x, float *restrict spare, ptrdiff_t dim, const Rope *rope, ptrdiff_t layer, ptrdiff_t place,
    const float sign
) {
    const ptrdiff_t head = rope->head, pairs = rope->pairs;
    const float *cosine = rope->table + ((ptrdiff_t)rope->kind[layer] * GROUP + place) * 2 * head;
    const float *sine = cosine + head;
    for (ptrdiff_t at = 0; at < dim; at += head) {
        float *restrict in = x + at, *restrict out = spare + at;
        if (rope->halves) {
            for (ptrdiff_t i = 0; i < pairs; i++) out[i] = in[i] * cosine[i] + in[i + pairs] * (sine[i] * sign);
            for (ptrdiff_t i = pairs; i < 2 * pairs; i++) out[i] = in[i] * cosine[i] + in[i - pairs] * (sine[i] * sign);
            for (ptrdiff_t i = 2 * pairs; i < head; i++) out[i] = in[i] * cosine[i] + in[i ^ 1] * (sine[i] * sign);
        } else {
            ptrdiff_t i = 0;
            for (; i + WIDE <= head; i += WIDE) {
                /* By pointer: with memcpy gcc copies the halves separately, and the load then waits for both. */
                const VARIANT(Wide) v = *(const VARIANT(Wide) *)(in + i), c = *(const VARIANT(Wide) *)(cosine + i);
                const VARIANT(Wide) s = *(const VARIANT(Wide) *)(sine + i) * sign;
                *(VARIANT(Wide) *)(out + i) = v * c + SWAP_1(v) * s;
            }
            for (; i < head; i++) out[i] = in[i] * cosine[i] + in[i ^ 1] * (sine[i] * sign);
        }
    }
    memcpy(x, spare, 4 * (size_t)dim);
}

/* -- how many bits a channel gets: water_fill of kernels_channels.py ----------------------------- */

INLINE int32_t VARIANT(rounded)(int32_t score, int32_t threshold) {
    const int32_t bits = (score - threshold + 128) >> 8;
    return bits < 0 ? 0 : bits > 8 ? 8 : bits;
}

static void VARIANT(water_fill)(const int32_t *score, ptrdiff_t dim, int bits, uint8_t *width) {
    const ptrdiff_t total = bits * dim;
    int32_t low = -(1 << 16), high = 1 << 17;
    while (high - low > 1) {
        const int32_t middle = (low + high) >> 1;
        int32_t sum = 0;
        for (ptrdiff_t c = 0; c < dim; c++) sum += VARIANT(rounded)(score[c], middle);
        if (sum <= total) high = middle;
        else low = middle;
    }
    ptrdiff_t left = total;
    for (ptrdiff_t c = 0; c < dim; c++) left -= width[c] = (uint8_t)VARIANT(rounded)(score[c], high);
    for (ptrdiff_t c = 0; c < dim && left > 0; c++)
        if (VARIANT(rounded)(score[c], high - 1) > width[c]) width[c]++, left--;
}

/* -- K ------------------------------------------------------------------------------------------ */

/* Find range, bits, step and minimum of every channel of the tile; write the words and the minima. */
INLINE void VARIANT(fit_keys)(
    const VARIANT(Scratch) *s, ptrdiff_t tokens, ptrdiff_t dim, ptrdiff_t lanes, const float *weight, int bits,
    uint8_t *words, uint8_t *lows
) {
    float *restrict low = s->low, *restrict high = s->top, *restrict spread = s->spread, *restrict step = s->step;
    memcpy(low, s->tile, 4 * (size_t)lanes);
    memcpy(high, s->tile, 4 * (size_t)lanes);
    for (ptrdiff_t t = 1; t < tokens; t++) {
        const float *restrict x = s->tile + t * lanes;
        for (ptrdiff_t c = 0; c < lanes; c++) {
            low[c] = LESSER(x[c], low[c]);
            high[c] = GREATER(x[c], high[c]);
        }
    }
    for (ptrdiff_t c = 0; c < lanes; c++) spread[c] = (high[c] - low[c]) + 0.0f;
    for (ptrdiff_t c = 0; c < dim; c++) {
        const union { float f; int32_t i; } product = {spread[c] * weight[c]};
        s->score[c] = product.i >> 15;
    }
    memset(s->width, 0, (size_t)lanes);
    VARIANT(water_fill)(s->score, dim, bits, s->width);
    for (ptrdiff_t at = 0; at < lanes; at += LANES) {
        const ptrdiff_t width = least(dim - at, LANES);
        uint16_t word[LANES];
        float exact[LANES];
        for (int c = 0; c < LANES; c++) {
            const int w = s->width[at + c];
            const float top = (float)((1 << w) - 1);
            exact[c] = spread[at + c] * (w ? 1.0f / top : 0.0f);
            low[at + c] = (w ? low[at + c] : (low[at + c] + high[at + c]) * 0.5f) + 0.0f;
            high[at + c] = top;
        }
        VARIANT(to_half)(exact, word);
        for (int c = 0; c < LANES; c++) word[c] = s->width[at + c] ? (uint16_t)((word[c] + 15) & 0xfff0) : 0;
        VARIANT(to_float)(word, step + at);
        for (int c = 0; c < LANES; c++) word[c] |= s->width[at + c];
        memcpy(words + 2 * at, word, 2 * (size_t)width);
        VARIANT(store)(low + at, lows + 2 * at, width);
        VARIANT(round_half)(low + at);
    }
}

static void VARIANT(encode_keys)(
    const uint8_t *x, const Shape *s, int bits, const Rope *rope, const float *weights, void *memory, uint8_t *out
) {
    static const uint8_t places[9] = {1, 1, 2, 1, 8, 4, 2, 1, 1};
    const ptrdiff_t groups = parts(s->tokens, GROUP), lanes = parts(s->dim, LANES) * LANES, unit = bits * s->dim;
    const VARIANT(Scratch) own = VARIANT(carve)(memory, lanes, GROUP);
    const ptrdiff_t layer_bytes = 4 * groups * s->dim + parts(s->tokens, UNIT) * unit;
    const uint8_t *end = out + s->layers * layer_bytes;
    for (ptrdiff_t l = 0; l < s->layers; l++, out += layer_bytes)
        for (ptrdiff_t g = 0; g < groups; g++) {
            const ptrdiff_t first = g * GROUP, tokens = least(s->tokens - first, GROUP);
            uint8_t *packed = out + 4 * groups * s->dim + first / UNIT * unit;
            for (ptrdiff_t t = 0; t < tokens; t++) {
                const uint8_t *row = x + l * s->layer_stride + (first + t) * s->token_stride;
                float *into = own.tile + t * lanes;
                for (ptrdiff_t at = 0; at < lanes; at += LANES)
                    VARIANT(load)(row + 2 * at, least(s->dim - at, LANES), into + at);
                if (rope->table) VARIANT(rope_row)(into, own.row, s->dim, rope, l, t, -1.0f);
            }
            VARIANT(fit_keys)(
                &own, tokens, s->dim, lanes, weights + l * s->dim, bits, out + 2 * first / GROUP * s->dim,
                out + 2 * (groups + g) * s->dim
            );
            VARIANT(Map) map;
            VARIANT(map_fields)(own.width, s->dim, lanes, unit, own.first, own.bytes, &map);
            float *restrict inverse = own.row;
            int32_t *restrict place = own.score;
            for (ptrdiff_t c = 0; c < lanes; c++) {
                inverse[c] = own.step[c] > 0 ? 1.0f / own.step[c] : 0.0f;
                place[c] = places[own.width[c]];
            }
            for (ptrdiff_t u = 0; u < parts(tokens, UNIT); u++, packed += unit) {
                for (ptrdiff_t t = 0; t < UNIT; t++) {
                    uint8_t *restrict code = own.code + t * lanes;
                    if (u * UNIT + t >= tokens) {
                        memset(code, 0, (size_t)lanes);
                        continue;
                    }
                    const float *restrict row = own.tile + (u * UNIT + t) * lanes;
                    const float *restrict low = own.low, *restrict top = own.top;
                    for (ptrdiff_t c = 0; c < lanes; c++) {
                        const float q = GREATER((row[c] - low[c]) * inverse[c], 0.0f), most = LESSER(q, top[c]);
                        code[c] = (uint8_t)((int32_t)(most + 0.5f) * place[c]);
                    }
                }
                VARIANT(pack_keys)(&map, own.code, lanes, own.width, packed, end);
            }
        }
}

/* The bits of each channel, and the step for codes whose fields are at the same bit in all channels. */
INLINE void VARIANT(read_words)(const uint8_t *words, ptrdiff_t dim, ptrdiff_t lanes, float *step, uint8_t *width) {
    static const float places[16] = {1, 1, 0.5f, 1, 0.125f, 0.25f, 0.5f, 1, 1};
    for (ptrdiff_t at = 0; at < lanes; at += LANES) {
        uint16_t word[LANES] = {0};
        memcpy(word, words + 2 * at, 2 * (size_t)least(dim - at, LANES));
        for (int c = 0; c < LANES; c++) {
            width[at + c] = word[c] & 15;
            word[c] &= 0xfff0;
        }
        VARIANT(to_float)(word, step + at);
        for (int c = 0; c < LANES; c++) step[at + c] *= places[width[at + c]];
    }
}

/* A unit of keys is made in one go, from codes to f16, where heads are whole vectors and all of their channels rotate. */
INLINE int VARIANT(whole_heads)(const Rope *rope) {
    const ptrdiff_t together = rope->halves ? rope->pairs : rope->head;
    return FUSED && rope->table && rope->head == 2 * rope->pairs && together % AT_ONCE == 0;
}

/* AT_ONCE keys, not rotated yet. */
INLINE void VARIANT(keys_at)(const VARIANT(Scratch) *s, const uint8_t *code, ptrdiff_t channel, VARIANT(Wide) *x) {
    const float *step = s->step + channel, *low = s->low + channel;
    VARIANT(take)(code + channel, x);
    for (int i = 0; i < VECTORS; i++)
        x[i] = x[i] * VARIANT(wide_of)(step + i * WIDE) + VARIANT(wide_of)(low + i * WIDE);
}

/* One token's row of keys, from codes to f16 values rotated by the place in the group. */
INLINE void VARIANT(keys_of_codes)(
    const VARIANT(Scratch) *s, const uint8_t *code, ptrdiff_t dim, const Rope *rope, ptrdiff_t layer, ptrdiff_t place,
    uint8_t *x
) {
    const ptrdiff_t head = rope->head, pairs = rope->pairs;
    const float *cosine = rope->table + ((ptrdiff_t)rope->kind[layer] * GROUP + place) * 2 * head;
    const float *sine = cosine + head;
    for (ptrdiff_t at = 0; at < dim; at += head) {
        if (rope->halves) {
            for (ptrdiff_t i = 0; i < pairs; i += AT_ONCE) {
                VARIANT(Wide) a[VECTORS], b[VECTORS];
                VARIANT(keys_at)(s, code, at + i, a);
                VARIANT(keys_at)(s, code, at + i + pairs, b);
                for (int j = 0; j < VECTORS; j++) {
                    const VARIANT(Wide) cosines = VARIANT(wide_of)(cosine + i + j * WIDE), first = a[j];
                    const VARIANT(Wide) sines = VARIANT(wide_of)(sine + pairs + i + j * WIDE);
                    a[j] = first * cosines - b[j] * sines; /* the first half of the sines is -sines */
                    b[j] = b[j] * cosines + first * sines;
                }
                VARIANT(put)(a, x + 2 * (at + i));
                VARIANT(put)(b, x + 2 * (at + i + pairs));
            }
        } else {
            for (ptrdiff_t i = 0; i < head; i += AT_ONCE) {
                VARIANT(Wide) v[VECTORS];
                VARIANT(keys_at)(s, code, at + i, v);
                for (int j = 0; j < VECTORS; j++) {
                    const VARIANT(Wide) turned = SWAP_1(v[j]) * VARIANT(wide_of)(sine + i + j * WIDE);
                    v[j] = v[j] * VARIANT(wide_of)(cosine + i + j * WIDE) + turned;
                }
                VARIANT(put)(v, x + 2 * (at + i));
            }
        }
    }
}

/* 0, with x untouched, if the bits of the channels do not add up. */
static int VARIANT(decode_keys)(
    const uint8_t *data, const Shape *s, int bits, const Rope *rope, void *memory, uint8_t *x
) {
    const ptrdiff_t groups = parts(s->tokens, GROUP), lanes = parts(s->dim, LANES) * LANES, unit = bits * s->dim;
    const VARIANT(Scratch) own = VARIANT(carve)(memory, lanes, UNIT);
    const int whole = VARIANT(whole_heads)(rope);
    const ptrdiff_t layer_bytes = 4 * groups * s->dim + parts(s->tokens, UNIT) * unit;
    const uint8_t *end = data + s->layers * layer_bytes;
    for (ptrdiff_t l = 0; l < s->layers; l++)
        for (ptrdiff_t g = 0; g < groups; g++) {
            const uint8_t *words = data + l * layer_bytes + 2 * g * s->dim;
            int32_t sum = 0;
            int wrong = 0;
            for (ptrdiff_t c = 0; c < s->dim; c++) { /* without a way out, so that it is vectorised */
                const int w = words[2 * c] & 15;
                wrong |= w > 8;
                sum += w;
            }
            if (wrong || sum != unit) return 0;
        }
    for (ptrdiff_t l = 0; l < s->layers; l++, data += layer_bytes)
        for (ptrdiff_t g = 0; g < groups; g++) {
            const ptrdiff_t first = g * GROUP, tokens = least(s->tokens - first, GROUP);
            const uint8_t *packed = data + 4 * groups * s->dim + first / UNIT * unit;
            const uint8_t *lows = data + 2 * (groups + g) * s->dim;
            VARIANT(Map) map;
            VARIANT(read_words)(data + 2 * g * s->dim, s->dim, lanes, own.step, own.width);
            VARIANT(map_to_decode)(own.width, s->dim, lanes, unit, own.first, own.bytes, &map);
            for (ptrdiff_t at = 0; at < lanes; at += LANES)
                VARIANT(load)(lows + 2 * at, least(s->dim - at, LANES), own.low + at);
            for (ptrdiff_t u = 0; u < parts(tokens, UNIT); u++, packed += unit) {
                const ptrdiff_t count = least(tokens - u * UNIT, UNIT);
                for (ptrdiff_t at = 0; at < lanes; at += LANES) {
                    uint8_t code[UNIT][LANES];
                    const float *restrict step = own.step + at, *restrict low = own.low + at;
                    if (whole) {
                        VARIANT(unpack_keys)(&map, packed, end, at, own.code + at, lanes);
                        continue;
                    }
                    VARIANT(unpack_keys)(&map, packed, end, at, code[0], LANES);
                    for (ptrdiff_t t = 0; t < UNIT; t++) {
                        float *restrict y = own.tile + t * lanes + at;
                        for (int c = 0; c < LANES; c++) y[c] = (float)code[t][c] * step[c] + low[c];
                    }
                }
                for (ptrdiff_t t = 0; t < count; t++) {
                    const ptrdiff_t token = first + u * UNIT + t;
                    uint8_t *row = x + l * s->layer_stride + token * s->token_stride;
                    float *y = own.tile + t * lanes;
                    fetch_ahead(s, x, l, token, 0, 2 * s->dim);
                    if (whole) {
                        const ptrdiff_t place = u * UNIT + t;
                        VARIANT(keys_of_codes)(&own, own.code + t * lanes, s->dim, rope, l, place, row);
                        continue;
                    }
                    if (rope->table) VARIANT(rope_row)(y, own.row, s->dim, rope, l, u * UNIT + t, 1.0f);
                    for (ptrdiff_t at = 0; at < lanes; at += LANES)
                        VARIANT(store)(y + at, row + 2 * at, least(s->dim - at, LANES));
                }
            }
        }
    return 1;
}

#undef FIELDS
#undef SIXTEEN
