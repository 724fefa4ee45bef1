"""How the C libraries are built and what a wheel is called; all else is in pyproject.toml.

ctypes loads the libraries, so they need no particular Python: they are named ``NAME.so``, and a wheel with them is
tagged ``py3-none-PLATFORM``. All are optional. A wheel without any, because there was no compiler or because
LLMAAS_NO_C=1 said so, is tagged ``py3-none-any``: it is enough for clients, and llmaas doctor warns where it serves.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


class BuildLibraries(build_ext):
    def build_extensions(self) -> None:
        if os.environ.get("LLMAAS_NO_C", "") in ("", "0"):
            super().build_extensions()

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def copy_extensions_to_source(self) -> None:
        """For an editable install. A library that an earlier version named after its Python would be loaded first."""
        super().copy_extensions_to_source()
        for extension in self.extensions:
            place = Path(*extension.name.split("."))
            if place.with_suffix(".so").exists():
                for old in place.parent.glob(f"{place.name}.*.so"):
                    old.unlink()


class LibraryWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        built = any(Path(self.get_finalized_command("build").build_lib).rglob("*.so"))
        return "py3", "none", super().get_tag()[2] if built else "any"


setup(cmdclass={"build_ext": BuildLibraries, "bdist_wheel": LibraryWheel})
