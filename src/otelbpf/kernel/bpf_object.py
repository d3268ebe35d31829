# SPDX-License-Identifier: Apache-2.0
"""An object that clang has made of bpf/, as libbpf reads and loads it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from otelbpf.errors import RefusedError
from otelbpf.kernel import libbpf
from otelbpf.kernel.libbpf import MapShape, checked

if TYPE_CHECKING:
    from otelbpf.kernel.loads import Load

_SIZE = ctypes.c_size_t
# libbpf calls the maps of sections by the object's name, and shortens that.
_OBJECT_NAME = b"otelbpf"
_CONFIGURATION = ".rodata"
#: What to do where these programs cannot be used.
OTHER_LOADER = (
    "install BCC with `apt install python3-bpfcc` and give --loader bcc, which compiles the "
    "programs here"
)


class _OpenOpts(ctypes.Structure):
    _fields_ = [("sz", _SIZE), ("object_name", ctypes.c_char_p), ("rest", ctypes.c_uint64 * 8)]


def maps_of(octets: bytes) -> dict[str, MapShape]:
    """Each MAP() of an object, by its name.

    Raises:
        RefusedError: libbpf cannot read the object.
    """
    with opened(octets) as one:
        return {name: one.shape_of(name) for name in sorted(one.maps)}


@contextlib.contextmanager
def opened(octets: bytes) -> Iterator[BpfObject]:
    """An object that is closed at the end of a with statement; as BpfObject."""
    one = BpfObject(octets)
    try:
        yield one
    finally:
        one.close()


class BpfObject:
    """An object that libbpf has read: programs of it are chosen, and loaded once.

    Args:
        octets: of the object.
    Attributes:
        maps: handles of each MAP(), by its name.
    Raises:
        RefusedError: libbpf cannot read it.
    """

    def __init__(self, octets: bytes) -> None:
        self._lib = libbpf.library()
        opts = _OpenOpts(ctypes.sizeof(_OpenOpts), _OBJECT_NAME)
        self._handle = self._lib.bpf_object__open_mem(octets, len(octets), ctypes.byref(opts))
        if not self._handle:
            raise RefusedError(
                f"libbpf cannot read the ready-made programs ({_reason(ctypes.get_errno())})",
                f"take a newer libbpf1, or {OTHER_LOADER}",
            )
        maps = {
            self._lib.bpf_map__name(handle).decode(): handle
            for handle in self._each(self._lib.bpf_object__next_map)
            if not self._lib.bpf_map__is_internal(handle)
        }
        self.maps: dict[str, int] = maps
        self._programs: dict[str, int] = {
            self._lib.bpf_program__name(handle).decode(): handle
            for handle in self._each(self._lib.bpf_object__next_program)
        }
        #: Sections whose maps are others, and how long they are themselves.
        self._sections: dict[int, int] = {}

    def shape_of(self, name: str) -> MapShape:
        """What a map is like."""
        handle = self.maps[name]
        of = ("type", "key_size", "value_size", "max_entries")
        return MapShape(*(getattr(self._lib, f"bpf_map__{what}")(handle) for what in of))

    def configure(self, configuration: bytes) -> None:
        """Fills the read-only data."""
        size = _SIZE()
        handle = self._map_of_section(_CONFIGURATION)
        where = self._lib.bpf_map__initial_value(handle, ctypes.byref(size))
        assert size.value == len(configuration), (size.value, len(configuration))
        ctypes.memmove(where, configuration, len(configuration))

    def use(self, fds: Mapping[str, int]) -> None:
        """Puts maps that there are already in the place of the object's own.

        Args:
            fds: their descriptors, by MAP()s and sections; negative: it is not needed.
        """
        for name, fd in fds.items():
            handle = self.maps.get(name)
            if fd < 0:
                # A section's own is a small one.
                if handle is not None:
                    checked(self._lib.bpf_map__set_autocreate(handle, False))
                continue
            if handle is None:
                handle = self._map_of_section(name)
                self._sections[handle] = self._lib.bpf_map__value_size(handle)
            checked(self._lib.bpf_map__reuse_fd(handle, fd))

    def want(self, loads: Collection[Load], log: ctypes.Array[ctypes.c_char] | None) -> None:
        """Chooses what is to be loaded, and for what."""
        wanted = {load.program for load in loads}
        assert len(wanted) == len(loads)
        for name, handle in self._programs.items():
            self._lib.bpf_program__set_autoload(handle, name in wanted)
        for load in loads:
            handle = self._programs[load.program]
            checked(self._lib.bpf_program__set_type(handle, load.type))
            checked(self._lib.bpf_program__set_expected_attach_type(handle, load.attach_type))
            if load.target:
                target = load.target.removeprefix("bpf_iter_").encode()
                checked(self._lib.bpf_program__set_attach_target(handle, 0, target))
            if log is not None:
                self._lib.bpf_program__set_log_buf(handle, log, len(log))

    def load(self, loads: Collection[Load]) -> dict[Load, int]:
        """Loads what was chosen: all or nothing. Raises OSError, the kernel's refusal."""
        checked(self._lib.bpf_object__load(self._handle))
        return {
            load: os.dup(self._lib.bpf_program__fd(self._programs[load.program])) for load in loads
        }

    def close(self) -> None:
        """Lets go of it; what was loaded stays."""
        # libbpf unmaps as much of a section's memory as the map is long that is used in its place,
        # which is more than it has mapped: so each gets one of its own length again.
        for handle, size in self._sections.items():
            own = libbpf.create_value("own_length", size)
            refused = self._lib.bpf_map__reuse_fd(handle, own)
            os.close(own)
            if refused:
                # So since libbpf 1.4, once the kernel has refused a program: better some memory
                # that stays than somebody else's that goes.
                return
        self._lib.bpf_object__close(self._handle)

    def _each(self, following: Callable[..., int | None]) -> Iterator[int]:
        handle = None
        while handle := following(self._handle, handle):
            yield handle

    def _map_of_section(self, name: str) -> int:
        handle: int | None = self._lib.bpf_object__find_map_by_name(self._handle, name.encode())
        assert handle is not None, name
        return handle


def _reason(number: int) -> str:
    """Of an error, by its number: libbpf has some of its own."""
    text = ctypes.create_string_buffer(128)
    libbpf.library().libbpf_strerror(number, text, len(text))
    return text.value.decode(errors="replace")
