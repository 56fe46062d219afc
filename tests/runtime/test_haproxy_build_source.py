# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_build_source with real servers, good and bad, real tarballs and a full disk."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import http.server
import io
import lzma
import os
import pwd
import random
import shutil
import socket
import socketserver
import ssl
import stat
import subprocess
import tarfile
import threading
import time
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Certificates, run_module

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="mounts, or gives files away")
OWNER = "nobody"
NAME = "haproxy-3.0.11.tar.gz"
PLACE = f"/3.0/src/{NAME}"
FILES = {"Makefile": b"all: haproxy\n", "VERSION": b"3.0.11\n", "SUBVERS": b"-9e587df\n\n"}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


# --- tarballs -------------------------------------------------------------------------------


def tarball(
    files: dict[str, bytes] | None = None,
    *more: tarfile.TarInfo,
    top: str = "haproxy-3.0.11/",
    filler: int = 0,
) -> bytes:
    """A tarball, not compressed; `filler` are bytes that do not compress either."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        if top:
            directory = tarfile.TarInfo(top)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(directory)
        contents = {**(FILES if files is None else files)}
        if filler:
            contents["filler"] = os.urandom(filler)
        for name, content in contents.items():
            info = tarfile.TarInfo(f"{top}{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    return out.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(f"haproxy-3.0.11/{name}")
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def packed(*arguments: t.Any, **options: t.Any) -> bytes:
    # Without the time: the same in every process.
    return gzip.compress(tarball(*arguments, **options), 1, mtime=0)


def digits(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def damaged(content: bytes) -> bytes:
    """With other bytes in its middle."""
    middle = len(content) // 2
    return content[:middle] + bytes(200) + content[middle + 200 :]


GOOD = packed()
# Large enough that its end is not read with its beginning.
LARGE = tarball(
    {**FILES, "Makefile": b"haproxy" + random.Random(1).randbytes(100_000).hex().encode()}
)

# --- a server -------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        web = t.cast("Web", self.server)
        web.asked.append(f"{self.command} {self.path}")
        answer = web.answers.get(self.path.partition("?")[0])
        if callable(answer):
            answer(self)
        elif answer is None:
            self.say(404, b"<html>not here</html>")
        else:
            self.say(200, answer)

    do_HEAD = do_GET

    def say(self, code: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: t.Any) -> None:
        """Be quiet."""


class Web(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """What is answered to which path: bytes, or a function that answers."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, bytes | Callable[[Handler], None]] = {}
        self.asked: list[str] = []
        self.over = threading.Event()
        self.scheme = "http"
        if context is not None:
            self.scheme = "https"
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: t.Any, client_address: t.Any) -> None:
        """Clients that do not trust the certificate, or whose deadline has passed, go away; that is no news."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def publish(self, content: bytes = GOOD, sha256: str | None = None) -> str:
        """A release and its checksum file; the checksum."""
        self.answers[PLACE] = content
        sha256 = sha256 or digits(content)
        self.answers[f"{PLACE}.sha256"] = f"{sha256}  {NAME}\n".encode()
        return sha256


@pytest.fixture
def make_web() -> Iterator[Callable[..., Web]]:
    running: list[Web] = []

    def make(context: ssl.SSLContext | None = None) -> Web:
        web = Web(context)
        running.append(web)
        threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True).start()
        return web

    yield make
    for web in running:
        web.over.set()
        web.shutdown()
        web.server_close()


@pytest.fixture
def web(make_web: Callable[..., Web]) -> Web:
    return make_web()


def silent(handler: Handler) -> None:
    t.cast(Web, handler.server).over.wait(60)


def trickling(handler: Handler) -> None:
    """A byte at a time, so that no timeout of a socket ever passes."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while not t.cast(Web, handler.server).over.wait(0.05):
        handler.wfile.write(b"x")


def trickling_head(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not t.cast(Web, handler.server).over.wait(0.05):
        handler.wfile.write(b"X-More: x\r\n")


def cut(content: bytes, at: int) -> Callable[[Handler], None]:
    return lambda handler: handler.say(200, content[:at], len(content))


def chunked(content: bytes, *, whole: bool) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, len(content), 100):
            chunk = content[start : start + 100]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        handler.wfile.write(b"0\r\n\r\n" if whole else b"64\r\nxx")
        handler.close_connection = True

    return answer


