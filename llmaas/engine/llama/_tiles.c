/* What a prefill takes most of its time for, several tokens at once: products with Q4_1 weights, and attention.
 *
 * Law: products have llama.cpp's bits (_products.h). Attention is as exact as llama.cpp's or more so: it adds up in f32
 * (_attention.h). No allocation, no Python, no headers of llama.cpp: engine/llama/tiles.py gives it the functions that
 * it needs.
 *
 * llama.cpp calls the two functions at the end of this file on each of its threads. This library is loaded before it,
 * with its symbols visible to all (RTLD_GLOBAL), so the dynamic linker binds those calls to what is here.
 */
#define _GNU_SOURCE /* dladdr */
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

/* ggml-cpu-impl.h, ggml.h. */
typedef struct {
    int ith, nth;
    size_t wsize;
    void *wdata;
    void *pool;
    bool use_ref;
} Thread;
enum { F32 = 0, F16 = 1, Q4_1 = 3, Q8_1 = 9 };

typedef bool Multiply(
    const Thread *thread, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
    void *c, int64_t ldc, int a_type, int b_type, int c_type
);

struct Tensor;
typedef void Attend(const Thread *thread, struct Tensor *result);

/* llama.cpp's own functions. */
static Multiply *others_multiply;
static Attend *others_attend;
static int (*next_part)(void *pool, int by);
static void (*set_part)(void *pool, int to);
static void (*meet)(void *pool);
static int level; /* one of LEVELS in tiles.py */
enum { LLAMA_CPP, PRODUCTS_AVX2, PRODUCTS_AVX512, ATTENTION_AVX512 };

static inline int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if defined(__x86_64__) && defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#include "_products.h"

#include "_attention.h"

static int best_level(void) {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return LLAMA_CPP;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni");
    return wide ? ATTENTION_AVX512 : PRODUCTS_AVX2;
}

static bool attend_here(const Thread *thread, const Tensor *result) {
    Attention a;
    if (level < ATTENTION_AVX512 || thread->use_ref || !is_for_tiles(result, &a)) return false;
    const int64_t tokens = tokens_of_block(&a, thread);
    if (!tokens) return false;
    if (thread->ith == 0) set_part(thread->pool, thread->nth);
    meet(thread->pool);
    attention_shared_out(&a, thread, tokens);
    return true;
}
#else
static bool attend_here(const Thread *thread, const struct Tensor *result) { return false; }
static int best_level(void) { return LLAMA_CPP; }
static bool multiply(
    const Thread *thread, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
    void *c, int64_t ldc
) {
    return false;
}
#endif

/* To be changed with every change of a signature. */
EXPORT int tiles_version(void) { return 1; }

/* Must be called before llama.cpp is used: its own functions of these names, or NULL. */
EXPORT void tiles_functions(
    Multiply *llamafile_sgemm, Attend *ggml_compute_forward_flash_attn_ext,
    int (*ggml_threadpool_chunk_add)(void *pool, int by), void (*ggml_threadpool_chunk_set)(void *pool, int to),
    void (*ggml_barrier)(void *pool)
) {
    others_multiply = llamafile_sgemm;
    others_attend = ggml_compute_forward_flash_attn_ext;
    next_part = ggml_threadpool_chunk_add;
    set_part = ggml_threadpool_chunk_set;
    meet = ggml_barrier;
}

/* Compute by this level from now on, or by the highest below it that this CPU has: which. No step may run meanwhile. */
EXPORT int tiles_use(int most) {
    const int best = others_multiply && others_attend && next_part && set_part && meet ? best_level() : LLAMA_CPP;
    return level = most < LLAMA_CPP ? LLAMA_CPP : most < best ? most : best;
}

/* The function of this name in the library that has the code at `caller`: one that was loaded when it was first needed
 * (GGML_BACKEND_DL) was not there to be asked. */
static void *others_in(const char *name, void *caller) {
    Dl_info found;
    if (!dladdr(caller, &found)) return NULL;
    void *library = dlopen(found.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    return library ? dlsym(library, name) : NULL;
}

EXPORT bool llamafile_sgemm(
    const Thread *thread, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda, const void *b, int64_t ldb,
    void *c, int64_t ldc, int a_type, int b_type, int c_type
) {
    if (level && a_type == Q4_1 && b_type == Q8_1 && c_type == F32 && multiply(thread, m, n, k, a, lda, b, ldb, c, ldc))
        return true;
    if (!others_multiply) others_multiply = (Multiply *)others_in("llamafile_sgemm", __builtin_return_address(0));
    return others_multiply && others_multiply(thread, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type);
}

EXPORT void ggml_compute_forward_flash_attn_ext(const Thread *thread, struct Tensor *result) {
    if (attend_here(thread, result)) return;
    if (!others_attend)
        others_attend = (Attend *)others_in("ggml_compute_forward_flash_attn_ext", __builtin_return_address(0));
    if (!others_attend) abort(); /* nobody can compute it */
    others_attend(thread, result);
}
