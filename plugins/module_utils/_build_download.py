# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The I/O of a tarball with HAProxy's source: fetched under one deadline, seen to be what it should be, put in place. Private to the collection."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import http.client
import importlib
import os
import pwd
import signal
import socket
import ssl
import stat
import tarfile
import time
import types
import typing as t
import urllib.error
import urllib.parse
import urllib.request
import zlib

from ansible.module_utils.urls import open_url

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_archive import (
    READ,
    Location,
    Tree,
    Wanted,
    check_version,
    parse_checksums,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_source import SourceError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

_BLOCK = 1 << 16
# Bytes. HAProxy 3.0 has 5 MB, 20 MB unpacked.
_LARGEST_TARBALL = 100_000_000
_LARGEST_TREE = 400_000_000
_LARGEST_TEXT = 1_000_000
# Python's module of a compression, by how its files begin.
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "lzma"}
# What servers answer that have the file, but know no HEAD or sign the method too.
_NO_HEAD = (403, 405, 501)
_MODE = 0o644


@dataclasses.dataclass(frozen=True)
class Owner:
    name: str
    uid: int
    gid: int


@dataclasses.dataclass(frozen=True)
class Tarball:
    """What is known of the tarball. `directory` is its top directory, known once it is on the host, as the size is."""

    version: str | None
    sha256: str
    size: int | None
    directory: str | None
    changed: bool = False


def find_owner(name: str | None) -> Owner | None:
    if name is None:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError as exc:
        raise InputError(
            f"owner is {name!r}, and this host has no such user: create it first"
        ) from exc
    return Owner(name, entry.pw_uid, entry.pw_gid)


# --- the network ----------------------------------------------------------------------------


class _Expired(BaseException):
    """Raised by a signal, anywhere: nothing on the way takes it for an error of its own."""


class Transfer:
    """Reads from the network, or the host's files, until one deadline for all of it.

    A timeout of a socket begins anew with each byte, and neither bounds name resolution nor several addresses; hence the alarm.
    """

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self._armed = False
        self._before: t.Any = signal.SIG_DFL
        self._where = Location("the source")
        self._received = 0
        self._length: int | None = None

    def __enter__(self) -> Transfer:
        self._before = signal.signal(signal.SIGALRM, self._ring)
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, self._seconds)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)
        if isinstance(value, _Expired):
            raise self._too_slow() from None

    def _ring(self, _number: int, _frame: t.Any) -> None:
        if self._armed:
            raise _Expired

    def _too_slow(self) -> SourceError:
        of = "" if self._length is None else f" of {self._length}"
        came = f"{self._received}{of} bytes" if self._received else "nothing"
        return SourceError(
            f"{self._where.shown} did not come within {self._seconds} seconds, {came} did{_through(self._where)}; "
            f"{self._where.remedy}, or give more as timeout"
        )

    def text(self, where: Location) -> str:
        """A small file of text. Not over a plain connection where an encrypted one was asked for."""
        return b"".join(self.blocks(where, _LARGEST_TEXT, encrypted=True)).decode(
            "utf-8", "replace"
        )

    def ask(self, where: Location) -> int | None:
        """See that the file is there, without fetching it; its size, where the server tells."""
        try:
            with self._open(where, "HEAD") as response:
                return _length_of(response)
        except urllib.error.HTTPError as exc:
            exc.close()
            if exc.code not in _NO_HEAD:
                raise _failure(where, exc) from exc
        except Exception as exc:
            raise self._explained(where, exc) from exc
        try:
            with self._open(where, "GET") as response:
                return _length_of(response)
        except Exception as exc:
            raise self._explained(where, exc) from exc

    def blocks(
        self, where: Location, largest: int = _LARGEST_TARBALL, *, encrypted: bool = False
    ) -> t.Iterator[bytes]:
        """The file's bytes; an error unless all of them come."""
        if where.path:
            yield from self._blocks_of_host(where, largest)
            return
        try:
            response = self._open(where, "GET")
        except Exception as exc:
            raise self._explained(where, exc) from exc
        with response:
            if encrypted and where.shown.startswith("https:"):
                final = urllib.parse.urlsplit(response.geturl())
                if final.scheme != "https":
                    raise SourceError(
                        f"{where.shown} leads to {final.hostname} without encryption, where anybody could have changed it; {where.remedy}"
                    )
            self._length = _length_of(response)
            while self._received != self._length:
                if time.monotonic() > self._end:
                    raise self._too_slow()
                self._refuse_size(where, max(self._received, self._length or 0), largest)
                try:
                    block = response.read1(_BLOCK)
                except Exception as exc:
                    raise self._explained(where, exc) from exc
                if not block:
                    break
                self._received += len(block)
                yield block
        if self._length is not None and self._received < self._length:
            raise SourceError(
                f"{where.shown} ended after {self._received} of {self._length} bytes{_through(where)}; try again, or {where.remedy}"
            )

    def _blocks_of_host(self, where: Location, largest: int) -> t.Iterator[bytes]:
        with open_of_host(where) as file:
            self._refuse_size(where, os.fstat(file.fileno()).st_size, largest)
            while True:
                try:
                    block = file.read(_BLOCK)
                except OSError as exc:
                    raise _unreadable(where, exc) from exc
                if not block:
                    break
                yield block

    def _refuse_size(self, where: Location, size: int, largest: int) -> None:
        if size > largest:
            raise SourceError(
                f"{where.shown} has more than {largest} bytes, which is not what it should be; {where.remedy}"
            )

    def _open(self, where: Location, method: str) -> t.Any:
        self._where, self._received, self._length = where, 0, None
        left = max(self._end - time.monotonic(), 0.001)
        # A server that calls the tarball's own compression an encoding must not get it undone.
        return open_url(where.url, method=method, timeout=left, decompress=False)

    def _explained(self, where: Location, exc: Exception) -> SourceError:
        reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
        # What a timeout is called depends on the version of Python, and on TLS. The kernel has one of its own.
        late = isinstance(reason, (socket.timeout, TimeoutError)) or "timed out" in str(reason)
        if late and time.monotonic() > self._end - 1:
            return self._too_slow()
        return _failure(where, exc)


