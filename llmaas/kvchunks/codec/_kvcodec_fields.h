/* The fields of coded keys: how the codes of 8 tokens are cut into bytes, and put together again. _kvcodec.c includes
 * this file once for each instruction set, before _kvcodec_keys.h; VARIANT names the copy. */

#define FIELDS 4   /* of a channel's code, in this order: 8, 4, 2 and 1 bits wide */
#define SIXTEEN 16 /* channels that one shuffle spreads or gathers */

/* Where the fields of the channels lie in a unit. A row of `lanes` channels is cut into groups of sixteen. */
typedef struct {
    ptrdiff_t count[FIELDS]; /* number of channels that have the field */
    int32_t *first[FIELDS];  /* [sixteens] number of channels before this sixteen that have the field */
    uint8_t *spread[FIELDS]; /* [lanes] index of the channel's byte among those of its sixteen; 0x80: it has none */
    uint8_t *gather[FIELDS]; /* [lanes] the inverse of spread */
    uint8_t *low;            /* [lanes] the value of the 1-bit field: 1, or 4 in codes of 5 bits */
    uint8_t *have[FIELDS];   /* [lanes / 8] AVX-512, for decoding, in place of spread and gather: who has the field */
} VARIANT(Map);

/* Make the map. True if the bits of the channels are 0 .. 8 and add up to `total`. */
static int VARIANT(map_fields)(
    const uint8_t *width, ptrdiff_t dim, ptrdiff_t lanes, ptrdiff_t total, int32_t *first, uint8_t *bytes,
    VARIANT(Map) *map
) {
    map->low = bytes;
    for (int f = 0; f < FIELDS; f++) {
        map->first[f] = first + f * (lanes / SIXTEEN);
        map->spread[f] = bytes + (1 + 2 * f) * lanes;
        map->gather[f] = bytes + (2 + 2 * f) * lanes;
        map->count[f] = 0;
    }
    memset(map->spread[0], 0x80, 2 * FIELDS * (size_t)lanes);
    memset(map->low, 1, lanes > 0 ? (size_t)lanes : 0); /* it is: gcc warns otherwise */
    for (ptrdiff_t from = 0; from < lanes; from += SIXTEEN) {
        uint8_t seen[FIELDS] = {0};
        for (int f = 0; f < FIELDS; f++) map->first[f][from / SIXTEEN] = (int32_t)map->count[f];
        for (ptrdiff_t c = from; c < from + SIXTEEN && c < dim; c++) {
            if (width[c] > 8) return 0;
            if (width[c] == 5) map->low[c] = 4;
            for (int f = 0; f < FIELDS; f++)
                if (width[c] & (8 >> f)) {
                    map->gather[f][from + seen[f]] = (uint8_t)(c - from);
                    map->spread[f][c] = seen[f]++;
                }
        }
        for (int f = 0; f < FIELDS; f++) map->count[f] += seen[f];
    }
    return 8 * map->count[0] + 4 * map->count[1] + 2 * map->count[2] + map->count[3] == total;
}

/* The map as decoding needs it; the bits of the channels have been checked. */
INLINE void VARIANT(map_to_decode)(
    const uint8_t *width, ptrdiff_t dim, ptrdiff_t lanes, ptrdiff_t total, int32_t *first, uint8_t *bytes,
    VARIANT(Map) *map
) {
#if defined(AVX512)
    (void)dim, (void)total;
    map->low = bytes;
    for (int f = 0; f < FIELDS; f++) {
        map->first[f] = first + f * (lanes / SIXTEEN);
        map->have[f] = bytes + lanes + f * (lanes / 8);
        map->count[f] = 0;
    }
    for (ptrdiff_t at = 0; at < lanes; at += LANES) {
        const __m512i bits = _mm512_loadu_si512(width + at);
        const __mmask64 five = _mm512_cmpeq_epi8_mask(bits, _mm512_set1_epi8(5));
        _mm512_storeu_si512(map->low + at, _mm512_mask_mov_epi8(_mm512_set1_epi8(1), five, _mm512_set1_epi8(4)));
        for (int f = 0; f < FIELDS; f++) {
            const uint64_t have = _mm512_test_epi8_mask(bits, _mm512_set1_epi8((char)(8 >> f)));
            memcpy(map->have[f] + at / 8, &have, sizeof have);
            map->first[f][at / SIXTEEN] = (int32_t)map->count[f];
            map->count[f] += __builtin_popcountll(have);
        }
    }
#else
    VARIANT(map_fields)(width, dim, lanes, total, first, bytes, map);
#endif
}