def redirected(to: str, code: int = 302) -> Callable[[Handler], None]:
    return lambda handler: handler.say(code, b"", Location=to)


def refusing(code: int) -> Callable[[Handler], None]:
    return lambda handler: handler.say(code, b"no")


def without_head(content: bytes, code: int) -> Callable[[Handler], None]:
    return lambda handler: handler.say(code if handler.command == "HEAD" else 200, content)


# --- running it -----------------------------------------------------------------------------


@dataclasses.dataclass
class Scene:
    web: Web
    dest: Path

    def run(self, *, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        full = {
            "source": "release",
            "version": "3.0.11",
            "mirror": self.web.url,
            "dest": str(self.dest),
            "timeout": 10,
            **options,
        }
        given = {key: value for key, value in full.items() if value is not None}
        result = run_module("haproxy_build_source", given, check=check)
        assert result.get("exception") is None, result
        return result

    def fetch(self, **options: t.Any) -> dict[str, t.Any]:
        result = self.run(**options)
        assert not result.get("failed"), result
        return result

    def archive(self, **options: t.Any) -> dict[str, t.Any]:
        return self.run(**{"source": "archive", "version": None, **options})

    def refuse(self, **options: t.Any) -> str:
        """The sentence; nothing may be there that was not there before."""
        before = self.there()
        result = self.run(**options)
        assert result.get("failed"), result
        assert self.there() == before
        sentence = str(result["msg"])
        assert "\n" not in sentence
        return sentence

    def there(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.dest.iterdir())}


@pytest.fixture
def scene(web: Web, tmp_path: Path) -> Scene:
    dest = tmp_path / "dest"
    dest.mkdir()
    return Scene(web, dest)


# --- what works -----------------------------------------------------------------------------


def test_a_release_is_fetched_with_its_published_checksum(scene: Scene) -> None:
    sha256 = scene.web.publish()
    url = f"{scene.web.url}{PLACE}"
    facts = {"kind": "release", "name": NAME, "version": "3.0.11", "sha256": sha256}
    # Asked before anything changes: the checksum file alone.
    asked = scene.fetch(dest=None)
    file = {"name": NAME, "uri": url, "sha256": sha256}
    assert {key: asked[key] for key in facts} == facts
    assert (asked["changed"], asked["directory"]) == (False, None)
    assert asked["files"] == [{**file, "size": None}]
    assert scene.web.asked == [f"GET {PLACE}.sha256"]
    predicted = scene.fetch(check=True)
    assert predicted["changed"] is True
    assert scene.there() == {}

    done = scene.fetch()
    assert {key: done[key] for key in facts} == facts
    assert (done["changed"], done["directory"]) == (True, "haproxy-3.0.11")
    assert done["files"] == [{**file, "size": len(GOOD)}]
    assert scene.there() == {NAME: GOOD, f"{NAME}.sha256": f"{sha256}  {NAME}\n".encode()}
    assert stat.S_IMODE((scene.dest / NAME).stat().st_mode) == 0o644

    scene.web.asked.clear()
    for check in (True, False):
        again = scene.fetch(check=check)
        assert {**again, "changed": True} == done
        assert again["changed"] is False
    assert scene.web.asked == []


def test_what_is_returned_is_enough_for_tar(scene: Scene) -> None:
    scene.web.publish()
    done = scene.fetch()
    command = ["tar", "--extract", "--file", done["name"]]
    subprocess.run(command, cwd=scene.dest, check=True, timeout=30)
    assert (scene.dest / done["directory"] / "VERSION").read_bytes() == b"3.0.11\n"


