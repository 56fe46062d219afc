# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: what is wanted, what a release was made of, and which release there is serves. Private to the collection."""

from __future__ import annotations

import hashlib
import json
import re
import typing as t
from collections.abc import Mapping, Sequence

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_features import (
    full_features,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

# Kind of a source -> the variables that say which one it is.
SOURCES = {
    "distribution": ("suite", "version"),
    "release": ("version", "mirror", "checksum"),
    "archive": ("archive", "checksum"),
}
# All variables of a source; those of another kind may be given, and mean nothing.
_SOURCE = ("archive", "checksum", "kind", "mirror", "suite", "version")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_WANTED: dict[str, t.Any] = {
    "source": {"kind": "distribution"},
    "patches": [],
    "features": {},
    "tls_library": None,
    "cflags": "",
    "make_arguments": [],
    "target": "linux-glibc",
    "platform": "",
}
_MADE_OF = ("source_sha256", "patches", "make", "compiler", "libraries", "platform", "libc")
_TLS = ("path", "lib", "name", "version")


def make_wanted(variables: Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The canonical form of what the variables ask for: equal where the release would be."""
    _check_keys(variables, _WANTED, "what is wanted")
    given = {**_WANTED, **{key: value for key, value in variables.items() if value is not None}}
    return {
        "source": _canonical_source(_mapping(given["source"], "source")),
        "patches": [_checksum(each) for each in _list(given["patches"], "patches")],
        "features": full_features(_mapping(given["features"], "features")),
        "tls_library": _canonical_tls(given["tls_library"]),
        "cflags": " ".join(str(given["cflags"]).split()),
        "make_arguments": [str(each) for each in _list(given["make_arguments"], "make_arguments")],
        "target": str(given["target"]),
        "platform": str(given["platform"]),
    }


def _canonical_source(source: Mapping[str, t.Any]) -> dict[str, str]:
    _check_keys(source, _SOURCE, "source")
    kind = str(source.get("kind") or "distribution")
    if kind not in SOURCES:
        raise InputError(f"the kind of source is {kind!r}: give one of {', '.join(SOURCES)}")
    found = {key: str(source.get(key) or "").strip() for key in SOURCES[kind]}
    if "checksum" in found:
        found["checksum"] = _checksum(found["checksum"])
    if "mirror" in found:
        found["mirror"] = found["mirror"].rstrip("/")
    if _DIGEST.fullmatch(found.get("checksum", "")):
        # What has this checksum is the same from wherever it comes. A file of checksums may have several.
        found.pop("mirror", None)
        found.pop("archive", None)
    return {"kind": kind, **found}


def _canonical_tls(library: t.Any) -> dict[str, str] | None:
    if not library:
        return None
    found = _mapping(library, "tls_library")
    known = {key: str(found[key]).rstrip("/") for key in _TLS if found.get(key)}
    return {"lib": "lib", **known}


def fingerprint(made_of: Mapping[str, t.Any]) -> str:
    """SHA-256 over all that decided a release, as 64 hexadecimal digits."""
    _check_keys(made_of, _MADE_OF, "the fingerprint")
    missing = [key for key in _MADE_OF if key not in made_of]
    if missing:
        raise InputError(
            f"the fingerprint lacks {', '.join(missing)}; give all of {', '.join(_MADE_OF)}"
        )
    try:
        text = json.dumps(_plain(made_of), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    except TypeError as exc:
        raise InputError(f"the fingerprint cannot be taken of this: {exc}") from exc
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def choose(
    installed: t.Iterable[Mapping[str, t.Any]],
    cached: t.Iterable[Mapping[str, t.Any]],
    wanted: Mapping[str, t.Any],
    current: str | None = None,
    compiler: str | None = None,
    libraries: Mapping[str, t.Any] | None = None,
    source_sha256: str | None = None,
) -> dict[str, t.Any]:
    """The release that serves, and where it is: `installed`, `cached` or `none`.

    The one in use comes first, then the installed one that was built last, then that of the cache. `compiler`, `libraries`
    and `source_sha256` count where they are known.
    """
    there = libraries or {}
    wish = _plain(wanted)

    def serves(record: Mapping[str, t.Any]) -> bool:
        return (
            _plain(record.get("wanted")) == wish
            and compiler in (None, "", record.get("compiler"))
            and _same_libraries(record.get("libraries"), there)
            and source_sha256 in (None, "", (record.get("source") or {}).get("sha256"))
        )

    fitting = [each for each in installed if each.get("usable", True) and serves(each)]
    fitting.sort(key=lambda each: (each.get("id") == current, *_age(each)))
    if fitting:
        return {"release": dict(fitting[-1]), "where": "installed"}
    kept = sorted((each for each in cached if serves(each)), key=_age)
    if kept:
        return {"release": dict(kept[-1]), "where": "cached"}
    return {"release": {}, "where": "none"}


def _plain(value: t.Any) -> t.Any:
    """The same in Python's own types: Ansible's containers template what is in them only as it is taken out."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def _age(record: Mapping[str, t.Any]) -> tuple[str, str]:
    return str(record.get("built") or ""), str(record.get("id") or "")


def _same_libraries(recorded: t.Any, there: Mapping[str, t.Any]) -> bool:
    """Whether the packages that the host has are of the versions that the release was built with."""
    for package, version in (recorded or {}).items():
        found = there.get(package)
        if isinstance(found, Mapping):
            found = found.get("installed")
        if found and found != version:
            return False
    return True


def _check_keys(given: Mapping[str, t.Any], known: t.Collection[str], what: str) -> None:
    unknown = sorted(str(key) for key in given if key not in known)
    if unknown:
        raise InputError(f"{what} has {', '.join(unknown)}: give no more than {', '.join(known)}")


def _mapping(value: t.Any, what: str) -> Mapping[str, t.Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{what} is {value!r}: give a dictionary")
    return value


def _list(value: t.Any, what: str) -> Sequence[t.Any]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InputError(f"{what} is {value!r}: give a list")
    return value


def _checksum(value: t.Any) -> str:
    """A checksum without its algorithm's name, in small letters; a file of checksums as it is."""
    text = str(value).strip()
    digest = text.lower().removeprefix("sha256:")
    return digest if _DIGEST.fullmatch(digest) else text
