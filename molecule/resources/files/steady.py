# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Ask the proxy again and again, in both families, until told to stop; then say how long it did not answer.

A child that owns the client's network namespace: ip netns exec client python3 steady.py
"""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time

FAMILIES = {"ipv4": ("10.99.1.2", "10.99.1.11"), "ipv6": ("fd00:99:1::2", "fd00:99:1::11")}
# More than one window of a first flight: an answer to the first packets alone is not enough.
BODY = b"x" * 20000
stop = threading.Event()
result: dict[str, dict[str, object]] = {}


def ask(proxy: str) -> str:
    connection = http.client.HTTPConnection(proxy, 80, timeout=3)
    try:
        connection.request("POST", "/", BODY)
        return connection.getresponse().read().decode().strip()
    finally:
        connection.close()


def run(family: str, proxy: str, client: str) -> None:
    answered, failures, others, longest = 0, [], set(), 0.0
    last = time.monotonic()
    while not stop.is_set():
        try:
            seen = ask(proxy)
        except (OSError, http.client.HTTPException) as exc:
            failures.append(str(exc))
            stop.wait(0.1)
            continue
        if seen == client:
            answered += 1
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        else:
            others.add(seen)
        stop.wait(0.05)
    result[family] = {
        "answered": answered,
        "failed": len(failures),
        "reasons": sorted(set(failures)),
        "seen": sorted(others),
        "longest": round(max(longest, time.monotonic() - last), 2),
    }


signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
threads = [threading.Thread(target=run, args=(family, *ends)) for family, ends in FAMILIES.items()]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(result))
