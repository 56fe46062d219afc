# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An archive of HAProxy's source packages, signed with a key of its own: where the mirror lacks what its index names.

A mirror's index can name a version whose files the mirror does not have (yet, or any more). Then the lab's hosts get the
suite from here: files of the mirror's pool, held to their checksums, under a version that is newer than the mirror's.
Usage: archive.py DIRECTORY MIRROR
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

POOL = "pool/main/h/haproxy"
# Suite -> upstream's version, what is in the mirror's pool, what it is called here; SHA-256 as Debian's signed index has
# or had them, of upstream's tarball and of the distribution's own.
PACKAGES = {
    "bullseye": (
        ("2.2.9", "2.2.9-2+deb11u6", "2.2.9-2+deb11u99"),
        "21680459b08b9ba21c8cc9f5dbd0ee6e1842f57a3a67f87179871e1c13ebd4e3",
        "347cacfaa24b7de2165d8bfe15fa15dd6ab6bce4d45b075a63b019b181dc239b",
    ),
    "trixie": (
        ("3.0.11", "3.0.11-1+deb13u3", "3.0.11-1+deb13u99"),
        "a133e2d550c5fd9a849b5c7ab17bb945bcdad209ca140d41f45ebf31943ae783",
        "3c038b0a9f488a846d723aed4cc24f36b12c3cb846deece50e506386a8dbe6b7",
    ),
}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch(path: Path, mirror: str, name: str, checksum: str) -> None:
    if not (path.exists() and sha256(path) == checksum):
        with urllib.request.urlopen(f"{mirror.rstrip('/')}/{POOL}/{name}", timeout=60) as answer:
            path.write_bytes(answer.read())
    if sha256(path) != checksum:
        sys.exit(f"{name} of the mirror is not what it should be: its SHA-256 is {sha256(path)}")


def rows(paths: list[Path], algorithm: str) -> str:
    """The files as a .dsc and an index list them."""
    found = [
        f" {hashlib.new(algorithm, path.read_bytes()).hexdigest()} {path.stat().st_size} {path.name}\n"
        for path in paths
    ]
    return "".join(found)


def describe(root: Path, mirror: str, suite: str) -> Path:
    """Fill the pool and write the index; the suite's Release file."""
    (upstream, there, here), orig_sum, own_sum = PACKAGES[suite]
    pool = root / POOL
    orig = pool / f"haproxy_{upstream}.orig.tar.gz"
    own = pool / f"haproxy_{here}.debian.tar.xz"
    fetch(orig, mirror, orig.name, orig_sum)
    fetch(own, mirror, f"haproxy_{there}.debian.tar.xz", own_sum)
    fields = f"Binary: haproxy\nArchitecture: any\nVersion: {here}\nFormat: 3.0 (quilt)\n"
    dsc = pool / f"haproxy_{here}.dsc"
    dsc.write_text(
        f"Source: haproxy\nMaintainer: lab <lab@localhost>\n{fields}"
        f"Checksums-Sha256:\n{rows([orig, own], 'sha256')}Files:\n{rows([orig, own], 'md5')}"
    )
    index = root / f"dists/{suite}/main/source/Sources"
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text(
        f"Package: haproxy\n{fields}Directory: {POOL}\n"
        f"Checksums-Sha256:\n{rows([dsc, orig, own], 'sha256')}"
    )
    release = root / f"dists/{suite}/Release"
    release.write_text(
        f"Origin: lab\nSuite: {suite}\nCodename: {suite}\nComponents: main\nArchitectures: source\n"
        f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S UTC', time.gmtime())}\n"
        f"SHA256:\n {sha256(index)} {index.stat().st_size} main/source/Sources\n"
    )
    return release


def main(root: Path, mirror: str) -> None:
    (root / POOL).mkdir(parents=True, exist_ok=True)
    home = root / "gnupg"
    home.mkdir(mode=0o700, exist_ok=True)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--yes"]
    if not (root / "key.gpg").exists():
        subprocess.run(
            [
                *gpg,
                "--passphrase",
                "",
                "--quick-gen-key",
                "lab archive",
                "ed25519",
                "sign",
                "never",
            ],
            check=True,
        )
        subprocess.run([*gpg, "--output", str(root / "key.gpg"), "--export"], check=True)
    for suite in PACKAGES:
        release = describe(root, mirror, suite)
        signed = release.with_name("InRelease")
        subprocess.run([*gpg, "--output", str(signed), "--clear-sign", str(release)], check=True)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
