# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _build_archive as archive
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_source import SourceError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error, InputError

DIGITS = "a133e2d550c5fd9a849b5c7ab17bb945bcdad209ca140d41f45ebf31943ae783"
OTHER = "21680459b08b9ba21c8cc9f5dbd0ee6e1842f57a3a67f87179871e1c13ebd4e3"
TEXTS = {"Makefile": "all: haproxy\n", "VERSION": "3.0.11\n"}


def wanted(**options: t.Any) -> archive.Wanted:
    full = {
        "source": "release",
        "version": None,
        "mirror": "https://mirror.example/download",
        "archive": None,
        "checksum": None,
        "timeout": 10,
    }
    return archive.make_wanted({**full, **options})


# --- what the options ask for ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "url"),
    [
        ("3.0.11", "https://mirror.example/download/3.0/src/haproxy-3.0.11.tar.gz"),
        ("2.2.0", "https://mirror.example/download/2.2/src/haproxy-2.2.0.tar.gz"),
        ("3.3-dev5", "https://mirror.example/download/3.3/src/devel/haproxy-3.3-dev5.tar.gz"),
    ],
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_release_lies_in_its_branch_with_its_checksum_beside_it(
    version: str, url: str, slash: str
) -> None:
    found = wanted(version=version, mirror=f"https://mirror.example/download{slash}")
    assert found.source.url == url
    assert found.checksums is not None
    assert found.checksums.url == f"{url}.sha256"
    assert found.published
    assert (found.kind, found.version_of_name) == ("release", version)


@pytest.mark.parametrize(
    "place", ["/srv/mirror", "file:///srv/mirror", "file://localhost/srv/mirror"]
)
def test_a_mirror_may_be_a_directory(place: str) -> None:
    found = wanted(version="3.0.11", mirror=place)
    assert found.source.path == "/srv/mirror/3.0/src/haproxy-3.0.11.tar.gz"
    assert found.source.url is None


@pytest.mark.parametrize(
    "text", [DIGITS, f"sha256:{DIGITS}", f"SHA256:{DIGITS.upper()}", f" {DIGITS}\n"]
)
def test_a_given_checksum_stands_in_for_the_published_one(text: str) -> None:
    found = wanted(version="3.0.11", checksum=text)
    assert (found.sha256, found.checksums, found.published) == (DIGITS, None, False)


@pytest.mark.parametrize("prefix", ["", "sha256:"])
@pytest.mark.parametrize("place", ["https://trusted.example/SHA256SUMS", "/srv/SHA256SUMS"])
def test_a_checksum_may_be_in_a_file(prefix: str, place: str) -> None:
    found = wanted(version="3.0.11", checksum=f"{prefix}{place}")
    assert found.sha256 is None
    assert found.checksums is not None
    assert found.checksums.shown == place
    assert not found.published


@pytest.mark.parametrize(
    ("place", "name", "version"),
    [
        ("https://x.example/a/haproxy-3.0.11.tar.gz", "haproxy-3.0.11.tar.gz", "3.0.11"),
        ("https://x.example/haproxy_2.2.9.orig.tar.xz", "haproxy_2.2.9.orig.tar.xz", "2.2.9"),
        ("https://x.example/tags/v3.1.0.tar.gz?token=a/b", "v3.1.0.tar.gz", "3.1.0"),
        ("https://x.example/haproxy-3.3-dev5-ours.tgz", "haproxy-3.3-dev5-ours.tgz", "3.3-dev5"),
        ("https://x.example/haproxy-ss-20250101.tar.gz", "haproxy-ss-20250101.tar.gz", None),
        ("https://x.example/haproxy-1.2.3.4.tar.gz", "haproxy-1.2.3.4.tar.gz", None),
        ("https://x.example/haproxy%2D3.0.1.tgz", "haproxy-3.0.1.tgz", "3.0.1"),
        ("/srv/haproxy.tar.bz2", "haproxy.tar.bz2", None),
    ],
)
def test_an_archive_is_called_what_its_place_ends_in(
    place: str, name: str, version: str | None
) -> None:
    found = wanted(source="archive", archive=place, checksum=DIGITS)
    assert (found.name, found.version_of_name) == (name, version)


