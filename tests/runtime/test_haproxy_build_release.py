# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_build_release and haproxy_build_info with real binaries and links, where no service is."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tarfile
import typing as t
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import run_module

SERVICE = "clearproxy-nobody-has-this.service"


def entry(name: str, content: bytes, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    return info, content


@dataclasses.dataclass
class Place:
    directory: Path
    binary: bytes

    @property
    def root(self) -> Path:
        return self.directory / "opt"

    def pack(
        self,
        number: int = 1,
        *more: tuple[tarfile.TarInfo, bytes],
        binary: bytes | None = None,
        **record: t.Any,
    ) -> tuple[str, str]:
        """An archive, and the ID of its release."""
        content = self.binary if binary is None else binary
        fingerprint = f"{number:x}" * 64
        found: dict[str, t.Any] = {
            "id": f"3.0.{number}-{fingerprint[:12]}",
            "version": f"3.0.{number}",
            "fingerprint": fingerprint,
            "binary_sha256": hashlib.sha256(content).hexdigest(),
            "built": f"2026-01-0{number}T00:00:00+00:00",
            **record,
        }
        path = self.directory / f"{number}.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=1) as archive:
            for info, data in (
                entry("./sbin/haproxy", content, 0o755),
                entry("./share/man/man1/haproxy.1", b".TH HAPROXY 1\n"),
                entry("./release.json", json.dumps(found).encode()),
                *more,
            ):
                archive.addfile(info, io.BytesIO(data))
        return str(path), str(found["id"])

    def run(self, *, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        return run_module(
            "haproxy_build_release",
            {
                "root": str(self.root),
                "command": str(self.directory / "sbin" / "haproxy"),
                "service": SERVICE,
                "config": str(self.directory / "haproxy.cfg"),
                **options,
            },
            check=check,
        )

    def switch(self, number: int, **options: t.Any) -> dict[str, t.Any]:
        path, identifier = self.pack(number)
        return self.both(artefact=path, release=identifier, **options)

    def both(self, **options: t.Any) -> dict[str, t.Any]:
        """Check mode, then the real run, which does what was predicted; then nothing is left to do."""
        before = self.tree()
        predicted = self.run(check=True, **options)
        assert self.tree() == before
        done = self.run(**options)
        again = self.run(check=True, **options)
        for result in (predicted, done, again):
            result.pop("seconds", None)
        assert predicted == done
        if not done.get("failed"):
            assert not again["changed"], again
        return done

    def info(self, **options: t.Any) -> dict[str, t.Any]:
        return run_module(
            "haproxy_build_info",
            {
                "root": str(self.root),
                "command": str(self.directory / "sbin" / "haproxy"),
                "service": SERVICE,
                **options,
            },
        )

    def tree(self) -> dict[str, str]:
        found = {}
        for path in sorted(self.directory.rglob("*")):
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = f"{path.stat().st_ino} {path.stat().st_mtime_ns}"
        return found


@pytest.fixture
def place(binaries: Path, version: str, tmp_path: Path) -> Place:
    binary = binaries / version / "root" / "usr" / "sbin" / "haproxy"
    return Place(tmp_path, binary.read_bytes())


@pytest.fixture
def one(binaries: Path, tmp_path: Path) -> Place:
    """Where the version makes no difference."""
    binary = binaries / "3.0" / "root" / "usr" / "sbin" / "haproxy"
    return Place(tmp_path, binary.read_bytes())


CONFIG = """\
defaults
    mode http
    timeout client 1s
    timeout server 1s
    timeout connect 1s
frontend f
    bind 127.0.0.1:1
"""


def test_installed_switched_to_and_rolled_back(place: Place) -> None:
    (place.directory / "haproxy.cfg").write_text(CONFIG)
    first = place.switch(1, features=["USE_TPROXY", "USE_SYSTEMD"], unlisted=["USE_SYSTEMD"])
    assert not first.get("failed"), first
    a = first["release"]
    assert (first["before"], first["previous"], first["action"]) == (None, None, "none")
    assert first["installed"] is True
    second = place.switch(2)
    b = second["release"]
    assert (second["before"], second["previous"]) == (a, a)
    assert second["diff"]["before"]["current"] == a
    assert second["diff"]["after"]["current"] == b
    assert (place.directory / "sbin" / "haproxy").resolve() == (
        place.root / "releases" / b / "sbin" / "haproxy"
    )
    back = place.both(release="previous")
    assert (back["release"], back["previous"], back["changed"]) == (a, b, True)
    again = place.run(release="previous")
    assert again["changed"] is False
    assert "rolled back already" in again["msg"]
    forward = place.both(release=b)
    assert (forward["release"], forward["previous"]) == (b, a)
    assert not (place.root / "rolled-back").exists()
    info = place.info()
    assert (info["current"], info["previous"], info["running"]) == (b, a, None)
    assert [(r["id"], r["usable"], r["problem"]) for r in info["releases"]] == [
        (a, True, None),
        (b, True, None),
    ]
    assert info["conflicts"] == []


def test_a_configuration_that_is_not_accepted_changes_no_link(place: Place) -> None:
    (place.directory / "haproxy.cfg").write_text(CONFIG)
    a = place.switch(1)["release"]
    (place.directory / "haproxy.cfg").write_text("bogus\n")
    path, identifier = place.pack(2)
    done = place.both(artefact=path, release=identifier)
    assert done["failed"] is True
    assert "does not accept" in done["msg"]
    assert "bogus" in done["msg"]
    assert place.info()["current"] == a


def test_the_oldest_are_pruned(one: Place) -> None:
    ids = [one.switch(number)["release"] for number in (1, 2, 3)]
    done = one.both(release=ids[2], keep=2)
    assert done["pruned"] == [ids[0]]
    assert sorted(os.listdir(one.root / "releases")) == ids[1:]
    done = one.switch(4, keep=1)
    assert done["pruned"] == [ids[1]]
    assert sorted(os.listdir(one.root)) == ["current", "previous", "releases"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (entry("../../evil", b"x"), "leads out"),
        (entry("/etc/evil", b"x"), "leads out"),
        (entry("etc/evil", b"x"), "none of a release's"),
        (entry("sbin/haproxy", b"x"), "twice"),
    ],
)
def test_an_archive_that_holds_more_is_refused(
    one: Place, more: tuple[tarfile.TarInfo, bytes], words: str
) -> None:
    path, _identifier = one.pack(1, more)
    done = one.both(artefact=path)
    assert done["failed"] is True
    assert words in done["msg"]
    assert not list((one.root / "releases").iterdir())
    assert "staging" not in " ".join(os.listdir(one.root))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_an_archive_with_anything_but_files_is_refused(one: Place, kind: bytes) -> None:
    info = tarfile.TarInfo("share/link")
    info.type, info.linkname = kind, "sbin/haproxy"
    path, _identifier = one.pack(1, (info, b""))
    done = one.both(artefact=path)
    assert "neither a plain file nor a directory" in done["msg"]


def cut(path: str) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


def garble(path: str) -> None:
    Path(path).write_bytes(b"not an archive")


@pytest.mark.parametrize("spoil", [cut, garble, os.unlink])
def test_an_archive_that_cannot_be_read_is_one_sentence(
    one: Place, spoil: Callable[[str], None]
) -> None:
    path, _identifier = one.pack(1)
    spoil(path)
    done = one.both(artefact=path)
    assert done["failed"] is True
    assert path in done["msg"]
    assert "exception" not in done


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"binary_sha256": "0" * 64}, "not the 000"),
        ({"binary_sha256": None}, "as binary_sha256"),
        ({"id": "3.0.1-" + "0" * 12}, "do not make"),
    ],
)
def test_a_record_that_lies_is_refused(one: Place, record: dict[str, t.Any], words: str) -> None:
    path, _identifier = one.pack(1, **record)
    assert words in one.both(artefact=path)["msg"]


