# SPDX-License-Identifier: Apache-2.0
"""The native module; all else stands in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "otelbpf_plugin._marker",
            sources=["src/otelbpf_plugin/_marker.c"],
            depends=["src/otelbpf_plugin/mark.h", "src/otelbpf_plugin/usdt.h"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            py_limited_api=True,
        )
    ],
    # One wheel for every Python from 3.9 on.
    options={"bdist_wheel": {"py_limited_api": "cp39"}},
)
