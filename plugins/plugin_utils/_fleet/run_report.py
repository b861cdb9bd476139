# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report and the artifact of a run of the playbooks params and domains. Private to the collection.

Both have the same plays. Each host keeps facts of its part, whose names begin with the name of the playbook:
``_before`` and ``_after`` (the result of the role), ``_started`` (it was this host's turn) and ``_failed`` (why it
failed). The role keeps how many entries the tables of the host have, as ``module_params_count`` or ``domains_count``.
"""

from __future__ import annotations

import dataclasses
import functools
import typing as t

from .._format import first_lines, listed, shorten, split_lines
from .._transport.edge import ANY, TEXT, Need, Odd, parse
from .domain_drift import shown_value

Playbook: t.TypeAlias = t.Literal["params", "domains"]
HostVars: t.TypeAlias = t.Mapping[str, t.Mapping[str, t.Any]]
Result: t.TypeAlias = t.Mapping[str, t.Any]

# An artifact of a job should have some ten kB: AWX copies it into every job of a workflow.
_KEPT_HOSTS = 150
_KEPT_FAILURES = 30
_KEPT_FAILURE_CHARS = 300
_NAMED_HOSTS = 20
_LINE_CHARS = 1000


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Differences between the playbooks: the variable with the count of entries, and how to read a result."""

    count: str
    shape: t.Any
    lines: t.Callable[[Result], list[str]]
    differences: t.Callable[[Result], t.Any]


def _param_lines(result: Result) -> list[str]:
    absent = result.get("absent")
    return [*(result.get("differs") or ()), *([f"has no {', '.join(absent)}"] if absent else ())]


def _domain_lines(result: Result) -> list[str]:
    plan = (
        f"{row['what']} is {shown_value(row.get('before'))}, wanted {shown_value(row.get('after'))}"
        for row in result.get("plan") or ()
    )
    return [*plan, *(result.get("pending") or ())]


def _param_differences(result: Result) -> int:
    return len(result.get("differs") or ())


def _domain_differences(result: Result) -> dict[str, int]:
    return {"changes": len(result.get("plan") or ()), "pending": len(result.get("pending") or ())}


_ROW = {"what": Need(TEXT), "before": ANY, "after": ANY}
_KINDS: dict[Playbook, _Kind] = {
    "params": _Kind(
        count="module_params_count",
        shape=Need({"wanted": ANY, "differs": [TEXT], "absent": [TEXT]}),
        lines=_param_lines,
        differences=_param_differences,
    ),
    "domains": _Kind(
        count="domains_count",
        shape=Need({"wanted": ANY, "plan": [_ROW], "pending": [TEXT]}),
        lines=_domain_lines,
        differences=_domain_differences,
    ),
}


@dataclasses.dataclass(frozen=True)
class _Host:
    """A host's part of the run, read from its variables once."""

    name: str
    variables: t.Mapping[str, t.Any]
    playbook: Playbook

    def result(self, when: str) -> Result | None:
        """Return the role's result ``before`` or ``after`` the change; None if the host was not compared."""
        value = self._fact(when)
        try:
            return None if value is None else t.cast("Result", parse(value, _KINDS[self.playbook].shape))
        except Odd:  # a fact of this name that the host itself returned
            return None

    @functools.cached_property
    def failure(self) -> str | None:
        """Return the reason why the host failed; None if it did not."""
        value = self._fact("failed")
        return None if value is None else str(value).encode(errors="backslashreplace").decode()

    @functools.cached_property
    def is_started(self) -> bool:
        """Return whether the run began to change this host."""
        return self._fact("started") is not None

    @property
    def is_without_table(self) -> bool:
        """Return whether the host's tables have no entry."""
        return _is_zero(self.variables.get(_KINDS[self.playbook].count))

    def _fact(self, name: str) -> t.Any:
        return self.variables.get(f"{self.playbook}_{name}")


