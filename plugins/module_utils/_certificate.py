# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: certificates, CA files, CRLs, crt-lists of a running HAProxy. Private to the collection."""

from __future__ import annotations

import base64
import collections.abc as c
import dataclasses
import hashlib
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import (
    PAYLOAD_LIMIT,
    Step,
    near,
    word,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    CommandError,
    Error,
    InputError,
    NotFoundError,
    ParseError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import Change, Job

# --- what is wanted: PEM --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """One of HAProxy's three stores of PEM files, and its words for it."""

    # In commands: `show ssl WORD`.
    word: str
    what: str
    since: tuple[int, int]
    created: str
    # Of PEM blocks.
    label: str


KINDS = {
    "certificate": Kind(
        "cert", "certificate", (2, 2), "Transaction created for certificate", "CERTIFICATE"
    ),
    "ca_file": Kind("ca-file", "CA file", (2, 5), "transaction created for CA", "CERTIFICATE"),
    "crl_file": Kind("crl-file", "CRL file", (2, 5), "transaction created for CRL", "X509 CRL"),
}

_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.S)
_KEYS = ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "DSA PRIVATE KEY")
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What can be compared: the SHA-1 of the DER form, as HAProxy prints it; and when it ends."""

    fingerprint: str
    not_after: str | None = dataclasses.field(compare=False)

    def as_dict(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Crl:
    """One revocation list. Of a long one HAProxy shows a part only, so it may not be `whole`."""

    last_update: str | None
    next_update: str | None
    serials: frozenset[int]
    whole: bool = True

    def shown_as(self, other: Crl) -> bool:
        if (self.last_update, self.next_update) != (other.last_update, other.next_update):
            return False
        if other.whole:
            return self.serials == other.serials
        return self.serials >= other.serials

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "last_update": self.last_update,
            "next_update": self.next_update,
            "revoked": [f"{one:X}" for one in sorted(self.serials)],
        }


@dataclasses.dataclass(frozen=True)
class Content:
    """What a PEM file holds: of a certificate the leaf comes first and its chain behind it."""

    certificates: tuple[Certificate, ...] = ()
    crls: tuple[Crl, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pem:
    """PEM text, checked; its blocks are not part of what a traceback shows."""

    content: Content
    blocks: tuple[tuple[str, ...], ...] = dataclasses.field(repr=False)
    # The lines that nobody may see.
    secrets: tuple[str, ...] = dataclasses.field(repr=False)


def read_pem(text: str, kind: Kind, source: str) -> Pem:
    """Refuse what HAProxy would refuse later, or take without a word; `source` is for sentences.

    Lines are folded anew, and text between the blocks is left out: HAProxy's payload cannot carry
    empty lines and has little room.
    """
    if re.search("-----(BEGIN|END)", _BLOCK.sub("", text)):
        raise InputError(f"{source}: a PEM block has no beginning or no end")
    blocks: list[tuple[str, ...]] = []
    secrets: list[str] = []
    certificates: list[Certificate] = []
    crls: list[Crl] = []
    keys = 0
    for number, match in enumerate(_BLOCK.finditer(text), 1):
        label, body = match.group(1), match.group(2)
        where = f"{source}: PEM block {number} ({label})"
        if label == "EC PARAMETERS":
            # The key names its curve itself.
            continue
        if label == "ENCRYPTED PRIVATE KEY" or ":" in body:
            raise InputError(f"{where} is encrypted, and HAProxy cannot ask for its password")
        if label not in _allowed(kind):
            raise InputError(f"{where} does not belong into a {kind.what}")
        try:
            der = base64.b64decode("".join(body.split()), validate=True)
            if label == "CERTIFICATE":
                certificates.append(_certificate(der))
            elif label == "X509 CRL":
                crls.append(_crl(der))
        except (ValueError, IndexError):
            raise InputError(f"{where} is damaged: it is not what it says it is") from None
        code = base64.b64encode(der).decode()
        lines = [code[start : start + 64] for start in range(0, len(code), 64)]
        if label in _KEYS:
            keys += 1
            secrets += lines
        blocks.append((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----"))
    if not (crls if kind.label == "X509 CRL" else certificates):
        raise InputError(f"{source}: has no PEM block 'BEGIN {kind.label}'")
    if kind.word == "cert" and keys != 1:
        raise InputError(
            f"{source}: has {keys or 'no'} private keys; HAProxy needs the certificate, its chain "
            "and exactly one key together"
        )
    return Pem(Content(tuple(certificates), tuple(crls)), tuple(blocks), tuple(secrets))


def _allowed(kind: Kind) -> tuple[str, ...]:
    return ("CERTIFICATE", "DH PARAMETERS", *_KEYS) if kind.word == "cert" else (kind.label,)


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """The DER values that follow one another in these bytes: tag and content of each."""
    found, at = [], 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length > 0x80:
            count = length & 0x7F
            length = int.from_bytes(der[at : at + count], "big")
            at += count
        if at + length > len(der):
            raise ValueError("cut off")
        found.append((tag, der[at : at + length]))
        at += length
    return found


def _to_be_signed(der: bytes) -> list[tuple[int, bytes]]:
    ((_tag, signed),) = _elements(der)
    return _elements(_elements(signed)[0][1])


def _certificate(der: bytes) -> Certificate:
    """RFC 5280, 4.1: version (tag 0xA0, optional), serial, algorithm, issuer, validity, …"""
    fields = _to_be_signed(der)
    validity = fields[4 if fields[0][0] == 0xA0 else 3][1]
    # Not for security: it is the only fingerprint that HAProxy prints.
    digest = hashlib.sha1(der, usedforsecurity=False).hexdigest().upper()
    return Certificate(digest, _time(*_elements(validity)[1]))


def _crl(der: bytes) -> Crl:
    """RFC 5280, 5.1: version (optional), algorithm, issuer, update, next update, revoked, …"""
    fields = _to_be_signed(der)
    if fields[0][0] == 0x02:
        del fields[0]
    last, rest = _time(*fields[2]), fields[3:]
    following = None
    if rest and rest[0][0] in (0x17, 0x18):
        following = _time(*rest.pop(0))
    revoked = _elements(rest[0][1]) if rest and rest[0][0] == 0x30 else []
    serials = (_elements(entry)[0][1] for _tag, entry in revoked)
    return Crl(
        last, following, frozenset(int.from_bytes(one, "big", signed=True) for one in serials)
    )


def _time(tag: int, value: bytes) -> str:
    """UTCTime has two digits for the year, from 1950 on; GeneralizedTime has four."""
    digits = value.decode("ascii")
    if tag == 0x17:
        digits = ("19" if digits >= "50" else "20") + digits
    match = re.fullmatch(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z", digits, re.ASCII)
    if match is None:
        raise ValueError(digits)
    return "{}-{}-{}T{}:{}:{}Z".format(*match.groups())


# --- what is there: HAProxy's replies -------------------------------------------------------


# An option with its value, or alone; sorted, because HAProxy prints them in an order of its own.
Options = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Listing:
    """The names in a store, and the one of a transaction that is neither committed nor aborted."""

    names: tuple[str, ...]
    pending: str | None = None


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a crt-list about one certificate; line numbers in a directory are 0 or 1."""

    line: int
    options: Options
    sni: frozenset[str]

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "options": " ".join(" ".join(pair) for pair in self.options),
            "sni": sorted(self.sni),
        }


