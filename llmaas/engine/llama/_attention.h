/* Attention by AVX-512. Included by _tiles.c alone.
 *
 * Law: cells that no token of a block sees are not touched, and the others are taken in their order, 64 at a time. So
 * what a token of one context gives does not depend on where its cells lie, as long as they are in order, nor on what
 * lies between them, nor on which others are computed with it, of this context, in how many steps, on how many threads;
 * but for one token alone on more than two threads for each head of K, which is left to llama.cpp.
 *
 * As in FlashAttention (Dao et al., 2022): for a tile of cells the scores of a block of rows, each row's greatest so
 * far, exp of the difference, and these times V, added to what earlier tiles gave. A row is a token and one of the heads
 * that share K and V. All is f32 but K, V and the mask, which are f16.
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>

enum { CELLS = 64, ROWS_AT_ONCE = 6, FEW_ROWS = 3, LANES = 16 };

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
    uint64_t *sees; /* of each token: which cells of the tile */
    int64_t first, n, rows; /* of tokens; rows: n * group, and as many more that a multiple of ROWS_AT_ONCE takes */
} Rows;

/* Cells that a token of the block sees. */
typedef struct {
    int n;
    int64_t cell[3 * CELLS];
} Tile;

static int64_t floats_of(int64_t rows, int64_t dk, int64_t dv) {
    return rows * (dk + dv + 4) + CELLS * (dk + dv + ROWS_AT_ONCE) + LANES;
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

/* to[row][..] = times[row] * to[row][..] + a[row][i] * b[i][..], for `wide` * LANES columns. */
AVX512 INLINE void add_product(
    int rows, int wide, float *to, int64_t to_apart, const float *a, int64_t a_apart, const float *b, int64_t b_apart,
    int64_t n, const float *times
) {
    __m512 sums[ROWS_AT_ONCE][4];
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < wide; c++)
            sums[r][c] = times
                ? _mm512_mul_ps(_mm512_loadu_ps(to + r * to_apart + c * LANES), _mm512_set1_ps(times[r]))
                : _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i++) {
        __m512 of_b[4];
        for (int c = 0; c < wide; c++) of_b[c] = _mm512_loadu_ps(b + i * b_apart + c * LANES);
        for (int r = 0; r < rows; r++) {
            const __m512 y = _mm512_set1_ps(a[r * a_apart + i]);
            for (int c = 0; c < wide; c++) sums[r][c] = _mm512_fmadd_ps(y, of_b[c], sums[r][c]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < wide; c++) _mm512_storeu_ps(to + r * to_apart + c * LANES, sums[r][c]);
}

/* 16 values of 16 rows into columns: to[i][j] = from[j][i], of `there` rows; the others are zeros. */
AVX512 static void transpose16(const uint16_t *const *from, int64_t i, int there, float *to) {
    __m512 x[LANES], y[LANES];
    for (int j = 0; j < LANES; j++) x[j] = j < there ? half16(from[j] + i) : _mm512_setzero_ps();
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
    for (int k = 0; k < 4; k++)
        for (int j = 0; j < 2; j++) {
            const __m512 low = y[k + 4 * j], high = y[k + 4 * j + 8];
            _mm512_storeu_ps(to + (k + 4 * j) * CELLS, _mm512_shuffle_f32x4(low, high, 0x88));
            _mm512_storeu_ps(to + (k + 4 * j + 8) * CELLS, _mm512_shuffle_f32x4(low, high, 0xDD));
        }
}

static const uint16_t *of_cell(const Tensor *x, int64_t head, int64_t cell) {
    return (const uint16_t *)((const uint8_t *)x->data + head * x->nb[2] + cell * x->nb[1]);
}

/* K of a tile in columns, and its V. */
AVX512 static void take(const Attention *a, const Rows *rows, int64_t head, const Tile *tile) {
    const uint16_t *k[CELLS];
    for (int j = 0; j < tile->n; j++) k[j] = of_cell(a->k, head, tile->cell[j]);
    for (int j = 0; j < CELLS; j += LANES)
        for (int64_t i = 0; i < a->dk; i += LANES) transpose16(k + j, i, tile->n - j, rows->k + i * CELLS + j);
    for (int j = 0; j < tile->n; j++) {
        const uint16_t *v = of_cell(a->v, head, tile->cell[j]);
        for (int64_t i = 0; i < a->dv; i += LANES) _mm512_storeu_ps(rows->v + j * a->dv + i, half16(v + i));
    }
}

/* Cells lie as far apart as all heads take, which no prefetcher of a CPU follows. */
static void fetch(const Tensor *x, int64_t head, int64_t cell) {
    const char *row = (const char *)of_cell(x, head, cell);
    for (int64_t i = 0; i < 2 * x->ne[0]; i += 64) __builtin_prefetch(row + i);
}

/* Which of the block's tokens; of rows that are none, the last. */
static int64_t token_of(const Attention *a, const Rows *rows, int64_t row) {
    const int64_t token = row / a->group;
    return token < rows->n ? token : rows->n - 1;
}

/* Which of the 64 cells from `cell` on a token sees. Minus infinity in the mask is no, and all else is 0. */
AVX512 static uint64_t seen_of(const Attention *a, int64_t token, int64_t cell) {
    const uint16_t *mask = (const uint16_t *)((const uint8_t *)a->mask->data + token * a->mask->nb[1]) + cell;
    const int64_t there = a->cells - cell;
    const __m512i no = _mm512_set1_epi16((short)0xFC00);
    const __mmask32 low = there >= 32 ? ~0u : (1u << there) - 1;
    const __mmask32 high = there >= 64 ? ~0u : there > 32 ? (1u << (there - 32)) - 1 : 0;
    const uint64_t first = _mm512_mask_cmpneq_epi16_mask(low, _mm512_maskz_loadu_epi16(low, mask), no);
    const uint64_t last = _mm512_mask_cmpneq_epi16_mask(high, _mm512_maskz_loadu_epi16(high, mask + 32), no);
    return first | last << 32;
}

/* Fills `sees` for a tile. */
AVX512 static void look(const Attention *a, const Rows *rows, const Tile *tile) {
    const bool run = tile->n == CELLS && tile->cell[CELLS - 1] - tile->cell[0] == CELLS - 1;
    for (int64_t t = 0; t < rows->n; t++) {
        const int64_t token = rows->first + t;
        if (run) {
            rows->sees[t] = seen_of(a, token, tile->cell[0]);
            continue;
        }
        const uint16_t *mask = (const uint16_t *)((const uint8_t *)a->mask->data + token * a->mask->nb[1]);
        uint64_t sees = 0;
        for (int j = 0; j < tile->n; j++) sees |= (uint64_t)(mask[tile->cell[j]] != 0xFC00) << j;
        rows->sees[t] = sees;
    }
}

/* Scores of ROWS_AT_ONCE rows to their exp; what the rows had must be taken `times` that much. */
AVX512 static void softmax(const Attention *a, const Rows *rows, int64_t row, int n, float *times) {
    enum { PARTS = CELLS / LANES };
    float most[LANES] = {0}, at[LANES];
    for (int r = 0; r < n; r++) {
        const uint64_t sees = rows->sees[token_of(a, rows, row + r)];
        __m512 greatest = _mm512_set1_ps(-INFINITY);
        for (int c = 0; c < PARTS; c++) {
            float *p = rows->p + r * CELLS + c * LANES;
            const __mmask16 these = (__mmask16)(sees >> (c * LANES));
            const __m512 s = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), these, p);
            _mm512_storeu_ps(p, s);
            greatest = _mm512_max_ps(greatest, s);
        }
        most[r] = _mm512_reduce_max_ps(greatest);
    }
    const __mmask16 these = (1 << n) - 1;
    const __m512 before = _mm512_maskz_loadu_ps(these, rows->most + row);
    const __m512 now = _mm512_max_ps(before, _mm512_loadu_ps(most));
    const __mmask16 none = _mm512_cmp_ps_mask(now, _mm512_set1_ps(-INFINITY), _CMP_EQ_OQ);
    const __m512 from = _mm512_mask_mov_ps(now, none, _mm512_setzero_ps());
    const __m512 kept = exp16(_mm512_sub_ps(before, from));
    _mm512_storeu_ps(at, from);
    _mm512_storeu_ps(times, kept);
    _mm512_mask_storeu_ps(rows->most + row, these, now);
    for (int r = 0; r < n; r++) {
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

#define ADD_PRODUCT(FEW, WIDE, ...)                                                                                    \
    do {                                                                                                               \
        if (FEW) add_product(FEW_ROWS, WIDE, __VA_ARGS__);                                                             \
        else add_product(ROWS_AT_ONCE, WIDE, __VA_ARGS__);                                                             \
    } while (0)

AVX512 static void add_scores(const Attention *a, const Rows *rows, int64_t row, bool few) {
    ADD_PRODUCT(few, 4, rows->p, CELLS, rows->q + row * a->dk, a->dk, rows->k, CELLS, a->dk, NULL);
}

/* Adds p * V of `n` cells. */
AVX512 static void add_values(
    const Attention *a, const Rows *rows, int64_t row, bool few, int n, const float *times
) {
    float *out = rows->out + row * a->dv;
    int64_t i = 0;
    for (; i + 4 * LANES <= a->dv; i += 4 * LANES)
        ADD_PRODUCT(few, 4, out + i, a->dv, rows->p, CELLS, rows->v + i, a->dv, n, times);
    for (; i < a->dv; i += LANES) ADD_PRODUCT(few, 1, out + i, a->dv, rows->p, CELLS, rows->v + i, a->dv, n, times);
}

AVX512 static void begin_rows(const Attention *a, const Rows *rows, int64_t head) {
    for (int64_t row = 0; row < rows->rows; row++) {
        const int64_t token = rows->first + token_of(a, rows, row), of = head * a->group + row % a->group;
        const float *q = (const float *)((const uint8_t *)a->q->data + token * a->q->nb[1] + of * a->q->nb[2]);
        for (int64_t i = 0; i < a->dk; i++) rows->q[row * a->dk + i] = q[i] * a->scale;
        for (int64_t i = 0; i < a->dv; i++) rows->out[row * a->dv + i] = 0;
        rows->most[row] = -INFINITY, rows->sum[row] = 0;
    }
}

AVX512 static void end_rows(const Attention *a, const Rows *rows, int64_t head) {
    for (int64_t row = 0; row < rows->n * a->group; row++) {
        const int64_t token = rows->first + token_of(a, rows, row), of = head * a->group + row % a->group;
        float *to = (float *)((uint8_t *)a->result->data + of * a->result->nb[1] + token * a->result->nb[2]);
        const float by = rows->sum[row] == 0 ? 0 : 1 / rows->sum[row];
        for (int64_t i = 0; i < a->dv; i++) to[i] = rows->out[row * a->dv + i] * by;
    }
}

/* A block's rows and the first cells of `tile`, which are taken out of it. */
AVX512 static void attend_tile(const Attention *a, const Rows *rows, int64_t head, Tile *tile) {
    const int all = tile->n;
    tile->n = all < CELLS ? all : CELLS;
    look(a, rows, tile);
    take(a, rows, head, tile);
    const bool few = rows->n * a->group <= FEW_ROWS;
    for (int64_t row = 0; row < rows->rows; row += ROWS_AT_ONCE) {
        float times[LANES];
        uint64_t sees = 0;
        const int64_t last = token_of(a, rows, row + ROWS_AT_ONCE - 1);
        for (int64_t t = token_of(a, rows, row); t <= last; t++) sees |= rows->sees[t];
        if (!sees) continue;
        add_scores(a, rows, row, few);
        softmax(a, rows, row, few ? FEW_ROWS : ROWS_AT_ONCE, times);
        add_values(a, rows, row, few, tile->n, times);
    }
    memmove(tile->cell, tile->cell + tile->n, (all - tile->n) * sizeof tile->cell[0]);
    tile->n = all - tile->n;
}

/* A head's K and V, and a block of tokens. */
AVX512 static void attention_part(const Attention *a, const Rows *rows, int64_t head) {
    Tile tile = {0};
    begin_rows(a, rows, head);
    for (int64_t cell = 0; cell < a->cells; cell += CELLS) {
        uint64_t seen = 0;
        for (int64_t t = 0; t < rows->n; t++) seen |= seen_of(a, rows->first + t, cell);
        for (; seen; seen &= seen - 1) {
            const int64_t found = cell + __builtin_ctzll(seen);
            fetch(a->k, head, found), fetch(a->v, head, found);
            tile.cell[tile.n++] = found;
        }
        if (tile.n >= 2 * CELLS) attend_tile(a, rows, head, &tile); /* while the rest is fetched */
    }
    while (tile.n) attend_tile(a, rows, head, &tile);
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
    a->q = q, a->k = k, a->v = v, a->mask = mask, a->result = result;
    a->dk = k->ne[0], a->dv = v->ne[0], a->n = q->ne[1], a->cells = k->ne[1], a->group = q->ne[2] / k->ne[2];
    return true;
}

/* Floats of wdata for each thread, a multiple of 64 bytes. */
static int64_t room_of(const Thread *thread) {
    return (int64_t)(thread->wsize / sizeof(float)) / thread->nth / LANES * LANES;
}

/* As many tokens a block as there is room for, fewer where threads would have too few blocks; 0 if there is none. */
static int64_t tokens_of_block(const Attention *a, const Thread *thread) {
    const int64_t room = room_of(thread);
    int64_t rows = 0;
    while (floats_of(rows + ROWS_AT_ONCE, a->dk, a->dv) <= room) rows += ROWS_AT_ONCE;
    const int64_t most = rows / a->group, blocks = over(2 * thread->nth, a->k->ne[2]);
    if (a->n == 1 && thread->nth > 2 * a->k->ne[2]) return 0; /* llama.cpp shares out cells, too, not heads alone */
    return most < over(a->n, blocks) ? most : over(a->n, blocks);
}

AVX512 static void attention_shared_out(const Attention *a, const Thread *thread, int64_t tokens) {
    const int64_t blocks = over(a->n, tokens);
    const int64_t heads = a->k->ne[2], most = over(tokens * a->group, ROWS_AT_ONCE) * ROWS_AT_ONCE;
    Rows rows;
    float *at = (float *)thread->wdata + thread->ith * room_of(thread);
    rows.k = at, rows.v = rows.k + CELLS * a->dk, rows.p = rows.v + CELLS * a->dv;
    rows.q = rows.p + CELLS * ROWS_AT_ONCE, rows.out = rows.q + most * a->dk;
    rows.most = rows.out + most * a->dv, rows.sum = rows.most + most;
    rows.sees = (uint64_t *)(rows.sum + most);
    for (int64_t i = thread->ith; i < heads * blocks; i = next_part(thread->pool, 1)) {
        rows.first = (blocks - 1 - i / heads) * tokens; /* the longest first */
        rows.n = a->n - rows.first < tokens ? a->n - rows.first : tokens;
        rows.rows = over(rows.n * a->group, ROWS_AT_ONCE) * ROWS_AT_ONCE;
        attention_part(a, &rows, i % heads);
    }
}
