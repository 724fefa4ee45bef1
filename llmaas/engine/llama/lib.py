"""The border to llama.cpp: its C functions, its log, its model files.

Law: llama_cpp is imported here and nowhere else. Nothing of llama.cpp reaches stderr: every line goes to
``logging``: its errors as warnings, because what matters reaches the caller as an exception; all else as debug. What
it calls a warning, such as "the full capacity of the model will not be utilized", is nothing that an operator can mend.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmaas.engine.llama import openmp, tiles
from llmaas.engine.llama.bare_package import without_init
from llmaas.errors import ModelUnreadable
from llmaas.native import load_library

N_CPUS = openmp.n_cpus()
"""The CPUs that an OpenMP runtime finds, since it is loaded now."""
cell_rows_library = load_library(__file__, "_cell_rows", lambda lib: bool(lib.cells_version() == 1), for_all=True)
"""See ``cell_rows``. Loaded before llama.cpp, whose calls of one of ggml's functions go through it; None without it."""
with openmp.loading(os.environ), without_init("llama_cpp"):
    import llama_cpp.llama_cpp as _llama_cpp

# The package's own type hints are imprecise (array types for pointers, bare ints for handles), so they are not used.
C: Any = _llama_cpp

_log = logging.getLogger("llmaas.llama_cpp")
_ERROR, _CONTINUED = 4, 5
"""ggml.h; 1 is debug, 2 info, 3 warning."""
_of_thread = threading.local()
"""``errors``: lines that ``collect_errors`` collects on this thread; ``lines``: those of ``collect_lines``. ``abort``:
the flag that it cleared last."""


def _on_log(level: int, text: bytes | None, _data: object) -> None:
    # This runs inside C frames, on any thread, so it must not raise.
    line = (text or b"").decode("utf-8", "replace").rstrip()
    if level == _CONTINUED or not line.strip("."):  # the rest of a line, or the dots of a progress bar
        return
    lines = getattr(_of_thread, "lines", None)
    if lines is not None:
        lines.append(line)
    errors = getattr(_of_thread, "errors", None)
    if level == _ERROR and errors is not None:
        errors.append(line)
    abort = getattr(_of_thread, "abort", None)
    if level == _ERROR and abort is not None and abort.is_set:
        level = 0  # llmaas asked for the failure
    _log.log(logging.WARNING if level == _ERROR else logging.DEBUG, "%s", line)


def ggml_function(name: str) -> int | None:
    """The address of a function of llama.cpp or ggml; None if the library exports none of that name."""
    try:
        return ctypes.cast(getattr(C._lib, name), ctypes.c_void_p).value
    except AttributeError:
        return None


