# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch the HAProxy versions that the tests run against: Debian's own packages, unpacked.

Every version comes from the Debian mirror that this machine is configured with, together with
the libraries it was linked against. Nothing is compiled and nothing is installed: the packages
are unpacked below the cache directory, and `<cache>/haproxy/<version>/run` starts the
binary, which is changed (patchelf) to use its own loader and libraries. apt runs with a configuration, state and cache of its
own, so neither root nor the machine's package lists are needed; signatures are checked with the
machine's Debian archive keys.

The second run reads nothing from the network. A newer package is fetched when KEY below changes,
or with --refresh.

Usage: scripts/haproxy-binaries [--refresh] [--optional VERSION]... [--mirror URI] [VERSION...]
       scripts/haproxy-binaries --where
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import typing as t

# Change this to have every machine fetch the packages again.
KEY = "2026-11-2"

KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Problem(Exception):
    """One sentence about what is missing and what to do."""


@dataclasses.dataclass(frozen=True)
class Release:
    """Which suites offer a version: the first is the one HAProxy is taken from."""

    minor: str
    suites: tuple[str, ...]


RELEASES = (
    Release("2.2", ("bullseye",)),
    Release("2.6", ("bookworm",)),
    Release("3.0", ("trixie",)),
    Release("3.2", ("forky", "sid")),
    Release("3.4", ("experimental", "sid")),
)


def cache_directory() -> pathlib.Path:
    own = os.environ.get("CLEARPROXY_CACHE")
    if own:
        return pathlib.Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "clearproxy"


def output_of(*command: str, env: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=600, check=False
        )
    except FileNotFoundError:
        raise Problem(
            f"{command[0]} is not on this machine; this script needs a Debian system, and patchelf "
            "from tests/requirements.txt"
        ) from None
    except subprocess.TimeoutExpired:
        raise Problem(f"{command[0]} {command[1]} did not end within 600 s") from None
    if done.returncode:
        said = " ".join((done.stderr.strip() or done.stdout.strip()).split("\n")[-3:])
        raise Problem(f"{command[0]} failed: {said}")
    return done.stdout


def configured_mirror() -> str:
    """The address from which this machine takes its own Debian release."""
    try:
        text = pathlib.Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r'^VERSION_CODENAME="?([a-z]+)', text, re.M)
    codename = found.group(1) if found else ""
    # indextargets lists nothing before the machine's first `apt-get update`; the second question
    # is answered from the sources alone.
    for line in output_of(
        "apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)"
    ).splitlines():
        name, _sep, uri = line.partition(" ")
        if codename and name == codename:
            return uri
    for line in output_of("apt-get", "update", "--print-uris").splitlines():
        match = re.match(rf"'([^']+)dists/{codename}/InRelease'", line)
        if codename and match:
            return match.group(1)
    raise Problem(
        f"no apt source of this machine offers Debian {codename or '(release unknown)'}; "
        "name a Debian mirror with --mirror URI"
    )


