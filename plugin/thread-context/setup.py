# SPDX-License-Identifier: Apache-2.0
"""Builds the library with the thread-local variable: no module of Python's, so for every Python."""

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# What the specification prefers, and not all compilers have, or need to be told.
_DESCRIPTORS = "-mtls-dialect=gnu2"


class BuildLibrary(build_ext):
    """Builds record.so, with descriptors where the compiler has them."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        ext.extra_compile_args = [_DESCRIPTORS]
        try:
            super().build_extension(ext)
        except CompileError:
            ext.extra_compile_args = []
            super().build_extension(ext)


class Wheel(bdist_wheel):
    """For any Python of this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("otelbpf_thread_context.record", ["src/record.c"])],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