@pytest.mark.parametrize("prefix", ["", "sha256:"])
def test_a_given_checksum_needs_no_published_one(scene: Scene, prefix: str) -> None:
    scene.web.answers[PLACE] = GOOD
    sha256 = digits(GOOD)
    asked = scene.fetch(dest=None, checksum=f"{prefix}{sha256}")
    assert (asked["sha256"], asked["files"][0]["size"]) == (sha256, len(GOOD))
    assert scene.web.asked == [f"HEAD {PLACE}"]
    assert scene.fetch(checksum=f"{prefix}{sha256}")["changed"] is True
    assert list(scene.there()) == [NAME]
    scene.web.asked.clear()
    assert scene.fetch(checksum=f"{prefix}{sha256}")["changed"] is False
    assert scene.web.asked == []


def test_releases_that_lead_to_the_next_branch_have_a_place_of_their_own(scene: Scene) -> None:
    name = "haproxy-3.3-dev5.tar.gz"
    content = packed({**FILES, "VERSION": b"3.3-dev5\n"}, top="haproxy-3.3-dev5/")
    scene.web.answers[f"/3.3/src/devel/{name}"] = content
    done = scene.fetch(version="3.3-dev5", checksum=digits(content))
    assert (done["version"], done["directory"]) == ("3.3-dev5", "haproxy-3.3-dev5")


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_mirror_may_be_a_directory_of_the_host(scene: Scene, tmp_path: Path, form: str) -> None:
    place = tmp_path / "mirror" / "3.0" / "src"
    place.mkdir(parents=True)
    (place / NAME).write_bytes(GOOD)
    (place / f"{NAME}.sha256").write_text(f"{digits(GOOD)}  {NAME}\n")
    mirror = form.format(tmp_path / "mirror")
    # All of it is seen before anything changes.
    asked = scene.fetch(mirror=mirror, dest=None)
    assert (asked["directory"], asked["files"][0]["size"]) == ("haproxy-3.0.11", len(GOOD))
    assert scene.fetch(mirror=mirror)["changed"] is True
    assert scene.there()[NAME] == GOOD
    (place / f"{NAME}.sha256").unlink()
    assert scene.fetch(mirror=mirror)["changed"] is False
    assert f"{NAME}.sha256 cannot be read: No such file" in scene.refuse(mirror=mirror, dest=None)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("tgz", gzip.compress), ("tar.xz", lzma.compress), ("tar.bz2", bz2.compress)],
)
def test_an_archive_is_fetched_with_a_checksum_file(
    scene: Scene, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    content = pack(tarball())
    name = f"ours.{suffix}"
    scene.web.answers[f"/a/{name}"] = content
    scene.web.answers["/SUMS"] = f"{'0' * 64}  else\n{digits(content)} *{name}\n".encode()
    options = {"archive": f"{scene.web.url}/a/{name}?token=1", "checksum": f"{scene.web.url}/SUMS"}
    asked = scene.archive(dest=None, **options)
    assert not asked.get("failed"), asked
    # The name does not tell the version.
    assert (asked["version"], asked["sha256"]) == (None, digits(content))
    assert scene.web.asked == ["GET /SUMS", f"HEAD /a/{name}?token=1"]
    done = scene.archive(**options)
    assert not done.get("failed"), done
    assert (done["kind"], done["name"], done["version"]) == ("archive", name, "3.0.11")
    assert scene.there() == {name: content}
    assert scene.archive(**options)["changed"] is False


@pytest.mark.parametrize("code", [403, 405, 501])
def test_a_server_that_knows_no_head_is_asked_as_for_the_download(scene: Scene, code: int) -> None:
    scene.web.answers[PLACE] = without_head(GOOD, code)
    asked = scene.fetch(dest=None, checksum=digits(GOOD))
    assert asked["files"][0]["size"] == len(GOOD)
    assert scene.web.asked == [f"HEAD {PLACE}", f"GET {PLACE}"]


def test_an_archive_of_the_host_is_looked_at_and_copied(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "ours.tar.gz"
    path.write_bytes(GOOD)
    asked = scene.archive(archive=str(path), dest=None)
    assert (asked["version"], asked["sha256"]) == ("3.0.11", digits(GOOD))
    assert scene.archive(archive=str(path), check=True)["changed"] is True
    assert scene.there() == {}
    assert scene.archive(archive=str(path))["changed"] is True
    assert scene.there() == {"ours.tar.gz": GOOD}
    assert scene.archive(archive=str(path))["changed"] is False
    other = packed({**FILES, "VERSION": b"3.0.12\n"})
    path.write_bytes(other)
    assert scene.archive(archive=str(path))["version"] == "3.0.12"
    assert scene.there() == {"ours.tar.gz": other}


def test_an_archive_that_lies_where_it_should_go_stays(scene: Scene) -> None:
    path = scene.dest / "ours.tar.gz"
    path.write_bytes(GOOD)
    path.chmod(0o600)
    inode = path.stat().st_ino
    predicted, done = (scene.archive(archive=str(path), check=check) for check in (True, False))
    assert predicted == done
    assert done["changed"] is True
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_ino) == (0o644, inode)
    assert scene.archive(archive=str(path))["changed"] is False


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed(scene: Scene, code: int) -> None:
    scene.web.publish()
    scene.web.answers["/moved"] = scene.web.answers[PLACE]
    scene.web.answers[PLACE] = redirected("/moved", code)
    assert scene.fetch()["changed"] is True


def test_a_body_may_come_in_chunks(scene: Scene) -> None:
    sha256 = scene.web.publish()
    scene.web.answers[PLACE] = chunked(GOOD, whole=True)
    assert scene.fetch()["sha256"] == sha256


def test_a_tarball_stays_compressed_whatever_the_server_calls_that(scene: Scene) -> None:
    scene.web.publish()
    scene.web.answers[PLACE] = lambda handler: handler.say(200, GOOD, Content_Encoding="gzip")
    scene.fetch()
    assert scene.there()[NAME] == GOOD


def test_a_wrong_file_and_what_an_ended_run_left_are_replaced(scene: Scene) -> None:
    scene.web.publish()
    (scene.dest / NAME).write_bytes(b"old")
    (scene.dest / f"{NAME}.part").write_bytes(b"half")
    assert scene.fetch()["changed"] is True
    assert sorted(scene.there()) == [NAME, f"{NAME}.sha256"]
    assert scene.there()[NAME] == GOOD
    # Without what says that it is right, the server is asked.
    (scene.dest / f"{NAME}.sha256").write_bytes(b"nonsense")
    scene.web.asked.clear()
    assert scene.fetch()["changed"] is False
    assert scene.web.asked == [f"GET {PLACE}.sha256"]


@needs_root
def test_files_belong_to_the_owner(scene: Scene) -> None:
    scene.web.publish()
    owner = pwd.getpwnam(OWNER)
    os.chown(scene.dest, owner.pw_uid, owner.pw_gid)
    expected = (owner.pw_uid, owner.pw_gid, 0o644)

    def found() -> set[tuple[int, int, int]]:
        stats = [path.stat() for path in scene.dest.iterdir()]
        return {(each.st_uid, each.st_gid, stat.S_IMODE(each.st_mode)) for each in stats}

    scene.fetch(owner=OWNER)
    assert found() == {expected}
    assert scene.fetch(owner=OWNER)["changed"] is False
    # One that is there already is given to the owner, without the network.
    os.chown(scene.dest / NAME, 0, 0)
    scene.web.asked.clear()
    assert scene.fetch(owner=OWNER, check=True)["changed"] is True
    assert scene.fetch(owner=OWNER)["changed"] is True
    assert found() == {expected}
    assert scene.web.asked == []


def test_a_directory_of_another_user_leads_nowhere(scene: Scene, tmp_path: Path) -> None:
    scene.web.publish()
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for name in (NAME, f"{NAME}.part", f"{NAME}.sha256", f"{NAME}.sha256.part"):
        (scene.dest / name).symlink_to(precious)
    assert scene.fetch()["changed"] is True
    assert precious.read_text() == "precious"
    assert not any(path.is_symlink() for path in scene.dest.iterdir())
    # Not even to the right file.
    precious.write_bytes(GOOD)
    precious.chmod(0o600)
    (scene.dest / NAME).unlink()
    (scene.dest / NAME).symlink_to(precious)
    assert scene.fetch()["changed"] is True
    assert not (scene.dest / NAME).is_symlink()
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600
    # A pipe has no end.
    (scene.dest / NAME).unlink()
    os.mkfifo(scene.dest / NAME)
    assert scene.fetch()["changed"] is True
    assert scene.there()[NAME] == GOOD


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"version": None}, "source is release, and no version is given"),
        ({"version": "3.0"}, "give all of its numbers"),
        ({"mirror": "ftp://x.example"}, "mirror is 'ftp://x.example': give"),
        ({"checksum": "abc"}, "checksum is 'abc', which is no SHA-256 checksum"),
        ({"timeout": 0}, "timeout is 0: give seconds, from 1"),
        ({"owner": "nobody-has-this"}, "this host has no such user: create it first"),
        ({"dest": "/nobody/has/this"}, "this is not a directory: create it first"),
        ({"source": "archive", "version": None}, "no archive is given"),
    ],
)
def test_options_are_checked_before_the_network(
    scene: Scene, options: dict[str, t.Any], said: str
) -> None:
    assert said in scene.refuse(**options)
    assert scene.web.asked == []


