# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The result of the playbook preflight: causes, the hosts of each, and whether each job can be done.

Private to the collection.
"""

from __future__ import annotations

import json
import typing as t

from .._format import listed, shorten
from .judge import judge_builder, judge_host
from .model import JOBS, Job, Lack, Row
from .reads import builder_reads

_LISTED = 8
_MOST_MISSING = 25
_MOST_NOTES = 8
_LINE_CHARS = 1000
_KEPT_CAUSES = 60
_KEPT_HOSTS = 50
_KEPT_CHARS = 300
_ARTIFACT_BYTES = 90_000
_TITLES: t.Mapping[Job, str] = {"trace": "Trace", "parameters": "Parameters", "domains": "Domains"}
_NOT_ASKED: t.Mapping[Job, str] = {
    "trace": "no host of this run is in the group trace_hosts, or among trace_targets",
    "parameters": "no host has a table, such as module_params_wanted",
    "domains": "no host has a table, such as domains_wanted, or is in the group virt_hosts",
}
_NEXT: t.Mapping[Job, str] = {
    "trace": "ansible-playbook tapvirt.host.trace -e trace_function=vfs_read",
    "parameters": "ansible-playbook tapvirt.host.params --check --diff",
    "domains": "with domains_wanted set: ansible-playbook tapvirt.host.domains --check --diff",
}


def preflight_result(hostvars: t.Mapping[str, Row], asked: Row, builders: t.Iterable[Row]) -> dict[str, t.Any]:
    """Return what the hosts and builders lack, by cause.

    ``{"jobs": {job: {"asked": n, "ready": n, "can": bool}}, "builders": n, "causes": [cause]}``. A cause has ``jobs``,
    ``blocks``, ``reason``, ``fix`` and ``hosts`` (host -> what differs between hosts, or an empty text).

    :param hostvars: host -> its variables, with ``preflight_answer``.
    :param asked: what ``preflight_jobs`` returned.
    :param builders: what the action ``preflight_read`` returned in a loop over the builders.
    """
    answers = {row["item"]: row for row in builders}
    judged = {name: _judge_builder(answers.get(name), hostvars[name]) for name in asked["builders"]}
    usable = {name: facts for name, (_lacks, facts) in judged.items() if facts}
    found: list[tuple[str, Lack]] = []
    if asked["trace"]:
        found += [(name, _of_builder(lack, usable)) for name, (lacks, _facts) in judged.items() for lack in lacks]
    for host, jobs in asked["of_host"].items():
        own = hostvars[host]
        chosen, signs = own.get("trace_builder") or "", own.get("trace_sign") in (True, "true", "True", "yes")
        lacks = judge_host(own.get("preflight_answer"), jobs, builders=usable, chosen=chosen, signs=signs)
        found += [(host, lack) for lack in lacks]
    problems = [Lack(tuple(row["jobs"]), True, row["reason"], row["fix"]) for row in asked["problems"]]
    refused = {job for problem in problems for job in problem.jobs}
    if asked["trace"] and asked["builders"] and not usable:
        refused.add("trace")  # the builders' own causes are reported
    jobs = {job: _job(job, asked, found, job in refused) for job in JOBS}
    return {"jobs": jobs, "builders": len(usable), "causes": _causes([*((None, lack) for lack in problems), *found])}


def _judge_builder(answer: t.Any, variables: Row) -> tuple[list[Lack], Row | None]:
    return judge_builder(answer, builder_reads(variables.get("trace_builder_store") or "")["directories"][0])


def _of_builder(lack: Lack, usable: t.Collection[str]) -> Lack:
    """Return what a builder lacks: it forbids nothing while another builder can be used."""
    reason = f"as a builder: {lack.reason}"
    return Lack(lack.jobs, lack.blocks and not usable, reason, lack.fix, lack.detail)


def _job(job: Job, asked: Row, found: t.Iterable[tuple[str, Lack]], is_refused: bool) -> dict[str, t.Any]:
    blocked = {host for host, lack in found if lack.blocks and job in lack.jobs}
    hosts = asked[job]
    ready = 0 if is_refused else sum(host not in blocked for host in hosts)
    return {"asked": len(hosts), "ready": ready, "can": not is_refused and ready == len(hosts)}


def _causes(found: t.Iterable[tuple[str | None, Lack]]) -> list[dict[str, t.Any]]:
    """Return each cause once, those that forbid a job first, then those of most hosts."""
    causes: dict[tuple[bool, str, str], dict[str, t.Any]] = {}
    for host, lack in found:
        start = {"jobs": set(), "blocks": lack.blocks, "reason": lack.reason, "fix": lack.fix, "hosts": {}}
        row = causes.setdefault((lack.blocks, lack.reason, lack.fix), start)
        row["jobs"].update(lack.jobs)
        if host is not None:
            row["hosts"][host] = lack.detail
    rows = [{**row, "jobs": [job for job in JOBS if job in row["jobs"]]} for row in causes.values()]
    return sorted(rows, key=lambda row: (not row["blocks"], bool(row["hosts"]), -len(row["hosts"])))


def preflight_lines(result: Row, page: str = "") -> list[str]:
    """Return a result in lines for one screen: causes with their fix, then whether each job can be done.

    :param result: what :func:`preflight_result` returned.
    :param page: the path of the HTML page, if there is one.
    """
    lines = []
    for blocks, most, what in ((True, _MOST_MISSING, "causes"), (False, _MOST_NOTES, "notes")):
        rows = [row for row in result["causes"] if row["blocks"] == blocks]
        lines += [_cause_line(row) for row in rows[:most]]
        if len(rows) > most:
            lines.append(
                f"And {len(rows) - most} {what} more, which are not shown."
                " Set preflight_dest for a page with those of each host."
            )
    lines += [_job_line(job, result) for job in JOBS]
    return [*lines, *([f"The page: {page}"] if page else [])]


def _cause_line(row: Row) -> str:
    hosts = [f"{host} ({detail})" if detail else host for host, detail in row["hosts"].items()]
    text = f"{row['reason']}. Fix: {row['fix']}."
    if not hosts:
        return shorten(f"Missing in the inventory: {text}", _LINE_CHARS)
    what = "Missing" if row["blocks"] else "Note"
    count = "1 host" if len(hosts) == 1 else f"{len(hosts)} hosts"
    return shorten(f"{what} on {count}: {listed(hosts, _LISTED)}: {text}", _LINE_CHARS)


def _job_line(job: Job, result: Row) -> str:
    row, title = result["jobs"][job], _TITLES[job]
    if not row["asked"] and row["can"]:
        return f"{title}: not asked for: {_NOT_ASKED[job]}."
    builders = result["builders"]
    built = f", with {builders} builder{'' if builders == 1 else 's'}" if job == "trace" else ""
    count = f"{row['ready']} of {row['asked']} host{'' if row['asked'] == 1 else 's'}"
    if row["can"]:
        return f"{title}: can be done on {count}{built}. Next: {_NEXT[job]}"
    what = "can be done only on some hosts" if row["ready"] else "cannot be done"
    return f"{title}: {what}: {count} ready{built}."


def preflight_problem(result: Row) -> str:
    """Return why the run fails; empty where every job that the inventory asks for can be done."""
    refused = [_TITLES[job].lower() for job in JOBS if not result["jobs"][job]["can"]]
    if refused:
        return f"These jobs cannot be done on all of their hosts: {', '.join(refused)}. The causes are above."
    if any(row["blocks"] and not row["hosts"] for row in result["causes"]):
        return "The inventory asks for no job. The fix is above."
    return ""


def preflight_host(result: Row, host: str) -> dict[str, t.Any]:
    """Return the findings about one host, as a report reads them."""
    rows = [row for row in result["causes"] if host in row["hosts"]]
    return {
        "findings": [
            {"level": "bad" if row["blocks"] else "warn", "text": f"{row['reason']}. Fix: {row['fix']}."}
            for row in rows
        ]
    }


def preflight_artifact(result: Row) -> dict[str, t.Any]:
    """Return a result below 100 kB: the jobs, and the first causes with their first hosts."""
    causes = result["causes"]
    most = min(len(causes), _KEPT_CAUSES)
    while True:
        kept = {
            "jobs": result["jobs"],
            "builders": result["builders"],
            "causes": [_kept_cause(row) for row in causes[:most]],
            "causes_count": len(causes),
        }
        if not most or len(json.dumps(kept)) <= _ARTIFACT_BYTES:
            return kept
        most = most * 3 // 4


def _kept_cause(row: Row) -> dict[str, t.Any]:
    return {
        "jobs": row["jobs"],
        "blocks": row["blocks"],
        "reason": shorten(row["reason"], _KEPT_CHARS),
        "fix": shorten(row["fix"], _KEPT_CHARS),
        "hosts": list(row["hosts"])[:_KEPT_HOSTS],
        "hosts_count": len(row["hosts"]),
    }
