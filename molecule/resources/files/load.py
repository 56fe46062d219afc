# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Requests at a fixed rate, every one counted, none retried.

The clock, not the server, decides when a request starts, so a stalled server cannot hide lost requests.
Half of the requests open a connection of their own, half go over connections that are kept alive.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import http.client
import json
import queue
import socket
import time


class Load:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.kept: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()
        for n in range(options.kept_connections):
            self.kept.put(self.connection(n))

    def connection(self, n: int) -> http.client.HTTPConnection:
        source = self.options.sources[n % len(self.options.sources)] if self.options.sources else ""
        return http.client.HTTPConnection(
            self.options.host,
            self.options.port,
            timeout=self.options.timeout,
            source_address=(source, 0) if source else None,
        )

    def one(self, n: int, due: float) -> dict[str, object]:
        time.sleep(max(0.0, due - time.monotonic()))
        keep = n % 2 == 1 and self.options.kept_connections > 0
        connection = self.kept.get() if keep else self.connection(n)
        begin = time.monotonic()
        result: dict[str, object] = {"at": round(time.time(), 3), "kept": keep}
        try:
            headers = dict(self.options.headers, **({} if keep else {"Connection": "close"}))
            connection.request("GET", self.options.path, headers=headers)
            response = connection.getresponse()
            body = response.read().decode("utf-8", "replace")
            result["status"] = response.status
            result["server"] = body.split()[0] if self.options.path == "/plain" else name_in(body)
        except (OSError, http.client.HTTPException) as error:
            result["error"] = type(error).__name__
        finally:
            result["seconds"] = round(time.monotonic() - begin, 3)
            if "error" in result or not keep:
                connection.close()
            if keep:
                self.kept.put(self.connection(n) if "error" in result else connection)
        return result

    def run(self) -> dict[str, object]:
        begin = time.monotonic() + 0.2
        with concurrent.futures.ThreadPoolExecutor(self.options.workers) as pool:
            futures = [
                pool.submit(self.one, n, begin + n / self.options.rate)
                for n in range(self.options.count)
            ]
            requests = [future.result() for future in futures]
        failed = [r for r in requests if r.get("status") != 200]
        return {
            "sent": len(requests),
            "answered": len(requests) - len(failed),
            "failed": len(failed),
            "reasons": collections.Counter(str(r.get("status", r.get("error"))) for r in failed),
            "servers": collections.Counter(str(r["server"]) for r in requests if r.get("server")),
            "slowest": max((r["seconds"] for r in requests), default=0),  # type: ignore[type-var]
            "requests": requests,
        }


def name_in(body: str) -> str:
    return next(
        (line.split(": ", 1)[1] for line in body.splitlines() if line.startswith("server_name: ")),
        "",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for one request")
    parser.add_argument("--workers", type=int, default=128)
    parser.add_argument("--kept-connections", type=int, default=32)
    parser.add_argument("--sources", type=lambda text: text.split(","), default=[])
    parser.add_argument(
        "--header",
        dest="headers",
        action="append",
        default=[],
        type=lambda text: text.split(": ", 1),
    )
    options = parser.parse_args()
    socket.setdefaulttimeout(options.timeout)
    print(json.dumps(Load(options).run()))


if __name__ == "__main__":
    main()