INLINE void VARIANT(shuffle)(const uint8_t *src, const uint8_t *places, uint8_t *dst) {
#if defined(F16C)
    const __m128i bytes = _mm_loadu_si128((const __m128i *)src), mask = _mm_loadu_si128((const __m128i *)places);
    _mm_storeu_si128((__m128i *)dst, _mm_shuffle_epi8(bytes, mask));
#elif defined(NEON)
    vst1q_u8(dst, vqtbl1q_u8(vld1q_u8(src), vld1q_u8(places)));
#else
    for (int c = 0; c < SIXTEEN; c++) dst[c] = places[c] & 0x80 ? 0 : src[places[c]];
#endif
}

#if defined(AVX512)
/* One row of a field: from its dense bytes to one byte for every channel. All 64 channels at once: those that have the
 * field take the next bytes in turn. */
INLINE __m512i VARIANT(spread)(
    const VARIANT(Map) *map, int f, const uint8_t *src, const uint8_t *end, ptrdiff_t at
) {
    const uint8_t *next = src + map->first[f][at / SIXTEEN];
    uint64_t have;
    memcpy(&have, map->have[f] + at / 8, sizeof have);
    const __mmask64 there = end - next >= LANES ? ~0ull : (1ull << (end - next)) - 1;
    return _mm512_maskz_expand_epi8(have, _mm512_maskz_loadu_epi8(there, next));
}
#endif

/* The same into memory. */
INLINE void VARIANT(spread_row)(
    const VARIANT(Map) *map, int f, const uint8_t *src, const uint8_t *end, ptrdiff_t at, uint8_t *dst
) {
#if defined(AVX512)
    _mm512_storeu_si512(dst, VARIANT(spread)(map, f, src, end, at));
#else
    for (ptrdiff_t from = at; from < at + LANES; from += SIXTEEN, dst += SIXTEEN) {
        const uint8_t *bytes = src + map->first[f][from / SIXTEEN];
        uint8_t last[SIXTEEN] = {0};
        if (end - bytes < SIXTEEN) {
            memcpy(last, bytes, (size_t)(end - bytes));
            bytes = last;
        }
        VARIANT(shuffle)(bytes, map->spread[f] + from, dst);
    }
#endif
}

/* The codes of 64 channels and 8 tokens, with each field at the same bit in all channels: token t's at t * stride. */
INLINE void VARIANT(unpack_keys)(
    const VARIANT(Map) *map, const uint8_t *src, const uint8_t *end, ptrdiff_t at, uint8_t *restrict code, ptrdiff_t stride
) {
    uint8_t row[8][LANES];
    const uint8_t *low = map->low + at;
    const uint8_t *four = src + 8 * map->count[0], *two = four + 4 * map->count[1], *one = two + 2 * map->count[2];
#if defined(AVX512)
    __m512i upper[4], middle[2];
    for (int r = 0; r < 4; r++) upper[r] = VARIANT(spread)(map, 1, four + r * map->count[1], end, at);
    for (int r = 0; r < 2; r++) middle[r] = VARIANT(spread)(map, 2, two + r * map->count[2], end, at);
    const __m512i lower = VARIANT(spread)(map, 3, one, end, at), lowest = _mm512_loadu_si512(low);
    /* Shifts of 16 bits: what comes from the neighbouring byte is masked. */
#define SHIFTED(x, left) \
    ((left) > 0 ? _mm512_slli_epi16(x, (left) > 0 ? (left) : 0) : _mm512_srli_epi16(x, (left) > 0 ? 0 : -(left)))
#define TAKE(t) { \
        const __m512i high = _mm512_and_si512(SHIFTED(upper[t % 4], 3 - t / 4 * 4), _mm512_set1_epi8(0x78)); \
        const __m512i with = _mm512_ternarylogic_epi64( \
            high, SHIFTED(middle[t % 2], 1 - t / 2 * 2), _mm512_set1_epi8(6), 0xf8 /* a | (b & c) */ \
        ); \
        const __mmask64 odd = _mm512_test_epi8_mask(lower, _mm512_set1_epi8((char)(1 << t))); \
        _mm512_storeu_si512(code + t * stride, _mm512_or_si512(with, _mm512_maskz_mov_epi8(odd, lowest))); \
    }
