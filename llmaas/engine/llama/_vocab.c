/* Reads a whole vocabulary from llama.cpp: 151,936 tokens take 5 ms, and 0.3 s as calls from Python.
 *
 * Law: the same functions for the same tokens in the same order as from Python. No headers of llama.cpp:
 * engine/llama/vocab_table.py gives it the functions.
 */
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef const char *(*TextOf)(const void *vocab, int32_t token);
typedef int32_t (*AttributesOf)(const void *vocab, int32_t token);

/* The texts of tokens 0 .. n-1, a zero byte behind each, as far as they fit. Returns how many bytes all take. */
EXPORT int64_t vocab_texts(TextOf text_of, const void *vocab, int32_t n, char *out, int64_t room) {
    int64_t used = 0;
    for (int32_t token = 0; token < n; token++) {
        const char *text = text_of(vocab, token);
        const int64_t size = (int64_t)strlen(text) + 1;
        if (size <= room - used) memcpy(out + used, text, (size_t)size);
        used += size;
    }
    return used;
}

EXPORT void vocab_attributes(AttributesOf attributes_of, const void *vocab, int32_t n, int32_t *out) {
    for (int32_t token = 0; token < n; token++) out[token] = attributes_of(vocab, token);
}

EXPORT int vocab_version(void) { return 1; }