def run_report(playbook: Playbook, hosts: t.Sequence[str], hostvars: HostVars, *, when: str) -> list[str]:
    """Return lines for people: who failed and was not reached, what differs where, and how many hosts are as wanted.

    :param hosts: all hosts of the play, in the order of the inventory.
    :param when: ``before`` or ``after`` the hosts were changed.
    """
    kind, run = _KINDS[playbook], _read(playbook, hosts, hostvars)
    results = {host.name: result for host in run if (result := host.result(when)) is not None}
    without = [host for host, result in results.items() if _is_zero(result.get("wanted"))]
    same = sum(1 for host, result in results.items() if host not in without and not _total(kind, result))
    lines = [f"{host}: {line}" for host, result in results.items() for line in kind.lines(result)]
    summary = f"{same} of {len(run) - len(without)} hosts are as wanted."
    return split_lines([*_trouble_lines(run), *first_lines(lines), *_named("Without a table", without), summary])


def run_artifact(playbook: Playbook, hosts: t.Sequence[str], hostvars: HostVars) -> dict[str, t.Any]:
    """Return the artifact: how much differed on which hosts before and after the run, and who failed or was left out.

    ``{hosts, before: {host: differences}, before_count, after, after_count}``, and where they are not empty
    ``without_table_count``, ``failed: {host: reason}``, ``failed_count``, ``not_reached: [host]`` and
    ``not_reached_count``. The hosts that differ most come first; at most 150 are named. ``differences`` is a number of
    parameters, or ``{changes, pending}`` of domains.
    """
    kind, run = _KINDS[playbook], _read(playbook, hosts, hostvars)
    kept: dict[str, t.Any] = {"hosts": len(run)}
    is_started = any(host.is_started for host in run)
    for when in ("before", "after"):
        # A run that changed no host leaves all of them as they were.
        results = ((host.name, host.result(when if is_started else "before")) for host in run)
        differing = [(name, result) for name, result in results if result is not None and _total(kind, result)]
        differing.sort(key=lambda row: _total(kind, row[1]), reverse=True)
        kept[when] = {name: kind.differences(result) for name, result in differing[:_KEPT_HOSTS]}
        kept[f"{when}_count"] = len(differing)
    without = sum(1 for host in run if host.is_without_table)
    return {**kept, **({"without_table_count": without} if without else {}), **_kept_trouble(run)}


def _read(playbook: Playbook, hosts: t.Sequence[str], hostvars: HostVars) -> list[_Host]:
    return [_Host(name, hostvars[name], playbook) for name in hosts]


def _total(kind: _Kind, result: Result) -> int:
    found = kind.differences(result)
    return t.cast("int", sum(found.values()) if isinstance(found, dict) else found)


def _is_zero(value: t.Any) -> bool:
    """Return whether a count is 0, which is a text before ansible-core 2.19."""
    return not isinstance(value, bool) and value in (0, "0")


def _not_reached(run: t.Sequence[_Host]) -> list[str]:
    waiting = [host.name for host in run if not host.is_started]
    return waiting if len(waiting) < len(run) else []


def _trouble_lines(run: t.Sequence[_Host]) -> list[str]:
    failures = [f"{host.name}: {_one_line(host.failure)}" for host in run if host.failure is not None]
    lines = [shorten(line, _LINE_CHARS) for line in failures[:_KEPT_FAILURES]]
    if len(failures) > _KEPT_FAILURES:
        lines.append(f"And {len(failures) - _KEPT_FAILURES} hosts more that failed, which are not shown.")
    return lines + _named("Not reached", _not_reached(run))


def _kept_trouble(run: t.Sequence[_Host]) -> dict[str, t.Any]:
    failed = {host.name: shorten(host.failure, _KEPT_FAILURE_CHARS) for host in run if host.failure is not None}
    not_reached = _not_reached(run)
    kept: dict[str, t.Any] = {}
    if failed:
        kept.update(failed=dict(list(failed.items())[:_KEPT_FAILURES]), failed_count=len(failed))
    if not_reached:
        kept.update(not_reached=not_reached[:_NAMED_HOSTS], not_reached_count=len(not_reached))
    return kept


def _named(what: str, hosts: t.Sequence[str]) -> list[str]:
    return [shorten(f"{what} ({len(hosts)}): {listed(hosts, _NAMED_HOSTS)}", _LINE_CHARS)] if hosts else []


def _one_line(text: str) -> str:
    return text.replace("\n", " ")
