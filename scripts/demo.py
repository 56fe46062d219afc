# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The measuring half of scripts/demo: asks the finished lab and shows the answers as tables and as a page."""

from __future__ import annotations

import html
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "molecule" / "resources"))

from lab import (
    BY_SESSION,
    BY_SOURCE,
    CLIENT,
    NOT_TRANSPARENT,
    REPO,
    SERVERS,
    SPREAD,
    WWW,
    Lab,
    Loader,
    page,
    url,
)

Table = list[list[str]]
LOADS = {"with": 1000, "without": 500}
RATE = 20


def step(text: str) -> None:
    print(f"\n\033[1m==> {text}\033[0m", flush=True)


def show(table: Table) -> Table:
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    for n, row in enumerate(table):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if n == 0:
            print("  " + "  ".join("-" * width for width in widths))
    sys.stdout.flush()
    return table


def addresses(lab: Lab) -> Table:
    """Whom each server saw, with transparency on and off, from the servers' own log."""
    rows = [["server", "client's address", "seen with transparency", "seen without"]]
    for family, client in CLIENT.items():
        seen: dict[tuple[str, int], str] = {}
        for port in (SPREAD, NOT_TRANSPARENT):
            marker = f"/index.php?demo-{time.time_ns()}"
            for _attempt in range(6):
                server = page(lab.get(url(family, port, marker)))["server_name"]
                line = lab.run(
                    server, f"grep -F '{marker}' /var/log/nginx/application.log | tail -n 1"
                )
                seen[server, port] = line.split()[0]
        for server in SERVERS:
            rows.append([server, client, seen[server, SPREAD], seen[server, NOT_TRANSPARENT]])
    return rows


def requests_of_one_client(lab: Lab, port: int) -> tuple[list[str], list[str]]:
    """The servers that ten requests of one client went to, and ten more after it dropped its cookies."""
    halves = []
    for _attempt in range(2):
        lab.run("client", "rm -f /tmp/demo.jar")
        halves.append(
            [
                page(
                    lab.get(url("ipv4", port, "/session.php"), "-c /tmp/demo.jar -b /tmp/demo.jar")
                )["server_name"]
                for _attempt in range(10)
            ]
        )
    return halves[0], halves[1]


def affinity(lab: Lab) -> Table:
    methods = {
        "source": BY_SOURCE,
        "cookie": WWW,
        "app_session": BY_SESSION,
        "none": SPREAD,
    }
    explained = {
        "source": "the address decides: dropped cookies change nothing",
        "cookie": "HAProxy's cookie decides: without it, a new choice",
        "app_session": "the application's session decides: a new session, a new choice",
        "none": "nothing is remembered (the control)",
    }
    rows = [["persistence", "ten requests of one client", "after its cookies are dropped", "why"]]
    for method, port in methods.items():
        first, second = requests_of_one_client(lab, port)
        rows.append([method, summary(first), summary(second), explained[method]])
    return rows


def summary(servers: list[str]) -> str:
    return ", ".join(f"{servers.count(name)} × {name}" for name in sorted(set(servers)))


ASK = [
    {
        "hosts": "haproxy_proxies",
        "gather_facts": False,
        "tasks": [{"name": "Ask", "clearproxy.haproxy.tproxy_info": {"probe": {}}}],
    }
]
REPAIR = [
    {
        "hosts": "haproxy_proxies",
        "tasks": [{"ansible.builtin.include_role": {"name": "clearproxy.haproxy.tproxy_host"}}],
    }
]
BREAK = "ip rule del priority 101"


def diagnosis(lab: Lab) -> Table:
    """What tproxy_info says of the proxy: as it is, when somebody has removed one rule, and after a run."""
    rows = [["the proxy", "failed checks", "the first of them", "a client is"]]

    def ask(when: str) -> None:
        said = dict(lab.results(ASK)["proxy"])["Ask"]
        failed = [check for check in said["checks"] if check["status"] == "failed"]
        first = f"{failed[0]['subject']}: {failed[0]['observed']}" if failed else "-"
        peer = page(lab.get(url("ipv4", SPREAD))).get("peer")
        served = f"served, and seen as {peer}" if peer else "not served"
        rows.append([when, ", ".join(said["failed_checks"]) or "none", first, served])

    ask("as it is")
    lab.run("proxy", BREAK)
    ask(f"after `{BREAK}`")
    run = lab.play(REPAIR)
    if run.code:
        sys.exit(run.output)
    ask("after a run of tproxy_host")
    return rows


def load(lab: Lab, count: int, playbook: str, *arguments: str) -> dict[str, Any]:
    """Requests at a steady rate while the playbook runs; the load generator's count of every one."""
    loader = Loader(SPREAD, "/index.php?ms=100", f"--count={count}", f"--rate={RATE}")
    time.sleep(1)
    begin = time.time()
    run = lab.play(playbook, *arguments)
    end = time.time()
    print(
        f"  the playbook took {end - begin:.0f} s; the load goes on to its last request …",
        flush=True,
    )
    result = loader.result()
    if run.code:
        sys.exit(run.output)
    return dict(result, begin=begin, end=end)


