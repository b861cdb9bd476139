# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The frame around every module that opens a connection. Private to the collection."""

from __future__ import annotations

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ..._core.errors import NEEDS_PATH, InvalidInput, TapvirtError
from ..._core.module import run_module
from . import api_trace
from .connection import password_of, require_binding


def run_libvirt_module(
    argument_spec: t.Mapping[str, t.Any],
    body: t.Callable[[AnsibleModule], t.Mapping[str, t.Any]],
    **options: t.Any,
) -> None:
    """Run ``body(module)`` where the binding is there, with the calls that it made in the result if that is asked for.

    ``argument_spec`` has the options of ``CONNECTION_SPEC``; ``options`` are AnsibleModule's own.
    """

    def framed(module: AnsibleModule) -> t.Mapping[str, t.Any]:
        # Ansible repeats the task's options in the result.
        uris = [module.params[name] for name in ("uri", "destination") if module.params.get(name)]
        module.no_log_values.update(filter(None, map(password_of, uris)))
        check_times(module.params)
        require_binding()
        if not module.params["trace_api"]:
            return body(module)
        trace = api_trace.begin()
        try:
            result = body(module)
        except TapvirtError as error:
            error.fields["api_trace"] = trace.result()
            raise
        return {**result, "api_trace": trace.result()}

    run_module(argument_spec, framed, NEEDS_PATH, **options)


def check_times(params: t.Mapping[str, t.Any]) -> None:
    """Check the options that are times in seconds.

    :raises InvalidInput: one is too small.
    """
    for option, least in (("connect_timeout_seconds", 1), ("wait_seconds", 0)):
        if params.get(option, least) < least:
            raise InvalidInput(option, params[option], f"The time is a whole number of seconds, at least {least}.")
