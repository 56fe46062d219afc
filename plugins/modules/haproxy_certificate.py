#!/usr/bin/python
# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: haproxy_certificate
short_description: Replace HAProxy's certificates, CA files and CRLs at run time
version_added: 0.1.0
description:
  - Puts a certificate with its key, a file of authorities or of revocation lists into the memory of
    a running HAProxy, without a reload, and adds certificates to crt-lists.
  - What HAProxy has is compared by fingerprint, so nothing is sent where nothing has to change.
    What has to change is sent in one transaction, and the new certificate is used by new
    connections as soon as it is committed. If anything fails before that, the transaction is
    aborted, and HAProxy goes on with what it had.
  - Nothing is written to HAProxy's files. Put the same content there too, or a reload brings the
    old one back.
  - Private keys are never part of results, commands, diffs or errors.
extends_documentation_fragment:
  - clearproxy.haproxy._attributes
  - clearproxy.haproxy._socket
attributes:
  check_mode:
    support: full
    details:
      - Whether the key belongs to the certificate is HAProxy's to say, in the real run.
  diff_mode:
    support: full
    details:
      - Shows fingerprints and dates, never the PEM text.
  idempotent:
    support: partial
    details:
      - With O(force=true) the content is sent every time.
  platform:
    platforms: posix
    support: full
options:
  name:
    description:
      - The name of the file as HAProxy knows it, which C(show ssl cert), C(show ssl ca-file) and
        C(show ssl crl-file) tell. It is the path in the configuration, with C(crt-base) or
        C(ca-base) before it if that is set.
      - It need not exist as a file. A new name comes into use by O(crt_list), or by a crt-list's
        option C(ca-file) or C(crl-file).
    type: str
    required: true
  kind:
    description:
      - What the file holds.
      - V(certificate) is a certificate, its chain and its unencrypted private key.
      - V(ca_file) is one or more certificates of authorities. V(crl_file) is one or more revocation
        lists. Both need HAProxy 2.5 or later.
    type: str
    choices:
      - certificate
      - ca_file
      - crl_file
    default: certificate
  content:
    description:
      - The PEM text. With O(kind=certificate) the server's own certificate comes first among the
        certificates, and exactly one private key must be there.
      - Damaged PEM blocks, encrypted keys and blocks that do not belong into a file of this
        O(kind) are refused before anything is sent. Text outside of the blocks is left out.
      - About 15 KiB can be sent in one command. Larger CA files are sent in pieces, which needs
        HAProxy 2.7 or later.
    type: str
  path:
    description:
      - PEM files on the host that runs the module, instead of O(content). Several are put together
        in their order, for example a chain and its key.
    type: list
    elements: path
  state:
    description:
      - V(present) makes sure that HAProxy has this content under O(name), and a matching entry in
        O(crt_list).
      - V(absent) deletes the file from HAProxy's memory, after its matching entries in O(crt_list)
        if that is given. A file that is used otherwise is refused before anything is sent, as far
        as HAProxy tells. It does not tell of C(server) lines that use a CA or CRL file, and deletes
        that too. The servers' connections go on as before, until HAProxy is reloaded.
      - V(unlisted) only takes the certificate's matching entries out of O(crt_list).
    type: str
    choices:
      - present
      - absent
      - unlisted
    default: present
  crt_list:
    description:
      - A crt-list, or a directory that a C(bind) line names with C(crt), as C(show ssl crt-list)
        tells it. Only for O(kind=certificate).
      - With O(state=present) an entry is added if there is no matching one. Other entries are left
        alone.
      - HAProxy 3.0 and older take a name into a directory only if it is a path in that directory.
    type: str
  crt_list_options:
    description:
      - The options of the entry, as they are between the brackets of a crt-list's line, for example
        C(alpn h2,http/1.1 verify none). An empty string means none.
      - An entry matches if it has the same options, in any order. If not given, its options do not
        matter, and an entry that has to be added gets none.
      - Only options that HAProxy shows are taken, C(allow-0rtt), C(alpn), C(ca-file), C(ciphers),
        C(ciphersuites), C(client-sigalgs), C(crl-file), C(curves), C(ecdhe), C(no-alpn),
        C(no-ca-names), C(npn), C(sigalgs), C(ssl-max-ver), C(ssl-min-ver) and C(verify). Which of
        them exist depends on HAProxy's version.
    type: str
  sni:
    description:
      - The host names that the entry is for, for example V(www.example.com), V(*.example.com) or
        V(!internal.example.com). An empty list means all names in the certificate.
      - An entry matches if it has the same names, in any order. If not given, its names do not
        matter, and an entry that has to be added gets none.
    type: list
    elements: str
  force:
    description:
      - Send O(content) even if HAProxy seems to have it.
      - Of a chain HAProxy tells only how many certificates it has, so one that is exchanged for
        another of the same length, or for a shorter one, is not noticed. A key cannot differ as
        long as the certificate is the same.
    type: bool
    default: false
