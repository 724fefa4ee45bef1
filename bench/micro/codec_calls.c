/* Calls of the codec's C loops, read from stdin; what they make is written to stdout. bench/lib/codec_calls.py builds
 * this program for one machine, runs it on another by emulation, and counts its instructions.
 *
 * Whatever a caller may place anywhere lies at odd addresses here, so that an access that needs alignment shows.
 */
#include "_kvcodec.c"

#include <stdio.h>
#include <stdlib.h>

enum { LARGEST, ENCODE_KEYS, DECODE_KEYS, ENCODE_VALUES, DECODE_VALUES };

typedef struct {
    int64_t call, isa, bits, block, repeats;
    int64_t layer_stride, token_stride, layers, tokens, dim;
    int64_t kinds, head, pairs, halves; /* kinds: 0 without RoPE */
    int64_t plane_bytes, section_bytes;
    double norm;
} Call;

static void *take(size_t size, size_t shift) {
    char *memory = malloc(size + shift + 1);
    if (!memory || fread(memory + shift, 1, size, stdin) != size) exit(2);
    return memory + shift;
}

static int run(const Call *c, uint8_t *x, uint8_t *section, const Rope *rope, const float *weights, void *memory) {
    const Shape shape = {c->layer_stride, c->token_stride, c->layers, c->tokens, c->dim};
    const int isa = (int)c->isa, bits = (int)c->bits, block = (int)c->block;
    switch (c->call) {
    case LARGEST: return kv_largest(isa, x, &shape);
    case ENCODE_KEYS: kv_encode_channels(isa, x, &shape, bits, rope, weights, memory, section); return 1;
    case DECODE_KEYS: return kv_decode_channels(isa, section, &shape, bits, rope, memory, x);
    case ENCODE_VALUES: kv_encode_rotated(isa, x, &shape, bits, block, (float)c->norm, section); return 1;
    default: kv_decode_rotated(isa, section, &shape, bits, block, (float)c->norm, x); return 1;
    }
}

int main(void) {
    Call c;
    while (fread(&c, sizeof c, 1, stdin) == 1) {
        if (c.isa > kv_isa()) return 3;
        uint8_t *x = take((size_t)c.plane_bytes, 1), *section = take((size_t)c.section_bytes, 1);
        const float *table = take(sizeof(float) * (size_t)(c.kinds * GROUP * 2 * c.head), 4);
        const uint8_t *kind = take((size_t)c.layers, 1);
        const float *weights = take(sizeof(float) * (size_t)(c.layers * c.dim), 4);
        const Rope rope = {c.kinds ? table : NULL, kind, c.head, c.pairs, (int)c.halves};
        void *memory = malloc((size_t)kv_scratch(c.dim, 1));
        if (!memory) return 2;
        int32_t result = 0;
        for (int64_t i = 0; i < c.repeats; i++) result = run(&c, x, section, &rope, weights, memory);
        fwrite(&result, sizeof result, 1, stdout);
        fwrite(x, 1, (size_t)c.plane_bytes, stdout);
        fwrite(section, 1, (size_t)c.section_bytes, stdout);
        /* Nothing is freed: the program ends soon. */
    }
    return 0;
}