def _length_of(response: t.Any) -> int | None:
    length = (response.headers.get("Content-Length") or "").strip()
    return int(length) if length.isascii() and length.isdigit() else None


def _through(where: Location) -> str:
    """The proxy that urllib goes through, since it may be what is to blame."""
    if where.url is None:
        return ""
    parts = urllib.parse.urlsplit(where.url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return f" (through the proxy {proxy.rpartition('@')[2]})"


def _failure(where: Location, exc: Exception) -> SourceError:
    reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
    remedy = where.remedy
    if isinstance(exc, urllib.error.HTTPError):
        problem = f"answers {exc.code} {exc.reason}"
    elif isinstance(reason, ssl.SSLCertVerificationError):
        problem = f"has a certificate that this host does not trust ({reason.verify_message})"
        remedy = f"install the authority's certificate, for example the package ca-certificates, or {remedy}"
    elif isinstance(reason, ssl.SSLError):
        problem = f"cannot be reached by TLS ({reason.reason or reason})"
    elif isinstance(reason, ConnectionRefusedError):
        problem = "cannot be reached: connection refused"
    elif isinstance(reason, socket.gaierror):
        problem = f"cannot be reached: its name cannot be resolved ({reason.strerror})"
    elif isinstance(reason, ConnectionError):
        problem = "cannot be read: the server closed the connection"
    elif isinstance(reason, http.client.IncompleteRead):
        problem = "ended before its end"
    elif isinstance(reason, http.client.HTTPException):
        problem = f"cannot be read: what answers does not speak HTTP ({type(reason).__name__})"
    else:
        problem = f"cannot be reached: {reason}"
    return SourceError(f"{where.shown} {problem}{_through(where)}; {remedy}")


# --- files ----------------------------------------------------------------------------------


def _unreadable(where: Location, exc: OSError) -> SourceError:
    return SourceError(f"{where.shown} cannot be read: {exc.strerror}; {where.remedy}")


def _regular(path: str, flags: int) -> t.BinaryIO | None:
    """A plain file to read; None for a directory, and a pipe or a device, which might not end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return t.cast(t.BinaryIO, os.fdopen(descriptor, "rb"))


def open_of_host(where: Location) -> t.BinaryIO:
    """A file of the host that an option names."""
    path = t.cast(str, where.path)
    try:
        file = _regular(path, 0)
    except OSError as exc:
        raise _unreadable(where, exc) from exc
    if file is None:
        raise SourceError(f"{path} is not a file; {where.remedy}")
    return file


def _sha256_of(stream: t.BinaryIO) -> str:
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    stream.seek(0)
    return digest.hexdigest()


class _Bounded:
    """What is read of a stream, up to a limit: a few bytes can unpack to more than any disk has."""

    def __init__(self, stream: t.BinaryIO, where: str) -> None:
        self._stream, self._where, self._left = stream, where, _LARGEST_TREE

    def read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._left -= len(block)
        if self._left < 0:
            raise SourceError(
                f"{self._where} unpacks to more than {_LARGEST_TREE} bytes, which is not HAProxy's source; give another archive or mirror"
            )
        return block


def inspect(stream: t.BinaryIO, where: str) -> tuple[str, str]:
    """The top directory and the version of a tarball, once it is seen to be one of HAProxy's source. Nothing is unpacked."""
    start = stream.read(6)
    stream.seek(0)
    name = next((name for magic, name in _COMPRESSIONS.items() if start.startswith(magic)), None)
    if name is None:
        like = "; it looks like a web page" if start.lstrip()[:1] == b"<" else ""
        raise SourceError(
            f"{where} is not a tarball that gzip, xz or bzip2 compressed (it begins with {start!r}{like}); give another archive or mirror"
        )
    try:
        compression: t.Any = importlib.import_module(name)
    except ImportError as exc:
        raise SourceError(
            f"{where} cannot be read: this host's Python has no module {name}; give one that gzip compressed"
        ) from exc
    tree = Tree(where)
    texts: dict[str, str] = {}
    # lzma's own error is none of these, and gzip's is another in each version of Python.
    broken: tuple[type[Exception], ...] = (
        tarfile.TarError,
        OSError,
        EOFError,
        RecursionError,
        ValueError,
        zlib.error,
        getattr(compression, "LZMAError", tarfile.TarError),
    )
    try:
        with compression.open(stream, "rb") as unpacked:
            bounded = t.cast(t.BinaryIO, _Bounded(unpacked, where))
            with tarfile.open(fileobj=bounded, mode="r|") as archive:
                for member in archive:
                    path = tree.add(member.name, _kind(member), member.linkname)
                    file = archive.extractfile(member) if path in READ and member.isreg() else None
                    if file is not None:
                        texts[path] = file.read(_LARGEST_TEXT).decode("utf-8", "replace")
            # A damaged member looks like the end; the compression's own checksum is behind it.
            while bounded.read(_BLOCK):
                pass
    except broken as exc:
        raise SourceError(
            f"{where} is damaged, or not a tarball ({exc or type(exc).__name__}); fetch it again, or give another archive or mirror"
        ) from exc
    stream.seek(0)
    return tree.finish(texts)


def _kind(member: tarfile.TarInfo) -> str:
    if member.isreg():
        return "file"
    if member.isdir():
        return "directory"
    return "symlink" if member.issym() else "hardlink" if member.islnk() else "else"


# --- putting in place -----------------------------------------------------------------------


class Place:
    """The directory that the tarball goes to. It may be another user's, who is not followed anywhere by links."""

    def __init__(self, directory: str, owner: Owner | None) -> None:
        self._directory = directory
        self._owner = owner

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def check(self) -> None:
        if not os.path.isdir(self._directory):
            raise InputError(
                f"dest is {self._directory!r}, and this is not a directory: create it first"
            )

    @contextlib.contextmanager
    def _opened(self, name: str) -> t.Iterator[t.BinaryIO | None]:
        """A plain file that is there, or None."""
        file = None
        with contextlib.suppress(OSError):
            file = _regular(self._path(name), os.O_NOFOLLOW)
        if file is None:
            yield None
            return
        with file:
            yield file

    def kept_checksum(self, name: str) -> str | None:
        """The published checksum, where an earlier run kept it beside the tarball."""
        with self._opened(f"{name}.sha256") as file:
            if file is None:
                return None
            with contextlib.suppress(SourceError):
                text = file.read(_LARGEST_TEXT).decode("utf-8", "replace")
                return parse_checksums(text, name, self._path(name))
        return None

    def take_kept(self, wanted: Wanted, sha256: str, check_mode: bool) -> Tarball | None:
        """The tarball that is there already, if it is the right one; then only its owner and mode may have to change."""
        with self._opened(wanted.name) as file:
            if file is None or _sha256_of(file) != sha256:
                return None
            where = self._path(wanted.name)
            directory, version = inspect(file, where)
            check_version(wanted, version, where)
            found = os.fstat(file.fileno())
            changed = not self._is_given(found)
            if changed and not check_mode:
                self._give(file, where)
            return Tarball(version, sha256, found.st_size, directory, changed)

    def _is_given(self, found: os.stat_result) -> bool:
        owner = self._owner
        return stat.S_IMODE(found.st_mode) == _MODE and (
            owner is None or (found.st_uid, found.st_gid) == (owner.uid, owner.gid)
        )

    def _give(self, file: t.BinaryIO, where: str) -> None:
        try:
            if self._owner is not None:
                os.fchown(file.fileno(), self._owner.uid, self._owner.gid)
            os.fchmod(file.fileno(), _MODE)
        except OSError as exc:
            who = self._owner.name if self._owner else "all"
            raise SourceError(
                f"{where} cannot be given to {who}: {exc.strerror}; run as root, or as owner"
            ) from exc

    def fetch(self, transfer: Transfer, wanted: Wanted, sha256: str, whence: str) -> Tarball:
        """Into NAME.part, and renamed when it is right; otherwise nothing is left."""
        name, beside = wanted.name, f"{wanted.name}.sha256"
        try:
            with self._part(name) as file, contextlib.ExitStack() as stack:
                size = self._receive(file, transfer, wanted, sha256, whence)
                directory, version = inspect(file, wanted.source.shown)
                check_version(wanted, version, wanted.source.shown)
                self._give(file, self._path(name))
                ready = {name: file}
                if wanted.published:
                    checksum = ready[beside] = stack.enter_context(self._part(beside))
                    self._write(checksum, f"{sha256}  {name}\n".encode(), beside)
                    self._give(checksum, self._path(beside))
                for each, written in ready.items():
                    self._rename(written, each)
        finally:
            for each in (name, beside):
                with contextlib.suppress(OSError):
                    os.unlink(self._path(f"{each}.part"))
        return Tarball(version, sha256, size, directory, changed=True)

    @contextlib.contextmanager
    def _part(self, name: str) -> t.Iterator[t.BinaryIO]:
        path = self._path(f"{name}.part")
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o600)
        except OSError as exc:
            raise self._unwritable(name, exc) from exc
        # Unbuffered: what cannot be written is known at once, and not when the file is closed.
        with os.fdopen(descriptor, "w+b", buffering=0) as file:
            yield t.cast(t.BinaryIO, file)

    def _receive(
        self, file: t.BinaryIO, transfer: Transfer, wanted: Wanted, sha256: str, whence: str
    ) -> int:
        digest = hashlib.sha256()
        size = 0
        for block in transfer.blocks(wanted.source):
            digest.update(block)
            size += len(block)
            self._write(file, block, wanted.name)
        file.seek(0)
        if digest.hexdigest() != sha256:
            raise wrong_checksum(wanted, digest.hexdigest(), sha256, whence)
        return size

    def _write(self, file: t.BinaryIO, data: bytes, name: str) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[file.write(view) :]
            except OSError as exc:
                raise self._unwritable(name, exc) from exc

    def _rename(self, file: t.BinaryIO, name: str) -> None:
        part = self._path(f"{name}.part")
        try:
            if not os.path.samestat(os.fstat(file.fileno()), os.lstat(part)):
                raise SourceError(
                    f"{part} was replaced meanwhile, by another run or its owner; try again"
                )
            os.replace(part, self._path(name))
        except OSError as exc:
            raise self._unwritable(name, exc) from exc

    def _unwritable(self, name: str, exc: OSError) -> SourceError:
        where = self._path(name)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return SourceError(
                f"{where} cannot be written: {exc.strerror}; make room in {self._directory}, or give another dest"
            )
        return SourceError(
            f"{where} cannot be written: {exc.strerror}; make {self._directory} writable, or give another dest"
        )


