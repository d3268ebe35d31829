# SPDX-License-Identifier: Apache-2.0
"""Reads BTF, the kernel's own description of its types, through libbpf.

It answers three questions: where a field lies in a structure of the running
kernel, what a function or tracepoint of it passes on, and how clang laid out a
structure of ours.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from otelbpf.errors import KernelError
from otelbpf.kernel import libbpf

VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")

# enum values of uapi/linux/btf.h
_KIND_INT = 1
_KIND_POINTER = 2
_KIND_ARRAY = 3
_KIND_STRUCT = 4
_KIND_UNION = 5
_KIND_ENUM = 6
_KIND_TYPEDEF = 8
_KIND_VOLATILE = 9
_KIND_CONST = 10
_KIND_RESTRICT = 11
_KIND_FUNC = 12
# Of an integer's encoding.
_INT_SIGNED = 1
_QUALIFIERS = {_KIND_TYPEDEF, _KIND_VOLATILE, _KIND_CONST, _KIND_RESTRICT}


class _Type(ctypes.Structure):
    name_off: int
    info: int
    size_or_type: int
    _fields_ = [
        ("name_off", ctypes.c_uint32),
        ("info", ctypes.c_uint32),
        ("size_or_type", ctypes.c_uint32),
    ]


class _Member(ctypes.Structure):
    name_off: int
    type: int
    offset: int
    _fields_ = [
        ("name_off", ctypes.c_uint32),
        ("type", ctypes.c_uint32),
        ("offset", ctypes.c_uint32),
    ]


class _Array(ctypes.Structure):
    type: int
    index_type: int
    nelems: int
    _fields_ = [
        ("type", ctypes.c_uint32),
        ("index_type", ctypes.c_uint32),
        ("nelems", ctypes.c_uint32),
    ]


class _Parameter(ctypes.Structure):
    name_off: int
    type: int
    _fields_ = [("name_off", ctypes.c_uint32), ("type", ctypes.c_uint32)]


class _EnumValue(ctypes.Structure):
    name_off: int
    value: int
    _fields_ = [("name_off", ctypes.c_uint32), ("value", ctypes.c_int32)]


@dataclass(frozen=True)
class Field:
    """One member of a structure.

    Attributes:
        offset: bytes from the start of the structure.
        size: bytes of one element.
        count: elements, for an array; None for anything else.
        struct: the name of the structure it is; None for an integer.
        signed: is the integer one?
    """

    name: str
    offset: int
    size: int
    count: int | None
    struct: str | None
    signed: bool


def require_btf() -> None:
    """Raises KernelError: the kernel was built without BTF."""
    if not VMLINUX_BTF.exists():
        raise KernelError(
            f"this kernel ({os.uname().release}) has no BTF ({VMLINUX_BTF} is missing), from "
            "which otelbpf learns where the kernel's fields lie",
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as all current distribution "
            "kernels are",
        )


class Btf:
    """The types of one kernel or one object file."""

    def __init__(self, lib: SimpleNamespace, handle: int) -> None:
        self._lib = lib
        self._handle = handle
        # libbpf goes through all types for each.
        self._found: dict[tuple[str, int], int] = {}

    @classmethod
    def of_kernel(cls) -> Btf:
        """The running kernel's types.

        Raises:
            KernelError: the kernel was built without BTF.
        """
        require_btf()
        lib = libbpf.library()
        handle = lib.btf__load_vmlinux_btf()
        if not handle:
            raise KernelError(
                f"cannot read {VMLINUX_BTF} ({os.strerror(ctypes.get_errno())})",
                "check that it is readable and that libbpf1 is up to date",
            )
        return cls(lib, handle)

    @classmethod
    def of_object(cls, path: Path) -> Btf:
        """The types of an object file that clang wrote with `-g`.

        Raises:
            KernelError: the file has no BTF.
        """
        lib = libbpf.library()
        handle = lib.btf__parse_elf(str(path).encode(), None)
        if not handle:
            raise KernelError(f"cannot read BTF from {path}: compile it with `clang -g`")
        return cls(lib, handle)

    def __enter__(self) -> Btf:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.btf__free(self._handle)

    def has_function(self, name: str) -> bool:
        """Is there a function of this name (inlined ones have none)?"""
        return self._find(name, _KIND_FUNC) is not None

    def has_tracepoint(self, name: str) -> bool:
        """Does the kernel have the raw tracepoint `name`?"""
        return self._find(f"btf_trace_{name}", _KIND_TYPEDEF) is not None

    def function_id(self, name: str) -> int:
        """The id of a function's type, by which a program names it. Raises KeyError: none."""
        return self._required(name, _KIND_FUNC)

    def tracepoint_id(self, name: str) -> int:
        """The id of a raw tracepoint's type, by which a program names it. Raises KeyError: none."""
        return self._required(f"btf_trace_{name}", _KIND_TYPEDEF)

    def function_arguments(self, name: str) -> tuple[str, ...]:
        """What a function's arguments point to: names of structures, "" for anything else.

        Raises:
            KeyError: no such function.
        """
        return self._arguments(self._type(self.function_id(name)).size_or_type)

    def tracepoint_arguments(self, name: str) -> tuple[str, ...]:
        """The same for what a raw tracepoint passes on.

        Raises:
            KeyError: no such tracepoint.
        """
        pointer = self._resolve(self.tracepoint_id(name))
        # Its first argument is the tracing code's own.
        return self._arguments(self._type(pointer).size_or_type)[1:]

    def offset_of(self, struct: str, path: str) -> int | None:
        """Where `struct.path` lies, in bytes; None if there is no such field.

        `path` may go through named structures ("__sk_common.skc_num");
        anonymous ones are looked through.
        """
        type_id = self._find(struct, _KIND_STRUCT)
        if type_id is None:
            return None
        offset = 0
        for name in path.split("."):
            found = self._member(type_id, name)
            if found is None:
                return None
            member_offset, type_id = found
            offset += member_offset
        return offset

    def fields_of(self, struct: str) -> list[Field]:
        """The members of a structure of integers, arrays of them and structures, in order.

        Raises:
            KernelError: no such structure.
        """
        type_id = self._find(struct, _KIND_STRUCT)
        if type_id is None:
            raise KernelError(f"no struct {struct} in this BTF")
        fields = []
        for member in self._members(type_id):
            member_type = self._resolve(member.type)
            count = None
            if self._kind(member_type) == _KIND_ARRAY:
                array = _Array.from_address(self._address(member_type) + ctypes.sizeof(_Type))
                count = array.nelems
                member_type = self._resolve(array.type)
            kind = self._type(member_type)
            fields.append(
                Field(
                    name=self._name(member.name_off),
                    offset=member.offset // 8,
                    size=kind.size_or_type,
                    count=count,
                    struct=self._name(kind.name_off)
                    if self._kind(member_type) == _KIND_STRUCT
                    else None,
                    signed=self._is_signed(member_type),
                )
            )
        return fields

    def size_of(self, struct: str) -> int:
        """Bytes of a structure. Raises KernelError where there is none."""
        type_id = self._find(struct, _KIND_STRUCT)
        if type_id is None:
            raise KernelError(f"no struct {struct} in this BTF")
        return self._type(type_id).size_or_type

    def values_of(self, enum: str) -> dict[str, int]:
        """The names and values of an enum, in order. Raises KernelError where there is none."""
        type_id = self._find(enum, _KIND_ENUM)
        if type_id is None:
            raise KernelError(f"no enum {enum} in this BTF")
        base = self._address(type_id) + ctypes.sizeof(_Type)
        values = (_EnumValue * (self._type(type_id).info & 0xFFFF)).from_address(base)
        return {self._name(value.name_off): value.value for value in values}

    def _is_signed(self, type_id: int) -> bool:
        if self._kind(type_id) != _KIND_INT:
            return False
        encoding = ctypes.c_uint32.from_address(self._address(type_id) + ctypes.sizeof(_Type))
        return bool(encoding.value >> 24 & _INT_SIGNED)

    def _find(self, name: str, kind: int) -> int | None:
        if (name, kind) not in self._found:
            type_id = self._lib.btf__find_by_name_kind(self._handle, name.encode(), kind)
            self._found[name, kind] = type_id
        type_id = self._found[name, kind]
        return type_id if type_id > 0 else None

    def _required(self, name: str, kind: int) -> int:
        type_id = self._find(name, kind)
        if type_id is None:
            raise KeyError(name)
        return type_id

    def _arguments(self, prototype: int) -> tuple[str, ...]:
        base = self._address(prototype) + ctypes.sizeof(_Type)
        count = self._type(prototype).info & 0xFFFF
        return tuple(
            self._pointed_at(parameter.type)
            for parameter in (_Parameter * count).from_address(base)
        )

    def _pointed_at(self, type_id: int) -> str:
        type_id = self._resolve(type_id)
        if not type_id or self._kind(type_id) != _KIND_POINTER:
            return ""
        target = self._resolve(self._type(type_id).size_or_type)
        if not target or self._kind(target) != _KIND_STRUCT:
            return ""
        return self._name(self._type(target).name_off)

    def _address(self, type_id: int) -> int:
        address: int = self._lib.btf__type_by_id(self._handle, type_id)
        return address

    def _type(self, type_id: int) -> _Type:
        return _Type.from_address(self._address(type_id))

    def _kind(self, type_id: int) -> int:
        return self._type(type_id).info >> 24 & 0x1F

    def _name(self, offset: int) -> str:
        name: bytes = self._lib.btf__name_by_offset(self._handle, offset)
        return name.decode()

    def _resolve(self, type_id: int) -> int:
        while type_id and self._kind(type_id) in _QUALIFIERS:
            type_id = self._type(type_id).size_or_type
        return type_id

    def _members(self, type_id: int) -> Iterator[_Member]:
        kind = self._type(type_id)
        base = self._address(type_id) + ctypes.sizeof(_Type)
        yield from (_Member * (kind.info & 0xFFFF)).from_address(base)

    def _member(self, type_id: int, name: str) -> tuple[int, int] | None:
        """(byte offset, type id) of a member, looking through anonymous ones."""
        for member in self._members(type_id):
            # With kind_flag set, the upper 8 bits hold a bitfield's width.
            offset = (member.offset & 0xFFFFFF) // 8
            member_type = self._resolve(member.type)
            member_name = self._name(member.name_off)
            if member_name == name:
                return offset, member_type
            if not member_name and self._kind(member_type) in (_KIND_STRUCT, _KIND_UNION):
                inner = self._member(member_type, name)
                if inner is not None:
                    return offset + inner[0], inner[1]
        return None
