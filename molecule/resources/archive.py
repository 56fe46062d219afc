# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An archive of one source package, signed with a key of its own: trixie's HAProxy where the mirror lacks it.

A mirror's index can name a version whose files the mirror does not have (yet, or any more). Then the lab's proxy, a
Debian 12 host, gets the suite trixie from here: the version below, taken from the mirror's pool and
held to its checksum. Usage: archive.py DIRECTORY MIRROR
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

VERSION = "3.0.11-1+deb13u3"
# Of Debian's own .dsc, whose signature was checked against debian-keyring; it names the other checksums.
DSC_SHA256 = "11e6fc6750be89dbe61e9ab2b338254957a2724d1f2b5d0b9ea707556a9ebb1f"
POOL = "pool/main/h/haproxy"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def section(dsc: str, name: str) -> list[list[str]]:
    """The rows of a field of the .dsc that has one row a file."""
    lines = dsc.partition(f"\n{name}:")[2].splitlines()[1:]
    rows = []
    for line in lines:
        if not line.startswith(" "):
            break
        rows.append(line.split())
    return rows


def fetch(pool: Path, mirror: str, name: str, checksum: str) -> None:
    path = pool / name
    if not (path.exists() and sha256(path) == checksum):
        with urllib.request.urlopen(f"{mirror.rstrip('/')}/{POOL}/{name}", timeout=60) as answer:
            path.write_bytes(answer.read())
    if sha256(path) != checksum:
        sys.exit(f"{name} of the mirror is not what it should be: its SHA-256 is {sha256(path)}")


def main(root: Path, mirror: str) -> None:
    pool = root / POOL
    pool.mkdir(parents=True, exist_ok=True)
    dsc = pool / f"haproxy_{VERSION}.dsc"
    fetch(pool, mirror, dsc.name, DSC_SHA256)
    text = dsc.read_text()
    files = section(text, "Checksums-Sha256")
    for checksum, _size, name in files:
        fetch(pool, mirror, name, checksum)

    rows = [[DSC_SHA256, str(dsc.stat().st_size), dsc.name], *files]
    index = root / "dists/trixie/main/source/Sources"
    index.parent.mkdir(parents=True, exist_ok=True)
    index.write_text(
        f"Package: haproxy\nBinary: haproxy\nVersion: {VERSION}\nFormat: 3.0 (quilt)\nDirectory: {POOL}\n"
        "Checksums-Sha256:\n" + "".join(f" {' '.join(row)}\n" for row in rows)
    )
    release = root / "dists/trixie/Release"
    release.write_text(
        "Origin: lab\nSuite: trixie\nCodename: trixie\nComponents: main\nArchitectures: source\n"
        f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S UTC', time.gmtime())}\n"
        f"SHA256:\n {sha256(index)} {index.stat().st_size} main/source/Sources\n"
    )

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
    signed = root / "dists/trixie/InRelease"
    subprocess.run([*gpg, "--output", str(signed), "--clear-sign", str(release)], check=True)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