def wrong_checksum(wanted: Wanted, found: str, sha256: str, whence: str) -> SourceError:
    return SourceError(
        f"{wanted.source.shown} has the SHA-256 checksum {found}, not {sha256} as {whence} says: it is damaged, "
        f"or not the file that is meant; check both, or {wanted.source.remedy}"
    )


def fetch_tarball(
    wanted: Wanted, dest: str | None, owner: Owner | None, timeout: int, check_mode: bool
) -> Tarball:
    """The tarball in `dest`; without it, or in check mode, what can be told without fetching it."""
    place = Place(dest, owner) if dest else None
    if place is not None and not check_mode:
        place.check()
    sha256, whence = wanted.sha256, "checksum"
    if place is not None and wanted.published:
        sha256 = place.kept_checksum(wanted.name)
    if place is not None and sha256:
        kept = place.take_kept(wanted, sha256, check_mode)
        if kept is not None:
            return kept
    with Transfer(timeout) as transfer:
        if wanted.checksums is not None:
            whence = wanted.checksums.shown
            sha256 = parse_checksums(transfer.text(wanted.checksums), wanted.name, whence)
        directory: str | None = None
        version, size = wanted.version_of_name, None
        if wanted.source.path:
            with open_of_host(wanted.source) as file:
                found = _sha256_of(file)
                if sha256 and sha256 != found:
                    raise wrong_checksum(wanted, found, sha256, whence)
                sha256 = found
                directory, version = inspect(file, wanted.source.shown)
                check_version(wanted, version, wanted.source.shown)
                size = os.fstat(file.fileno()).st_size
        if sha256 is None:
            raise SourceError(f"{wanted.source.shown} has no checksum: give it as checksum")
        if place is not None:
            kept = place.take_kept(wanted, sha256, check_mode)
            if kept is not None:
                return kept
            if not check_mode:
                return place.fetch(transfer, wanted, sha256, whence)
        if wanted.source.url and not wanted.published:
            size = transfer.ask(wanted.source)
    return Tarball(version, sha256, size, directory, changed=place is not None)
