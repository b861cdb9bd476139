# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked of a trace, against the scripts that ship with the role. Private to the collection."""

from __future__ import annotations

import re
import typing as t

from ...module_utils._core.errors import InvalidInput, nearest_names, option_path
from ...module_utils._systemtap.limits import MAX_DURATION_SECONDS
from ...module_utils._systemtap.module_build.settings import read_limits, read_stack_modules

Catalogue = t.Mapping[str, t.Mapping[str, t.Any]]
# What Ansible reads as true (ansible.module_utils.parsing.convert_bool).
_TRUE = frozenset(("y", "yes", "on", "1", "true", "t", "1.0"))
_EXAMPLES = {"function": "vfs_read", "functions": "vfs_read", "module": "kvm"}


def trace_request(
    given: t.Any,
    script: t.Any,
    duration: t.Any,
    catalogue: Catalogue,
    names: t.Mapping[str, str] | None = None,
) -> None:
    """Check what is asked for, before any host is asked.

    :param given: the variables of the script. One that another script of the catalogue takes is left aside.
    :param catalogue: script -> ``variables``, each with ``required`` and ``pattern``.
    :param names: what a playbook calls some of these variables, for the messages.
    :raises InvalidInput: there is no such script, or it does not take what is given, or a variable is missing.
    """
    if not isinstance(given, t.Mapping):
        raise InvalidInput("trace_variables", given, "The variables are not a dictionary.")
    script = str(script)
    _check_duration(duration)
    if script not in catalogue:
        if re.search(r"[./]", script):
            return  # a template of the user's own
        raise InvalidInput(
            "trace_script",
            script,
            f"The catalogue does not contain this script; it contains {', '.join(catalogue)}.",
            "Give one of these, or the path of your own template, which contains a dot or a slash.",
            nearest_names(script, catalogue),
        )
    variables = catalogue[script]["variables"]
    known = {name for row in catalogue.values() for name in row["variables"]}
    for name in given:
        if name not in known:
            takes = f"the variables {', '.join(variables)}" if variables else "no variables"
            raise InvalidInput(
                "trace_variables",
                name,
                f"The script {script} takes {takes}.",
                candidates=nearest_names(str(name), variables),
            )
    for name, wanted in variables.items():
        if name not in given:
            if wanted["required"]:
                raise _missing(name, script, (names or {}).get(name))
        elif not _matches(wanted["pattern"], given[name]):
            problem = f"The script {script} takes a value that matches {wanted['pattern']}."
            raise InvalidInput((names or {}).get(name, f"trace_variables.{name}"), given[name], problem)


def _matches(pattern: str, value: t.Any) -> bool:
    """Return whether a value, which YAML may read as a number, matches a pattern as a whole."""
    is_text = isinstance(value, (str, int)) and not isinstance(value, bool)
    return is_text and re.fullmatch(pattern, str(value)) is not None


def _missing(name: str, script: str, shown: str | None) -> InvalidInput:
    """Return the error for a variable that was not given.

    :param shown: what the playbook calls the variable, if it has a name of its own.
    """
    option = shown or f"trace_variables.{name}"
    example = f"{option}={_EXAMPLES[name]}" if shown else f"trace_variables={{{name}: {_EXAMPLES.get(name, '...')}}}"
    return InvalidInput(option, None, f"The script {script} needs it.", f"Set it, for example {example}.")


def trace_build_options(limits: t.Any, stack_modules: t.Any, guru: t.Any, guru_reason: t.Any) -> None:
    """Check the options of a build, before any host is asked.

    :param limits: limit -> number, which extra variables may give as a text.
    :raises InvalidInput: one is not acceptable.
    """
    if not isinstance(limits, t.Mapping):
        raise InvalidInput("trace_limits", limits, "The limits are not a dictionary, such as {max_action: 5000}.")
    with option_path("trace_limits"):
        read_limits({str(name): _number(value) for name, value in limits.items()})
    if not isinstance(stack_modules, (list, tuple)) or not all(isinstance(name, str) for name in stack_modules):
        problem = "The value is not a list of names of modules, such as [kvm]."
        raise InvalidInput("trace_stack_modules", stack_modules, problem)
    read_stack_modules("trace_stack_modules", stack_modules)
    if str(guru).strip().lower() in _TRUE and not str(guru_reason or "").strip():
        problem = "The script may contain embedded C, and the reason is missing."
        raise InvalidInput("trace_guru_reason", guru_reason, problem, "Write why the script needs it.")


def _number(value: t.Any) -> t.Any:
    """Return a number that was given as a text; every other value as it is."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}", value) else value


def _check_duration(duration: t.Any) -> None:
    try:
        seconds = float(duration)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if not 0 < seconds <= MAX_DURATION_SECONDS:
        problem = f"The duration is a number of seconds, more than 0 and at most {MAX_DURATION_SECONDS}, such as 10."
        raise InvalidInput("trace_duration_seconds", duration, problem)