@dataclasses.dataclass(frozen=True)
class Held:
    """What HAProxy has under the task's name."""

    listing: Listing
    exists: bool
    status: str = ""
    content: Content = dataclasses.field(default_factory=Content)
    # The certificate's entries in every crt-list that was looked at.
    lists: dict[str, tuple[Entry, ...]] = dataclasses.field(default_factory=dict)


def parse_listing(text: str, kind: Kind) -> Listing:
    """`show ssl cert`, `show ssl ca-file`, `show ssl crl-file`."""
    if not text.strip("\n"):
        # Where there is none HAProxy may leave out the heading too.
        return Listing(())
    command = f"show ssl {kind.word}"
    section = ""
    names: list[str] = []
    pending = None
    for line in text.split("\n"):
        if line in ("# transaction", "# filename"):
            section = line
        elif not line:
            continue
        elif section == "# transaction" and line.startswith("*"):
            pending = _without_count(line[1:], kind)
        elif section == "# filename":
            names.append(_without_count(line, kind))
        else:
            raise ParseError(command, "neither a transaction nor a file name", line=line)
    if section != "# filename":
        raise ParseError(command, "no list of file names", line=text.split("\n", 1)[0])
    return Listing(tuple(names), pending)


def _without_count(line: str, kind: Kind) -> str:
    return re.sub(r" - \d+ certificate\(s\)\Z", "", line) if kind.word == "ca-file" else line


