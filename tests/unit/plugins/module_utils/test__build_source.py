# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _build_source as source

DEBIAN_12 = """\
# the archive
deb http://mirror.example/debian bookworm main contrib
deb-src http://mirror.example/debian/ bookworm main
deb http://mirror.example/debian bookworm-updates main # updates
deb [arch=amd64,arm64 signed-by=/usr/share/keyrings/a.gpg] http://security.example/debian bookworm-security main
deb http://mirror.example/debian bookworm-backports main
deb [ arch=amd64 ] https://third.example/docker bookworm stable
deb http://third.example/pg bookworm-pgdg main
deb http://flat.example/repo ./
deb cdrom:[Debian GNU/Linux 12]/ bookworm main
#deb http://off.example/debian bookworm main
"""

DEB822 = """\
Types: deb deb-src
# a comment inside
URIs: http://mirror.example/debian http://second.example/debian
Suites: trixie trixie-updates
Components: main non-free-firmware
Architectures: amd64
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEYCQjIxYJKwYBBAHaRw8BAQdAD5==
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
URIs: http://security.example/debian
Suites: trixie-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
Check-Valid-Until: no

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: trixie
Components: main
"""


def places(lines: list[source.SourceLine]) -> list[tuple[str, str]]:
    return [(line.uri, line.suite) for line in lines]


def test_own_release_from_one_line_entries() -> None:
    lines = source.source_lines(source.parse_one_line(DEBIAN_12), "bookworm")
    assert places(lines) == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://security.example/debian", "bookworm-security"),
    ]
    assert lines[2].options == (("Signed-By", "/usr/share/keyrings/a.gpg"),)


def test_newer_suite_from_the_same_mirrors_and_keys() -> None:
    lines = source.source_lines(source.parse_one_line(DEBIAN_12), "bookworm", "trixie")
    assert places(lines) == [
        ("http://mirror.example/debian", "trixie"),
        ("http://mirror.example/debian", "trixie-updates"),
        ("http://security.example/debian", "trixie-security"),
    ]
    assert lines[2].options == (("Signed-By", "/usr/share/keyrings/a.gpg"),)


def test_lines_of_the_wanted_suite_win() -> None:
    text = "deb http://new.example/debian trixie main\n" + DEBIAN_12
    lines = source.source_lines(source.parse_one_line(text), "bookworm", "trixie")
    assert places(lines) == [("http://new.example/debian", "trixie")]


@pytest.mark.parametrize("suite", ["sid", "unstable", "experimental", "bookworm-proposed-updates"])
def test_suites_without_pockets(suite: str) -> None:
    lines = source.source_lines(source.parse_one_line(DEBIAN_12), "bookworm", suite)
    assert places(lines) == [("http://mirror.example/debian", suite)]


def test_backports_that_the_host_has_are_taken_alone() -> None:
    lines = source.source_lines(source.parse_one_line(DEBIAN_12), "bookworm", "bookworm-backports")
    assert places(lines) == [("http://mirror.example/debian", "bookworm-backports")]


def test_host_that_follows_a_moving_name() -> None:
    entries = source.parse_one_line("deb http://mirror.example/debian stable main\n")
    assert places(source.source_lines(entries, "trixie")) == [
        ("http://mirror.example/debian", "stable")
    ]
    assert places(source.source_lines(entries, "trixie", "forky")) == [
        ("http://mirror.example/debian", "forky")
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "deb http://third.example/docker bookworm stable\n",
        "deb http://third.example/pg bookworm-pgdg main\n",
        "#deb http://mirror.example/debian bookworm main\n",
        "deb cdrom:[Debian GNU/Linux 12]/ bookworm main\n",
        "deb http://mirror.example/debian bullseye main\n",
    ],
)
def test_host_without_a_source(text: str) -> None:
    assert source.source_lines(source.parse_one_line(text), "bookworm") == []
    assert source.source_lines(source.parse_one_line(text), "bookworm", "trixie") == []


