/* Attention of several tokens at once, by AVX-512. Included by _tiles.c alone.
 *
 * Law: cells are taken in tiles of 64, in their order, and a tile that a row does not see changes nothing of it. So
 * what a row gives does not depend on the rows that are computed with it, but for the two ways of `attend`.
 *
 * As in FlashAttention (Dao et al., 2022): for a tile of cells the scores of a block of rows, each row's greatest so
 * far, exp of the difference, and these times V, added to what earlier tiles gave. A row is a token and one of the heads
 * that share K and V. All is f32 but K, V and the mask, which are f16.
 *
 * A tile that no token of a row's tile sees, such as other contexts' cells, costs a look at the mask.
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

enum { CELLS = 64, ROWS_AT_ONCE = 6, FEW_ROWS = 12, LANES = 16 };

/* ggml.h: the beginning of ggml_tensor. */
typedef struct Tensor {
    int type;
    void *buffer;
    int64_t ne[4];
    size_t nb[4];
    int op;
    int32_t op_params[16];
    int32_t flags;
    struct Tensor *src[10];
    struct Tensor *view_src;
    size_t view_offs;
    void *data;
} Tensor;

typedef struct {
    const Tensor *q, *k, *v, *mask, *result;
    int64_t dk, dv, n, cells, group; /* group: heads that share K and V */
    float scale;
} Attention;

/* A block of rows, in a thread's part of wdata. */
typedef struct {
    float *q, *out; /* [row][dk], [row][dv] */
    float *k, *v;   /* of a tile: [dk][CELLS], [CELLS][dv] */
    float *p;       /* [ROWS_AT_ONCE][CELLS] */
    float *most, *sum;
    int64_t first, n, rows; /* of tokens; rows: n * group, and as many more that a multiple of ROWS_AT_ONCE takes */
} Rows;

static int64_t floats_of(int64_t rows, int64_t dk, int64_t dv) {
    return rows * (dk + dv + 2) + CELLS * (dk + dv + ROWS_AT_ONCE) + LANES;
}

AVX512 INLINE __m512 half16(const uint16_t *x) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)x)); }

/* exp of what is not above 0; 0 below -87. */
AVX512 INLINE __m512 exp16(__m512 x) {
    const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 y = _mm512_set1_ps(1.0f / 720);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 120));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 24));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f / 6));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(0.5f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(counts, y, n);
}

/* to[row][..] = times[row] * to[row][..] + a[row][i] * b[i][..], for `wide` * LANES columns. `halves`: b is f16.
 * b_apart: bytes. */
AVX512 INLINE void add_product(
    int wide, bool halves, float *to, int64_t to_apart, const float *a, int64_t a_apart, const void *b, size_t b_apart,
    int64_t n, const float *times
) {
    __m512 sums[ROWS_AT_ONCE][4];
    for (int r = 0; r < ROWS_AT_ONCE; r++)
        for (int c = 0; c < wide; c++)
            sums[r][c] = times
                ? _mm512_mul_ps(_mm512_loadu_ps(to + r * to_apart + c * LANES), _mm512_set1_ps(times[r]))
                : _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i++) {
        __m512 of_b[4];
        const uint8_t *x = (const uint8_t *)b + i * b_apart;
        for (int c = 0; c < wide; c++)
            of_b[c] = halves ? half16((const uint16_t *)x + c * LANES) : _mm512_loadu_ps((const float *)x + c * LANES);
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            const __m512 y = _mm512_set1_ps(a[r * a_apart + i]);
            for (int c = 0; c < wide; c++) sums[r][c] = _mm512_fmadd_ps(y, of_b[c], sums[r][c]);
        }
    }
    for (int r = 0; r < ROWS_AT_ONCE; r++)
        for (int c = 0; c < wide; c++) _mm512_storeu_ps(to + r * to_apart + c * LANES, sums[r][c]);
}

