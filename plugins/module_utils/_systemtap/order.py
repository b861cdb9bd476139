# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a task asks for to a module in the store: check the order, look it up, build it.

Private to the collection.
"""

from __future__ import annotations

import typing as t

from .._core.errors import InvalidInput, TapvirtError
from .._core.plan import Change, Plan
from .._core.root import Root
from .build import Order, build, key_of
from .builder import find_kernel, read_kernels, read_toolchain
from .deploy import prepare
from .store import Store


def place_order(
    script: t.Any, release: str, version: str | None, cpu_ceiling_percent: int, store_directory: str, check_mode: bool
) -> tuple[Plan, dict[str, t.Any] | None]:
    """Return the plan (one change when it had to be built) and the module's description (null when only planned).

    :raises InvalidInput: the script, the kernel or an option is not acceptable.
    :raises BuildFailed: stap refuses the script for this kernel.
    """
    if not 1 <= cpu_ceiling_percent <= 50:
        raise InvalidInput("cpu_ceiling_percent", cpu_ceiling_percent, "must be between 1 and 50")
    row = read_order(script)
    root = Root()
    tools = read_toolchain(root)
    if tools.stap is None:
        raise TapvirtError("This host cannot build: stap is not installed. Delegate the task to a builder.")
    kernel = find_kernel(read_kernels(root, tools.compilers), release, version)
    order = Order(row["name"], row["text"], kernel, bool(row.get("guru")), cpu_ceiling_percent)
    store = Store(store_directory)
    key = key_of(order, tools)
    known = store.read(key)
    change = Change(
        order.module_name, None, key[:12], "stap", "the store has no module of this script for {0}".format(release)
    )
    if known is None and check_mode:
        return Plan([change]), None
    built = False
    if known is None:
        known, built = build(order, tools, store, root)
    description = dict(known, schema=row["schema"], assigned=row["assigned"])
    return Plan([change] if built else []), description


def read_order(script: t.Any) -> dict[str, t.Any]:
    """Return the description of a script, given as one or as a path on this host.

    :raises InvalidInput: neither, or the file cannot be read.
    """
    if isinstance(script, str):
        if not script.startswith("/"):
            raise InvalidInput(
                "script", script, "must be the absolute path of a script on the builder, or what stap_script returned"
            )
        text = Root().read_text_or(script)
        if text is None:
            raise InvalidInput("script", script, "cannot be read on the builder")
        return prepare(script, text, {}, guru=False)[0]
    if not isinstance(script, dict) or not {"name", "text", "schema", "assigned"} <= set(script):
        raise InvalidInput("script", script, "is not what stap_script returned as its script")
    return script