class Apt:
    """apt with a configuration, lists and archive of its own, for the suites of one release."""

    def __init__(
        self, directory: pathlib.Path, release: Release, mirror: str, keyring: pathlib.Path
    ) -> None:
        self.directory = directory
        for sub in ("etc/preferences.d", "lists/partial", "cache/archives/partial", "debs"):
            (directory / sub).mkdir(parents=True, exist_ok=True)
        (directory / "status").write_text("")
        (directory / "etc/sources.list").write_text(
            "".join(
                f"deb [signed-by={keyring}] {mirror} {suite} main\n" for suite in release.suites
            )
        )
        # The machine's hooks and pins stay out, but how it reaches the network comes along.
        acquire = output_of("apt-config", "dump", "Acquire")
        (directory / "apt.conf").write_text(
            f'Dir::Etc "{directory}/etc/";\n'
            'Dir::Etc::main "/dev/null";\nDir::Etc::parts "/dev/null";\n'
            f'Dir::Etc::sourcelist "{directory}/etc/sources.list";\n'
            'Dir::Etc::sourceparts "/dev/null";\n'
            f'Dir::State "{directory}/";\nDir::State::lists "{directory}/lists/";\n'
            f'Dir::State::status "{directory}/status";\n'
            f'Dir::Cache "{directory}/cache/";\n'
            'Acquire::Languages "none";\nAPT::Install-Recommends "false";\n'
            f'APT::Sandbox::User "{"root" if os.geteuid() == 0 else ""}";\n'
            # A frozen mirror keeps Release files of moving suites past their date.
            + acquire
            + 'Acquire::Check-Valid-Until "false";\n'
        )
        self.env = {**os.environ, "APT_CONFIG": str(directory / "apt.conf"), "LC_ALL": "C.UTF-8"}

    def run(self, *args: str) -> str:
        return output_of("apt-get", "-q", *args, env=self.env)

    def fetch(self, release: Release) -> list[pathlib.Path]:
        """Download HAProxy and its libraries; apt checks signatures and hashes."""
        self.run("update", "--error-on=any")
        plan = self.run("install", "--simulate", "-t", release.suites[0], "haproxy")
        wanted = []
        for line in plan.splitlines():
            match = re.match(r"Inst (\S+) \((\S+) ", line)
            # Whatever HAProxy loads is a library; the rest (adduser, systemd's tools, …) would
            # only matter to an installed service.
            if match and (match.group(1) == "haproxy" or match.group(1).startswith("lib")):
                wanted.append(f"{match.group(1)}={match.group(2)}")
        if not any(item.startswith("haproxy=") for item in wanted):
            raise Problem(f"the suite {release.suites[0]} has no package haproxy")
        debs = self.directory / "debs"
        done = subprocess.run(
            ["apt-get", "-q", "download", *wanted],
            cwd=debs,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            raise Problem(f"apt-get download failed: {done.stderr.strip()}")
        return sorted(debs.glob("*.deb"))


def bind(root: pathlib.Path, installed_at: pathlib.Path) -> str:
    """Tie the unpacked binary to the loader and libraries beside it; a script that starts it.

    They are written into the binary itself, because HAProxy's master process starts its binary again,
    by its path alone.
    """
    binary = root / "usr/sbin/haproxy"
    with binary.open("rb") as stream:
        found = re.search(rb"/lib[0-9a-z]*/(ld-linux[\w.-]*\.so\.\d+)\0", stream.read(65536))
    if found is None:
        raise Problem(f"{binary} names no loader; is it an ELF program?")
    name = found.group(1).decode()
    loaders = [
        p
        for p in sorted(root.glob(f"**/{name}"))
        if p.is_file() and p.resolve().is_relative_to(root)
    ]
    if not loaders:
        raise Problem(f"{name} is not among the unpacked packages")
    libraries = sorted({p.parent for p in root.glob("**/*.so.*")})
    at = installed_at / "root"
    patchelf = shutil.which("patchelf") or str(pathlib.Path(sys.executable).with_name("patchelf"))
    output_of(
        patchelf,
        "--set-interpreter",
        str(at / loaders[0].relative_to(root)),
        # The older form of a run path is the one that holds for the libraries' libraries too.
        "--force-rpath",
        "--set-rpath",
        ":".join(str(at / p.relative_to(root)) for p in libraries),
        str(binary),
    )
    return f'#!/bin/sh\nexec "{at / binary.relative_to(root)}" "$@"\n'


def unpack(release: Release, target: pathlib.Path, mirror: str, keyring: pathlib.Path) -> None:
    """Build the directory beside its place and move it there when it works."""
    work = target.with_name(f".{target.name}.new")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        root = work / "root"
        root.mkdir()
        for deb in Apt(work / "apt", release, mirror, keyring).fetch(release):
            output_of("dpkg-deb", "-x", str(deb), str(root))
        shutil.rmtree(work / "apt")
        for extra in ("usr/share", "etc", "var"):
            shutil.rmtree(root / extra, ignore_errors=True)
        script = work / "run"
        script.write_text(bind(root, target))
        script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    except Exception:
        shutil.rmtree(work, ignore_errors=True)
        raise


def version_line(target: pathlib.Path) -> str:
    return output_of(str(target / "run"), "-v").splitlines()[0]


def provide(
    release: Release, base: pathlib.Path, mirror: t.Callable[[], str], refresh: bool
) -> str:
    """Make sure the version is there and starts; answer what `haproxy -v` says."""
    target = base / release.minor
    # The mirror is asked only when something has to be fetched: the second run stays quick.
    key = hashlib.sha256(repr((KEY, release, os.uname().machine)).encode()).hexdigest()
    stamp = target / "key"
    if not refresh and stamp.is_file() and stamp.read_text() == key:
        return version_line(target)
    unpack(release, target, mirror(), KEYRING)
    said = version_line(target)
    if f" {release.minor}." not in said:
        raise Problem(f"the suite {release.suites[0]} offers another version now: {said}")
    stamp.write_text(key)
    return said


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Unpack the HAProxy versions that the tests run against."
    )
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="only these (default: all)")
    parser.add_argument(
        "--optional",
        action="append",
        default=[],
        metavar="VERSION",
        help="do not fail when this one cannot be had",
    )
    parser.add_argument(
        "--mirror", help="Debian mirror (default: the one this machine is configured with)"
    )
    parser.add_argument("--refresh", action="store_true", help="fetch again even if present")
    parser.add_argument(
        "--where", action="store_true", help="only print the directory that holds the versions"
    )
    args = parser.parse_args()
    base = cache_directory() / "haproxy"
    if args.where:
        print(base)
        return 0
    known = {release.minor: release for release in RELEASES}
    for minor in [*args.versions, *args.optional]:
        if minor not in known:
            parser.error(f"unknown version {minor}; known: {', '.join(known)}")
    if not KEYRING.is_file():
        print(
            f"haproxy-binaries: {KEYRING} is missing; install debian-archive-keyring",
            file=sys.stderr,
        )
        return 1
    mirror_found: list[str] = [args.mirror] if args.mirror else []

    def mirror() -> str:
        if not mirror_found:
            mirror_found.append(configured_mirror())
        return mirror_found[0]

    base.mkdir(parents=True, exist_ok=True)
    failed = False
    with (base / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for minor in args.versions or known:
            try:
                print(f"{minor}: {provide(known[minor], base, mirror, args.refresh)}", flush=True)
            except (Problem, OSError, subprocess.TimeoutExpired) as exc:
                optional = minor in args.optional
                failed = failed or not optional
                print(
                    f"{minor}: not available{' (optional)' if optional else ''}: {exc}", flush=True
                )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
