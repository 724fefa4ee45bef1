/* Where llama.cpp would copy the rows of a state to, without copying them.
 *
 * Law: but for the time of cells_rows, on its thread, ggml_backend_tensor_set does what ggml's own does. No allocation,
 * no Python, no headers of llama.cpp: engine/llama/cell_rows.py gives it the functions that it needs.
 *
 * llama.cpp reads a state in two parts: it finds cells and writes their positions, then it calls
 * ggml_backend_tensor_set for each layer's rows. This library is loaded before llama.cpp, with its symbols visible to
 * all (RTLD_GLOBAL), so the dynamic linker binds those calls to the function below.
 */
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

typedef struct {
    uint8_t *to;
    const uint8_t *from;
    size_t size;
} Rows;

typedef struct {
    Rows *rows;
    int32_t room, n;
} Record;

static void (*set)(void *tensor, const void *data, size_t offset, size_t size);
static void *(*data_of)(const void *tensor);
static _Thread_local Record *record;

/* To be changed with every change of a signature. */
EXPORT int cells_version(void) { return 1; }

/* Must be called before llama.cpp is used: ggml's own ggml_backend_tensor_set and ggml_get_data. */
EXPORT void cells_functions(
    void (*ggml_set)(void *tensor, const void *data, size_t offset, size_t size),
    void *(*ggml_data)(const void *tensor)
) {
    set = ggml_set;
    data_of = ggml_data;
}

EXPORT void ggml_backend_tensor_set(void *tensor, const void *data, size_t offset, size_t size) {
    Record *r = record;
    if (!r) {
        set(tensor, data, offset, size);
        return;
    }
    if (r->n < r->room) r->rows[r->n] = (Rows){(uint8_t *)data_of(tensor) + offset, data, size};
    r->n++;
}

/* llama_state_seq_set_data without its copying. Its result; `n` becomes the number of copies, of which `rows` has the
 * first `room`. */
EXPORT size_t cells_rows(
    size_t (*set_data)(void *context, const uint8_t *state, size_t size, int32_t seq), void *context,
    const uint8_t *state, size_t size, int32_t seq, Rows *rows, int32_t room, int32_t *n
) {
    Record mine = {rows, room, 0};
    record = &mine;
    const size_t taken = set_data(context, state, size, seq);
    record = NULL;
    *n = mine.n;
    return taken;
}
