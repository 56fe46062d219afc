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
        A path, C(unix:///path), C(tcp://host:port) or C(tcp://[ipv6]:port).
      - One string is accepted for a list of one. Several sockets mean all of them. Every one is
        read and everything is checked on all of them before the first command is sent to any.
      - If not given, the first that exists of C(/run/haproxy/admin.sock), C(/run/haproxy.sock),
        C(/var/run/haproxy.sock), C(/var/lib/haproxy/stats) and C(/var/lib/haproxy/haproxy.sock).
      - The user who runs the module needs permission to write to the socket. Nothing protects a TCP
        socket but the network around it.
    type: list
    elements: str
  timeout:
    description:
      - Seconds that HAProxy has for accepting the connection, and then for each reply, in full.
      - Must be above 0.
    type: float
    default: 10.0
"""