def parse_content(text: str, kind: Kind) -> tuple[str, Content]:
    """`show ssl cert NAME` and so on: the status and what it holds.

    For a CA file without certificates HAProxy says nothing at all, and for one with many it repeats
    the first lines now and then.
    """
    command = f"show ssl {kind.word} …"
    found = re.search(r"^Status: (\w+)$", text, re.M)
    if found is None:
        if text.strip():
            raise ParseError(command, "no status", line=text.split("\n", 1)[0])
        return "Empty", Content()
    status = found.group(1)
    if kind.word == "crl-file":
        parts = re.split(r"^Certificate Revocation List #\d+:$", text, flags=re.M)[1:]
        return status, Content(crls=tuple(_shown_crl(part) for part in parts))
    certificates, ends = [], None
    for line in text.split("\n"):
        name, _sep, value = line.partition(": ")
        if name == "notAfter":
            ends = _shown_time(value)
        elif name == "SHA1 FingerPrint":
            certificates.append(Certificate(value.strip().upper(), ends))
        elif name == "Chain Subject":
            # Of the chain HAProxy tells the names only.
            certificates.append(Certificate("", None))
    return status, Content(tuple(certificates))


# HAProxy prints a CRL into one buffer, of 16 KiB if tune.bufsize does not say otherwise.
_CRL_BUFFER = 15_000


def _shown_crl(text: str) -> Crl:
    times = dict(re.findall(r"^(Last|Next) Update: (.*)$", text, re.M))
    # A number that was cut off has no date behind it.
    serials = re.findall(r"^ *Serial Number: (-?[0-9A-F]+)\n *Revocation Date:", text, re.M)
    return Crl(
        _shown_time(times.get("Last", "")),
        _shown_time(times.get("Next", "")),
        frozenset(int(one, 16) for one in serials),
        whole=len(text) < _CRL_BUFFER,
    )


def _shown_time(text: str) -> str | None:
    """As OpenSSL prints it: `Nov  3 07:08:09 2026 GMT`."""
    match = re.fullmatch(
        r"([A-Z][a-z]{2}) +(\d\d?) (\d\d:\d\d:\d\d) (\d{4}) GMT", text.strip(), re.ASCII
    )
    if match is None or match.group(1) not in _MONTHS:
        return None
    month, day, clock, year = match.groups()
    return f"{year}-{_MONTHS.index(month) + 1:02}-{int(day):02}T{clock}Z"


def parse_entries(text: str, name: str) -> tuple[Entry, ...]:
    """`show ssl crt-list -n LIST`: the lines about one certificate."""
    if not text.startswith("# "):
        raise ParseError("show ssl crt-list -n …", "no header", line=text.split("\n", 1)[0])
    found = []
    for line in text.split("\n"):
        match = None
        if line.startswith(f"{name}:"):
            # HAProxy prints the NUL behind a list of protocols: `[alpn h2\0]`.
            rest = line[len(name) + 1 :].replace("\0", "")
            match = re.fullmatch(r"(\d{1,9})(?: \[([^\]]*)\])?((?: \S+)*)", rest, re.ASCII)
        if match is not None:
            number, options, sni = match.groups()
            found.append(Entry(int(number), _pairs(options or ""), _names(sni.split())))
    return tuple(found)