def test_a_version_that_was_asked_for_is_believed_before_a_name() -> None:
    found = wanted(source="archive", archive="/srv/haproxy-3.0.11.tar.gz", version="3.0.12")
    assert found.version_of_name == "3.0.12"


def test_an_archive_of_the_host_needs_no_checksum() -> None:
    found = wanted(source="archive", archive="/srv/haproxy.tar.gz")
    assert (found.sha256, found.checksums) == (None, None)


def test_passwords_are_for_the_request_alone() -> None:
    found = wanted(version="3.0.11", mirror="https://me:secret@mirror.example/d")
    assert found.source.url == "https://me:secret@mirror.example/d/3.0/src/haproxy-3.0.11.tar.gz"
    assert found.source.shown == "https://mirror.example/d/3.0/src/haproxy-3.0.11.tar.gz"
    assert "secret" not in found.source.remedy
    for mirror in (
        "https://me:secret@x.example:port",
        "https://me:secret@x.example/ ",
        "ftp://me:secret@x",
    ):
        with pytest.raises(InputError) as refusal:
            wanted(version="3.0.11", mirror=mirror)
        assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no version is given, for example 3.0.11: the newest is not guessed"),
        ({"version": " "}, "no version is given"),
        ({"version": "3.0"}, "'3.0', which no upstream release has: give all of its numbers"),
        ({"version": "3.0.11-1+deb13u1"}, "which no upstream release has"),
        ({"version": "v3.0.11"}, "which no upstream release has"),
        ({"version": "3.0.11/../.."}, "which no upstream release has"),
        ({"version": "3.0.11", "timeout": 0}, "timeout is 0: give seconds, from 1"),
        ({"version": "3.0.11", "mirror": "ftp://x.example"}, "give an http:// or https:// URL"),
        ({"version": "3.0.11", "mirror": "x.example"}, "give an http:// or https:// URL"),
        ({"version": "3.0.11", "mirror": ""}, "mirror is '': give an http:// or https:// URL"),
        ({"version": "3.0.11", "mirror": "http://x.example:port"}, "which is not a URL"),
        ({"version": "3.0.11", "mirror": "http://[x.example"}, "which is not a URL"),
        ({"version": "3.0.11", "mirror": "http://x.example/a b"}, "percent-encode it"),
        ({"version": "3.0.11", "mirror": "http://x.example/ä"}, "percent-encode it"),
        ({"version": "3.0.11", "mirror": "http://x.example/a\r\nX: y"}, "percent-encode it"),
        (
            {"version": "3.0.11", "mirror": "file://other.example/srv"},
            "give an http:// or https://",
        ),
        ({"version": "3.0.11", "checksum": DIGITS[:-1]}, "no SHA-256 checksum: give sha256: and"),
        ({"version": "3.0.11", "checksum": "sha512:" + 2 * DIGITS}, "no SHA-256 checksum"),
        ({"version": "3.0.11", "checksum": "SHA256SUMS"}, "no SHA-256 checksum"),
        ({"version": "3.0.11", "checksum": "ftp://x.example/S"}, "checksum is 'ftp://x.example/S'"),
        ({"source": "archive"}, "no archive is given: its URL, or its path"),
        ({"source": "archive", "archive": "http://x.example/h.tgz"}, "no checksum is given"),
        ({"source": "archive", "archive": "haproxy.tar.gz"}, "an absolute path of the host"),
        ({"source": "archive", "archive": "/srv/"}, "does not end in the name of a file"),
        ({"source": "archive", "archive": "/srv/.."}, "does not end in the name of a file"),
        ({"source": "archive", "archive": "/srv/-x.tgz"}, "does not end in the name of a file"),
        ({"source": "archive", "archive": "/srv/h.tgz.part"}, "does not end in the name of a file"),
        (
            {"source": "archive", "archive": "https://x.example/?a=b.tgz"},
            "does not end in the name",
        ),
        (
            {"source": "archive", "archive": "https://x.example/a%2F..%2F"},
            "does not end in the name",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, t.Any], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        wanted(**options)
    assert said in str(refusal.value)