/* 16 rows of 16 halves into columns: to[i][j] = from[j][i], of `there` rows; the others are zeros. */
AVX512 static void transpose16(const uint8_t *from, size_t apart, int there, float *to, int64_t to_apart) {
    __m512 x[LANES], y[LANES];
    for (int j = 0; j < LANES; j++)
        x[j] = j < there ? half16((const uint16_t *)(from + j * apart)) : _mm512_setzero_ps();
    /* Two, then four rows beside one another, then eight, then all. */
    for (int j = 0; j < LANES; j += 2)
        y[j] = _mm512_unpacklo_ps(x[j], x[j + 1]), y[j + 1] = _mm512_unpackhi_ps(x[j], x[j + 1]);
    for (int j = 0; j < LANES; j += 4)
        for (int i = 0; i < 2; i++) {
            const __m512d low = _mm512_castps_pd(y[j + i]), high = _mm512_castps_pd(y[j + i + 2]);
            x[j + 2 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            x[j + 2 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    for (int j = 0; j < LANES; j += 8)
        for (int i = 0; i < 4; i++) {
            y[j + i] = _mm512_shuffle_f32x4(x[j + i], x[j + i + 4], 0x88);
            y[j + i + 4] = _mm512_shuffle_f32x4(x[j + i], x[j + i + 4], 0xDD);
        }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            const __m512 low = y[i + 4 * j], high = y[i + 4 * j + 8];
            _mm512_storeu_ps(to + (i + 4 * j) * to_apart, _mm512_shuffle_f32x4(low, high, 0x88));
            _mm512_storeu_ps(to + (i + 4 * j + 8) * to_apart, _mm512_shuffle_f32x4(low, high, 0xDD));
        }
}

static const uint8_t *of_cell(const Tensor *x, int64_t head, int64_t cell) {
    return (const uint8_t *)x->data + head * x->nb[2] + cell * x->nb[1];
}

/* K of the cells from `cell` on, `there` of them, in columns. */
AVX512 static void take_keys(const Attention *a, const Rows *rows, int64_t head, int64_t cell, int64_t there) {
    const size_t apart = a->k->nb[1];
    const uint8_t *k = of_cell(a->k, head, cell);
    for (int64_t j = 0; j < CELLS; j += LANES) {
        const int left = (int)(there - j < 0 ? 0 : there - j < LANES ? there - j : LANES);
        for (int64_t i = 0; i < a->dk; i += LANES)
            transpose16(k + j * apart + 2 * i, apart, left, rows->k + i * CELLS + j, CELLS);
    }
}

AVX512 static void take_values(const Attention *a, const Rows *rows, int64_t head, int64_t cell, int64_t there) {
    for (int64_t j = 0; j < there; j++) {
        const uint16_t *x = (const uint16_t *)of_cell(a->v, head, cell + j);
        for (int64_t i = 0; i < a->dv; i += LANES) _mm512_storeu_ps(rows->v + j * a->dv + i, half16(x + i));
    }
}

static const uint16_t *mask_of(const Attention *a, int64_t token, int64_t cell) {
    return (const uint16_t *)((const uint8_t *)a->mask->data + token * a->mask->nb[1]) + cell;
}

/* Whether a token sees any of the cells from `cell` on: minus infinity is no. */
AVX512 static bool sees(const Attention *a, int64_t token, int64_t cell) {
    const uint16_t *mask = mask_of(a, token, cell);
    const int64_t there = a->cells - cell;
    const __m512i no = _mm512_set1_epi16((short)0xFC00);
    const __mmask32 low = there >= 32 ? ~0u : (1u << there) - 1;
    const __mmask32 high = there >= 64 ? ~0u : there > 32 ? (1u << (there - 32)) - 1 : 0;
    return _mm512_mask_cmpneq_epi16_mask(low, _mm512_maskz_loadu_epi16(low, mask), no) |
        _mm512_mask_cmpneq_epi16_mask(high, _mm512_maskz_loadu_epi16(high, mask + 32), no);
}

static int64_t token_of(const Attention *a, const Rows *rows, int64_t row) {
    const int64_t token = row / a->group;
    return rows->first + (token < rows->n ? token : rows->n - 1);
}

/* Scores of ROWS_AT_ONCE rows to their exp; what the rows had must be taken `times` that much. */
AVX512 static void softmax(const Attention *a, const Rows *rows, int64_t row, int64_t cell, float *times) {
    enum { PARTS = CELLS / LANES };
    const int64_t there = a->cells - cell;
    float most[LANES] = {0}, at[LANES];
    for (int r = 0; r < ROWS_AT_ONCE; r++) {
        const uint16_t *mask = mask_of(a, token_of(a, rows, row + r), cell);
        __m512 greatest = _mm512_set1_ps(-INFINITY);
        for (int c = 0; c < PARTS; c++) {
            const int64_t left = there - c * LANES;
            const __mmask16 in = left >= LANES ? 0xFFFF : left > 0 ? (1u << left) - 1 : 0;
            const __m512 m = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(in, mask + c * LANES));
            float *p = rows->p + r * CELLS + c * LANES;
            const __m512 s = _mm512_mask_add_ps(_mm512_set1_ps(-INFINITY), in, _mm512_loadu_ps(p), m);
            _mm512_storeu_ps(p, s);
            greatest = _mm512_max_ps(greatest, s);
        }
        most[r] = _mm512_reduce_max_ps(greatest);
    }
    const __mmask16 these = (1 << ROWS_AT_ONCE) - 1;
    const __m512 before = _mm512_maskz_loadu_ps(these, rows->most + row);
    const __m512 now = _mm512_max_ps(before, _mm512_loadu_ps(most));
    const __mmask16 none = _mm512_cmp_ps_mask(now, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ);
    const __m512 from = _mm512_mask_mov_ps(now, none, _mm512_setzero_ps());
    const __m512 kept = exp16(_mm512_sub_ps(before, from));
    _mm512_storeu_ps(at, from);
    _mm512_storeu_ps(times, kept);
    _mm512_mask_storeu_ps(rows->most + row, these, now);
    for (int r = 0; r < ROWS_AT_ONCE; r++) {
        __m512 sum = _mm512_setzero_ps();
        for (int c = 0; c < PARTS; c++) {
            float *p = rows->p + r * CELLS + c * LANES;
            const __m512 e = exp16(_mm512_sub_ps(_mm512_loadu_ps(p), _mm512_set1_ps(at[r])));
            _mm512_storeu_ps(p, e);
            sum = _mm512_add_ps(sum, e);
        }
        rows->sum[row + r] = rows->sum[row + r] * times[r] + _mm512_reduce_add_ps(sum);
    }
}

/* Scores from K in columns. */
AVX512 static void attend(const Attention *a, const Rows *rows, int64_t row) {
    const size_t apart = CELLS * sizeof(float);
    add_product(4, false, rows->p, CELLS, rows->q + row * a->dk, a->dk, rows->k, apart, a->dk, NULL);
}

/* The sum of the lanes of each of 16 vectors. */
AVX512 INLINE __m512 sums16(__m512 x[LANES]) {
    for (int j = 0; j < LANES; j += 2)
        x[j / 2] = _mm512_add_ps(_mm512_unpacklo_ps(x[j], x[j + 1]), _mm512_unpackhi_ps(x[j], x[j + 1]));
    for (int j = 0; j < 8; j += 2) {
        const __m512d a = _mm512_castps_pd(x[j]), b = _mm512_castps_pd(x[j + 1]);
        x[j / 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        x[j / 2] = _mm512_add_ps(x[j / 2], _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    for (int j = 0; j < 4; j += 2)
        x[j / 2] = _mm512_add_ps(
            _mm512_shuffle_f32x4(x[j], x[j + 1], 0x88), _mm512_shuffle_f32x4(x[j], x[j + 1], 0xDD)
        );
    return _mm512_add_ps(_mm512_shuffle_f32x4(x[0], x[1], 0x88), _mm512_shuffle_f32x4(x[0], x[1], 0xDD));
}

/* Scores from K as it is, which is quicker for few rows: none has to pay for columns. */
AVX512 static void attend_few(
    const Attention *a, const Rows *rows, int64_t row, int64_t head, int64_t cell, int64_t there
) {
    for (int64_t j = 0; j < there; j += LANES) {
        __m512 sums[ROWS_AT_ONCE][LANES];
        for (int i = 0; i < LANES; i++) {
            const uint16_t *k = (const uint16_t *)of_cell(a->k, head, cell + (j + i < there ? j + i : there - 1));
            for (int r = 0; r < ROWS_AT_ONCE; r++) sums[r][i] = _mm512_setzero_ps();
            for (int64_t d = 0; d < a->dk; d += LANES) {
                const __m512 x = half16(k + d);
                for (int r = 0; r < ROWS_AT_ONCE; r++)
                    sums[r][i] = _mm512_fmadd_ps(x, _mm512_loadu_ps(rows->q + (row + r) * a->dk + d), sums[r][i]);
            }
        }
        for (int r = 0; r < ROWS_AT_ONCE; r++) _mm512_storeu_ps(rows->p + r * CELLS + j, sums16(sums[r]));
    }
}

/* Adds p * V, from `v`, as f16 or not. */
AVX512 INLINE void add_values(
    const Attention *a, const Rows *rows, int64_t row, bool halves, const void *v, size_t apart, int64_t there,
    const float *times
) {
    float *out = rows->out + row * a->dv;
    const uint8_t *at = v;
    const size_t size = halves ? sizeof(uint16_t) : sizeof(float);
    int64_t i = 0;
    for (; i + 4 * LANES <= a->dv; i += 4 * LANES)
        add_product(4, halves, out + i, a->dv, rows->p, CELLS, at + size * i, apart, there, times);
    for (; i < a->dv; i += LANES)
        add_product(1, halves, out + i, a->dv, rows->p, CELLS, at + size * i, apart, there, times);
}

AVX512 static void begin_rows(const Attention *a, const Rows *rows, int64_t head) {
    for (int64_t row = 0; row < rows->rows; row++) {
        const int64_t token = token_of(a, rows, row), of = head * a->group + row % a->group;
        const float *q = (const float *)((const uint8_t *)a->q->data + token * a->q->nb[1] + of * a->q->nb[2]);
        for (int64_t i = 0; i < a->dk; i++) rows->q[row * a->dk + i] = q[i] * a->scale;
        for (int64_t i = 0; i < a->dv; i++) rows->out[row * a->dv + i] = 0;
        rows->most[row] = -INFINITY, rows->sum[row] = 0;
    }
}

AVX512 static void end_rows(const Attention *a, const Rows *rows, int64_t head) {
    for (int64_t row = 0; row < rows->n * a->group; row++) {
        const int64_t token = token_of(a, rows, row), of = head * a->group + row % a->group;
        float *to = (float *)((uint8_t *)a->result->data + of * a->result->nb[1] + token * a->result->nb[2]);
        const float by = rows->sum[row] == 0 ? 0 : 1 / rows->sum[row];
        for (int64_t i = 0; i < a->dv; i++) to[i] = rows->out[row * a->dv + i] * by;
    }
}

/* ROWS_AT_ONCE rows and a tile of cells. `taken`: whether K and V are in columns and f32 already. */
AVX512 static void attend_tile(
    const Attention *a, const Rows *rows, int64_t row, int64_t head, int64_t cell, bool *taken
) {
    const int64_t there = a->cells - cell < CELLS ? a->cells - cell : CELLS;
    float times[LANES];
    if (rows->rows <= FEW_ROWS) {
        attend_few(a, rows, row, head, cell, there);
        softmax(a, rows, row, cell, times);
        add_values(a, rows, row, true, of_cell(a->v, head, cell), a->v->nb[1], there, times);
        return;
    }
    if (!*taken) take_keys(a, rows, head, cell, there), take_values(a, rows, head, cell, there);
    *taken = true;
    attend(a, rows, row);
    softmax(a, rows, row, cell, times);
    add_values(a, rows, row, false, rows->v, a->dv * sizeof(float), there, times);
}

/* A head's K and V, and a block of tokens. */
AVX512 static void attention_part(const Attention *a, const Rows *rows, int64_t head) {
    begin_rows(a, rows, head);
    for (int64_t cell = 0; cell < a->cells; cell += CELLS) {
        bool taken = false;
        for (int64_t row = 0; row < rows->rows; row += ROWS_AT_ONCE) {
            const int64_t last = token_of(a, rows, row + ROWS_AT_ONCE - 1);
            bool seen = false;
            for (int64_t t = token_of(a, rows, row); t <= last && !seen; t++) seen = sees(a, t, cell);
            if (seen) attend_tile(a, rows, row, head, cell, &taken);
        }
    }
    end_rows(a, rows, head);
}

/* Whether it is what is computed here: no sinks, no ALiBi, no cap of the scores, and cells of f16. `a` is filled in. */
static bool is_for_tiles(const Tensor *result, Attention *a) {
    const Tensor *q = result->src[0], *k = result->src[1], *v = result->src[2], *mask = result->src[3];
    float bias, cap;
    memcpy(&a->scale, result->op_params, sizeof(float));
    memcpy(&bias, result->op_params + 1, sizeof(float));
    memcpy(&cap, result->op_params + 2, sizeof(float));
    if (!mask || result->src[4] || bias != 0 || cap != 0) return false;
    if (q->type != F32 || k->type != F16 || v->type != F16 || mask->type != F16 || result->type != F32) return false;
    if (q->nb[0] != 4 || k->nb[0] != 2 || v->nb[0] != 2 || mask->nb[0] != 2 || result->nb[0] != 4) return false;
    if (q->ne[3] != 1 || k->ne[3] != 1 || v->ne[3] != 1 || mask->ne[2] != 1 || mask->ne[3] != 1) return false;
    if (k->ne[2] != v->ne[2] || q->ne[2] % k->ne[2] || k->ne[0] % LANES || v->ne[0] % LANES) return false;
    if (q->ne[1] < 2) return false; /* one token alone: llama.cpp shares its cells out among threads */
    a->q = q, a->k = k, a->v = v, a->mask = mask, a->result = result;
    a->dk = k->ne[0], a->dv = v->ne[0], a->n = q->ne[1], a->cells = k->ne[1], a->group = q->ne[2] / k->ne[2];
    return true;
}

/* As many tokens a block as there is room for, fewer where threads would have too few blocks; 0 if there is none. */
static int64_t tokens_of_block(const Attention *a, const Thread *thread) {
    const int64_t room = (int64_t)(thread->wsize / sizeof(float)) / thread->nth;
    int64_t rows = 0;
    while (floats_of(rows + ROWS_AT_ONCE, a->dk, a->dv) <= room) rows += ROWS_AT_ONCE;
    const int64_t most = rows / a->group, blocks = over(2 * thread->nth, a->k->ne[2]);
    return most < over(a->n, blocks) ? most : over(a->n, blocks);
}

AVX512 static void attention_shared_out(const Attention *a, const Thread *thread, int64_t tokens) {
    const int64_t blocks = over(a->n, tokens), room = (int64_t)(thread->wsize / sizeof(float)) / thread->nth;
    const int64_t heads = a->k->ne[2], most = over(tokens * a->group, ROWS_AT_ONCE) * ROWS_AT_ONCE;
    Rows rows;
    float *at = (float *)thread->wdata + thread->ith * room;
    rows.k = at, rows.v = rows.k + CELLS * a->dk, rows.p = rows.v + CELLS * a->dv;
    rows.q = rows.p + CELLS * ROWS_AT_ONCE, rows.out = rows.q + most * a->dk;
    rows.most = rows.out + most * a->dv, rows.sum = rows.most + most;
    for (int64_t i = thread->ith; i < heads * blocks; i = next_part(thread->pool, 1)) {
        rows.first = (blocks - 1 - i / heads) * tokens; /* the longest first */
        rows.n = a->n - rows.first < tokens ? a->n - rows.first : tokens;
        rows.rows = over(rows.n * a->group, ROWS_AT_ONCE) * ROWS_AT_ONCE;
        attention_part(a, &rows, i % heads);
    }
}
