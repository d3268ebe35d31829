# SPDX-License-Identifier: Apache-2.0
"""Ready-made programs: an object that clang has made of bpf/, loaded by libbpf.

The maps are made before, as for BCC. libbpf puts their descriptors into the instructions, and where
the fields of the running kernel's structures lie.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from otelbpf.kernel.bpf_object import OTHER_LOADER, opened
from otelbpf.kernel.libbpf import VerifierError
from otelbpf.kernel.loads import Load
from otelbpf.kernel.records import CONFIGURATION

_LOG_BYTES = 16 << 20


# Each opens the object and reads the kernel's types; and one program is a tenth of all work.
_WORKERS_MOST = 4
# Milliseconds that 6.18 took for each where most is asked for, and next to none for others. What is
# wrong here only takes longer.
_WORK = {
    "tc_ingress": 94,
    "traced_state": 87,
    "tc_client_egress": 82,
    "tc_client_chunks": 81,
    "tc_repeated": 80,
    "tc_kept": 69,
    "tc_client_ingress": 60,
    "tc_chunks": 60,
    "tc_client_kept": 58,
    "tc_client_repeated": 57,
    "tc_client_kept_chunks": 52,
    "tc_disorder": 47,
    "tc_client_disorder": 47,
    "tc_egress": 45,
    "tc_grant": 41,
    "tc_kept_chunks": 40,
    "traced_read": 39,
    "xdp_arrival": 38,
    "traced_write": 33,
    "tc_client_admit": 29,
    "tc_admit": 29,
    "traced_queued": 23,
    "marked_request": 19,
    "listed_program": 17,
    "tc_client_grant": 10,
    "sweep": 8,
    "traced_tcp": 8,
    "traced_reset": 7,
}


def object_path() -> Path:
    """The object for this machine's architecture, whether there is one or not."""
    return Path(__file__).with_name(f"programs-{platform.machine()}.o")


def why_unusable() -> str:
    """What is wrong with the object, for people; empty: it is the one of this version."""
    path = object_path()
    if not path.exists():
        return f"there is no {path.name}"
    try:
        octets, told = path.read_bytes(), path.with_suffix(".json").read_bytes()
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read ({error.strerror})"
    if hashlib.sha256(octets).hexdigest() != _hash_in(told):
        return (
            f"{path.name} is not the one that this version came with, which installing otelbpf "
            "again mends"
        )
    return ""


def _hash_in(told: bytes) -> object:
    """What scripts/build-objects has written of the object; None: it is not what that writes."""
    try:
        return json.loads(told)["object"]
    except (ValueError, TypeError, LookupError):
        return None


class Object:
    """The programs of an object, to be loaded.

    Args:
        configuration: the values of fields of struct configuration, bpf/configuration.h.
        arrays: descriptors of the arrays' maps, by their names in bpf/.
        maps: of all others.
    Raises:
        RefusedError: libbpf cannot read it.
    """

    instead = OTHER_LOADER

    def __init__(
        self,
        configuration: Mapping[str, int],
        arrays: Mapping[str, int],
        maps: Mapping[str, int],
    ) -> None:
        self._octets = object_path().read_bytes()
        values = np.zeros(1, CONFIGURATION)
        for name, value in configuration.items():
            values[name] = value
        self._configuration = values.tobytes()
        self._arrays = arrays
        self._maps = maps

    def load(self, load: Load) -> int:
        """Loads a program; its file descriptor.

        Raises:
            VerifierError: the kernel's refusal.
        """
        try:
            return self._load([load])[load]
        except OSError as refusal:
            # Again, with a log this time: writing one slows the verifier down.
            log = ctypes.create_string_buffer(_LOG_BYTES)
            try:
                return self._load([load], log)[load]
            except OSError:
                text = log.value.decode(errors="replace")
                raise VerifierError(refusal.errno or 0, text) from refusal

    def load_all(self, loads: list[Load]) -> dict[Load, int]:
        """Loads these at the same time; what the kernel refuses is left out."""
        # An object that is open has each program once: for a second target it is opened again.
        firsts = {load.program: load for load in reversed(loads)}.values()
        workers = min(len(os.sched_getaffinity(0)), _WORKERS_MOST)
        groups = [*_shared(firsts, workers), *([load] for load in loads if load not in firsts)]
        with ThreadPoolExecutor() as pool:
            return {load: fd for loaded in pool.map(self._load_most, groups) for load, fd in loaded}

    def _load_most(self, loads: list[Load]) -> list[tuple[Load, int]]:
        try:
            return list(self._load(loads).items())
        except OSError:
            if len(loads) == 1:
                return []
            return [loaded for load in loads for loaded in self._load_most([load])]

    def _load(
        self, loads: Collection[Load], log: ctypes.Array[ctypes.c_char] | None = None
    ) -> dict[Load, int]:
        """All of these, which are different programs, or none."""
        with opened(self._octets) as one:
            one.configure(self._configuration)
            one.use({f".bss.{name}": fd for name, fd in self._arrays.items()})
            one.use(self._maps)
            one.want(loads, log)
            return one.load(loads)


def _shared(loads: Iterable[Load], workers: int) -> list[list[Load]]:
    """Shares of about the same work: each in turn, the most work first, to who has least so far."""
    shares: list[list[Load]] = [[] for _ in range(workers)]
    for load in sorted(loads, key=_work, reverse=True):
        min(shares, key=lambda share: sum(map(_work, share))).append(load)
    return [share for share in shares if share]


def _work(load: Load) -> int:
    return _WORK.get(load.program, 1)