@given(st.text(), st.sampled_from(["mirror", "archive", "checksum"]))
def test_any_text_is_a_place_or_refused(text: str, option: str) -> None:
    source = "archive" if option == "archive" else "release"
    options = {"source": source, "version": "3.0.11", "checksum": DIGITS, option: text}
    try:
        found = wanted(**options)
    except Error:
        return
    assert "/" not in found.name
    assert found.name not in ("", ".", "..")


# --- checksum files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"{DIGITS}  h.tgz\n",
        f"{DIGITS} *h.tgz",
        f"{DIGITS.upper()}  ./dist/h.tgz\r\n",
        f"SHA256 (h.tgz) = {DIGITS}\n",
        f"{OTHER}  i.tgz\n{DIGITS}  h.tgz\n{OTHER}  h.tgz.asc\n",
        f"# of today\n\n{DIGITS}  h.tgz\n{DIGITS}  h.tgz\n",
        f"{DIGITS}\n",
    ],
)
def test_checksum_files_are_read(text: str) -> None:
    assert archive.parse_checksums(text, "h.tgz", "SUMS") == DIGITS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "SUMS has no SHA-256 checksum of h.tgz (it is not what sha256sum writes): give"),
        ("<html>404</html>", "it is not what sha256sum writes"),
        (f"{DIGITS}  i.tgz\n{DIGITS}  xh.tgz", "(only of i.tgz, xh.tgz)"),
        (f"{DIGITS[:40]}  h.tgz", "it is not what sha256sum writes"),
        (f"{DIGITS}  h.tgz\n{OTHER}  old/h.tgz", "has 2 different checksums of h.tgz"),
        (f"{DIGITS}\n{OTHER}\n", "it is not what sha256sum writes"),
    ],
)
def test_checksum_files_without_the_name_are_refused(text: str, said: str) -> None:
    with pytest.raises(SourceError) as refusal:
        archive.parse_checksums(text, "h.tgz", "SUMS")
    assert said in str(refusal.value)


# --- tarballs -------------------------------------------------------------------------------

Member = tuple[str, str, str]
PLAIN: list[Member] = [
    ("h-3/", "directory", ""),
    *((f"h-3/{name}", "file", "") for name in ("Makefile", "VERSION", "SUBVERS")),
]


def tree(members: list[Member], texts: dict[str, str] | None = None) -> tuple[str, str]:
    found = archive.Tree("h.tgz")
    for member in members:
        found.add(*member)
    return found.finish(TEXTS if texts is None else texts)