def test_an_archive_from_the_network_needs_a_checksum(scene: Scene) -> None:
    url = f"{scene.web.url}/h.tgz"
    sentence = scene.refuse(source="archive", version=None, archive=url)
    assert sentence.startswith(f"archive is the URL {url}, and no checksum is given")
    assert scene.web.asked == []


@pytest.mark.parametrize("where", ["published", "given"])
def test_a_wrong_checksum_is_refused(scene: Scene, where: str) -> None:
    wrong = digits(b"")
    (scene.dest / NAME).write_bytes(b"old")
    if where == "published":
        scene.web.publish(sha256=wrong)
        sentence = scene.refuse()
        whence = f"{scene.web.url}{PLACE}.sha256"
    else:
        scene.web.publish()
        sentence = scene.refuse(checksum=wrong)
        whence = "checksum"
    assert sentence.startswith(
        f"{scene.web.url}{PLACE} has the SHA-256 checksum {digits(GOOD)}, not {wrong} as {whence} says"
    )
    assert sentence.endswith(f"or check that {scene.web.url} has version 3.0.11")


def test_a_wrong_checksum_of_a_file_of_the_host_is_found_before_anything_changes(
    scene: Scene, tmp_path: Path
) -> None:
    path = tmp_path / "ours.tgz"
    path.write_bytes(GOOD)
    options = {"source": "archive", "version": None, "archive": str(path), "checksum": digits(b"")}
    for dest in (None, str(scene.dest)):
        assert "has the SHA-256 checksum" in scene.refuse(**options, dest=dest)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is not what sha256sum writes"),
        (f"{digits(GOOD)}  haproxy-3.0.10.tar.gz".encode(), "(only of haproxy-3.0.10.tar.gz)"),
        (b"<html>\xff</html>", "it is not what sha256sum writes"),
        (b"x" * 2_000_000, "has more than 1000000 bytes, which is not what it should be"),
    ],
    ids=["empty", "another", "page", "large"],
)
def test_a_checksum_file_without_the_name_is_refused(
    scene: Scene, content: bytes, said: str
) -> None:
    scene.web.publish()
    scene.web.answers[f"{PLACE}.sha256"] = content
    for dest in (None, str(scene.dest)):
        sentence = scene.refuse(dest=dest)
        assert sentence.startswith(f"{scene.web.url}{PLACE}.sha256 has ")
        assert said in sentence