def _give_functions(library: ctypes.CDLL) -> None:
    """Tell ``_cell_rows.c`` what it calls. llama.cpp must not be used before."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.cells_functions.argtypes = (pointer, pointer)
    library.cells_functions.restype = None
    library.cells_rows.argtypes = (pointer, pointer, pointer, size, ctypes.c_int32, pointer, ctypes.c_int32, pointer)
    library.cells_rows.restype = size
    library.cells_functions(ggml_function("ggml_backend_tensor_set"), ggml_function("ggml_get_data"))


if cell_rows_library is not None:
    _give_functions(cell_rows_library)
tiles.begin(ggml_function)
_callback = C.llama_log_callback(_on_log)  # kept here, because llama.cpp keeps only its address
C.llama_log_set(_callback, None)
C.llama_backend_init()


@contextmanager
def collect_errors() -> Iterator[list[str]]:
    """Collect the errors that llama.cpp logs on this thread: its functions return NULL, and only the log says why."""
    errors: list[str] = []
    _of_thread.errors = errors
    try:
        yield errors
    finally:
        _of_thread.errors = None


@contextmanager
def collect_lines() -> Iterator[list[str]]:
    """Collect all that llama.cpp logs on this thread: some facts, such as the sizes of its buffers, it only logs."""
    outer: list[str] | None = getattr(_of_thread, "lines", None)
    lines: list[str] = []
    _of_thread.lines = lines
    try:
        yield lines
    finally:
        _of_thread.lines = outer
        if outer is not None:
            outer += lines


def load_model(
    path: Path,
    *,
    vocab_only: bool = False,
    repack: bool = True,
    weights: bool = True,
    devices: Any = None,
    gpu_layers: int | None = None,
) -> Any:
    """A ``llama_model *``; with ``vocab_only`` without weights. Raises ModelUnreadable with the path and the reason.

    ``repack``: llama.cpp may keep a second copy of weights, in an order that this CPU computes faster with. Without
    ``weights`` nothing can be computed: for asking how much memory the rest would take. ``devices``: as
    ``device_list`` makes them; None: all that there are. ``gpu_layers``: how many layers they compute; None: all.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelUnreadable(f"cannot read the model {path}: {error.strerror or error}") from error
    if magic != b"GGUF":
        raise ModelUnreadable(f"{path} is not a GGUF model: it begins with {magic!r}")
    parameters = C.llama_model_default_params()
    parameters.vocab_only, parameters.use_extra_bufts = vocab_only, repack
    if gpu_layers is not None:
        parameters.n_gpu_layers = gpu_layers
    parameters.devices = ctypes.cast(devices, ctypes.c_void_p)
    if not weights:
        parameters.no_alloc, parameters.load_mode = True, C.LLAMA_LOAD_MODE_NONE
    with collect_errors() as errors:
        model = C.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        reason = errors[0] if errors else "llama.cpp gives no reason"
        raise ModelUnreadable(f"llama.cpp cannot load {path}: {reason}")
    return model


def metadata(model: Any, key: str) -> str | None:
    """A metadata value of the model as text; None if there is no such key, or its value is an array."""
    size = 256
    while True:
        buffer = ctypes.create_string_buffer(size)
        length = int(C.llama_model_meta_val_str(model, key.encode(), buffer, size))
        if length < 0:
            return None
        if length < size:
            return buffer.raw[:length].decode("utf-8", "replace")
        size = length + 1


def known_token(token: int) -> int | None:
    """A token id that llama.cpp returned; None for its -1, which says that the model has no such token."""
    return int(token) if token >= 0 else None


def build() -> str:
    """Names the library: its version, the commit of ggml, and what it can do on this CPU."""
    texts = [C.llama_print_system_info()]
    for name in ("ggml_version", "ggml_commit"):
        if (address := ggml_function(name)) is not None:
            texts.append(ctypes.CFUNCTYPE(ctypes.c_char_p)(address)())
    return " ".join((text or b"").decode("utf-8", "replace") for text in texts)


class AbortFlag:
    """An abort callback for ggml that never enters Python.

    ggml asks the callback before every node of the graph, about a thousand times a token; a ctypes callback would take
    the GIL each time. libc's ``strlen`` fits instead: it takes one pointer, and of a buffer that holds "" or "\\x01" it
    returns 0 or 1, which is a C ``bool`` in every calling convention of our platforms. Rejected: a Python callback for
    large batches only (it still costs, and a decode could not be stopped).

    While the flag is set, errors that llama.cpp logs on the thread that cleared it last are the abort that was asked
    for, so no warning is made of them.
    """

    def __init__(self, context: Any) -> None:
        self._cell = ctypes.create_string_buffer(b"\x00\x00", 2)
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, C.ggml_abort_callback)
        C.llama_set_abort_callback(context, strlen, ctypes.addressof(self._cell))

    @property
    def is_set(self) -> bool:
        return self._cell[0] != b"\x00"

    def set(self) -> None:
        self._cell[0] = b"\x01"

    def clear(self) -> None:
        """To be called before each step, on the thread that runs it."""
        self._cell[0] = b"\x00"
        _of_thread.abort = self  # there may be several engines on a thread
