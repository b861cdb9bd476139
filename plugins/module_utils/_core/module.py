# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one frame around every module: build it, run its body, and turn every error into one readable result.

Private to the collection.
"""

from __future__ import annotations

import json
import os
import types
import typing as t

from ansible.module_utils.basic import AnsibleModule

from .disk import disk_failure
from .errors import MASK, NEEDS_ROOT, InvalidInput, TapvirtError
from .privilege import missing_permission

# The option of every module that only reads. Its action plugin (plugin_utils/_transport/pipelined.py) obeys it.
TRANSPORT = {"transport": {"type": "str", "choices": ["auto", "source", "module"], "default": "auto"}}


class TaskModule(AnsibleModule):
    """An AnsibleModule whose own refusals, such as that of an unknown option, have an ``error`` as well.

    ``on_failure`` is called with the message of a failure.
    """

    on_failure: t.Callable[[str], None] | None = None

    @property
    def is_silent(self) -> bool:
        """Return whether Ansible's ``no_target_syslog``, or ``no_log`` of the task, forbids lines in the system log."""
        return bool(self.no_log)

    @property
    def short_name(self) -> str:
        """Return the module's name without that of the collection."""
        return str(self._name).rpartition(".")[2]

    @property
    def syslog_facility(self) -> str:
        """Return Ansible's ``syslog_facility``, such as ``LOG_USER``."""
        return str(self._syslog_facility)

    @property
    def log_info(self) -> str:
        """Return Ansible's ``target_log_info``, empty where it is not set."""
        return str(getattr(self, "_target_log_info", None) or "")

    def fail_json(self, msg: str, **result: t.Any) -> None:
        """Fail with the ``error`` of a message that has none."""
        super().fail_json(msg, **{"error": TapvirtError(str(msg)).row(), **result})

    def log(self, msg: t.Any, *args: t.Any, **options: t.Any) -> None:
        """Log without the NUL bytes that syslog refuses: the options are checked after they were logged."""
        super().log(msg.replace("\0", "") if isinstance(msg, str) else msg, *args, **options)

    def masked(self, text: str) -> str:
        """Return a text without the values of options that are secret."""
        for secret in sorted(self.no_log_values, key=len, reverse=True):
            text = text.replace(secret, MASK)
        return text


#: The module that this process runs; empty outside of a module.
RUNNING: list[TaskModule] = []


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
    module = TaskModule(argument_spec=dict(argument_spec), supports_check_mode=True, **options)
    RUNNING[:] = [module]
    with _Failures(module, needs):
        if r"\u0000" in _as_json(module.params):
            _check_texts(module.params)
        result = dict(body(module))
    module.exit_json(**_warned(module, result))


def _as_json(value: t.Any) -> str:
    """Return a value as ASCII: to search it for a byte is ten times faster than to walk through it."""
    return json.dumps(value, default=str)


def _check_texts(value: t.Any, option: str = "") -> None:
    """Check the texts of an option, at every level.

    :raises InvalidInput: a text has a NUL byte.
    """
    if isinstance(value, str):
        if "\0" in value:
            raise InvalidInput(option, value, "A text cannot contain a NUL byte.")
    elif isinstance(value, t.Mapping):
        for key, entry in value.items():
            _check_texts(entry, f"{option}.{key}" if option else str(key))
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            _check_texts(entry, f"{option}[{index}]")


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
    rest = {key: value for key, value in result.items() if key != "warnings"}
    return as_utf8(rest) if r"\ud" in _as_json(rest) else rest


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
        if isinstance(error, Exception) and self._module.on_failure:
            self._module.on_failure(error.message if isinstance(error, TapvirtError) else str(error))
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
    reason = str(error).rstrip(".")
    return f"Unexpected {type(error).__name__} at {place}: {reason}. Please report it with this sentence."