@pytest.mark.parametrize("code", [401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("what", ["checksum", "tarball"])
def test_an_error_of_the_server_is_named(scene: Scene, what: str, code: int) -> None:
    sha256 = scene.web.publish()
    suffix = ".sha256" if what == "checksum" else ""
    scene.web.answers[f"{PLACE}{suffix}"] = refusing(code)
    sentence = scene.refuse()
    assert sentence.startswith(f"{scene.web.url}{PLACE}{suffix} answers {code} ")
    assert "version 3.0.11" in sentence
    # Found before anything changes too.
    options = {} if what == "checksum" else {"checksum": sha256}
    assert f" answers {code} " in scene.refuse(dest=None, **options)


@pytest.mark.parametrize("what", ["checksum", "tarball"])
def test_a_cut_body_is_refused(scene: Scene, what: str) -> None:
    scene.web.publish()
    path = PLACE if what == "tarball" else f"{PLACE}.sha256"
    content = t.cast(bytes, scene.web.answers[path])
    scene.web.answers[path] = cut(content, 50)
    sentence = scene.refuse()
    expected = f"{scene.web.url}{path} ended after 50 of {len(content)} bytes; try again, or check"
    assert sentence.startswith(expected)


def test_a_cut_body_in_chunks_is_refused(scene: Scene) -> None:
    scene.web.publish()
    scene.web.answers[PLACE] = chunked(GOOD, whole=False)
    assert scene.refuse().startswith(f"{scene.web.url}{PLACE} ended before its end; check")


@pytest.mark.parametrize(
    ("what", "how"),
    [
        *((what, how) for what in ("checksum", "tarball") for how in (silent, trickling)),
        ("checksum", trickling_head),
        # A body is not asked for.
        ("asked", silent),
        ("asked", trickling_head),
    ],
)
def test_the_deadline_is_for_all_of_it(
    scene: Scene, what: str, how: Callable[[Handler], None]
) -> None:
    sha256 = scene.web.publish()
    path = f"{PLACE}.sha256" if what == "checksum" else PLACE
    scene.web.answers[path] = how
    options = {"dest": None, "checksum": sha256} if what == "asked" else {}
    begin = time.monotonic()
    sentence = scene.refuse(timeout=1, **options)
    assert 0.9 < time.monotonic() - begin < 2
    assert sentence.startswith(f"{scene.web.url}{path} did not come within 1 seconds, ")
    assert (" of 1000000 bytes did" in sentence) == (how is trickling)
    assert sentence.endswith(", or give more as timeout")


def test_a_refused_connection_is_named(scene: Scene, closed_port: int) -> None:
    mirror = f"http://127.0.0.1:{closed_port}"
    sentence = scene.refuse(mirror=mirror)
    assert sentence.startswith(f"{mirror}{PLACE}.sha256 cannot be reached: connection refused; ")


def test_a_proxy_that_is_to_blame_is_named(
    scene: Scene, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{closed_port}")
    sentence = scene.refuse(mirror="http://mirror.invalid")
    assert f"connection refused (through the proxy 127.0.0.1:{closed_port}); " in sentence


def test_a_proxy_is_used(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", scene.web.url)
    mirror = "http://mirror.invalid"
    scene.web.answers[f"{mirror}{PLACE}"] = GOOD
    assert scene.fetch(mirror=mirror, checksum=digits(GOOD))["changed"] is True


def test_a_name_without_an_address_is_named(scene: Scene) -> None:
    sentence = scene.refuse(mirror="http://mirror.invalid")
    assert "cannot be reached: its name cannot be resolved" in sentence


def test_what_does_not_speak_http_is_named(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            client, _address = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")

        threading.Thread(target=answer, daemon=True).start()
        mirror = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert "what answers does not speak HTTP (BadStatusLine)" in scene.refuse(mirror=mirror)


def test_a_connection_that_the_server_closes_is_named(scene: Scene) -> None:
    def close(handler: Handler) -> None:
        handler.close_connection = True

    scene.web.answers[f"{PLACE}.sha256"] = close
    assert "cannot be read: the server closed the connection" in scene.refuse()


def test_tls_is_verified(
    scene: Scene,
    make_web: Callable[..., Web],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificates = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    scene.web = make_web(context)
    scene.web.publish()
    sentence = scene.refuse()
    assert sentence.startswith(
        f"{scene.web.url}{PLACE}.sha256 has a certificate that this host does not trust ("
    )
    assert "ca-certificates" in sentence
    assert scene.web.asked == []
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    assert scene.fetch()["changed"] is True
    # Another name than the certificate's.
    sentence = scene.refuse(mirror=scene.web.url.replace("127.0.0.1", "127.0.0.2"), dest=None)
    assert "does not trust" in sentence or "connection refused" in sentence


def test_a_checksum_does_not_come_without_encryption_where_it_was_asked_for(
    scene: Scene,
    make_web: Callable[..., Web],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificates = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)
    secured = make_web(context)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    scene.web.publish()
    secured.publish()
    secured.answers[f"{PLACE}.sha256"] = redirected(f"{scene.web.url}{PLACE}.sha256")
    sentence = scene.refuse(mirror=secured.url)
    assert "leads to 127.0.0.1 without encryption, where anybody could have changed it" in sentence


def test_a_server_without_tls_is_named(scene: Scene) -> None:
    mirror = scene.web.url.replace("http:", "https:")
    assert " cannot be reached by TLS (" in scene.refuse(mirror=mirror)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a tarball that gzip, xz or bzip2 compressed (it begins with b'')"),
        (b"PK\3\4" + GOOD, "(it begins with b'PK"),
        (b"<!DOCTYPE html>", "it looks like a web page"),
        (tarball(), "is not a tarball that gzip, xz or bzip2 compressed"),
        (gzip.compress(b"no tarball" * 100), "is damaged, or not a tarball ("),
        (gzip.compress(b""), "is damaged, or not a tarball ("),
        (GOOD[:-20], "is damaged, or not a tarball ("),
        (GOOD[:60] + b"\xff\xff\xff" + GOOD[63:], "is damaged, or not a tarball ("),
        (lzma.compress(tarball())[:-60], "is damaged, or not a tarball ("),
        (bz2.compress(tarball())[:60], "is damaged, or not a tarball ("),
        (lzma.compress(b"no tarball" * 100), "is damaged, or not a tarball ("),
        (damaged(gzip.compress(LARGE, 1)), "is damaged, or not a tarball ("),
        # No block begins like this.
        (gzip.compress(LARGE, 0)[:70_000] + 130_000 * b"\xff", "is damaged, or not a tarball ("),
        (damaged(lzma.compress(LARGE)), "is damaged, or not a tarball ("),
        (damaged(bz2.compress(LARGE)), "is damaged, or not a tarball ("),
        (packed({}), "it has no Makefile and no VERSION and no SUBVERS in 'haproxy-3.0.11'"),
        (packed({**FILES, "Makefile": b"all: nginx"}), "its Makefile does not make haproxy"),
        (packed(top=""), "it has 'Makefile' beside its directory"),
        (packed({**FILES, "../../x": b""}), "would write to 'haproxy-3.0.11/../../x', outside"),
        (packed(FILES, link("l", "../../etc")), "'haproxy-3.0.11/l' leads out, to '../../etc'"),
        (packed({**FILES, "VERSION": b"\xff"}), "its VERSION is "),
    ],
    ids=range(21),
)
def test_what_is_no_source_is_refused(
    scene: Scene, tmp_path: Path, content: bytes, said: str
) -> None:
    sha256 = scene.web.publish(content)
    assert said in scene.refuse()
    # One that is there already, with the right checksum, is no better.
    (scene.dest / NAME).write_bytes(content)
    assert said in scene.refuse(checksum=sha256)
    path = tmp_path / "ours.tgz"
    path.write_bytes(content)
    assert said in scene.refuse(source="archive", version=None, archive=str(path), dest=None)


def test_a_bomb_is_not_unpacked(scene: Scene) -> None:
    directory = tarfile.TarInfo("haproxy-3.0.11/")
    directory.type = tarfile.DIRTYPE
    large = tarfile.TarInfo("haproxy-3.0.11/large")
    large.size = 450_000_000
    out = io.BytesIO()
    with gzip.open(out, "wb", 1) as file:
        file.write(directory.tobuf() + large.tobuf())
        for _block in range(large.size // 10_000_000):
            file.write(bytes(10_000_000))
    scene.web.publish(out.getvalue())
    assert "unpacks to more than 400000000 bytes" in scene.refuse()


@pytest.mark.parametrize("how", ["told", "not told"])
def test_what_is_too_large_is_not_fetched(scene: Scene, how: str) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        if how == "told":
            handler.send_header("Content-Length", "200000000")
        handler.end_headers()
        with memoryview(bytes(1_000_000)) as block:
            for _block in range(200):
                handler.wfile.write(block)
        handler.close_connection = True

    scene.web.publish()
    scene.web.answers[PLACE] = answer
    assert "has more than 100000000 bytes, which is not what it should be" in scene.refuse()


def test_another_version_than_its_name_is_refused(scene: Scene, tmp_path: Path) -> None:
    other = packed({**FILES, "VERSION": b"3.0.12\n"})
    scene.web.publish(other)
    said = "is version 3.0.12 by its own VERSION file, not 3.0.11: change version, or check that"
    assert said in scene.refuse()
    path = tmp_path / NAME
    path.write_bytes(other)
    options = {"source": "archive", "archive": str(path)}
    assert "not 3.0.11: change version, or check archive" in scene.refuse(**options)
    assert "not 3.0.11: change version, or check archive" in scene.refuse(**options, dest=None)
    # Without a version, the file decides, and not its name.
    assert scene.fetch(**options, version=None)["version"] == "3.0.12"


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe"])
def test_an_archive_of_the_host_that_is_none_is_refused(
    scene: Scene, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "ours.tgz"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    said = "cannot be read: No such file or directory" if kind == "missing" else "is not a file"
    options = {"source": "archive", "version": None, "archive": str(path)}
    assert scene.refuse(**options) == f"{path} {said}; check archive"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)], check=True, timeout=30
    )
    yield path
    subprocess.run(["umount", str(path)], check=True, timeout=30)


@needs_root
def test_a_full_disk_is_named_and_left_as_it_was(scene: Scene, small: Path) -> None:
    scene.dest = small
    page = 4096
    # The disk ends in the middle of the tarball, in its last block, and with it, before the checksum file beside it.
    for size, free in ((200_000, 16), (62_000, 15), (60_000, 15)):
        content = packed(filler=size)
        assert size > 60_000 or (free - 1) * page < len(content) <= free * page
        scene.web.publish(content)
        (small / "other").write_bytes(bytes((16 - free) * page))
        used = shutil.disk_usage(small).used
        sentence = scene.refuse()
        name = f"{NAME}.sha256" if size == 60_000 else NAME
        assert sentence.startswith(f"{small}/{name} cannot be written: No space left on device; ")
        assert shutil.disk_usage(small).used == used
    (small / "other").unlink()
    assert scene.fetch()["changed"] is True


def test_what_another_run_writes_meanwhile_is_not_taken(scene: Scene) -> None:
    def answer(handler: Handler) -> None:
        part = scene.dest / f"{NAME}.part"
        handler.say(200, GOOD[:100], len(GOOD))
        while not part.stat().st_size:
            time.sleep(0.01)
        part.unlink()
        part.write_bytes(b"another's")
        handler.wfile.write(GOOD[100:])

    scene.web.publish()
    scene.web.answers[PLACE] = answer
    assert "was replaced meanwhile, by another run or its owner; try again" in scene.refuse()


@needs_root
def test_a_directory_that_cannot_be_written_is_named(scene: Scene, small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True, timeout=30)
    scene.dest = small
    scene.web.publish()
    sentence = scene.refuse()
    assert "cannot be written: Read-only file system; make" in sentence


def test_a_directory_in_the_way_is_named(scene: Scene) -> None:
    scene.web.publish()
    (scene.dest / NAME).mkdir()
    result = scene.run()
    assert result["failed"]
    assert f"{scene.dest}/{NAME} cannot be written: Is a directory" in result["msg"]
    assert [path.name for path in scene.dest.iterdir()] == [NAME]


def test_a_password_is_in_no_sentence_and_no_result(scene: Scene) -> None:
    scene.web.publish()
    mirror = scene.web.url.replace("//", "//me:secret@")
    done = scene.fetch(mirror=mirror)
    assert done["files"][0]["uri"] == f"{scene.web.url}{PLACE}"
    sentence = scene.refuse(mirror=mirror, version="3.0.12")
    assert "answers 404 " in sentence
    assert "secret" not in sentence


def test_the_distribution_is_the_default(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nobody/has/this")
    result = run_module("haproxy_build_source", {"suite": "clearproxy-nobody-has-this"})
    assert result["failed"]
    assert "clearproxy-nobody-has-this" in result["msg"] or "no apt-get" in result["msg"]
