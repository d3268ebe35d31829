# SPDX-License-Identifier: Apache-2.0
"""Where the C sources of the BPF programs are."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def bpf_directory() -> Path:
    """Find the directory of the BPF programs' C sources.

    Returns:
        `otelbpf/bpf` of an installed wheel, else `bpf` at the top of the checkout that this
        package is imported from (an editable installation). A real directory, because BCC's
        compiler reads headers from it.
    Raises:
        FileNotFoundError: neither is there.
    Source:
        [tool.hatch.build.targets.wheel], pyproject.toml.
    """
    installed = _PACKAGE / "bpf"
    if installed.is_dir():
        return installed
    checkout = _PACKAGE.parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "bpf").is_dir():
        return checkout / "bpf"
    raise FileNotFoundError(
        f"cannot find otelbpf's C sources: neither {installed} nor {checkout / 'bpf'} is a "
        "directory of otelbpf; install otelbpf again, from a wheel or with pip install --editable"
    )
