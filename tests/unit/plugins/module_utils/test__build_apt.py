# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The private apt, with the real apt, on an archive in a directory."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_apt import (
    PrivateApt,
    is_fetched,
    read_entries,
    scratch_directory,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_source import (
    SourceError,
    SourceFile,
    SourceLine,
)

needs_apt = pytest.mark.skipif(not shutil.which("apt-get"), reason="apt is a Debian matter")


def run(argv: list[str], directory: str | None) -> tuple[int, str, str]:
    done = subprocess.run(
        argv,
        cwd=directory,
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


class Archive:
    """The suite "next" with the source package haproxy in two versions."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pool = root / "pool"
        self.index = root / "dists/next/main/source/Sources"
        self.pool.mkdir(parents=True)
        self.index.parent.mkdir(parents=True)
        self.write("1.9-1", "1.10-1")

    def write(self, *versions: str, valid_until: str = "") -> None:
        stanzas = []
        for version in versions:
            files = [f"haproxy_{version}.dsc", f"haproxy_{version}.tar.gz"]
            sums = []
            for name in files:
                data = f"the file {name}\n".encode()
                (self.pool / name).write_bytes(data)
                sums.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}")
            stanzas.append(
                f"Package: haproxy\nBinary: haproxy\nVersion: {version}\nDirectory: pool\n"
                f"Format: 3.0 (native)\nChecksums-Sha256:\n" + "\n".join(sums) + "\n"
            )
        index = "\n".join(stanzas).encode()
        self.index.write_bytes(index)
        until = f"Valid-Until: {valid_until}\n" if valid_until else ""
        (self.root / "dists/next/Release").write_text(
            "Suite: next\nCodename: next\nComponents: main\nDate: Sat, 01 Jan 2022 00:00:00 UTC\n"
            f"{until}SHA256:\n {hashlib.sha256(index).hexdigest()} {len(index)} main/source/Sources\n"
        )

    def line(self, suite: str = "next", *, trusted: bool = True) -> SourceLine:
        options = (("Trusted", "yes"),) if trusted else ()
        return SourceLine(f"copy:{self.root}", suite, options)


@pytest.fixture(autouse=True)
def host_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The tests' own in place of this machine's apt configuration."""
    path = tmp_path / "host.conf"
    lists = tmp_path / "host-lists"
    (lists / "partial").mkdir(parents=True)
    (lists / "mirror.example_dists_one_main_source_Sources").write_text("")
    path.write_text(
        'Dir::Etc::parts "/nonexistent";\nDir::Etc::main "/nonexistent";\n'
        f'Dir::State::lists "{lists}";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(path))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


@pytest.fixture
def apt() -> t.Iterator[PrivateApt]:
    with scratch_directory() as directory:
        yield PrivateApt(run, directory, user="root", check_valid_until=True)


@needs_apt
def test_finds_the_newest_and_fetches_it(archive: Archive, apt: PrivateApt, tmp_path: Path) -> None:
    apt.update([archive.line()])
    assert sorted(apt.offered("haproxy")) == ["1.10-1", "1.9-1"]
    package = apt.find("haproxy", None)
    assert package.version == "1.10-1"
    apt.download("haproxy", package, str(tmp_path))
    assert (tmp_path / "haproxy_1.10-1.dsc").read_text() == "the file haproxy_1.10-1.dsc\n"
    assert all(is_fetched(file, str(tmp_path)) for file in package.files)


@needs_apt
def test_takes_the_version_that_was_asked_for(archive: Archive, apt: PrivateApt) -> None:
    apt.update([archive.line()])
    assert apt.find("haproxy", "1.9-1").version == "1.9-1"
    with pytest.raises(SourceError, match=r"1\.8-1"):
        apt.find("haproxy", "1.8-1")


@needs_apt
def test_refuses_a_file_that_is_not_the_signed_one(
    archive: Archive, apt: PrivateApt, tmp_path: Path
) -> None:
    apt.update([archive.line()])
    (archive.pool / "haproxy_1.10-1.tar.gz").write_text("THE file haproxy_1.10-1.tar.gz\n")
    with pytest.raises(SourceError, match="Hash Sum mismatch"):
        apt.download("haproxy", apt.find("haproxy", None), str(tmp_path))


@needs_apt
def test_refuses_a_file_that_is_not_there(
    archive: Archive, apt: PrivateApt, tmp_path: Path
) -> None:
    apt.update([archive.line()])
    (archive.pool / "haproxy_1.10-1.dsc").unlink()
    with pytest.raises(SourceError, match=r"haproxy_1\.10-1\.dsc"):
        apt.download("haproxy", apt.find("haproxy", None), str(tmp_path))


@needs_apt
def test_believes_no_unsigned_suite(archive: Archive, apt: PrivateApt) -> None:
    complaints = apt.update([archive.line(trusted=False)])
    assert "is not signed" in " ".join(complaints)
    assert apt.offered("haproxy") == []


@needs_apt
def test_says_which_suite_is_not_there_and_reads_the_others(
    archive: Archive, apt: PrivateApt
) -> None:
    complaints = apt.update([archive.line(), archive.line("next-security")])
    assert "next-security" in " ".join(complaints)
    assert "1.10-1" in apt.offered("haproxy")


@needs_apt
@pytest.mark.parametrize("check", [True, False])
def test_expired_suite(archive: Archive, check: bool) -> None:
    archive.write("1.10-1", valid_until="Sun, 02 Jan 2022 00:00:00 UTC")
    with scratch_directory() as directory:
        apt = PrivateApt(run, directory, user="root", check_valid_until=check)
        complaints = apt.update([archive.line()])
        assert apt.offered("haproxy") == ([] if check else ["1.10-1"])
        assert ("expired" in " ".join(complaints)) is check


@needs_apt
def test_leaves_the_hosts_lists_alone(
    archive: Archive, apt: PrivateApt, host_configuration: Path, tmp_path: Path
) -> None:
    hook = tmp_path / "hook-ran"
    with host_configuration.open("a") as file:
        file.write(f'APT::Update::Post-Invoke {{ "touch {hook}"; }};\n')
    lists = tmp_path / "host-lists"
    before = sorted(os.listdir(lists))
    apt.update([archive.line()])
    assert apt.offered("haproxy")
    assert sorted(os.listdir(lists)) == before
    assert not hook.exists()


def test_reads_both_forms_of_the_hosts_lists(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.example one main\n")
    (tmp_path / "sources.list.d/b.sources").write_text(
        "Types: deb\nURIs: http://b.example\nSuites: two\nComponents: main\n"
    )
    (tmp_path / "sources.list.d/c.list").write_text("deb http://c.example three main\n")
    (tmp_path / "sources.list.d/d.list.save").write_text("deb http://d.example four main\n")
    entries, read = read_entries(str(tmp_path))
    assert [entry.suites for entry in entries] == [("one",), ("two",), ("three",)]
    assert [Path(name).name for name in read] == ["sources.list", "b.sources", "c.list"]


def test_a_file_is_fetched_only_with_its_checksum(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"good")
    good = SourceFile("f", "", 4, hashlib.sha256(b"good").hexdigest())
    assert is_fetched(good, str(tmp_path))
    (tmp_path / "f").write_bytes(b"bad!")
    assert not is_fetched(good, str(tmp_path))
    (tmp_path / "f").unlink()
    assert not is_fetched(good, str(tmp_path))


def test_the_scratch_directory_goes_away_after_a_failure() -> None:
    def fail_inside() -> t.NoReturn:
        with scratch_directory() as directory:
            used.append(directory)
            assert os.stat(directory).st_mode & 0o777 == 0o755
            raise RuntimeError

    used: list[str] = []
    with pytest.raises(RuntimeError):
        fail_inside()
    assert not os.path.exists(used[0])