def test_a_binary_that_does_not_run_or_lacks_a_feature_is_refused(one: Place) -> None:
    path, _identifier = one.pack(1, binary=b"#!/bin/sh\necho broken >&2\nexit 3\n")
    done = one.both(artefact=path)
    assert "does not run on this host (broken)" in done["msg"]
    path, _identifier = one.pack(2)
    done = one.both(artefact=path, features=["USE_TPROXY", "USE_WURFL"])
    assert done["missing"] == ["WURFL"]
    assert one.info()["releases"] == []


def test_a_release_that_no_longer_runs_is_said_and_replaced(one: Place) -> None:
    a = one.switch(1)["release"]
    (one.root / "releases" / a / "sbin" / "haproxy").write_bytes(b"\x7fELF")
    (found,) = one.info()["releases"]
    assert found["usable"] is False
    assert "does not run" in found["problem"]
    done = one.switch(1)
    assert done["installed"] is True
    assert one.info()["releases"][0]["usable"] is True


def test_a_garbled_record_is_said(one: Place) -> None:
    a = one.switch(1)["release"]
    b = one.switch(2)["release"]
    (one.root / "releases" / a / "release.json").write_bytes(b"\xff{")
    found = one.info()["releases"]
    assert [r["usable"] for r in found] == [False, True]
    assert "release.json cannot be read" in found[0]["problem"]
    assert one.run(release=b, keep=1)["pruned"] == []


def test_what_an_ended_run_left_is_finished(one: Place) -> None:
    a, b = one.switch(1)["release"], one.switch(2)["release"]
    # Between the second and the third step of a rollback.
    (one.root / "rolled-back").write_text(f"{b}\n")
    (one.root / "current").unlink()
    (one.root / "current").symlink_to(f"releases/{a}")
    (one.root / "staging-half").mkdir()
    done = one.both(release="previous")
    assert (done["release"], done["previous"]) == (a, b)
    assert not (one.root / "staging-half").exists()


def test_what_is_somebody_elses_stays(one: Place) -> None:
    command = one.directory / "sbin" / "haproxy"
    command.parent.mkdir()
    command.write_text("mine")
    (one.root / "data").mkdir(parents=True)
    path, _identifier = one.pack(1)
    done = one.both(artefact=path)
    assert done["conflicts"] == one.info()["conflicts"]
    assert "'make install'" in done["conflicts"][0]
    assert f"(it holds {one.root}/data)" in done["conflicts"][1]
    assert not (one.root / "releases").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"release": "previous"}, "no release before"),
        ({"release": "3.0.9-" + "9" * 12}, "is not installed"),
        ({"release": "x"}, "give the ID"),
        ({"keep": -1}, "keep is -1"),
        ({"timeout": 0}, "timeout is 0"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    one: Place, options: dict[str, t.Any], words: str
) -> None:
    assert words in one.both(**options)["msg"]


def test_what_the_host_compiles_with(one: Place) -> None:
    info = one.info(libraries=["libc6", "clearproxy-no-such-package"], compiler="clearproxy-no-cc")
    assert (info["compiler"], info["libc"]) == (None, None)
    assert info["libraries"]["clearproxy-no-such-package"] == {
        "installed": None,
        "candidate": None,
    }
    if os.path.exists("/usr/bin/dpkg-query"):
        assert info["libraries"]["libc6"]["installed"]
    if os.path.exists("/usr/bin/gcc"):
        info = one.info()
        assert "gcc" in info["compiler"]
        assert info["libc"] == "glibc"
