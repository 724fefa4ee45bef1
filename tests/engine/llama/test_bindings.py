"""llama_cpp's package is imported without its contents, and others who want these get them."""

from __future__ import annotations

import subprocess
import sys

_LATER = """
import sys
import llmaas.engine.llama.lib as lib
assert "llama_cpp" not in sys.modules and "llama_cpp.llama" not in sys.modules
from llama_cpp import Llama, llama_cpp
assert llama_cpp is lib.C, "the library is not loaded twice"
"""
_BEFORE = """
from llama_cpp import Llama
import llama_cpp
import llmaas.engine.llama.lib as lib
import sys
assert sys.modules["llama_cpp"] is llama_cpp and llama_cpp.llama_cpp is lib.C
"""


def test_who_imports_the_package_later_or_before_has_all_of_it() -> None:
    for program in (_LATER, _BEFORE):
        subprocess.run([sys.executable, "-c", program], check=True)
