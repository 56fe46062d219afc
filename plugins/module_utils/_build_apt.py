# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The I/O of the source package: apt with a private configuration, so that the host's own stays as it is. Private to the collection."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import tempfile
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_source import (
    Entry,
    SourceError,
    SourceFile,
    SourceLine,
    SourcePackage,
    apt_complaints,
    offered_versions,
    parse_deb822,
    parse_one_line,
    parse_print_uris,
    render_sources,
)

# argv, working directory -> return code, stdout, stderr
Run = t.Callable[[list[str], t.Optional[str]], tuple[int, str, str]]

# Read after the host's own apt.conf, whose proxies and keys stay in force. The hooks are cleared because they belong
# to the host's own `apt-get update` and may change the host.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::Etc::sourcelist "{directory}/haproxy.sources";
Dir::Etc::sourceparts "-";
Dir::State::lists "{directory}/lists";
Dir::Cache "{directory}/cache";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::ForceHash "SHA256";
"""


def read_entries(root: str = "/etc/apt") -> tuple[list[Entry], list[str]]:
    """The entries of the host's own lists, and the files that were read."""
    names = [f"{root}/sources.list", *sorted(glob.glob(f"{root}/sources.list.d/*"))]
    entries: list[Entry] = []
    read = []
    for name in names:
        if not name.endswith((".list", ".sources")) or not os.path.isfile(name):
            continue
        with open(name, encoding="utf-8", errors="replace") as file:
            text = file.read()
        read.append(name)
        entries += parse_deb822(text) if name.endswith(".sources") else parse_one_line(text)
    return entries, read


class PrivateApt:
    """apt on source lines of our own, in a directory of our own."""

    def __init__(
        self, run: Run, directory: str, *, user: str | None, check_valid_until: bool
    ) -> None:
        self._run = run
        self._directory = directory
        self._configuration = f"{directory}/apt.conf"
        text = _CONFIGURATION.format(directory=directory)
        if user is not None:
            # apt drops to this user while it downloads, so the destination has to be this user's.
            text += f'APT::Sandbox::User "{user}";\n'
        if not check_valid_until:
            text += 'Acquire::Check-Valid-Until "false";\n'
        self._write("apt.conf", text)
        for name in ("lists/partial", "cache/archives/partial"):
            os.makedirs(f"{directory}/{name}", exist_ok=True)
        for name in ("lists", "cache", "cache/archives"):
            os.chmod(f"{directory}/{name}", 0o755)

    def update(self, lines: t.Iterable[SourceLine]) -> list[str]:
        """Read the signed indexes of the lines; returns apt's complaints. What cannot be read is simply not there afterwards."""
        self._write("haproxy.sources", render_sources(lines))
        _rc, stdout, stderr = self._run(
            ["apt-get", "-c", self._configuration, "-q", "update"], None
        )
        return apt_complaints(f"{stdout}\n{stderr}")

    def offered(self, package: str) -> list[str]:
        """The versions of the source package in the indexes."""
        _rc, stdout, _stderr = self._run(
            ["apt-cache", "-c", self._configuration, "madison", package], None
        )
        return offered_versions(stdout, package)

    def find(self, package: str, version: str | None) -> SourcePackage:
        """The version, or the newest of the indexes, with every file's checksum."""
        argv = ["source", "-qq", "--print-uris", "--only-source", self._what(package, version)]
        return parse_print_uris(self._apt_get(argv, None), package)

    def download(self, package: str, source: SourcePackage, directory: str) -> None:
        """Fetch the files; apt verifies each against the signed index."""
        argv = [
            "source",
            "-qq",
            "--download-only",
            "--only-source",
            self._what(package, source.version),
        ]
        self._apt_get(argv, directory)
        missing = [file.name for file in source.files if not is_fetched(file, directory)]
        if missing:
            raise SourceError(
                f"apt-get source ended without an error, but {', '.join(missing)} in {directory} is not what the index describes"
            )

    def _apt_get(self, arguments: list[str], directory: str | None) -> str:
        rc, stdout, stderr = self._run(
            ["apt-get", "-c", self._configuration, *arguments], directory
        )
        if rc != 0:
            complaints = [
                line for line in apt_complaints(stderr) if "some archives" not in line
            ] or [stderr.strip() or f"apt-get ended with {rc}"]
            raise SourceError("; ".join(complaints))
        return stdout

    def _what(self, package: str, version: str | None) -> str:
        return f"{package}={version}" if version else package

    def _write(self, name: str, text: str) -> None:
        path = f"{self._directory}/{name}"
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, 0o644)


@contextlib.contextmanager
def scratch_directory() -> t.Iterator[str]:
    """A directory that apt's download user can enter, gone afterwards whatever happens."""
    directory = tempfile.mkdtemp(prefix="haproxy-source-")
    try:
        os.chmod(directory, 0o755)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def is_fetched(file: SourceFile, directory: str) -> bool:
    """Whether the file lies in the directory, byte for byte as the index describes it."""
    try:
        with open(f"{directory}/{file.name}", "rb") as stream:
            digest = hashlib.sha256()
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
    except OSError:
        return False
    return digest.hexdigest() == file.sha256
