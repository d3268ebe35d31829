# SPDX-License-Identifier: Apache-2.0
"""The functions of libbpf that are called: all of them, and no others can be."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

from otelbpf.errors import KernelError

_POINTER, _TEXT, _INT, _U32, _U64, _SIZE, _BOOL = (
    ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64,
    ctypes.c_size_t, ctypes.c_bool,
)  # fmt: skip
#: name -> what it returns, and its arguments.
FUNCTIONS = {
    "libbpf_set_print": (_POINTER, _POINTER),
    "libbpf_version_string": (_TEXT,),
    "libbpf_strerror": (_INT, _INT, _POINTER, _SIZE),
    "libbpf_num_possible_cpus": (_INT,),
    "bpf_map_create": (_INT, _INT, _TEXT, _U32, _U32, _U32, _POINTER),
    "bpf_map_update_elem": (_INT, _INT, _POINTER, _POINTER, _U64),
    "bpf_map_delete_elem": (_INT, _INT, _POINTER),
    "bpf_prog_load": (_INT, _INT, _TEXT, _TEXT, _POINTER, _SIZE, _POINTER),
    "bpf_prog_test_run_opts": (_INT, _INT, _POINTER),
    "bpf_prog_query_opts": (_INT, _INT, _INT, _POINTER),
    "bpf_obj_get_info_by_fd": (_INT, _INT, _POINTER, _POINTER),
    "bpf_link_create": (_INT, _INT, _INT, _INT, _POINTER),
    "bpf_link_update": (_INT, _INT, _INT, _POINTER),
    "bpf_iter_create": (_INT, _INT),
    "bpf_raw_tracepoint_open": (_INT, _TEXT, _INT),
    "bpf_xdp_query_id": (_INT, _INT, _INT, _POINTER),
    "bpf_enable_stats": (_INT, _INT),
    "btf__load_vmlinux_btf": (_POINTER,),
    "btf__parse_elf": (_POINTER, _TEXT, _POINTER),
    "btf__free": (None, _POINTER),
    "btf__find_by_name_kind": (_INT, _POINTER, _TEXT, _U32),
    "btf__type_by_id": (_POINTER, _POINTER, _U32),
    "btf__name_by_offset": (_TEXT, _POINTER, _U32),
    "bpf_object__open_mem": (_POINTER, _TEXT, _SIZE, _POINTER),
    "bpf_object__close": (None, _POINTER),
    "bpf_object__load": (_INT, _POINTER),
    "bpf_object__next_map": (_POINTER, _POINTER, _POINTER),
    "bpf_object__next_program": (_POINTER, _POINTER, _POINTER),
    "bpf_object__find_map_by_name": (_POINTER, _POINTER, _TEXT),
    "bpf_map__name": (_TEXT, _POINTER),
    "bpf_map__is_internal": (_BOOL, _POINTER),
    "bpf_map__reuse_fd": (_INT, _POINTER, _INT),
    "bpf_map__set_autocreate": (_INT, _POINTER, _BOOL),
    "bpf_map__type": (_INT, _POINTER),
    "bpf_map__key_size": (_U32, _POINTER),
    "bpf_map__value_size": (_U32, _POINTER),
    "bpf_map__max_entries": (_U32, _POINTER),
    "bpf_map__initial_value": (_POINTER, _POINTER, _POINTER),
    "bpf_program__name": (_TEXT, _POINTER),
    "bpf_program__fd": (_INT, _POINTER),
    "bpf_program__set_autoload": (_INT, _POINTER, _BOOL),
    "bpf_program__set_type": (_INT, _POINTER, _INT),
    "bpf_program__set_expected_attach_type": (_INT, _POINTER, _INT),
    "bpf_program__set_attach_target": (_INT, _POINTER, _INT, _TEXT),
    "bpf_program__set_log_buf": (_INT, _POINTER, _POINTER, _SIZE),
}
_RTLD_DI_LINKMAP = 2  # dlfcn.h


class _LinkMap(ctypes.Structure):
    """struct link_map up to the file's name."""

    name: bytes
    _fields_ = [("address", _SIZE), ("name", _TEXT)]


def functions_of(file: str) -> SimpleNamespace:
    """All of FUNCTIONS, as a library has them.

    Args:
        file: that the linker looks for.
    Raises:
        KernelError: there is no such library, or it lacks some of them.
    """
    try:
        library = ctypes.CDLL(file, use_errno=True)
    except OSError as error:
        raise KernelError(
            f"cannot load {file} ({error})", "install it with `apt install libbpf1`"
        ) from error
    lacking = [name for name in FUNCTIONS if not hasattr(library, name)]
    if lacking:
        others = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise KernelError(
            f"what the linker finds as {file} is {_path_of(library)}, which is no libbpf that "
            f"otelbpf can use, as it has no {lacking[0]}(){others}",
            "install it with `apt install --reinstall libbpf1`, and see that LD_LIBRARY_PATH "
            "names no directory with another one",
        )
    for name, (result, *arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return SimpleNamespace(**{name: getattr(library, name) for name in FUNCTIONS})


def _path_of(library: ctypes.CDLL) -> str:
    """Where the linker has found it."""
    found = ctypes.POINTER(_LinkMap)()
    libc = ctypes.CDLL(None)
    libc.dlinfo(_POINTER(library._handle), _RTLD_DI_LINKMAP, ctypes.byref(found))
    return found.contents.name.decode(errors="replace")
