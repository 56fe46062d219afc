# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The two ends of a connection and a transparent relay, small enough to have no bugs of their own.

peer.py server PORT                    answers with the peer's address and the number of bytes received
peer.py relay PORT TARGET_PORT IPV4 IPV6    connects to the target from the client's own address
peer.py client ADDRESS PORT BYTES SECONDS   sends the bytes, prints the server's answer
peer.py announce INTERFACE ADDRESS…         says that the addresses are here now, as VRRP does
"""

from __future__ import annotations

import socket
import sys
import threading
import typing as t

TRANSPARENT = {
    socket.AF_INET: (socket.IPPROTO_IP, 19),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 75),
}


def listen(port: int, handle: t.Callable[[socket.socket, tuple[t.Any, ...]], None]) -> None:
    def accept(listener: socket.socket) -> None:
        while True:
            connection, peer = listener.accept()
            threading.Thread(target=guarded, args=(connection, peer), daemon=True).start()

    def guarded(connection: socket.socket, peer: tuple[t.Any, ...]) -> None:
        try:
            with connection:
                connection.settimeout(5)
                handle(connection, peer)
        except OSError as error:
            print(f"{peer[0]}: {error}", file=sys.stderr, flush=True)

    threads = []
    for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((any_address, port))
        listener.listen()
        threads.append(threading.Thread(target=accept, args=(listener,)))
    print("ready", flush=True)
    for thread in threads:
        thread.start()


def read_all(connection: socket.socket) -> bytes:
    received = bytearray()
    while True:
        data = connection.recv(65536)
        if not data:
            return bytes(received)
        received += data


def serve(port: int) -> None:
    def handle(connection: socket.socket, peer: tuple[t.Any, ...]) -> None:
        count = len(read_all(connection))
        connection.sendall(f"{peer[0]} {count}".encode())

    listen(port, handle)


def relay(port: int, target_port: int, targets: dict[int, str]) -> None:
    def handle(connection: socket.socket, peer: tuple[t.Any, ...]) -> None:
        request = read_all(connection)
        with socket.socket(connection.family, socket.SOCK_STREAM) as upstream:
            upstream.setsockopt(*TRANSPARENT[connection.family], 1)
            upstream.settimeout(5)
            upstream.bind((peer[0], 0))
            upstream.connect((targets[connection.family], target_port))
            upstream.sendall(request)
            upstream.shutdown(socket.SHUT_WR)
            connection.sendall(read_all(upstream))

    listen(port, handle)


def ask(address: str, port: int, count: int, seconds: float) -> None:
    with socket.create_connection((address, port), timeout=seconds) as connection:
        connection.sendall(b"x" * count)
        connection.shutdown(socket.SHUT_WR)
        print(read_all(connection).decode())


def announce(interface: str, *addresses: str) -> None:
    """Gratuitous ARP (RFC 5227), unsolicited neighbour advertisement (RFC 4861)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind((interface, 0))
        mac = link.getsockname()[4]
        for address in addresses:
            if ":" not in address:
                packed = socket.inet_aton(address)
                header = b"\xff" * 6 + mac + bytes.fromhex("0806 0001 0800 06 04 0001")
                link.send(header + mac + packed + b"\0" * 6 + packed)
                continue
            with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
                index = socket.if_nametoindex(interface)
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
                packed = socket.inet_pton(socket.AF_INET6, address)
                # Override; the target's link-layer address. The kernel fills the checksum in.
                message = bytes.fromhex("88 00 0000 20000000") + packed + b"\x02\x01" + mac
                raw.sendto(message, ("ff02::1", 0, 0, index))


def main(role: str, *arguments: str) -> None:
    if role == "server":
        serve(int(arguments[0]))
    elif role == "relay":
        targets = {int(socket.AF_INET): arguments[2], int(socket.AF_INET6): arguments[3]}
        relay(int(arguments[0]), int(arguments[1]), targets)
    elif role == "announce":
        announce(*arguments)
    else:
        ask(arguments[0], int(arguments[1]), int(arguments[2]), float(arguments[3]))


if __name__ == "__main__":
    main(*sys.argv[1:])
