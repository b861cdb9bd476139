# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A made-up fleet with known trouble, as large as wanted: what its hosts' variables would hold for a report."""

from __future__ import annotations

import random
import typing as t

SLOW = "host0007"
LOST = "host0011"
UNREADY = "host0013"
DRIFTED = "host0005"
OTHER_TABLE = "host0003"
OVERLOADED = "host0017"
BROKEN_DOMAIN = "host0019"
PENDING_DOMAIN = "host0002"

_KERNELS = [
    ("6.1.0-50-cloud-amd64", "1f" * 20),
    ("6.12.107+deb13-cloud-amd64", "2e" * 20),
    ("7.2.3+deb14-cloud-amd64", "3d" * 20),
]
_PARAMETERS = [("kvm", "halt_poll_ns", 200000), ("kvm_amd", "nested", True), ("zswap", "compressor", "lzo")]
_REASONS = {"hlt": 4000, "npf": 900, "io": 350, "msr": 210, "intr": 90}


def _buckets(rng: random.Random, centre: int) -> list[list[int]]:
    rows = []
    for power in range(max(centre - 3, 0), centre + 4):
        count = int(20000 / 4 ** abs(power - centre) * rng.uniform(0.7, 1.3))
        rows.append([1 << power, 2 << power, count])
    return rows


def _trace(rng: random.Random, name: str, release: str) -> list[dict[str, t.Any]]:
    latency = _buckets(rng, 10 if name == SLOW else 3)
    hits = sum(count for _low, _high, count in latency)
    probes = {"armed": 2, "asked": 2}
    run = {"outcome": "ok", "reason": "2 of 2 probes armed", "probes": probes, "hits": hits, "skipped": 0}
    run |= {"bytes": 812, "kernel": release}
    if name == OVERLOADED:
        run |= {"outcome": "overloaded", "reason": "the probes took more than 10 % of a CPU"}
    exits = [
        {"kind": "count", "key": key, "count": int(count * rng.uniform(0.8, 1.2))} for key, count in _REASONS.items()
    ]
    histogram = {"kind": "histogram", "key": "hrtimer_start_range_ns", "unit": "us", "count": hits, "buckets": latency}
    values = [int(rng.uniform(800, 1200)) for _step in range(9)]
    if name == SLOW:
        values[4] *= 9
    series = {"kind": "series", "key": "vfs_read", "unit": "calls", "step_ms": 1000, "values": values}
    return [
        {"title": "hrtimer_start_range_ns", "run": run | {"records": [histogram]}},
        {"title": "vfs_read over time", "run": run | {"records": [series | {"count": sum(values) + 7}]}},
        {"title": "kvm_exits demo-talker", "run": run | {"records": exits}},
    ]


def _domains(name: str, number: int) -> list[dict[str, t.Any]]:
    rows: list[dict[str, t.Any]] = [
        {"name": f"guest{index}", "state": "running", "changed": False, "pending": [], "error": None}
        for index in range(number)
    ]
    if name == PENDING_DOMAIN:
        rows[0]["pending"] = [{"what": "memory", "running": "1 GiB", "stored": "2 GiB", "reason": "restart"}]
    if name == BROKEN_DOMAIN:
        rows[1] |= {
            "state": "crashed",
            "error": {"option": None, "problem": "Disk <vda> of domain 'guest1' does not exist."},
        }
    return rows


def _host(rng: random.Random, name: str, domains: int) -> dict[str, t.Any]:
    if name == LOST:
        return {"fleet_report_facts": {"unreachable": True, "msg": "Connection timed out"}}
    release, build_id = _KERNELS[rng.randrange(len(_KERNELS))] if name != OTHER_TABLE else _KERNELS[0]
    fingerprint = "0" * 16 if name == OTHER_TABLE else build_id[:16]
    kernel = {"release": release, "build_id": build_id, "arch": "x86_64", "symbols": {"core_fingerprint": fingerprint}}
    ready = {"verdict": "ready", "reason": f"kernel {release} can be traced, staprun 5.1", "remedy": None}
    if name == UNREADY:
        ready = {"verdict": "refused", "reason": "staprun is not installed", "remedy": "install systemtap-runtime"}
    params = [
        {"module": module, "name": key, "before": value, "after": value, "wanted": value, "pending": []}
        | {"changed": False, "verdict": "unchanged", "persisted_in": "/etc/modprobe.d/zz-tapvirt.conf"}
        for module, key, value in _PARAMETERS
    ]
    if name == DRIFTED:
        params[0] |= {"before": 0, "changed": True, "verdict": "changed"}
    probeable = release != _KERNELS[2][0]
    symbol = {"name": "vfs_read", "status": "found", "count": 1, "probeable": probeable, "matches": [], "variants": []}
    known = {
        "ansible_facts": {"tapvirt_kernel": kernel},
        "fleet_report_readiness": ready,
        "fleet_report_parameters": {"params": params},
        "fleet_report_symbols": {"symbols": [symbol]},
        "fleet_report_domains": {"domains": _domains(name, domains), "failed": name == BROKEN_DOMAIN},
    }
    if name != UNREADY:
        known["trace_runs"] = _trace(rng, name, release)
    return known


def fleet(number: int, domains: int = 3, seed: int = 1) -> dict[str, dict[str, t.Any]]:
    """Return host -> variables for so many hosts; from 20 on, the hosts above are among them."""
    rng = random.Random(seed)
    return {name: _host(rng, name, domains) for name in (f"host{index:04}" for index in range(number))}


def crowded(number: int) -> dict[str, dict[str, t.Any]]:
    """Return host -> variables of a fleet in which each section is as full as modules and scripts make it."""
    hosts = fleet(number, domains=10)
    for index, (name, known) in enumerate(hosts.items()):
        if name == LOST:
            continue
        known["fleet_report_parameters"] = {
            "planned": True,
            "params": [
                {"module": "kvm", "name": f"parameter_{column}", "before": index, "after": 7, "changed": column < 15}
                | {
                    "persisted_in": "/etc/modprobe.d/zz-tapvirt.conf",
                    "pending": ["its module is in use"] * (column < 15),
                }
                for column in range(40)
            ],
        }
        known["fleet_report_symbols"]["symbols"] = [
            {"name": f"kvm_function_{row}", "status": "found", "count": index % 2 + 1, "matches": [], "variants": []}
            for row in range(100)
        ]
        buckets = [[low, low + 1, (low * index) % 97] for low in range(500)]
        linear = {"kind": "histogram", "key": "depth", "unit": "requests", "count": 7, "buckets": buckets}
        values = [(step * index) % 89 for step in range(600)]
        series = {"kind": "series", "key": "vfs_read", "unit": "calls", "step_ms": 100, "values": values, "count": 7}
        known.setdefault("trace_runs", []).append(
            {"title": "All at once", "run": {"outcome": "ok", "records": [linear, series]}}
        )
        known["fleet_report_console"] = {"text": "a line of a console that says something\n" * 100}
    return hosts
