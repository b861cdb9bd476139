# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages of the playbook trace: which hosts are ready, why it stops, what was traced. Private to the collection."""

from __future__ import annotations

import typing as t

from ...module_utils._core.errors import as_sentence
from .._format import by_reason, first_lines, listed, split_lines
from .campaign import FAILED_BEFORE_VERDICT

Row = t.Mapping[str, t.Any]
_LISTED = 20


def trace_unready_lines(hostvars: t.Mapping[str, Row], hosts: t.Sequence[str], answered: t.Sequence[str]) -> list[str]:
    """Return a line for each reason why hosts are not ready, how many are ready, and which hosts did not answer.

    :param hostvars: host -> its variables, with ``trace_not_ready_reason``, which is empty where the host is ready.
    :param hosts: all hosts of the play.
    :param answered: those that did not fail in it.
    """
    unready = {host: hostvars[host].get("trace_not_ready_reason") for host in answered}
    silent = _without(hosts, answered)
    return split_lines(
        [
            *by_reason({host: reason for host, reason in unready.items() if reason}),
            f"{sum(reason == '' for reason in unready.values())} of {len(hosts)} hosts are ready to be traced.",
            f"No answer from {listed(silent, _LISTED)}." if silent else "",
        ]
    )


def trace_stop_lines(hostvars: t.Mapping[str, Row], wave: t.Iterable[str], traceable: t.Iterable[str]) -> list[str]:
    """Return why no further wave begins, and which hosts are not traced.

    :param hostvars: host -> its variables: ``trace_result``, and ``trace_wave_hosts`` where its wave has begun.
    :param wave: the hosts of the last wave.
    :param traceable: all hosts that the campaign was to trace.
    """
    lines = [f"{host}: {reason}" for host in wave for reason in _stop_reasons(hostvars[host])]
    waiting = [host for host in traceable if "trace_wave_hosts" not in hostvars[host]]
    return split_lines(
        [*first_lines(lines), f"No further wave begins. Not traced: {listed(waiting, _LISTED) or 'none'}."]
    )


def _stop_reasons(variables: Row) -> t.Sequence[str]:
    if "trace_result" not in variables:
        return [FAILED_BEFORE_VERDICT]
    verdict = variables["trace_result"]
    return verdict["stop_reasons"] or ([] if verdict["accepted"] else [f"{verdict['outcome']}: {verdict['reason']}"])


def trace_summary_lines(campaign: Row, planned: bool = False, page: str = "") -> list[str]:
    """Return a campaign in lines: each host, what all of them recorded, and how many were traced.

    :param campaign: what :func:`.campaign.trace_summary` returned.
    :param planned: whether this is check mode.
    :param page: the path of the HTML page, if there is one.
    """
    lines = [f"{host}{_host_line(row)}" for host, row in campaign["hosts"].items()]
    lines += by_reason(campaign["left_out"], "not traced: ")
    lines += [f"{host}: {problem}" for host, problem in campaign["trouble"].items()]
    lines += [_histogram_line(plot) for plot in campaign["histograms"]]
    lines += [
        f"{_titled(plot['title'], key)}: counted {total} times"
        for plot in campaign["counters"]
        for key, total in plot["totals"].items()
    ]
    lines += [_wave_line(wave) for wave in campaign["waves"]]
    total = sum(campaign["outcomes"].values()) + campaign["left_out_count"]
    lines.append(f"{campaign['traced']} of {total} hosts were {'planned' if planned else 'traced'}.")
    if page and not planned:
        lines.append(f"The page: {page}")
    return split_lines(lines)


def _host_line(row: Row) -> str:
    kernel = f" ({row['kernel']})" if "kernel" in row else ""
    counts = "".join(f", {row[name]} {name}" for name in ("hits", "records") if name in row)
    text = f"{kernel}: {row['outcome']}{counts}"
    if row.get("records", 1) == 0 and row.get("bytes", 0) > 0:
        text += f" (it printed {row['bytes']} bytes of other text, which trace_output keeps)"
    if "reason" in row:
        text += f"; {row['reason']}"
    if row.get("hints"):
        text = as_sentence(text) + " " + " ".join(row["hints"])
    return f"{text}; stopped the campaign: {'; '.join(row['stop_reasons'])}" if "stop_reasons" in row else text


def _wave_line(wave: Row) -> str:
    return (
        f"{wave['hosts']} hosts were armed within {wave['spread_seconds']:.2f} s of each other, with an error of at"
        f" most {wave['uncertainty_seconds']:.2f} s; the last one {wave['late_seconds']:.2f} s after the start of the"
        " wave"
    )


def _histogram_line(plot: Row) -> str:
    unit, title = plot["unit"], _titled(plot["title"], plot["key"])
    values = f"{plot['count']} values, half of them below {plot['p50']} {unit}, 99 % below {plot['p99']} {unit}"
    outliers = f"; outliers: {', '.join(plot['outliers'])}" if plot["outliers"] else ""
    return f"{title}: {values}{outliers}"


def _titled(title: str, key: str) -> str:
    return title if key in title else f"{title}, {key}"


def trace_failure_lines(campaign: Row) -> list[str]:
    """Return a line for each reason why no host of a campaign was traced.

    :param campaign: what :func:`.campaign.trace_summary` returned.
    """
    reasons = {host: row.get("reason", row["outcome"]) for host, row in campaign["hosts"].items()}
    return by_reason({**reasons, **campaign["left_out"]})


def _without(hosts: t.Iterable[str], others: t.Iterable[str]) -> list[str]:
    excluded = set(others)
    return [host for host in hosts if host not in excluded]