# --- entries of crt-lists -------------------------------------------------------------------

_FLAGS = ("allow-0rtt", "no-alpn", "no-ca-names")
# Those that HAProxy prints in `show ssl crt-list`; ca-verify-file it takes and does not print.
_VALUED = (
    "alpn",
    "ca-file",
    "ciphers",
    "ciphersuites",
    "client-sigalgs",
    "crl-file",
    "curves",
    "ecdhe",
    "npn",
    "sigalgs",
    "ssl-max-ver",
    "ssl-min-ver",
    "verify",
)


def _pairs(text: str) -> Options:
    words = text.split()
    found = []
    while words:
        one = words.pop(0)
        found.append((one,) if one in _FLAGS or not words else (one, words.pop(0)))
    return tuple(sorted(found))


def _names(filters: c.Iterable[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in filters)


def _wanted_options(text: str) -> Options:
    pairs = _pairs(text)
    for pair in pairs:
        if pair[0] not in (*_FLAGS, *_VALUED):
            raise InputError(
                f"crt_list_options: {pair[0]!r} is not among the options of a crt-list that can be "
                f"read back ({', '.join(sorted((*_FLAGS, *_VALUED)))}); others have to be in "
                "the file when HAProxy is reloaded"
            )
        if pair[0] in _VALUED and len(pair) == 1:
            raise InputError(f"crt_list_options: {pair[0]!r} needs a value")
        if re.search(r"[\[\]#\"'\\\0]", " ".join(pair)):
            raise InputError(
                f"crt_list_options: {' '.join(pair)!r} has a bracket, '#', quote, backslash or "
                "NUL, which a crt-list cannot carry"
            )
    names = [pair[0] for pair in pairs]
    if len(set(names)) < len(names):
        raise InputError("crt_list_options: an option is given twice")
    return pairs


def _wanted_sni(filters: c.Iterable[str]) -> frozenset[str]:
    for name in filters:
        if not re.fullmatch(r"!?[A-Za-z0-9_*.-]+", name):
            raise InputError(
                f"sni: {name!r} is not a host name; it may begin with '*.', and with '!' to exclude"
            )
    return _names(filters)


# --- the job --------------------------------------------------------------------------------

_NEW, _SET, _COMMIT, _LIST, _DEL = "new", "set", "commit", "crt-list", "del"
# HAProxy 2.2 says this of a good certificate when the one before it was bad.
_STALE_ERROR = "unable to load certificate chain"


@dataclasses.dataclass(frozen=True)
class CertificateJob(Job[t.Any, Change]):
    """One file of one store, and its entries in one crt-list."""

    name: str
    kind: Kind
    state: str
    pem: Pem | None = None
    source: str = ""
    force: bool = False
    crt_list: str | None = None
    options: Options | None = None
    sni: frozenset[str] | None = None

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any], text: str | None) -> CertificateJob:
        """`text` is the PEM text, of option content or the files of option path."""
        kind, state = KINDS[params["kind"]], params["state"]
        crt_list = params["crt_list"]
        pem, source = None, ", ".join(params["path"] or []) or "content"
        name = _file_name(params["name"], "name")
        if params["content"] is not None and params["path"] is not None:
            raise InputError("content and path: give one of them")
        if state != "present" and (text is not None or params["force"]):
            raise InputError(f"content, path and force: do not go with state={state}")
        if crt_list is None and (
            params["crt_list_options"] is not None or params["sni"] is not None
        ):
            raise InputError("crt_list_options and sni: need crt_list, the list that they are for")
        if crt_list is None and (state == "unlisted" or (state == "present" and text is None)):
            raise InputError(
                "state=unlisted: needs crt_list"
                if state == "unlisted"
                else "state=present: needs content or path, or crt_list for a known certificate"
            )
        if params["force"] and text is None:
            raise InputError("force: needs content or path")
        if crt_list is not None and kind.word != "cert":
            raise InputError(f"crt_list: goes with kind=certificate, not with {params['kind']}")
        if ":" in name and (kind.word != "cert" or (crt_list is not None and state != "present")):
            raise InputError(
                f"name {name!r}: HAProxy takes what follows a colon for a number here, so this "
                "name cannot be used"
            )
        if text is not None:
            pem = read_pem(text, kind, source)
        options, sni = params["crt_list_options"], params["sni"]
        job = cls(
            name=name,
            kind=kind,
            state=state,
            pem=pem,
            source=source,
            force=params["force"],
            # HAProxy knows a directory without the slash.
            crt_list=None if crt_list is None else _file_name(crt_list, "crt_list").rstrip("/"),
            options=None if options is None else _wanted_options(options),
            sni=None if sni is None else _wanted_sni(sni),
        )
        if state == "present" and (job.options or job.sni) and re.search(r"[\s\[\]]|^#", name):
            raise InputError(
                f"name {name!r}: cannot be in a crt-list line with options or sni, because it has "
                "white space or a bracket, or begins with '#'"
            )
        return job

    @property
    def secrets(self) -> tuple[str, ...]:
        return () if self.pem is None else self.pem.secrets

    # --- reading ----------------------------------------------------------------------------

    def look(self, client: Client) -> Held:
        client.require_version(self.kind.since, f"changing a {self.kind.what} at run time")
        listing = parse_listing(_read(client, f"show ssl {self.kind.word}"), self.kind)
        held = Held(listing, self.name in listing.names)
        if held.exists:
            status, content = self._content(client, self.name)
            held = dataclasses.replace(held, status=status, content=content)
        lists = [] if self.crt_list is None else [self.crt_list]
        if self.state == "absent" and self.kind.word == "cert" and held.status == "Used":
            every = _read(client, "show ssl crt-list").split("\n")
            lists += [one for one in every if one and one not in lists]
        return dataclasses.replace(held, lists={one: self._entries(client, one) for one in lists})

    def _content(self, client: Client, name: str) -> tuple[str, Content]:
        command = f"show ssl {self.kind.word} {word(name)}"
        return parse_content(_read(client, command), self.kind)

    def _entries(self, client: Client, crt_list: str) -> tuple[Entry, ...]:
        text = _read(client, f"show ssl crt-list -n {word(crt_list)}")
        if text.startswith("didn't find"):
            known = [one for one in _read(client, "show ssl crt-list").split("\n") if one]
            raise NotFoundError(
                f"HAProxy at {client.where} has no crt-list {crt_list!r}; {near(crt_list, known)}",
                crt_list=crt_list,
                socket=client.socket,
            )
        return parse_entries(text, self.name)

    # --- planning ---------------------------------------------------------------------------

    def plan(self, client: Client, state: t.Any) -> Change:
        held: Held = state
        if self.state == "present":
            steps = [*self._load(client, held), *self._enlist(client, held)]
        else:
            steps = self._unlist(held)
            if self.state == "absent" and held.exists:
                self._refuse_used(client, held, steps)
                steps.append(Step(_DEL, self._command(_DEL), accepted=self._deleted))
        before, after = self._view(held, held), self._view(held, self._after(held))
        return Change(tuple(steps), before, after, {"files": [self._row(self._after(held))]})

    def _load(self, client: Client, held: Held) -> list[Step]:
        if self.pem is None:
            if not held.exists or held.status == "Empty":
                raise NotFoundError(
                    f"HAProxy at {client.where} has no certificate {self.name!r}; "
                    f"{near(self.name, held.listing.names)}: give content or path to make it",
                    name=self.name,
                    socket=client.socket,
                )
            return []
        same = held.exists and self._is_there(held.content)
        if same and not self.force:
            return []
        self._refuse_pending(client, held.listing.pending)
        payloads = self._payloads(client)
        quoted = re.escape(self.name)
        steps = []
        if not held.exists:
            steps.append(Step(_NEW, self._command(_NEW), accepted=rf"New .*'{quoted}'!"))
        created = rf"{self.kind.created} {quoted}!"
        steps.append(Step(_SET, self._command(_SET), payloads[0], created, readable=not same))
        steps += [
            Step(
                _SET,
                self._command("add"),
                payload,
                rf"transaction updated for CA {quoted}!",
                readable=not same,
            )
            for payload in payloads[1:]
        ]
        done = rf"Committing {quoted}\.*\n(.*\n)?Success!"
        return [*steps, Step(_COMMIT, self._command(_COMMIT), None, done, readable=not same)]

    def _payloads(self, client: Client) -> list[tuple[str, ...]]:
        """One; several only where HAProxy can be given a CA file in pieces."""
        pem = t.cast(Pem, self.pem)
        # The command, `<<` and the empty line at the end share the room.
        room = PAYLOAD_LIMIT - len(self._command(_SET).encode()) - 5
        can_add = self.kind.word == "ca-file" and client.version >= (2, 7)
        found: list[list[str]] = [[]]
        used = 0
        for block in pem.blocks:
            size = sum(len(line) + 1 for line in block)
            if can_add and found[-1] and used + size > room:
                found.append([])
                used = 0
            found[-1] += block
            used += size
        if used > room:
            raise InputError(
                f"{self.source}: has {used} bytes of PEM, and HAProxy at {client.where} takes "
                f"{room} in one command: put the file where HAProxy reads it, and reload HAProxy"
                + ("; HAProxy 2.7 and later take it in pieces" * (self.kind.word == "ca-file"))
            )
        return [tuple(lines) for lines in found]

    def _is_there(self, shown: Content) -> bool:
        wanted = t.cast(Pem, self.pem).content
        if self.kind.word == "cert":
            # A chain may be longer than what was sent, because of `issuers-chain-path`.
            return shown.certificates[:1] == wanted.certificates[:1] and len(
                shown.certificates
            ) >= len(wanted.certificates)
        if self.kind.word == "ca-file":
            return set(shown.certificates) == set(wanted.certificates)
        return len(shown.crls) == len(wanted.crls) and _all_shown(wanted.crls, shown.crls)

    def _is_ours(self, client: Client, pending: str, exc: Error) -> bool:
        """Whether a transaction holds what this task has sent, in full or the first part of it."""
        replies = "".join(row["reply"] for row in exc.details.get("refused", ()))
        if re.search(rf"(?i:transaction (created|updated) for) \w+ {re.escape(pending)}!", replies):
            return True
        wanted = t.cast(Pem, self.pem).content
        _status, shown = self._content(client, f"*{pending}")
        if self.kind.word == "cert":
            return shown.certificates[:1] == wanted.certificates[:1]
        if self.kind.word == "ca-file":
            return bool(shown.certificates) and {*shown.certificates} <= {*wanted.certificates}
        return bool(shown.crls) and _all_shown(wanted.crls, shown.crls)

    def _matches(self, entry: Entry) -> bool:
        return (self.options is None or entry.options == self.options) and (
            self.sni is None or entry.sni == self.sni
        )

    def _enlist(self, client: Client, held: Held) -> list[Step]:
        if self.crt_list is None or any(map(self._matches, held.lists[self.crt_list])):
            return []
        added = rf"Inserting certificate '{re.escape(self.name)}' in crt-list .*Success!"
        command = f"add ssl crt-list {word(self.crt_list)}"
        if not self.options and not self.sni:
            return [Step(_LIST, f"{command} {word(self.name)}", accepted=added)]
        options = " ".join(" ".join(pair) for pair in self.options or ())
        line = [self.name, *([f"[{options}]"] * bool(options)), *sorted(self.sni or ())]
        return [Step(_LIST, command, (" ".join(line),), added)]

    def _unlist(self, held: Held) -> list[Step]:
        if self.crt_list is None:
            return []
        entries = held.lists[self.crt_list]
        command = f"del ssl crt-list {word(self.crt_list)} {word(self.name)}"
        deleted = rf"Entry '{re.escape(self.name)}' deleted in crtlist '.*'!"
        return [
            Step(_LIST, command + (f":{entry.line}" if len(entries) > 1 else ""), accepted=deleted)
            for entry in entries
            if self._matches(entry)
        ]

    def _refuse_used(self, client: Client, held: Held, steps: list[Step]) -> None:
        if held.listing.pending == self.name:
            self._refuse_pending(client, self.name)
        using = [
            crt_list
            for crt_list, entries in held.lists.items()
            if any(not (crt_list == self.crt_list and self._matches(one)) for one in entries)
        ]
        if using:
            raise Error(
                f"the certificate {self.name!r} is still in {', '.join(using)} of HAProxy at "
                f"{client.where}: take it out there with state=unlisted first, or name the list "
                "with crt_list",
                socket=client.socket,
                crt_lists=using,
            )
        if held.status == "Used" and not steps:
            raise Error(
                f"the {self.kind.what} {self.name!r} is in use by a bind or server line of HAProxy "
                f"at {client.where}, so it cannot be deleted: take it out of the configuration and "
                "reload HAProxy",
                socket=client.socket,
            )

    def _refuse_pending(self, client: Client, pending: str | None) -> None:
        if pending is not None:
            raise Error(
                f"somebody else has changed the {self.kind.what} {pending!r} of HAProxy at "
                f"{client.where} and has neither committed nor aborted that: if nobody is at it "
                f"any more, send 'abort ssl {self.kind.word} {word(pending)}', for example with "
                "haproxy_command",
                socket=client.socket,
                pending=pending,
            )

    # --- showing ----------------------------------------------------------------------------

    def _after(self, held: Held) -> Held:
        """What is foreseen."""
        lists = {}
        for name, entries in held.lists.items():
            kept = entries
            if name == self.crt_list and self.state != "present":
                kept = tuple(entry for entry in entries if not self._matches(entry))
            elif name == self.crt_list and not any(map(self._matches, entries)):
                kept = (*entries, Entry(0, self.options or (), self.sni or frozenset()))
            lists[name] = kept
        held = dataclasses.replace(held, lists=lists)
        if self.state == "absent":
            return Held(held.listing, False, lists=lists)
        status = held.status if held.exists else "Unused"
        if self.crt_list is not None:
            # Once it is out of one list, only HAProxy knows whether another line uses it.
            status = "Used" if self.state == "present" else ""
        held = dataclasses.replace(held, status=status)
        if self.pem is not None and not (held.exists and self._is_there(held.content)):
            return dataclasses.replace(held, exists=True, content=self.pem.content)
        return held

    def _view(self, now: Held, held: Held) -> dict[str, t.Any]:
        """The managed values, for a diff."""
        row = self._row(held)
        keys = ["exists"]
        if self.pem is not None:
            keys += (
                ["certificates", "chain"]
                if self.kind.word == "cert"
                else ["certificates" if self.kind.word == "ca-file" else "crls"]
            )
        if self.crt_list is not None:
            keys.append("entries")
        return {self.name: {key: row[key] for key in keys}}

    def _row(self, held: Held) -> dict[str, t.Any]:
        certificates, crls = list(held.content.certificates), list(held.content.crls)
        chain = None
        if self.kind.word == "cert":
            chain, certificates = max(len(certificates) - 1, 0), certificates[:1]
        if self.kind.word == "ca-file":
            certificates = sorted(set(certificates), key=lambda one: one.fingerprint)
        if self.pem is not None and self._is_there(held.content):
            # Of a long list HAProxy shows only a part.
            crls = list(self.pem.content.crls)
        return {
            "name": self.name,
            "kind": next(name for name, kind in KINDS.items() if kind == self.kind),
            "exists": held.exists,
            "used": {"Used": True, "Unused": False, "Empty": False}.get(held.status),
            "certificates": [one.as_dict() for one in certificates],
            "chain": chain,
            "crls": [one.as_dict() for one in crls],
            "crt_list": self.crt_list,
            "entries": sorted(
                (one.as_dict() for one in held.lists.get(self.crt_list or "", ())),
                key=lambda row: (row["options"], row["sni"]),
            ),
        }

    def _command(self, verb: str) -> str:
        return f"{verb} ssl {self.kind.word} {word(self.name)}"

    @property
    def _deleted(self) -> str:
        return rf"(?:Certificate|CA file|CRL file) '{re.escape(self.name)}' deleted!"

    # --- sending ----------------------------------------------------------------------------

    def left_over(self, client: Client, change: Change, now: t.Any) -> tuple[Change, list[Step]]:
        """A transaction that somebody begins behind this one is no concern of this task."""
        quiet = dataclasses.replace(now, listing=dataclasses.replace(now.listing, pending=None))
        return super().left_over(client, change, quiet)

    def carry_out(self, client: Client, change: Change) -> None:
        """One by one, so that nothing is committed behind a refusal; a failure is taken back."""
        try:
            self._send(client, change.steps)
        except Error as exc:
            if any(step.key == _SET for step in change.steps):
                self._take_back(client, change.steps, exc)
            raise

    def _send(self, client: Client, steps: tuple[Step, ...]) -> None:
        try:
            client.apply(steps, lockstep=True)
        except CommandError as exc:
            done = len(exc.details["applied"])
            reply = exc.details["refused"][0]["reply"]
            if steps[done].key != _SET or _STALE_ERROR not in reply or client.version > (2, 4):
                raise
            client.apply(steps[done:], lockstep=True)

    def _take_back(self, client: Client, steps: tuple[Step, ...], exc: Error) -> None:
        """End a transaction of ours, wherever it is, and forget a file that was made for it.

        HAProxy 2.6 writes into the transaction that somebody else has begun for another file, so
        what counts is what the transaction holds.
        """
        undone: list[str] = []
        try:
            listing = parse_listing(_read(client, f"show ssl {self.kind.word}"), self.kind)
            pending = listing.pending
            if pending is not None and self._is_ours(client, pending, exc):
                command = f"abort ssl {self.kind.word} {word(pending)}"
                aborted = rf"Transaction aborted for .*'{re.escape(pending)}'!"
                client.apply([Step(_SET, command, accepted=aborted)])
                undone.append(command)
            if steps[0].key == _NEW and self.name in listing.names:
                client.apply([Step(_DEL, self._command(_DEL), accepted=self._deleted)])
                undone.append(self._command(_DEL))
        except Error as problem:
            exc.details["not_undone"] = str(problem)
            exc.args = (f"{exc}; it may be half done, because taking it back failed: {problem}",)
        if undone:
            exc.details["undone"] = undone
            exc.args = (f"{exc}; taken back with '{', '.join(undone)}'",)


def _all_shown(wanted: c.Iterable[Crl], shown: c.Iterable[Crl]) -> bool:
    left = list(wanted)
    for one in shown:
        found = next((crl for crl in left if crl.shown_as(one)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _file_name(text: str, option: str) -> str:
    """Says nothing of the text: a whole PEM file may have been given by mistake."""
    if not text.strip() or re.search(r"[\n\r\0]", text):
        raise InputError(
            f"{option}: is empty or has a line break or a NUL; give the file's name as HAProxy's "
            "configuration has it"
        )
    if text.startswith("*"):
        raise InputError(f"{option} {text!r}: HAProxy shows transactions with a '*', so no file")
    return text


def _read(client: Client, command: str) -> str:
    reply = client.read(command)
    if "currently locked" in reply:
        raise CommandError(
            f"HAProxy at {client.where} is busy with a change of its certificates and answers "
            f"'{command}' later only: run the task again",
            socket=client.socket,
            refused=[{"command": command, "reply": reply.strip()}],
        )
    return reply