@pytest.mark.parametrize(
    "more",
    [
        [],
        [("./h-3/src/haproxy.c", "file", "")],
        [("h-3/reg-tests/ssl/a.pem", "symlink", "common.pem")],
        [("h-3/reg-tests/checks/a.pem", "symlink", "../ssl/a.pem")],
        [("h-3/reg-tests/lua/m.lua", "symlink", "../../examples/lua/m.lua")],
        [("h-3/top", "symlink", ".")],
        [("h-3/doc/same", "hardlink", "h-3/Makefile")],
    ],
)
def test_source_is_known_by_its_files(more: list[Member]) -> None:
    assert tree(PLAIN + more) == ("h-3", "3.0.11")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], "it is empty"),
        ([("./", "directory", "")], "it is empty"),
        (PLAIN[:-1], "it has no SUBVERS in 'h-3'"),
        (PLAIN[:1], "it has no Makefile and no VERSION and no SUBVERS in 'h-3'"),
        ([*PLAIN, ("/etc/passwd", "file", "")], "it would write to '/etc/passwd', outside"),
        ([*PLAIN, ("h-3/../../x", "file", "")], "it would write to 'h-3/../../x', outside"),
        ([("..", "directory", "")], "it would write to '..', outside"),
        ([*PLAIN, ("other/x", "file", "")], "it has 'other/x' beside its directory 'h-3'"),
        ([("Makefile", "file", ""), *PLAIN], "it has 'Makefile' beside its directory"),
        ([("h-3", "symlink", "/tmp"), *PLAIN], "it has 'h-3' beside its directory"),
        ([("-h/x", "file", "")], "its directory is called '-h'"),
        ([("a b/x", "file", "")], "its directory is called 'a b'"),
        (
            [*PLAIN, ("h-3/null", "else", "")],
            "'h-3/null' is neither a file, a directory nor a link",
        ),
        ([*PLAIN, ("h-3/a", "symlink", "/etc")], "the link 'h-3/a' leads out, to '/etc'"),
        ([*PLAIN, ("h-3/a", "symlink", "..")], "the link 'h-3/a' leads out, to '..'"),
        ([*PLAIN, ("h-3/b/a", "symlink", "../..")], "the link 'h-3/b/a' leads out"),
        ([*PLAIN, ("h-3/a", "symlink", "b/../..")], "the link 'h-3/a' leads out"),
        ([*PLAIN, ("h-3/a", "hardlink", "/etc/passwd")], "the link 'h-3/a' leads out"),
        ([*PLAIN, ("h-3/a", "hardlink", "/h-3/x")], "the link 'h-3/a' leads out"),
        ([*PLAIN, ("h-3/a", "hardlink", "../x")], "the link 'h-3/a' leads out"),
        ([*PLAIN, ("h-3/a", "hardlink", "h-3/../x")], "the link 'h-3/a' leads out"),
        ([*PLAIN, ("h-3/a", "hardlink", "x")], "the link 'h-3/a' leads out"),
        (
            [*PLAIN, ("h-3/a", "symlink", "b"), ("h-3/a/c", "file", "")],
            "it would write 'h-3/a/c' through a link",
        ),
        ([*PLAIN, ("h-3/VERSION", "symlink", "x")], "it has no VERSION"),
    ],
)
def test_what_is_not_source_or_leads_out_is_refused(members: list[Member], said: str) -> None:
    with pytest.raises(SourceError) as refusal:
        tree(members)
    assert said in str(refusal.value)
    assert str(refusal.value).startswith("h.tgz is not a tarball of HAProxy's source: ")


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"Makefile": "all: nginx\n"}, "its Makefile does not make haproxy"),
        ({"VERSION": "\n"}, "its VERSION is ''"),
        ({"VERSION": "1.2; rm -rf /\n"}, "its VERSION is '1.2;'"),
    ],
)
def test_source_of_something_else_is_refused(texts: dict[str, str], said: str) -> None:
    with pytest.raises(SourceError) as refusal:
        tree(PLAIN, {**TEXTS, **texts})
    assert said in str(refusal.value)


names = st.lists(st.sampled_from(["a", "b", "c", ".", ".."]), min_size=1, max_size=4).map("/".join)
members = st.tuples(
    names.map(lambda name: f"h-3/{name}"),
    st.sampled_from(["file", "directory", "symlink"]),
    st.one_of(names, names.map(lambda name: f"/{name}")),
)


@given(st.lists(members, max_size=8))
def test_whatever_is_accepted_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, tried: list[Member]
) -> None:
    """Unpacked as tar does; whatever could be followed ends in the directory."""
    found = archive.Tree("h.tgz")
    root = tmp_path_factory.mktemp("tree")
    for name, kind, target in tried:
        try:
            found.add(name, kind, target)
        except SourceError:
            continue
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "symlink":
                path.symlink_to(target)
            elif kind == "directory":
                path.mkdir()
            else:
                path.touch()
        except OSError:
            # In the way of an earlier one.
            continue
        top = os.path.realpath(root / "h-3")
        for inside in root.rglob("*"):
            resolved = os.path.realpath(inside)
            assert f"{resolved}/".startswith(f"{top}/"), (inside, resolved)
