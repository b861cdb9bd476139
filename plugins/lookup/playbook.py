# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The functions that the collection's own playbooks and roles call; no public interface."""

from __future__ import annotations

DOCUMENTATION = r"""
name: playbook
author: The tapvirt.host authors (!UNKNOWN)
version_added: 0.1.0
short_description: Call an internal function of the playbooks and roles of this collection
description:
  - Calls one of the functions that belong to the playbooks and roles of this collection.
  - These functions are internal. They are not a public interface. Their names, arguments and results change without
    notice. Do not call them in your own playbooks.
options:
  _terms:
    description:
      - The name of the function. Its arguments are given by name. Ansible before 2.19 evaluates positional arguments of
        a lookup as templates, also those that hosts returned.
    type: list
    elements: raw
    required: true
"""

EXAMPLES = r"""
- name: Contact the hosts in waves
  hosts: all
  serial: "{{ lookup('tapvirt.host.playbook', 'waves', value=params_waves, default=[1], name='params_waves') }}"
  tasks:
    - name: Contact the host
      ansible.builtin.ping:
"""

RETURN = r"""
_raw:
  description: The result of the function, as the only element.
  type: list
  elements: raw
"""

import functools
import inspect
import typing as t

from ansible.errors import AnsibleLookupError
from ansible.plugins.loader import lookup_loader
from ansible.plugins.lookup import LookupBase

from ..module_utils._core.errors import InvalidInput, TapvirtError
from ..plugin_utils._fleet import (
    controller_files,
    domain_entries,
    host_packages,
    merge,
    run_report,
    tables,
    targets,
    waves,
)
from ..plugin_utils._preflight import inventory, reads
from ..plugin_utils._preflight import report as preflight
from ..plugin_utils._report import summaries
from ..plugin_utils._trace import builders, campaign, campaign_lines, catalogue, probe_points, wave


def problem(function: str, **arguments: t.Any) -> str:
    """Return why a function refuses its arguments; empty where it accepts them."""
    called = _function(function)
    _check_arguments(function, called, arguments)
    try:
        called(**arguments)
    except TapvirtError as error:
        return error.message
    return ""


#: Pure functions, except for warnings, and for the clock that trace_start_at and trace_wait read. Each raises
#: TapvirtError where its arguments cannot be used.
FUNCTIONS: dict[str, t.Callable[..., t.Any]] = {
    "asked_builders": builders.asked_builders,
    "builder_packages": host_packages.builder_packages,
    "console_logs_counts": summaries.console_logs_counts,
    "console_logs_summary": summaries.console_logs_summary,
    "controller_path": controller_files.controller_path,
    "domain_origins": merge.domain_origins,
    "domain_problems": domain_entries.domain_problems,
    "file_name": controller_files.file_name,
    "gather_lines": summaries.gather_lines,
    "gather_summary": summaries.gather_summary,
    "install_command": host_packages.install_command,
    "install_problem": host_packages.install_problem,
    "merge_domains": merge.merge_domains,
    "merge_params": merge.merge_params,
    "missing_tables": tables.missing_tables,
    "near_tables": tables.warn_of_near_tables,
    "package_queries": host_packages.package_queries,
    "packages_not_found": host_packages.packages_not_found,
    "packages_to_install": host_packages.packages_to_install,
    "param_origins": merge.param_origins,
    "play_hosts": targets.play_hosts,
    "preflight_artifact": preflight.preflight_artifact,
    "preflight_builder_reads": reads.builder_reads,
    "preflight_host": preflight.preflight_host,
    "preflight_host_reads": reads.host_reads,
    "preflight_jobs": inventory.preflight_jobs,
    "preflight_lines": preflight.preflight_lines,
    "preflight_problem": preflight.preflight_problem,
    "preflight_result": preflight.preflight_result,
    "problem": problem,
    "report_summary": summaries.report_summary,
    "run_artifact": run_report.run_artifact,
    "run_report": run_report.run_report,
    "trace_build_options": catalogue.trace_build_options,
    "trace_builder_for": builders.trace_builder_for,
    "trace_campaign": campaign.trace_campaign,
    "trace_failure_lines": campaign_lines.trace_failure_lines,
    "trace_moment": wave.trace_moment,
    "trace_outcomes": campaign.trace_outcomes,
    "trace_points": probe_points.probe_points,
    "trace_refusal": probe_points.trace_refusal,
    "trace_request": catalogue.trace_request,
    "trace_start_at": wave.trace_start_at,
    "trace_stop_lines": campaign_lines.trace_stop_lines,
    "trace_summary_lines": campaign_lines.trace_summary_lines,
    "trace_unready_lines": campaign_lines.trace_unready_lines,
    "trace_verdict": campaign.trace_verdict,
    "trace_wait": wave.trace_wait,
    "waves": waves.waves,
}
#: Functions whose argument render renders a template with one entry; the lookup gets the name of the template instead.
RENDERING: dict[str, t.Callable[..., t.Any]] = {"domain_items": domain_entries.domain_items}


def _function(name: t.Any) -> t.Callable[..., t.Any]:
    """Return a function by its name.

    :raises AnsibleLookupError: there is no such function.
    """
    functions = {**FUNCTIONS, **RENDERING}
    if not isinstance(name, str) or name not in functions:
        problem = f"The lookup has the internal functions {', '.join(sorted(functions))}."
        raise AnsibleLookupError(InvalidInput("_terms[0]", name, problem).message)
    return functions[name]


def _check_arguments(name: str, function: t.Callable[..., t.Any], arguments: t.Mapping[str, t.Any]) -> None:
    """Refuse arguments that a function does not take, or lacks.

    :raises AnsibleLookupError: the arguments do not fit.
    """
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise AnsibleLookupError(f"The arguments of the function {name} are wrong: {error}.") from None


class LookupModule(LookupBase):
    """The lookup of this file."""

    def run(self, terms: list[t.Any], variables: t.Any = None, **kwargs: t.Any) -> list[t.Any]:
        """Return the result of a function in a list, because a lookup unpacks a list of one element."""
        name, *others = terms or [None]
        function = _function(name)
        if others:
            raise AnsibleLookupError(f"The function {name} takes arguments by name only.")
        if name in RENDERING:
            kwargs["render"] = functools.partial(self._render, kwargs.pop("template", None), variables)
        _check_arguments(name, function, kwargs)
        try:
            return [function(**kwargs)]
        except TapvirtError as error:
            raise AnsibleLookupError(error.message) from error

    def _render(self, template: str, variables: t.Any, entry: t.Mapping[str, t.Any]) -> str:
        """Return a template of the role or playbook, rendered with the variable ``domain``."""
        render = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        (text,) = render.run([template], variables, template_vars={"domain": entry})
        return t.cast("str", text)
