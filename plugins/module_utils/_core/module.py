# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one frame around every module: build it, run its body, and turn every error into one readable result.

Private to the collection.
"""

from __future__ import annotations

import os
import traceback
import typing as t

from ansible.module_utils.basic import AnsibleModule

from .errors import TapvirtError


def run_module(
    argument_spec: t.Mapping[str, t.Any],
    body: t.Callable[[AnsibleModule], t.Mapping[str, t.Any]],
    **options: t.Any,
) -> None:
    """Run ``body(module)`` and exit with what it returns.

    Every module supports check mode. ``options`` are AnsibleModule's own (``mutually_exclusive`` and the like).
    """
    module = AnsibleModule(argument_spec=dict(argument_spec), supports_check_mode=True, **options)
    try:
        result = dict(body(module))
    except TapvirtError as error:
        module.fail_json(msg=error.message, **error.fields)
    except Exception as error:  # a bug of ours, or of a host that nobody has met: said in a sentence
        module.fail_json(msg=_unexpected(error))
    module.exit_json(**result)


def _unexpected(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = "{0} line {1}".format(os.path.basename(frames[-1].filename), frames[-1].lineno) if frames else "an unknown place"
    return "Unexpected {0} at {1}: {2}. Nothing more was done; please report it with this sentence.".format(
        type(error).__name__, place, error
    )