notes:
  - Needs a socket of C(level admin). Works with HAProxy 2.2 and later; tested with 2.2, 2.6, 3.0,
    3.2 and 3.4.
  - HAProxy has one transaction for each O(kind). If somebody else has begun one and has neither
    committed nor aborted it, the task fails before it sends anything.
  - A replaced certificate loses the OCSP response that HAProxy stapled to the old one. Send
    C(set ssl ocsp-response) with M(clearproxy.haproxy.haproxy_command) to give it a new one.
  - HAProxy keeps connections that are open, and TLS sessions that clients resume, as they are.
  - Use C(no_log) on tasks before this one that read the key, as the one of O(content) would be.
author:
  - The clearproxy.haproxy contributors (@clearproxy)
"""

EXAMPLES = r"""
---
- name: Serve the renewed certificate at once
  clearproxy.haproxy.haproxy_certificate:
    name: /etc/haproxy/certs/www.example.com.pem
    path:
      - /etc/letsencrypt/live/www.example.com/fullchain.pem
      - /etc/letsencrypt/live/www.example.com/privkey.pem

- name: Serve a new site
  clearproxy.haproxy.haproxy_certificate:
    name: /etc/haproxy/certs/shop.example.com.pem
    content: "{{ vault_shop_pem }}"
    crt_list: /etc/haproxy/crt-list.txt
    crt_list_options: alpn h2,http/1.1
    sni:
      - shop.example.com

- name: Stop serving it
  clearproxy.haproxy.haproxy_certificate:
    name: /etc/haproxy/certs/shop.example.com.pem
    crt_list: /etc/haproxy/crt-list.txt
    state: absent

- name: Trust the clients of a second authority (HAProxy 2.5 or later)
  clearproxy.haproxy.haproxy_certificate:
    name: /etc/haproxy/clients-ca.pem
    kind: ca_file
    path: /etc/haproxy/clients-ca.pem

- name: Refuse the clients that were revoked today (HAProxy 2.5 or later)
  clearproxy.haproxy.haproxy_certificate:
    name: /etc/haproxy/clients-crl.pem
    kind: crl_file
    path: /etc/haproxy/clients-crl.pem
"""

RETURN = r"""
commands:
  description: The commands that changed something, in their order; in check mode those that would
    be sent. Of a payload only the number of lines.
  returned: always
  type: list
  elements: str
  sample:
    - set ssl cert /etc/haproxy/certs/www.example.com.pem <<(24 lines)
    - commit ssl cert /etc/haproxy/certs/www.example.com.pem
