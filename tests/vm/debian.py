# SPDX-License-Identifier: Apache-2.0
"""Debian 12's packages for any host with apt, whose own lists and packages stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from children import run
from errors import InputError

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_SOURCES = """\
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main
Architectures: amd64
Targets: Packages
Signed-By: {keyring}

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
Architectures: amd64
Targets: Packages
Signed-By: {keyring}
"""
# Read after the host's configuration, of which the way to the network stays: proxies, transports,
# certificates. Its hooks would tell the host about lists that are not its own. The sandbox's user
# cannot write below root's home.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Dir::Cache "{directory}/cache";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{directory}/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{directory}/state";
Dir::State::status "{directory}/status";
"""


@dataclass(frozen=True)
class Apt:
    """An apt of its own: its configuration, lists and caches are in `directory`."""

    directory: Path

    @classmethod
    def prepare(cls, directory: Path) -> Apt:
        """Writes its configuration.

        Raises:
            InputError: Debian's keys are not installed.
        """
        if not KEYRING.exists():
            raise InputError(
                f"cannot check Debian's signatures without {KEYRING}: install the package "
                "debian-archive-keyring, or run scripts/setup --test"
            )
        for name in ("cache/archives/partial", "sources", "state/lists/partial"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        (directory / "sources/debian.sources").write_text(_SOURCES.format(keyring=KEYRING))
        (directory / "apt.conf").write_text(_CONFIGURATION.format(directory=directory))
        return cls(directory)

    def update(self) -> None:
        """Fetches the lists."""
        self._run("apt-get", "-qq", "update")

    def names(self, prefix: str) -> list[str]:
        """The packages whose names begin so."""
        return self._run("apt-cache", "pkgnames", prefix).split()

    def download(self, package: str, into: Path) -> Path:
        """Fetches a package's newest version, its signature checked."""
        self._run("apt-get", "-qq", "download", package, cwd=into)
        (path,) = into.glob("*.deb")
        return path

    def _run(self, program: str, *arguments: str, cwd: Path | None = None) -> str:
        command = [program, f"--config-file={self.directory / 'apt.conf'}", *arguments]
        return run(*command, cwd=cwd)
