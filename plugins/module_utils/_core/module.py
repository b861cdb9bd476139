# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one frame around every module: build it, run its body, and turn every error into one readable result.

Private to the collection.
"""

from __future__ import annotations

import os
import types
import typing as t

from ansible.module_utils.basic import AnsibleModule

from .disk import disk_failure
from .errors import NEEDS_ROOT, InvalidInput, TapvirtError, missing_permission

# The option of every module that only reads. Its action plugin (plugin_utils/_transport/pipelined.py) obeys it.
TRANSPORT = {"transport": {"type": "str", "choices": ["auto", "source", "module"], "default": "auto"}}


def run_module(
    argument_spec: t.Mapping[str, t.Any],
    body: t.Callable[[AnsibleModule], t.Mapping[str, t.Any]],
    needs: str = NEEDS_ROOT,
    **options: t.Any,
) -> None:
    """Run ``body(module)`` and exit with what it returns; its ``warnings`` are sentences.

    Every module supports check mode. ``needs`` is what the task needs where the user has no permission. ``options`` are
    AnsibleModule's own (``mutually_exclusive`` and the like).
    """
    # Nobody else may write to what a task makes, nor to what the programs that it starts make.
    os.umask(os.umask(0o022) | 0o022)
    module = AnsibleModule(argument_spec=dict(argument_spec), supports_check_mode=True, **options)
    with _Failures(module, needs):
        _check_paths(argument_spec, module.params)
        result = dict(body(module))
    module.exit_json(**_warned(module, result))


def _check_paths(argument_spec: t.Mapping[str, t.Any], params: t.Mapping[str, t.Any], above: str = "") -> None:
    """Check the options that are paths, at every level.

    :raises InvalidInput: a path has a NUL byte.
    """
    for option, rule in argument_spec.items():
        value = params.get(option)
        if rule.get("type") == "path" and value and "\0" in value:
            raise InvalidInput(above + option, value, "A path cannot contain a NUL byte.")
        if rule.get("type") == "dict" and value and "options" in rule:
            _check_paths(rule["options"], value, f"{above}{option}.")


def as_utf8(value: t.Any) -> t.Any:
    """Return a result in which each byte of a text that is not UTF-8 reads as in ``\\xff``: JSON cannot carry it."""
    if isinstance(value, str):
        return value if value.isascii() else _utf8_text(value)
    if isinstance(value, dict):
        return {as_utf8(key): as_utf8(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_utf8(entry) for entry in value]
    return value


def _utf8_text(text: str) -> str:
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        # Half a character of UTF-16, from JSON, is no byte of a file.
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _warned(module: AnsibleModule, result: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return a result in UTF-8 without its ``warnings``, which the module says in its own way."""
    for warning in result.get("warnings", ()):
        module.warn(as_utf8(warning))
    return {key: as_utf8(value) for key, value in result.items() if key != "warnings"}


class _Failures:
    """Converts an exception that leaves its block into a failed result."""

    def __init__(self, module: AnsibleModule, needs: str) -> None:
        self._module = module
        self._needs = needs

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        if isinstance(error, TapvirtError):
            self._module.fail_json(
                msg=as_utf8(error.message), **_warned(self._module, {"error": error.row(), **error.fields})
            )
        if isinstance(error, PermissionError):
            self._fail(missing_permission(error, self._needs))
        if isinstance(error, Exception):
            known = disk_failure(error) if isinstance(error, OSError) else None
            self._fail(known or _unexpected(error, trace))

    def _fail(self, message: str) -> None:
        failure = TapvirtError(as_utf8(message))
        self._module.fail_json(msg=failure.message, error=failure.row())


def _unexpected(error: Exception, trace: types.TracebackType | None) -> str:
    import traceback  # costs every other run a few milliseconds

    frames = traceback.extract_tb(trace)
    place = f"{os.path.basename(frames[-1].filename)} line {frames[-1].lineno}" if frames else "an unknown place"
    return f"Unexpected {type(error).__name__} at {place}: {error}. Please report it with this sentence."