files:
  description: What each HAProxy has under O(name) after the task, in check mode as predicted.
  returned: success
  type: list
  elements: dict
  contains:
    socket:
      description: Where this HAProxy was asked.
      type: str
      sample: /run/haproxy/admin.sock
    name:
      description: The name of the file.
      type: str
      sample: /etc/haproxy/certs/www.example.com.pem
    kind:
      description: What it holds, as O(kind).
      type: str
      sample: certificate
    exists:
      description: Whether HAProxy has it.
      type: bool
      sample: true
    used:
      description:
        - Whether a C(bind) line or crt-list uses it, as HAProxy says; C(server) lines that use a CA
          or CRL file do not count. V(null) if it does not exist, or if check mode cannot foresee it.
        - A warning tells of a certificate that is not used, because its name may be wrong.
      type: bool
      sample: true
    certificates:
      description: The server's own certificate, or those of a CA file, sorted by fingerprint.
      type: list
      elements: dict
      contains:
        fingerprint:
          description: The SHA-1 fingerprint.
          type: str
          sample: 574D244D9FDD63362B32EE2B5570E7F006221F39
        not_after:
          description: When it expires, in UTC.
          type: str
          sample: "2027-01-31T12:00:00Z"
    chain:
      description: How many certificates follow the server's own; V(null) for other kinds.
      type: int
      sample: 1
    crls:
      description: The revocation lists of a CRL file.
      type: list
      elements: dict
      contains:
        last_update:
          description: When it was issued, in UTC.
          type: str
          sample: "2026-10-01T12:00:00Z"
        next_update:
          description: When the next one is due, in UTC, or V(null).
          type: str
          sample: "2026-11-01T12:00:00Z"
        revoked:
          description: The serial numbers that are revoked, in hexadecimal, as far as HAProxy shows
            them.
          type: list
          elements: str
          sample:
            - 22987C25BC9131DC0104D0A9F07E9BD3A67709B9
    crt_list:
      description: The crt-list that O(crt_list) names, or V(null).
      type: str
      sample: /etc/haproxy/crt-list.txt
    entries:
      description: The certificate's entries there.
      type: list
      elements: dict
      contains:
        options:
          description: The entry's options, sorted.
          type: str
          sample: alpn h2,http/1.1
        sni:
          description: The entry's names, sorted and in lower case; none means all in the
            certificate.
          type: list
          elements: str
          sample:
            - shop.example.com
refused:
  description: The commands that HAProxy refused, with its replies.
  returned: when HAProxy refused a command
  type: list
  elements: dict
  contains:
    command:
      description: What was sent.
      type: str
    reply:
      description: What HAProxy said.
      type: str
undone:
  description: The commands that took back what had been sent before the failure.
  returned: when something was taken back
  type: list
  elements: str
not_undone:
  description: Why it could not be taken back; a transaction may be left over.
  returned: when taking back failed
  type: str
unknown:
  description: The commands that were sent but not answered, so that nobody knows whether they
    count.
  returned: when HAProxy went away in the middle
  type: list
  elements: str
not_sent:
  description: The commands that were not sent any more.
  returned: when HAProxy refused a command, or went away
  type: list
  elements: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.clearproxy.haproxy.plugins.module_utils._argspec import (
    clients_from,
    socket_spec,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._certificate import CertificateJob
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error, InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import failure, run


def argument_spec() -> dict[str, t.Any]:
    return {
        **socket_spec(),
        "name": {"type": "str", "required": True},
        "kind": {
            "type": "str",
            "choices": ["certificate", "ca_file", "crl_file"],
            "default": "certificate",
        },
        "content": {"type": "str", "no_log": True},
        "path": {"type": "list", "elements": "path"},
        "state": {
            "type": "str",
            "choices": ["present", "absent", "unlisted"],
            "default": "present",
        },
        "crt_list": {"type": "str"},
        "crt_list_options": {"type": "str"},
        "sni": {"type": "list", "elements": "str"},
        "force": {"type": "bool", "default": False},
    }


def pem_text(params: dict[str, t.Any]) -> str | None:
    """What option content says, or the files of option path hold."""
    if params["path"] is None:
        return t.cast("str | None", params["content"])
    texts = []
    for path in params["path"]:
        if "-----BEGIN" in path:
            raise InputError("path: is PEM text, not the name of a file; use content for text")
        try:
            with open(path, encoding="ascii", errors="replace") as file:
                texts.append(file.read())
        except (OSError, ValueError) as exc:
            problem = getattr(exc, "strerror", None) or exc
            raise InputError(f"path {path!r}: cannot be read ({problem})") from None
    return "\n".join(texts)


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    # PEM text in the wrong option would be shown with the module's arguments.
    named = (module.params["name"], *(module.params["path"] or ()))
    module.no_log_values.update(text for text in named if "-----BEGIN" in text)
    try:
        job = CertificateJob.from_params(module.params, pem_text(module.params))
        module.no_log_values.update(line for line in job.secrets if len(line) > 16)
        with clients_from(module.params) as clients:
            outcome = run(clients, job, check=module.check_mode)
    except Error as exc:
        module.fail_json(**failure(exc))
    for row in outcome.result["files"]:
        if row["kind"] == "certificate" and row["exists"] and row["used"] is False:
            module.warn(
                f"HAProxy at {row['socket']} has {row['name']!r}, but no bind line and no crt-list "
                "uses it, so no client gets it"
            )
    module.exit_json(**outcome.as_dict())


if __name__ == "__main__":
    main()