#else
    for (int r = 0; r < 4; r++) VARIANT(spread_row)(map, 1, four + r * map->count[1], end, at, row[r]);
    for (int r = 0; r < 2; r++) VARIANT(spread_row)(map, 2, two + r * map->count[2], end, at, row[4 + r]);
    VARIANT(spread_row)(map, 3, one, end, at, row[6]);
#define TAKE(t) \
    for (int c = 0; c < LANES; c++) { \
        const uint8_t upper = (uint8_t)((row[t % 4][c] >> (t / 4 * 4)) & 15); \
        const uint8_t middle = (uint8_t)((row[4 + t % 2][c] >> (t / 2 * 2)) & 3); \
        const uint8_t lower = (uint8_t)(-((row[6][c] >> t) & 1)); \
        code[t * stride + c] = (uint8_t)(upper << 3 | middle << 1 | (lower & low[c])); \
    }
#endif
    TAKE(0) TAKE(1) TAKE(2) TAKE(3) TAKE(4) TAKE(5) TAKE(6) TAKE(7)
#undef TAKE
#undef SHIFTED
    if (!map->count[0]) return;
    for (int r = 0; r < 8; r++) {
        VARIANT(spread_row)(map, 0, src + r * map->count[0], end, at, row[r]);
        for (int c = 0; c < LANES; c++) code[r * stride + c] |= row[r][c];
    }
}

/* One row of a field: from one byte for every channel to dense bytes. It may write up to 15 bytes too many, but not
 * beyond `end`; the next row overwrites them, since rows are made in ascending order. */
INLINE void VARIANT(gather_row)(
    const VARIANT(Map) *map, int f, const uint8_t *src, ptrdiff_t lanes, uint8_t *dst, const uint8_t *end
) {
    for (ptrdiff_t from = 0; from < lanes; from += SIXTEEN) {
        uint8_t *bytes = dst + map->first[f][from / SIXTEEN], last[SIXTEEN];
        if (end - bytes >= SIXTEEN) {
            VARIANT(shuffle)(src + from, map->gather[f] + from, bytes);
        } else {
            VARIANT(shuffle)(src + from, map->gather[f] + from, last);
            memcpy(bytes, last, (size_t)(end - bytes));
        }
    }
}

/* One row of a field for every channel: 64 at a time, so that gcc vectorises it. */
#define EACH_LANE(value) \
    for (ptrdiff_t at = 0; at < lanes; at += LANES) { \
        const uint8_t *x = code + at, *lowest = map->low + at; \
        uint8_t made[LANES]; \
        (void)lowest; \
        for (int c = 0; c < LANES; c++) made[c] = (uint8_t)(value); \
        memcpy(row + at, made, LANES); \
    }
#define MIDDLE(t) ((x[(t) * lanes + c] >> 1 & 3) << (t) / 2 * 2)
#define LOWER(t) (-((x[(t) * lanes + c] & lowest[c]) != 0) & 1 << (t))

/* Pack the codes [UNIT][lanes] of a unit. `row` is scratch. */
INLINE void VARIANT(pack_keys)(
    const VARIANT(Map) *map, const uint8_t *code, ptrdiff_t lanes, uint8_t *row, uint8_t *dst, const uint8_t *end
) {
    for (int r = 0; map->count[0] && r < 8; r++, dst += map->count[0])
        VARIANT(gather_row)(map, 0, code + r * lanes, lanes, dst, end);
    for (int r = 0; r < 4; r++, dst += map->count[1]) {
        EACH_LANE((x[r * lanes + c] >> 3 & 15) | (x[(r + 4) * lanes + c] >> 3 & 15) << 4)
        VARIANT(gather_row)(map, 1, row, lanes, dst, end);
    }
    EACH_LANE(MIDDLE(0) | MIDDLE(2) | MIDDLE(4) | MIDDLE(6))
    VARIANT(gather_row)(map, 2, row, lanes, dst, end);
    dst += map->count[2];
    EACH_LANE(MIDDLE(1) | MIDDLE(3) | MIDDLE(5) | MIDDLE(7))
    VARIANT(gather_row)(map, 2, row, lanes, dst, end);
    dst += map->count[2];
    EACH_LANE(LOWER(0) | LOWER(1) | LOWER(2) | LOWER(3) | LOWER(4) | LOWER(5) | LOWER(6) | LOWER(7))
    VARIANT(gather_row)(map, 3, row, lanes, dst, end);
}

#undef EACH_LANE
#undef MIDDLE
#undef LOWER