def test_deb822_with_a_key_inside() -> None:
    lines = source.source_lines(source.parse_deb822(DEB822), "trixie")
    assert places(lines) == [
        ("http://mirror.example/debian", "trixie"),
        ("http://second.example/debian", "trixie"),
        ("http://mirror.example/debian", "trixie-updates"),
        ("http://second.example/debian", "trixie-updates"),
        ("http://security.example/debian", "trixie-security"),
    ]
    assert dict(lines[0].options)["Signed-By"].splitlines()[1:3] == [
        " -----BEGIN PGP PUBLIC KEY BLOCK-----",
        " .",
    ]
    assert dict(lines[4].options)["Check-Valid-Until"] == "no"


def test_what_is_rendered_reads_back() -> None:
    lines = source.source_lines(source.parse_deb822(DEB822), "trixie", "forky")
    text = source.render_sources(lines)
    assert "Types: deb-src\n" in text
    assert "amd64" not in text
    assert source.source_lines(source.parse_deb822(text), "forky") == lines


def test_old_security_suite() -> None:
    entries = source.parse_one_line("deb http://security.example/debian buster/updates main\n")
    own = source.source_lines(
        [*entries, *source.parse_one_line("deb http://m.example buster main")], "buster"
    )
    assert places(own) == [
        ("http://security.example/debian", "buster/updates"),
        ("http://m.example", "buster"),
    ]


@pytest.mark.parametrize(
    ("text", "codename"),
    [
        ('NAME="Debian"\nVERSION_CODENAME=bookworm\n', "bookworm"),
        ('VERSION_CODENAME="noble"\nUBUNTU_CODENAME=noble\n', "noble"),
        ("NAME=Other\n", ""),
    ],
)
def test_codename(text: str, codename: str) -> None:
    assert source.os_codename(text) == codename


def test_offered_versions() -> None:
    text = (
        "   haproxy | 2.6.12-1+deb12u3 | http://m.example/debian bookworm/main Sources\n"
        "   haproxy | 2.6.12-1+deb12u3 | http://m.example/debian bookworm/main amd64 Packages\n"
        "   haproxy | 2.6.12-1+deb12u4 | http://s.example/debian bookworm-security/main Sources\n"
        "   haproxy | 2.6.12-1+deb12u4 | http://t.example/debian bookworm-security/main Sources\n"
        "   haproxyctl | 1 | http://m.example/debian bookworm/main Sources\n"
    )
    assert source.offered_versions(text, "haproxy") == ["2.6.12-1+deb12u3", "2.6.12-1+deb12u4"]
    assert source.offered_versions("", "haproxy") == []


URIS = f"""\
NOTICE: 'haproxy' packaging is maintained in the 'Git' version control system at:
'http://m.example/h/haproxy_2.6.12-1%2bdeb12u3.dsc' haproxy_2.6.12-1+deb12u3.dsc 2399 SHA256:{"a" * 64}
'http://m.example/h/haproxy_2.6.12.orig.tar.gz' haproxy_2.6.12.orig.tar.gz 4060878 SHA256:{"b" * 64}
"""


def test_print_uris() -> None:
    package = source.parse_print_uris(URIS, "haproxy")
    assert package.version == "2.6.12-1+deb12u3"
    assert package.dsc.sha256 == "a" * 64
    assert [file.size for file in package.files] == [2399, 4060878]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names 0 .dsc files"),
        (URIS + URIS.replace("deb12u3", "deb12u4"), "names 2 .dsc files"),
        (URIS.replace("SHA256:a", "MD5Sum:a"), "no SHA-256 checksum"),
        (URIS.replace("haproxy_2.6.12-1+", "nginx_2.6.12-1+"), "not a .dsc file of"),
    ],
)
def test_print_uris_refuses(text: str, said: str) -> None:
    with pytest.raises(source.SourceError, match=said):
        source.parse_print_uris(text, "haproxy")


def test_complaints() -> None:
    text = "Reading package lists...\nE: no Release file.\nW: weak\nE: no Release file.\nN: note\n"
    assert source.apt_complaints(text) == ["no Release file.", "weak"]
