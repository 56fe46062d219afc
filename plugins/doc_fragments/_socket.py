# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The socket options that every module of the admin socket has. Private to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    # One to one with module_utils/_argspec.py.
    DOCUMENTATION = r"""
options:
  socket:
    description:
      - Where HAProxy's admin socket is, as written in a C(stats socket) line of its configuration.
        A path, C(unix:///path), C(tcp://host:port), C(tcp://[ipv6]:port), or C(tls://host:port)
        for a port that speaks TLS; see the notes.
      - C(master:///path) or C(master://host:port) is the socket of the master process, the one of
        HAProxy's command line option C(-S). The worker that is current when the task begins is
        talked to through it, until the task ends.
      - One string is accepted for a list of one. Several sockets mean all of them. Every one is
        read and everything is checked on all of them before the first command is sent to any.
      - If not given, the first that exists of C(/run/haproxy/admin.sock), C(/run/haproxy.sock),
        C(/var/run/haproxy.sock), C(/var/lib/haproxy/stats) and C(/var/lib/haproxy/haproxy.sock).
      - The user who runs the module needs permission to write to the socket. Nothing protects a TCP
        socket without TLS but the network around it.
    type: list
    elements: str
  timeout:
    description:
      - Seconds that HAProxy has for accepting the connection, and then for each reply, in full.
      - Must be above 0, and at most 86400, a day.
    type: float
    default: 10.0
  client_cert:
    description:
      - PEM file with the certificate that is shown to a C(tls://) socket whose C(bind) line says
        C(verify required). It may hold the key too.
    type: path
  client_key:
    description:
      - PEM file with the unencrypted private key of O(client_cert), if that file does not hold it.
    type: path
  ca_path:
    description:
      - PEM file, or directory with hashed names, of the authorities that a C(tls://) socket's
        certificate is checked against. If not given, those that the host trusts.
    type: path
  validate_certs:
    description:
      - Whether the certificate of a C(tls://) socket must come from a trusted authority and name
        the host or address in O(socket). Without it, anybody on the way can pose as HAProxy.
    type: bool
    default: true
notes:
  - HAProxy 2.6 and later (measured up to 3.4) ignore C(ssl) on a C(stats socket) line without a
    word, speak plain text and ask nobody for a certificate. R(The guide to the runtime
    API,ansible_collections.clearproxy.haproxy.docsite.guide_runtime_api) has the section that gives
    the socket TLS and client certificates.
"""