def rolling_updates(lab: Lab) -> dict[str, dict[str, Any]]:
    tasks = REPO / "molecule/resources/tasks/stop_for_three_seconds.yml"
    print(
        f"  {LOADS['with']} requests, {RATE} a second; each server is taken out of service, really stopped for 3 s, put back",
        flush=True,
    )
    drained = load(
        lab,
        LOADS["with"],
        "clearproxy.haproxy.rolling_update",
        "-e",
        json.dumps({"rolling_update_tasks": str(tasks)}),
    )
    print(
        f"  {LOADS['without']} requests, the same work on the servers, and HAProxy is not told",
        flush=True,
    )
    undrained = load(
        lab, LOADS["without"], str(REPO / "molecule/resources/update_without_drain.yml")
    )
    return {"rolling_update": drained, "HAProxy not told": undrained}


def counted(updates: dict[str, dict[str, Any]]) -> Table:
    rows = [["update", "sent", "answered", "failed", "reasons", *SERVERS, "slowest"]]
    for name, result in updates.items():
        reasons = (
            ", ".join(f"{count} × {reason}" for reason, count in result["reasons"].items()) or "-"
        )
        rows.append(
            [name, str(result["sent"]), str(result["answered"]), str(result["failed"]), reasons]
            + [str(result["servers"].get(server, 0)) for server in SERVERS]
            + [f"{result['slowest']:.1f} s"]
        )
    return rows


def timeline(result: dict[str, Any]) -> str:
    """One dot a request: its time across, its server (or failure) down."""
    lanes = [*SERVERS, "failed"]
    colours = ["#2a6f97", "#e09f3e", "#c1121f"]
    begin = min(r["at"] for r in result["requests"])
    span = max(r["at"] for r in result["requests"]) - begin
    dots = []
    for request in result["requests"]:
        lane = lanes.index(request["server"]) if request.get("status") == 200 else 2
        x = 90 + 880 * (request["at"] - begin) / span
        y = 25 + 45 * lane + 8 * (hash(request["at"]) % 3 - 1)
        dots.append(f'<circle cx="{x:.1f}" cy="{y}" r="2" fill="{colours[lane]}"/>')
    labels = "".join(
        f'<text x="0" y="{29 + 45 * n}" font-size="14">{html.escape(lane)}</text>'
        for n, lane in enumerate(lanes)
    )
    ticks = "".join(
        f'<text x="{90 + 880 * s / span:.0f}" y="160" font-size="11" text-anchor="middle">{s} s</text>'
        for s in range(0, int(span) + 1, 5)
    )
    return f'<svg viewBox="0 0 1000 170" width="100%">{labels}{ticks}{"".join(dots)}</svg>'


def html_table(table: Table) -> str:
    head, *rows = [[html.escape(cell) for cell in row] for row in table]
    body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows)
    return f"<table><tr><th>{'</th><th>'.join(head)}</th></tr>{body}</table>"


def main(report: Path) -> None:
    lab = Lab()
    step("4/7  Whom did the servers see? (from the application's own log)")
    seen = show(addresses(lab))
    step("5/7  Where did a client's requests go?")
    went = show(affinity(lab))
    step("6/7  Why is it not transparent? What tproxy_info says")
    named = show(diagnosis(lab))
    step("7/7  A rolling update under load, every request counted")
    updates = rolling_updates(lab)
    counts = show(counted(updates))

    plots = "".join(
        f"<h3>{html.escape(name)}</h3>{timeline(result)}" for name, result in updates.items()
    )
    report.write_text(
        "<!doctype html><meta charset='utf-8'><title>clearproxy.haproxy: what this run measured</title>"
        "<style>body{font:16px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.3em .7em;text-align:left}</style>"
        f"<h1>What this run measured</h1><p>{time.strftime('%Y-%m-%d %H:%M %Z')}</p>"
        f"<h2>Whom the servers saw</h2>{html_table(seen)}"
        f"<h2>Where a client's requests went</h2>{html_table(went)}"
        f"<h2>What tproxy_info says</h2>{html_table(named)}"
        f"<h2>Rolling update under load</h2>{html_table(counts)}"
        f"<p>One dot a request. A gap in a server's row is the time it was out of service.</p>{plots}"
    )
    print(f"\nThe same with the requests plotted over time: {report}")
    print("The lab stays up: scripts/in-lab podman ps. Remove it: scripts/demo --destroy")

    wrong = shortcomings(seen, went, named, updates)
    if wrong:
        sys.exit("This is not what it should be:\n" + "\n".join(f"- {text}" for text in wrong))


def shortcomings(
    seen: Table, went: Table, named: Table, updates: dict[str, dict[str, Any]]
) -> list[str]:
    """What the measurements do not show that they should."""
    wrong = []
    for server, client, transparent, plain in seen[1:]:
        if client != transparent:
            wrong.append(f"{server} saw {transparent} instead of {client}")
        if client == plain:
            wrong.append(f"{server} saw the client's address without transparency too")
    for method, first, _second, _why in went[1:]:
        if (method == "none") == (", " not in first):
            wrong.append(f"with persistence {method} ten requests went to {first}")
    checks = [row[1] for row in named[1:]]
    if checks != ["none", "ip_rule, probe", "none"]:
        wrong.append(f"tproxy_info named these checks: {'; '.join(checks)}")
    told, untold = updates.values()
    if told["failed"]:
        wrong.append(f"the rolling update lost {told['failed']} requests")
    if told["end"] >= max(request["at"] for request in told["requests"]):
        wrong.append("the load ended before the rolling update did")
    if not untold["failed"]:
        wrong.append(
            "the update that HAProxy was not told of lost no request: the load shows nothing"
        )
    return wrong


if __name__ == "__main__":
    main(Path(sys.argv[1]))
