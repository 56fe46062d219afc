# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""haproxy_certificate against real HAProxy processes, and what their TLS clients then see."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    Certificates,
    Haproxy,
    Relay,
    cells,
    four_steps,
    run_module,
    run_module_process,
    since,
)

Start = t.Callable[..., Haproxy]
MakeRelay = t.Callable[..., Relay]


def certificate(args: dict[str, t.Any], *, check: bool = False) -> dict[str, t.Any]:
    return run_module("haproxy_certificate", args, check=check)


# --- what there is to serve and to send -----------------------------------------------------


class Pki:
    """Certificates, authorities and CRLs, and a directory of those that HAProxy starts with."""

    def __init__(self, certificates: Certificates, home: Path) -> None:
        self.made, self.home = certificates, home
        directory = home / "crt"
        directory.mkdir()
        for target, name in (("crt/a.pem", "a1"), ("crt/b.pem", "b1"), ("list.pem", "c1")):
            (home / target).write_text(self.pem(name))
        for target in ("ca.pem", "server-ca.pem"):
            shutil.copy(self.authority("ca1"), home / target)
        (home / "crl.pem").write_text(self.crl("empty"))
        (home / "list").write_text(f"{home}/list.pem [alpn h2] c.test\n{home}/crt/b.pem\n")
        (home / "other-list").write_text(f"{home}/list.pem\n{home}/crt/b.pem other.test\n")

    def name(self, name: str) -> str:
        return str(self.home / name)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def authority(self, name: str) -> Path:
        return self.made.authority(name)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def issued(self, name: str) -> tuple[Path, Path]:
        """`a1` and `a2` are two certificates of the same host, each with a key of its own."""
        return self.made.issue(name, names=f"DNS:{name[0]}.test", authority=self.authority("ca1"))

    def crt(self, name: str) -> str:
        return self.issued(name)[0].read_text()

    def key(self, name: str) -> str:
        return self.issued(name)[1].read_text()

    def pem(self, name: str) -> str:
        return self.crt(name) + self.key(name)

    def ca(self, name: str) -> str:
        return self.authority(name).read_text()

    @functools.cached_property
    def many(self) -> str:
        """Authorities that need more than 15 KiB together."""
        text = ""
        while len(text) < 17_000:
            text += self.ca(f"many{len(text)}")
        return text

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def crl(self, name: str) -> str:
        """Of ca1: `empty`, `one` with b1 revoked, `long` with 200, `longest` with 500."""
        revoked = {
            "empty": [],
            "one": [self.serial("b1")],
            "long": [*range(2**90, 2**90 + 200)],
            "longest": [*range(2**90, 2**90 + 500)],
        }
        index, config = self.home / f"{name}.index", self.home / f"{name}.cnf"
        numbers = [f"{one:X}" for one in revoked[name]]
        lines = [
            f"R\t360101000000Z\t260101000000Z\t{'0' * (len(one) % 2)}{one}\tunknown\t/CN=x{one}\n"
            for one in numbers
        ]
        index.write_text("".join(lines))
        config.write_text(
            f"[ca]\ndefault_ca=x\n[x]\ndatabase={index}\ndefault_md=sha256\n"
            "default_crl_days=30\nunique_subject=no\n"
        )
        authority = self.authority("ca1")
        done = subprocess.run(
            f"openssl ca -config {config} -gencrl -cert {authority}"
            f" -keyfile {authority.with_suffix('.key')}".split(),
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return done.stdout

    def serial(self, name: str) -> int:
        done = subprocess.run(
            ["openssl", "x509", "-noout", "-serial", "-in", str(self.issued(name)[0])],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return int(done.stdout.strip().partition("=")[2], 16)


@pytest.fixture(scope="session")
def pki(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(certificates, tmp_path_factory.mktemp("pki"))


def lines(pem: str) -> list[str]:
    return [line for line in pem.split("\n") if line]


def print_of(pem: str) -> str:
    der = ssl.PEM_cert_to_DER_cert(pem[: pem.index("-----END") + 25])
    return hashlib.sha1(der).hexdigest().upper()


@pytest.fixture
def hap(start_haproxy: Start, pki: Pki, short_path: Path) -> Haproxy:
    return begin(start_haproxy, pki, short_path)


def begin(start_haproxy: Start, pki: Pki, short_path: Path, more: str = "") -> Haproxy:
    """Unix sockets instead of ports for TLS: nobody else can take them."""
    d, s = pki.home, short_path
    clients = f"verify required ca-file {d}/ca.pem crl-file {d}/crl.pem"
    return start_haproxy(
        f"""\
{more}
backend app
    server s1 127.0.0.1:1 ssl verify required ca-file {d}/server-ca.pem
frontend tls
    http-request deny
    bind unix@{s}/dir.tls ssl crt {d}/crt
    bind unix@{s}/ca.tls ssl crt {d}/crt/a.pem {clients}
    bind unix@{s}/list.tls ssl crt-list {d}/list
    bind unix@{s}/other.tls ssl crt-list {d}/other-list
"""
    )


def served(
    path: Path, sni: str, *, client: tuple[Path, Path] | None = None, root: Path | None = None
) -> str:
    """The fingerprint of the certificate that a TLS client gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # With TLS 1.3 a client learns only later that its own certificate was refused.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED if root else ssl.CERT_NONE
    if root:
        context.load_verify_locations(root)
    if client:
        context.load_cert_chain(*client)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        with context.wrap_socket(sock, server_hostname=sni) as secured:
            return hashlib.sha1(secured.getpeercert(True) or b"").hexdigest().upper()


def put(hap: Haproxy, command: str, pem: str = "") -> str:
    """By a client that shares no code with the collection's."""
    return hap.ask(
        f"{command} <<\n" + "".join(f"{line}\n" for line in lines(pem)) if pem else command
    )


def pending(hap: Haproxy, word: str = "cert") -> str | None:
    found = [line for line in hap.ask(f"show ssl {word}").split("\n") if line.startswith("*")]
    return found[0][1:].split(" - ")[0] if found else None


def prints(hap: Haproxy, name: str, word: str = "cert") -> list[str]:
    text = hap.ask(f"show ssl {word} {name}")
    return sorted(
        line.split(": ")[1] for line in text.split("\n") if line.startswith("SHA1 FingerPrint")
    )


def entries(hap: Haproxy, crt_list: str, name: str) -> list[str]:
    text = hap.ask(f"show ssl crt-list {crt_list}").replace("\0", "")
    return [line[len(name) :].strip() for line in text.split("\n") if line.startswith(name)]


def add(hap: Haproxy, name: str, pem: str) -> None:
    """A certificate that only this process knows."""
    put(hap, f"new ssl cert {name}")
    put(hap, f"set ssl cert {name}", pem)
    assert "Success!" in put(hap, f"commit ssl cert {name}")


# --- check, do, check, do for each option ---------------------------------------------------


@dataclasses.dataclass
class Case:
    args: dict[str, t.Any]
    commands: list[str]
    # By command: the lines of its payload.
    payloads: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    prepare: t.Callable[[Haproxy], None] = lambda hap: None
    # What is true then and was not before.
    effect: t.Callable[[Haproxy], bool] = lambda hap: True
    always: bool = False

    def returned(self) -> list[str]:
        return [
            f"{command} <<({count} line{'s' * (count > 1)})"
            if (count := len(self.payloads.get(command, [])))
            else command
            for command in self.commands
        ]

    def sent(self) -> list[str]:
        found = []
        for command in self.commands:
            payload = self.payloads.get(command)
            found += [f"{command} <<", *payload] if payload else [command]
        return found


def load(pki: Pki, name: str, pem: str, *, new: bool = False, word: str = "cert") -> Case:
    commands = [f"{verb} ssl {word} {name}" for verb in (["new"] * new + ["set", "commit"])]
    kinds = {"cert": "certificate", "ca-file": "ca_file", "crl-file": "crl_file"}
    return Case(
        {"name": name, "content": pem, "kind": kinds[word]},
        commands,
        {f"set ssl {word} {name}": lines(pem)},
        effect=lambda hap: print_of(pem) in prints(hap, name) if word == "cert" else True,
    )


def case_other(pki: Pki) -> Case:
    return load(pki, pki.name("crt/a.pem"), pki.pem("a2"))


def case_path(pki: Pki) -> Case:
    case = load(pki, pki.name("crt/a.pem"), pki.pem("a2"))
    del case.args["content"]
    case.args["path"] = [str(path) for path in pki.issued("a2")]
    return case


def case_untidy(pki: Pki) -> Case:
    """Empty lines, comments, CRLF and one long line, as people have them in variables."""
    case = load(pki, pki.name("crt/a.pem"), pki.pem("a2"))
    head, *body, tail = lines(pki.key("a2"))
    text = f"\r\nMy certificate\r\n\r\n{pki.crt('a2')}\n\n{head}\n{''.join(body)}\n\n{tail}\n\n"
    case.args["content"] = text.replace("\n", "\r\n")
    return case


def case_new(pki: Pki) -> Case:
    return load(pki, pki.name("new.pem"), pki.pem("a2"), new=True)


def case_odd_name(pki: Pki) -> Case:
    case = load(pki, r"odd\ \;\ \<\<\ näme\\", pki.pem("a2"), new=True)
    case.args["name"] = "odd ; << näme\\"
    return case


def case_chain(pki: Pki) -> Case:
    """The same certificate, but with the chain that was forgotten."""
    pem = pki.pem("a1") + pki.ca("ca1")
    case = load(pki, pki.name("crt/a.pem"), pem)
    case.effect = lambda hap: "Chain Subject" in hap.ask(f"show ssl cert {pki.name('crt/a.pem')}")
    return case


def case_force(pki: Pki) -> Case:
    case = load(pki, pki.name("crt/a.pem"), pki.pem("a1"))
    case.args["force"] = True
    case.always = True
    case.effect = lambda hap: True
    return case


def case_new_in_list(pki: Pki) -> Case:
    name, crt_list = pki.name("new.pem"), pki.name("list")
    case = load(pki, name, pki.pem("a2"), new=True)
    case.args["crt_list"] = crt_list
    case.commands.append(f"add ssl crt-list {crt_list} {name}")
    case.effect = lambda hap: entries(hap, crt_list, name) == [""]
    return case


def case_options_and_sni(pki: Pki) -> Case:
    """Another entry of a certificate that is in the list, with values that HAProxy reorders."""
    name, crt_list = pki.name("crt/b.pem"), pki.name("list")
    command = f"add ssl crt-list {crt_list}"
    return Case(
        {
            "name": name,
            "crt_list": crt_list,
            "crt_list_options": "verify none no-ca-names alpn h2,http/1.1 ssl-min-ver TLSv1.2",
            "sni": ["*.Y.test", "!a.y.test", "x.test"],
        },
        [command],
        {
            command: [
                f"{name} [alpn h2,http/1.1 no-ca-names ssl-min-ver TLSv1.2 verify none] "
                "!a.y.test *.y.test x.test"
            ]
        },
        effect=lambda hap: len(entries(hap, crt_list, name)) == 2,
    )


def case_sni_only(pki: Pki) -> Case:
    name, crt_list = pki.name("crt/b.pem"), pki.name("list")
    command = f"add ssl crt-list {crt_list}"
    return Case(
        {"name": name, "crt_list": crt_list, "sni": ["x.test"]},
        [command],
        {command: [f"{name} x.test"]},
        effect=lambda hap: entries(hap, crt_list, name) == ["", "x.test"],
    )


def case_directory(pki: Pki) -> Case:
    """HAProxy names a directory without the slash, and takes only paths in it."""
    name, crt_list = pki.name("crt/new.pem"), pki.name("crt")
    case = load(pki, name, pki.pem("a2"), new=True)
    case.args["crt_list"] = f"{crt_list}/"
    case.commands.append(f"add ssl crt-list {crt_list} {name}")
    case.effect = lambda hap: entries(hap, crt_list, name) == [""]
    return case


def case_unlisted(pki: Pki) -> Case:
    name, crt_list = pki.name("crt/b.pem"), pki.name("list")
    return Case(
        {"name": name, "crt_list": crt_list, "state": "unlisted"},
        [f"del ssl crt-list {crt_list} {name}"],
        effect=lambda hap: entries(hap, crt_list, name) == [],
    )


def case_unlisted_some(pki: Pki) -> Case:
    """Only the entries with these names; which line of several, HAProxy has to be told."""
    name, crt_list = pki.name("crt/b.pem"), pki.name("list")

    def prepare(hap: Haproxy) -> None:
        for line in ("[alpn h2] x.test", "x.test", "[alpn h2] y.test"):
            assert "Success" in hap.ask(f"add ssl crt-list {crt_list} <<\n{name} {line}\n")

    return Case(
        {"name": name, "crt_list": crt_list, "state": "unlisted", "sni": ["X.test"]},
        [f"del ssl crt-list {crt_list} {name}:{line}" for line in (3, 4)],
        prepare=prepare,
        effect=lambda hap: entries(hap, crt_list, name) == ["", "[alpn h2] y.test"],
    )


def case_absent(pki: Pki) -> Case:
    name = pki.name("new.pem")
    return Case(
        {"name": name, "state": "absent"},
        [f"del ssl cert {name}"],
        prepare=lambda hap: add(hap, name, pki.pem("a2")),
        effect=lambda hap: name not in hap.ask("show ssl cert"),
    )


def case_absent_from_list(pki: Pki) -> Case:
    name, crt_list = pki.name("new.pem"), pki.name("list")

    def prepare(hap: Haproxy) -> None:
        add(hap, name, pki.pem("a2"))
        assert "Success" in hap.ask(f"add ssl crt-list {crt_list} {name}")

    return Case(
        {"name": name, "crt_list": crt_list, "state": "absent"},
        [f"del ssl crt-list {crt_list} {name}", f"del ssl cert {name}"],
        prepare=prepare,
        effect=lambda hap: name not in hap.ask("show ssl cert") + hap.ask("show ssl crt-list"),
    )


def case_ca(pki: Pki) -> Case:
    name = pki.name("ca.pem")
    case = load(pki, name, pki.ca("ca2") + pki.ca("ca1"), word="ca-file")
    case.effect = lambda hap: len(prints(hap, name, "ca-file")) == 2
    return case


def case_ca_new(pki: Pki) -> Case:
    name = pki.name("new-ca.pem")
    case = load(pki, name, pki.ca("ca2"), word="ca-file", new=True)
    case.effect = lambda hap: prints(hap, name, "ca-file") == [print_of(pki.ca("ca2"))]
    return case


def case_ca_absent(pki: Pki) -> Case:
    """HAProxy does not count the servers that use it."""
    name = pki.name("server-ca.pem")
    return Case(
        {"name": name, "kind": "ca_file", "state": "absent"},
        [f"del ssl ca-file {name}"],
        effect=lambda hap: name not in hap.ask("show ssl ca-file"),
    )


def case_crl(pki: Pki) -> Case:
    name = pki.name("crl.pem")
    case = load(pki, name, pki.crl("one"), word="crl-file")
    case.effect = lambda hap: "Serial Number" in hap.ask(f"show ssl crl-file {name}")
    return case


def case_crl_new(pki: Pki) -> Case:
    name = pki.name("new-crl.pem")
    case = load(pki, name, pki.crl("one") + pki.crl("empty"), word="crl-file", new=True)
    case.effect = lambda hap: "List #2:" in hap.ask(f"show ssl crl-file {name}")
    return case


def case_crl_absent(pki: Pki) -> Case:
    name = pki.name("new-crl.pem")

    def prepare(hap: Haproxy) -> None:
        put(hap, f"new ssl crl-file {name}")

    return Case(
        {"name": name, "kind": "crl_file", "state": "absent"},
        [f"del ssl crl-file {name}"],
        prepare=prepare,
        effect=lambda hap: name not in hap.ask("show ssl crl-file"),
    )


CASES: dict[str, t.Callable[[Pki], Case]] = {
    name[5:]: maker for name, maker in list(globals().items()) if name.startswith("case_")
}


@cells(CASES)
def test_check_do_check_do(
    hap: Haproxy, relay: MakeRelay, pki: Pki, case: str, version: str, kind: str
) -> None:
    made = CASES[case](pki)
    wire = relay(hap, kind)
    if version == "2.2" and made.args.get("kind", "certificate") != "certificate":
        result = certificate({"socket": wire.address, **wire.options, **made.args}, check=True)
        assert "exists since HAProxy 2.5" in result["msg"]
        return
    made.prepare(hap)
    if not made.always:
        assert not made.effect(hap)
    check, done = four_steps(
        "haproxy_certificate",
        made.args,
        wire,
        commands=made.returned(),
        sent=made.sent(),
        always=made.always,
    )
    assert made.effect(hap)
    assert (
        pending(
            hap, made.commands[-1].split()[2] if "crt-list" not in made.commands[-1] else "cert"
        )
        is None
    )
    for row in (*check["files"], *done["files"]):
        assert row.pop("used") in (True, False, None)
    assert done["files"] == check["files"]
    assert (done["diff"]["before"] == done["diff"]["after"]) is made.always


# --- what clients see -----------------------------------------------------------------------


def test_clients_get_the_new_certificate_after_the_commit(
    hap: Haproxy, pki: Pki, short_path: Path
) -> None:
    args = {"socket": str(hap.admin), "name": pki.name("crt/a.pem")}
    before, after = print_of(pki.pem("a1")), print_of(pki.pem("a2"))
    sockets = [short_path / "dir.tls"]
    assert {served(path, "a.test") for path in sockets} == {before}
    assert certificate({**args, "content": pki.pem("a2")}, check=True)["changed"] is True
    assert {served(path, "a.test") for path in sockets} == {before}
    done = certificate({**args, "content": pki.pem("a2")})
    assert done["changed"] is True
    assert done["files"][0]["certificates"][0]["fingerprint"] == after
    assert {served(path, "a.test") for path in sockets} == {after}
    assert served(sockets[0], "b.test") == print_of(pki.pem("b1"))


def test_a_failed_change_leaves_the_old_one_served(
    hap: Haproxy, relay: MakeRelay, pki: Pki, short_path: Path
) -> None:
    """The key of another certificate: HAProxy notices it at the commit."""
    name = pki.name("crt/a.pem")
    wire = relay(hap)
    failed = certificate(
        {"socket": wire.address, "name": name, "content": pki.crt("a2") + pki.key("b1")}
    )
    assert failed["failed"] is True
    assert "inconsistencies" in failed["msg"]
    assert f"refused 'commit ssl cert {name}'" in failed["msg"]
    assert failed["undone"] == [f"abort ssl cert {name}"]
    assert failed["changed"] is True
    assert len(failed["commands"]) == 2
    assert [line for line in wire.changes() if " ssl " in line] == [
        f"set ssl cert {name} <<",
        f"commit ssl cert {name}",
        f"abort ssl cert {name}",
    ]
    assert pending(hap) is None
    assert served(short_path / "dir.tls", "a.test") == print_of(pki.pem("a1"))


def test_a_new_one_that_fails_is_forgotten(hap: Haproxy, pki: Pki) -> None:
    name = pki.name("new.pem")
    before = hap.ask("show ssl cert")
    failed = certificate(
        {"socket": str(hap.admin), "name": name, "content": pki.crt("a2") + pki.key("b1")}
    )
    assert failed["undone"] == [f"abort ssl cert {name}", f"del ssl cert {name}"]
    assert hap.ask("show ssl cert") == before


def test_a_refused_entry_takes_a_new_certificate_with_it(
    hap: Haproxy, pki: Pki, short_path: Path
) -> None:
    name, before = pki.name("new.pem"), hap.ask("show ssl cert")
    failed = certificate(
        {
            "socket": str(hap.admin),
            "name": name,
            "content": pki.pem("a2"),
            "crt_list": pki.name("list"),
            "crt_list_options": "ciphers NO-SUCH-CIPHER",
        }
    )
    assert "refused 'add ssl crt-list" in failed["msg"]
    assert failed["undone"] == [f"del ssl cert {name}"]
    assert hap.ask("show ssl cert") == before
    assert entries(hap, pki.name("list"), name) == []


def test_whether_it_is_used(hap: Haproxy, pki: Pki) -> None:
    """A wrong name makes a certificate that nobody gets: say so."""
    args = {"socket": str(hap.admin), "name": pki.name("wrong.pem"), "content": pki.pem("a2")}
    listed = {**args, "crt_list": pki.name("list")}
    assert certificate(args, check=True)["files"][0]["used"] is False
    assert certificate(listed, check=True)["files"][0]["used"] is True
    # Ansible collects warnings for as long as a process lives.
    done = run_module_process("haproxy_certificate", args, deadline=30)[0]
    assert done["files"][0]["used"] is False
    assert "no bind line and no crt-list uses it" in str(done["warnings"])
    done = run_module_process("haproxy_certificate", listed, deadline=30)[0]
    assert done["files"][0]["used"] is True
    assert "warnings" not in done


def test_new_site_is_served(hap: Haproxy, pki: Pki, short_path: Path) -> None:
    args = {
        "socket": str(hap.admin),
        "name": "/somewhere/new.pem",
        "crt_list": pki.name("list"),
    }
    present = {**args, "content": pki.pem("a2"), "sni": ["new.test"]}
    old = print_of(pki.pem("c1"))
    assert served(short_path / "list.tls", "new.test") == old
    assert certificate(present)["changed"] is True
    assert served(short_path / "list.tls", "new.test") == print_of(pki.pem("a2"))
    assert certificate({**args, "state": "absent"})["changed"] is True
    assert served(short_path / "list.tls", "new.test") == old


def test_the_chain_is_served(hap: Haproxy, pki: Pki, short_path: Path) -> None:
    """A client that knows only the root needs the certificate in between."""
    root, made = pki.authority("ca1"), pki.made.directory
    extensions = made / "between.ext"
    extensions.write_text("basicConstraints=CA:TRUE\n")
    between = made / "between.crt"
    for command in (
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=between"
        f" -keyout {made}/between.key -out {made}/between.csr",
        f"x509 -req -in {made}/between.csr -CA {root} -CAkey {root.with_suffix('.key')}"
        f" -CAcreateserial -days 3 -extfile {extensions} -out {between}",
    ):
        subprocess.run(["openssl", *command.split()], check=True, timeout=30, capture_output=True)
    leaf, key = pki.made.issue("d1", names="DNS:a.test", authority=between)
    args = {"socket": str(hap.admin), "name": pki.name("crt/a.pem")}
    without = leaf.read_text() + key.read_text()
    assert certificate({**args, "content": without})["changed"] is True
    with pytest.raises(ssl.SSLCertVerificationError):
        served(short_path / "dir.tls", "a.test", root=root)
    done = certificate({**args, "path": [str(leaf), str(between), str(key)]})
    assert done["changed"] is True
    assert done["files"][0]["chain"] == 1
    assert served(short_path / "dir.tls", "a.test", root=root) == print_of(without)
    # Shorter is not noticed without force.
    assert certificate({**args, "content": without})["changed"] is False
    assert certificate({**args, "content": without, "force": True})["changed"] is True
    with pytest.raises(ssl.SSLCertVerificationError):
        served(short_path / "dir.tls", "a.test", root=root)


@since("2.6", "CA files at run time")
def test_authorities_and_revocations_count_at_once(
    hap: Haproxy, pki: Pki, short_path: Path, version: str
) -> None:
    args = {"socket": str(hap.admin)}
    path, mine = short_path / "ca.tls", pki.issued("b1")
    other = pki.made.issue("e2", authority=pki.authority("ca2"))
    assert served(path, "a.test", client=mine)
    with pytest.raises(OSError):
        served(path, "a.test", client=other)
    revoke = {"name": pki.name("crl.pem"), "kind": "crl_file", "content": pki.crl("one")}
    done = certificate({**args, **revoke})
    assert done["files"][0]["crls"][0]["revoked"] == [f"{pki.serial('b1'):X}"]
    with pytest.raises(OSError):
        served(path, "a.test", client=mine)
    forgive = {**revoke, "content": pki.crl("empty")}
    assert certificate({**args, **forgive})["changed"] is True
    assert served(path, "a.test", client=mine)
    trust = {"name": pki.name("ca.pem"), "kind": "ca_file", "content": pki.ca("ca2")}
    assert certificate({**args, **trust})["changed"] is True
    with pytest.raises(OSError):
        served(path, "a.test", client=mine)


# --- somebody else's transaction ------------------------------------------------------------


def test_a_pending_transaction_is_left_alone(hap: Haproxy, relay: MakeRelay, pki: Pki) -> None:
    other, name = pki.name("crt/b.pem"), pki.name("crt/a.pem")
    assert "created" in put(hap, f"set ssl cert {other}", pki.pem("b2"))
    wire = relay(hap)
    args = {"socket": wire.address, "name": name, "content": pki.pem("a2")}
    for check in (True, False):
        refused = certificate(args, check=check)
        assert f"'abort ssl cert {other}'" in refused["msg"]
        assert refused["changed"] is False
    # What HAProxy has already needs no transaction.
    assert certificate({**args, "content": pki.pem("a1")})["changed"] is False
    absent = certificate({"socket": wire.address, "name": other, "state": "absent"})
    assert "neither committed nor aborted" in absent["msg"]
    assert wire.changes() == []
    assert prints(hap, f"*{other}") == [print_of(pki.pem("b2"))]
    assert "Success" in put(hap, f"commit ssl cert {other}")
    assert certificate(args)["changed"] is True


@pytest.mark.parametrize("which", ["crt/a.pem", "crt/b.pem"])
def test_somebody_begins_a_transaction_in_between(
    hap: Haproxy, relay: MakeRelay, pki: Pki, version: str, which: str
) -> None:
    """HAProxy 2.6 writes the certificate of one file into the transaction of another: end that."""
    theirs, name = pki.name(which), pki.name("crt/a.pem")
    wire = relay(hap)

    def begin(data: bytes) -> None:
        if data.startswith(b"set ssl cert"):
            assert "created" in put(hap, f"set ssl cert {theirs}", pki.pem("b2"))

    wire.meanwhile = begin
    failed = certificate({"socket": wire.address, "name": name, "content": pki.pem("a2")})
    assert failed["failed"] is True
    if version == "2.6" or theirs == name:
        assert f"Transaction updated for certificate {theirs}" in failed["msg"]
        assert failed["undone"] == [f"abort ssl cert {theirs}"]
        assert pending(hap) is None
    else:
        assert "ongoing transaction is about" in failed["msg"]
        assert "undone" not in failed
        assert prints(hap, f"*{theirs}") == [print_of(pki.pem("b2"))]
    assert prints(hap, name) == [print_of(pki.pem("a1"))]
    assert prints(hap, pki.name("crt/b.pem")) == [print_of(pki.pem("b1"))]


def test_blamed_for_the_one_before(
    start_haproxy: Start, pki: Pki, short_path: Path, version: str
) -> None:
    """HAProxy 2.2 refuses a good certificate, once, after a bad one in the same thread."""
    one_thread = "global\n    nbthread 1\n" if version == "2.2" else ""
    hap = begin(start_haproxy, pki, short_path, one_thread)
    name = pki.name("crt/a.pem")
    bad = pki.crt("a2") + pki.key("b1")

    def spoil() -> None:
        put(hap, f"set ssl cert {name}", bad)
        assert "inconsistencies" in put(hap, f"commit ssl cert {name}")
        put(hap, f"abort ssl cert {name}")

    spoil()
    reply = put(hap, f"set ssl cert {name}", pki.pem("a2"))
    assert ("chain" in reply) is (version == "2.2")
    put(hap, f"abort ssl cert {name}")
    spoil()
    done = certificate({"socket": str(hap.admin), "name": name, "content": pki.pem("a2")})
    assert done["changed"] is True, done
    assert len(done["commands"]) == 2


# --- keys stay secret -----------------------------------------------------------------------


class Cutter:
    """Ends the first conversation in the middle; lets later ones pass.

    `half`: when half of the payload has come. `answer`: when HAProxy has answered it.
    """

    def __init__(self, path: Path, target: Path, how: str) -> None:
        self.path, self._target, self._how = path, target, how
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(4)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            for how in (self._how, "pass", "pass"):
                client, _address = self._listener.accept()
                threading.Thread(target=self._serve, args=(client, how), daemon=True).start()

    def _serve(self, client: socket.socket, how: str) -> None:
        with client, socket.socket(socket.AF_UNIX) as upstream, contextlib.suppress(OSError):
            client.settimeout(10)
            upstream.settimeout(10)
            upstream.connect(str(self._target))
            while data := client.recv(65536):
                cut = how != "pass" and b"PRIVATE KEY" in data
                if cut and how == "half":
                    upstream.sendall(data[: data.index(b"PRIVATE KEY") + 60])
                    return
                upstream.sendall(data)
                reply = b""
                while not reply.endswith(b"> "):
                    reply += upstream.recv(65536)
                if cut:
                    return
                client.sendall(reply)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def cutter(short_path: Path, hap: Haproxy) -> Iterator[t.Callable[[str], Cutter]]:
    made: list[Cutter] = []

    def make(how: str) -> Cutter:
        made.append(Cutter(short_path / "cut", hap.admin, how))
        return made[-1]

    yield make
    for one in made:
        one.close()


def assert_secret(result: t.Any, *keys: str) -> None:
    text = json.dumps(result)
    for key in keys:
        for line in lines(key)[1:-1]:
            assert line not in text
            assert line[:12] not in text


@pytest.mark.parametrize("how", ["half", "answer"])
@pytest.mark.parametrize("name", ["crt/a.pem", "new.pem"])
def test_connection_lost_in_the_middle(
    hap: Haproxy, pki: Pki, cutter: t.Callable[[str], Cutter], how: str, name: str
) -> None:
    name = pki.name(name)
    before = hap.ask("show ssl cert")
    failed = certificate(
        {"socket": str(cutter(how).path), "name": name, "content": pki.pem("a2"), "timeout": 5}
    )
    assert failed["failed"] is True
    assert "closed the connection" in failed["msg"]
    assert f"set ssl cert {name} <<(" in failed["unknown"][0]
    assert failed["not_sent"] == [f"commit ssl cert {name}"]
    undone = [f"abort ssl cert {name}"] * (how == "answer")
    undone += [f"del ssl cert {name}"] * name.endswith("new.pem")
    assert failed.get("undone", []) == undone
    assert hap.ask("show ssl cert") == before
    assert_secret(failed, pki.key("a2"))


def test_haproxy_dies_in_the_middle(hap: Haproxy, relay: MakeRelay, pki: Pki) -> None:
    wire = relay(hap)

    def end(data: bytes) -> None:
        if data.startswith(b"commit"):
            hap.process.kill()
            hap.process.wait(5)

    wire.meanwhile = end
    failed = certificate(
        {"socket": wire.address, "name": pki.name("crt/a.pem"), "content": pki.pem("a2")}
    )
    assert "it may be half done" in failed["msg"]
    assert failed["not_undone"]
    assert_secret(failed, pki.key("a2"))


def test_keys_are_never_shown(hap: Haproxy, pki: Pki) -> None:
    args = {"socket": str(hap.admin), "name": pki.name("crt/a.pem")}
    good, key = pki.pem("a2"), pki.key("a2")
    results = [
        certificate({**args, "content": good}, check=True),
        certificate({**args, "content": good}),
        certificate({**args, "path": [str(path) for path in pki.issued("a2")], "force": True}),
        certificate({**args, "content": pki.crt("b1") + key}),
        certificate({**args, "content": key}),
        certificate({**args, "content": good.replace("-----END PRIVATE", "-----END")}),
        certificate({**args, "content": good + key}),
        certificate({**args, "kind": "ca_file", "content": good}),
        certificate({**args, "socket": "/nowhere", "content": good}),
        certificate({**args, "name": good, "content": good}),
        certificate({**args, "path": [good]}),
    ]
    assert [bool(result.get("failed")) for result in results] == [False] * 3 + [True] * 8
    for result in results:
        assert_secret(result, key)
    assert results[1]["invocation"]["module_args"]["content"] != good


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["user", "operator"])
def test_level_too_low(hap: Haproxy, pki: Pki, level: str) -> None:
    result = certificate(
        {
            "socket": str(hap.directory / f"{level}.sock"),
            "name": pki.name("crt/a.pem"),
            "content": pki.pem("a2"),
        },
        check=True,
    )
    assert "needs level admin" in result["msg"]


def test_refused_before_anything_is_sent(
    hap: Haproxy, relay: MakeRelay, pki: Pki, version: str
) -> None:
    wire = relay(hap)
    a, b, c, crt_list = (pki.name(name) for name in ("crt/a.pem", "crt/b.pem", "list.pem", "list"))
    wanted: list[tuple[dict[str, t.Any], str]] = [
        ({"name": a, "crt_list": crt_list + "x"}, f"no crt-list '{crt_list}x'; there is "),
        ({"name": a + "x", "crt_list": crt_list}, f"no certificate '{a}x'; there is "),
        ({"name": a, "state": "absent"}, f"still in {pki.name('crt')}"),
        ({"name": b, "state": "absent", "crt_list": crt_list}, f"{pki.name('other-list')}"),
        ({"name": c, "state": "absent", "crt_list": crt_list, "sni": ["no"]}, crt_list),
        ({"name": a, "state": "unlisted", "crt_list": "nope"}, "no crt-list 'nope'"),
    ]
    if version != "2.2":
        ca = {"kind": "ca_file", "state": "absent"}
        wanted.append(({"name": pki.name("ca.pem"), **ca}, "in use by a bind or server line"))
    if version != "2.2":
        crl = {"kind": "crl_file", "content": pki.crl("longest")}
        wanted.append(({"name": pki.name("crl.pem"), **crl}, "bytes of PEM, and HAProxy at"))
    wanted.append(({"name": a, "content": pki.pem("a2") + pki.many}, "takes 15"))
    for args, words in wanted:
        for check in (True, False):
            result = certificate({"socket": wire.address, **args}, check=check)
            assert words in result["msg"], result
            assert result["changed"] is False
            assert "\n" not in result["msg"]
    assert wire.changes() == []


def test_in_use_by_a_bind_line_only(hap: Haproxy, pki: Pki, version: str) -> None:
    """The default certificate of a crt-list: HAProxy refuses from 2.6 on, and nothing is done."""
    name, crt_list = pki.name("list.pem"), pki.name("list")
    result = certificate(
        {"socket": str(hap.admin), "name": name, "crt_list": crt_list, "state": "unlisted"}
    )
    if version == "2.2":
        assert result["changed"] is True
        return
    assert "used as default certificate" in result["msg"]
    assert result["changed"] is False
    assert entries(hap, crt_list, name) == ["[alpn h2] c.test"]


def test_an_empty_store_is_filled_and_not_listed(hap: Haproxy, pki: Pki) -> None:
    name, args = pki.name("empty.pem"), {"socket": str(hap.admin), "name": pki.name("empty.pem")}
    put(hap, f"new ssl cert {name}")
    listed = certificate({**args, "crt_list": pki.name("list")})
    assert "give content or path" in listed["msg"]
    done = certificate({**args, "content": pki.pem("a2")})
    assert [command.split()[0] for command in done["commands"]] == ["set", "commit"]
    assert prints(hap, name) == [print_of(pki.pem("a2"))]


@pytest.mark.parametrize("case", ["present", "absent"])
def test_a_haproxy_without_certificates(
    start_haproxy: Start, version: str, pki: Pki, case: str
) -> None:
    hap = start_haproxy("backend app\n    server s1 127.0.0.1:1\n")
    args = {"socket": str(hap.admin), "name": pki.name("first.pem")}
    if case == "absent":
        result = certificate({**args, "state": "absent"})
        assert not result.get("failed"), result
        assert result["changed"] is False
        return
    result = certificate({**args, "content": pki.pem("a2")})
    assert [command.split()[0] for command in result["commands"]] == ["new", "set", "commit"]
    assert prints(hap, args["name"]) == [print_of(pki.pem("a2"))]
    assert certificate({**args, "state": "absent"})["changed"] is True
    assert certificate({**args, "content": pki.pem("a2")})["changed"] is True


def test_no_duplicate_entries(hap: Haproxy, pki: Pki) -> None:
    name, crt_list = pki.name("crt/b.pem"), pki.name("list")
    args = {"socket": str(hap.admin), "name": name, "crt_list": crt_list}
    same = ("alpn h2,http/1.1 verify none", "verify none  alpn h2,http/1.1")
    for number, options in enumerate(same):
        for sni in (["x.test", "y.test"], ["Y.TEST", "x.test"]):
            done = certificate({**args, "crt_list_options": options, "sni": sni})
            assert done["changed"] is (number == 0 and sni[0] == "x.test")
    assert len(entries(hap, crt_list, name)) == 2
    # Not given means whichever.
    assert certificate({**args, "sni": ["x.test", "y.test"]})["changed"] is False
    assert certificate({**args, "crt_list_options": same[0]})["changed"] is False
    assert certificate({**args, "crt_list_options": "", "sni": []})["changed"] is False
    assert certificate({**args, "crt_list_options": "", "sni": ["x.test"]})["changed"] is True


# Those that every version since this one has.
OPTIONS = {
    "allow-0rtt": (2, 2),
    "ca-file {ca}": (2, 2),
    "verify optional crl-file {crl} ca-file {ca}": (2, 2),
    "ciphers ECDHE+AESGCM": (2, 2),
    "ciphersuites TLS_AES_128_GCM_SHA256": (2, 2),
    "curves X25519:P-256": (2, 2),
    "ecdhe prime256v1": (2, 2),
    "npn h2": (2, 2),
    "ssl-max-ver TLSv1.3": (2, 2),
    "no-alpn": (3, 0),
    "sigalgs RSA+SHA256": (3, 0),
    "client-sigalgs ECDSA+SHA256": (3, 0),
}


def test_every_option_of_an_entry_is_read_back(hap: Haproxy, pki: Pki, version: str) -> None:
    name, crt_list = pki.name("crt/b.pem"), pki.name("list")
    for text, first in OPTIONS.items():
        options = text.format(ca=pki.name("ca.pem"), crl=pki.name("crl.pem"))
        args = {
            "socket": str(hap.admin),
            "name": name,
            "crt_list": crt_list,
            "crt_list_options": options,
        }
        done = certificate(args)
        if tuple(map(int, version.split("."))) < first:
            assert "unknown ssl keyword" in done["msg"]
            continue
        assert done["changed"] is True, done
        assert certificate(args)["changed"] is False


# --- sizes ----------------------------------------------------------------------------------


def test_many_authorities_are_sent_in_pieces(
    hap: Haproxy, relay: MakeRelay, pki: Pki, version: str
) -> None:
    name, wire = pki.name("ca.pem"), relay(hap)
    args = {"socket": wire.address, "name": name, "kind": "ca_file", "content": pki.many}
    done = certificate(args)
    if version == "2.2":
        return
    if version == "2.6":
        assert "HAProxy 2.7 and later take it in pieces" in done["msg"]
        assert wire.changes() == []
        return
    verbs = [command.split()[0] for command in done["commands"]]
    assert verbs == ["set", "add", "commit"]
    texts = [
        text + "-----END CERTIFICATE-----\n"
        for text in pki.many.split("-----END CERTIFICATE-----\n")[:-1]
    ]
    assert prints(hap, name, "ca-file") == sorted(map(print_of, texts))
    wire.changes()
    assert certificate(args)["changed"] is False
    assert wire.changes() == []


@since("3.0", "payloads in several pieces")
def test_a_piece_that_is_lost(hap: Haproxy, relay: MakeRelay, pki: Pki, version: str) -> None:
    """Somebody aborts the transaction between two pieces: nothing is committed."""
    name, wire = pki.name("ca.pem"), relay(hap)

    def abort(data: bytes) -> None:
        if data.startswith(b"add ssl ca-file"):
            assert "aborted" in put(hap, f"abort ssl ca-file {name}")

    wire.meanwhile = abort
    before = prints(hap, name, "ca-file")
    failed = certificate(
        {"socket": wire.address, "name": name, "kind": "ca_file", "content": pki.many}
    )
    assert "refused 'add ssl ca-file" in failed["msg"]
    assert pending(hap, "ca-file") is None
    assert prints(hap, name, "ca-file") == before


@since("2.6", "CA files at run time")
def test_a_long_crl_is_compared_by_what_haproxy_shows(hap: Haproxy, pki: Pki, version: str) -> None:
    args = {"socket": str(hap.admin), "name": pki.name("crl.pem"), "kind": "crl_file"}
    done = certificate({**args, "content": pki.crl("long")})
    assert done["changed"] is True
    assert len(done["files"][0]["crls"][0]["revoked"]) == 200
    assert hap.ask(f"show ssl crl-file {pki.name('crl.pem')}").count("Serial Number") < 200
    assert certificate({**args, "content": pki.crl("long")})["changed"] is False
    assert certificate({**args, "content": pki.crl("one")})["changed"] is True


# --- several --------------------------------------------------------------------------------


def test_several_sockets(
    start_haproxy: Start, relay: MakeRelay, pki: Pki, short_path: Path
) -> None:
    (short_path / "x").mkdir()
    first = begin(start_haproxy, pki, short_path)
    second = begin(start_haproxy, pki, short_path / "x")
    name, wire = pki.name("crt/a.pem"), relay(first)
    args = {"socket": [wire.address, str(second.admin)], "name": name, "content": pki.pem("a2")}
    put(second, f"set ssl cert {name}", pki.pem("a3"))
    assert str(second.admin) in certificate(args)["msg"]
    assert wire.changes() == []
    put(second, f"abort ssl cert {name}")
    done = certificate(args)
    assert len(done["commands"]) == 4
    assert [row["socket"] for row in done["files"]] == args["socket"]
    for hap in (first, second):
        assert prints(hap, name) == [print_of(pki.pem("a2"))]
    assert certificate(args)["changed"] is False
