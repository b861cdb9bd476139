# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Summaries of the playbooks gather, report and console_logs: their artifacts and the lines that they print.

An artifact of a job is copied into each job of a workflow, so it has all counts, but only the first names.

Private to the collection.
"""

from __future__ import annotations

import json
import typing as t

from .._format import listed, shorten
from .._transport.edge import COUNT, LARGEST

Row = t.Mapping[str, t.Any]
_KERNEL_FACTS = ("release", "version", "build_id", "version_code")
_SHOWN_ROWS = 40
_SHOWN_GROUPS = 4
_SHOWN_HOSTS = 5
_SHOWN_VALUE = 60
_BUILD_ID_CHARS = 12
_MOST_DIGITS = 20
# What libvirt_console returns of a console that was read.
_READ = {"text", "bytes", "matched"}
_UNANSWERED = "no answer, or its domains could not be listed or their consoles not be kept"


def gather_summary(
    kernels: t.Sequence[Row], drift: t.Sequence[Row] | None, hosts: t.Sequence[str], answered: t.Sequence[str]
) -> dict[str, t.Any]:
    """Return how many hosts answered, the kernels that they run, and the facts that differ.

    :param kernels: what ``group_hosts_by`` returned for the release and the build-id.
    :param drift: what ``fact_diff`` returned; None where the facts were not compared.
    :param hosts: all hosts of the play.
    :param answered: those that did not fail in it.
    """
    known = set(answered)
    silent = [host for host in hosts if host not in known]
    counted = [{**row["value"], "count": len(row["hosts"]), "hosts": list(row["hosts"][:3])} for row in kernels]
    facts = (
        None
        if drift is None
        else [{"fact": shorten(row["fact"], 100, ".."), "values": len(row["groups"])} for row in drift]
    )
    return {
        "hosts": len(answered),
        "no_answer": silent[:50],
        "no_answer_count": len(silent),
        "kernels": sorted(counted, key=lambda row: row["count"], reverse=True)[:50],
        "kernels_count": len(kernels),
        "drift": None if facts is None else facts[:100],
        "drift_count": None if facts is None else len(facts),
    }


def gather_lines(kernels: t.Sequence[Row], drift: t.Sequence[Row], hosts_count: int, directory: str) -> list[str]:
    """Return a line for each kernel with its hosts, a line for each fact that differs, and how many differ.

    :param kernels: what ``group_hosts_by`` returned for the release, the version and the build-id.
    :param drift: what ``fact_diff`` returned.
    :param hosts_count: how many hosts were compared.
    :param directory: where ``drift.json`` is.
    """
    lines = [_kernel_line(row) for row in kernels[:_SHOWN_ROWS]]
    if len(kernels) > _SHOWN_ROWS:
        lines.append(f"And {len(kernels) - _SHOWN_ROWS} kernels more, which are not shown.")
    lines += [_drift_line(row) for row in drift[:_SHOWN_ROWS] if row["fact"] not in _KERNEL_FACTS]
    looked_at = f", of which the first {_SHOWN_ROWS} are shown here" if len(drift) > _SHOWN_ROWS else ""
    lines.append(
        f"{len(drift)} facts differ between {hosts_count} hosts{looked_at}; all are in {directory}/drift.json."
    )
    return lines


def _kernel_line(row: Row) -> str:
    build_id = row["value"].get("build_id")
    shown = str(build_id)[:_BUILD_ID_CHARS] if build_id else "not visible"
    hosts = row["hosts"]
    return f"{len(hosts)} x {row['value']['release']} (build-id {shown}): {listed(hosts, _SHOWN_HOSTS)}"


def _drift_line(row: Row) -> str:
    groups = [
        f"{_fact_value(group)} on {listed(group['hosts'], _SHOWN_HOSTS)}" for group in row["groups"][:_SHOWN_GROUPS]
    ]
    more = len(row["groups"]) - _SHOWN_GROUPS
    return f"{row['fact']} differs: {'; '.join(groups)}{f'; and {more} other values' if more > 0 else ''}"


def _fact_value(group: Row) -> str:
    if not group["present"]:
        return "absent"
    text = json.dumps(group["value"])
    if len(text) <= _SHOWN_VALUE:
        return text
    return text[: _SHOWN_VALUE - 3].rsplit(" ", 1)[0] + "..."


def report_summary(report: Row) -> dict[str, t.Any]:
    """Return the numbers of a page's head and its first findings.

    :param report: what ``fleet_report`` returned.
    """
    findings = [
        {"level": row["level"], "text": shorten(row["text"], 300, ".."), "hosts_count": len(row["hosts"])}
        for row in report["findings"][:50]
    ]
    return {
        "numbers": [f"{tile['value']} {tile['label']}" for tile in report["tiles"]],
        "findings": findings,
        "findings_count": len(report["findings"]),
    }


def console_logs_summary(hostvars: t.Mapping[str, Row], hosts: t.Sequence[str]) -> dict[str, t.Any]:
    """Return how many consoles of all hosts were read, and the first hosts with others, each with the reason.

    :param hostvars: host -> its variables, with ``console_logs_counts`` where its consoles were read.
    :param hosts: all hosts of the play.
    """
    of = {host: hostvars[host].get("console_logs_counts") for host in hosts}
    counts = [row for row in of.values() if row is not None]
    failed = {host: _UNANSWERED if row is None else shorten(row["failed"], 300) for host, row in of.items()}
    failed = {host: reason for host, reason in sorted(failed.items(), key=lambda item: item[0].lower()) if reason}
    return {
        "hosts": len(hosts),
        **{name: sum(row[name] for row in counts) for name in ("read", "bytes", "matched", "truncated")},
        "failed": dict(list(failed.items())[:100]),
        "failed_count": len(failed),
    }


def console_logs_counts(results: t.Iterable[t.Any], truncated: t.Any) -> dict[str, t.Any]:
    """Return how many consoles of a host were read, matched and cut, how many bytes, and the first failure.

    :param results: what ``async_status`` returned for each console; a host may return anything.
    :param truncated: what ``libvirt_domain_info`` returned with the domains.
    """
    rows = [row if isinstance(row, t.Mapping) else {} for row in results]
    texts = [row for row in rows if row.keys() >= _READ]
    failed = [row["msg"] for row in rows if "msg" in row]
    failed += ["no answer" for row in rows if "msg" not in row and not row.keys() >= _READ]
    return {
        "read": sum("msg" not in row for row in texts),
        "bytes": sum(_whole(row.get("bytes")) for row in texts),
        "matched": sum(row.get("matched") is True for row in texts),
        "truncated": truncated is True,
        "failed": str(failed[0]) if failed else "",
    }


def _whole(value: t.Any) -> int:
    """Return a count that a host returned as a number or as digits; 0 for anything else."""
    if isinstance(value, str) and len(value) < _MOST_DIGITS and value.isdecimal():
        return int(value)
    return value if COUNT.fits(value) and value < LARGEST else 0
