# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From what a task asks for to a module in the store: check the order, look it up, build it.

Private to the collection.
"""

from __future__ import annotations

import typing as t

from ..._core.errors import InvalidInput, TapvirtError
from ..._core.options import read_lock_timeout
from ..._core.plan import Change, Plan
from ..._core.root import Root
from ..language.probed_modules import needs_debug_info, probed_modules, tapset_aliases
from ..resolve.stap_tapset import modules_of_aliases
from ..script.check import Script, check_safety, read_script
from ..script.deploy import prepare, script_name, script_option
from .build import BuildRequest, build_once, key_of, sign_once, signed_key
from .debuginfo import DebugCache, DebugInfo, choose_debug_info
from .settings import Settings, read_settings
from .signing import Signer, read_signer
from .store import Store, check_owner
from .toolchain import Kernel, find_kernel, read_kernels, read_toolchain, target_of


def build_module(params: t.Mapping[str, t.Any], check_mode: bool) -> tuple[Plan, dict[str, t.Any] | None]:
    """Carry out a task of ``stap_module``.

    Return the plan (a change when it had to be built, and one when it had to be signed) and the module's description
    (null when only planned).

    :raises InvalidInput: the script, the kernel or an option is not acceptable.
    :raises BuildFailed: stap refuses the script for this kernel.
    """
    ceiling = params["cpu_ceiling_percent"]
    if not 1 <= ceiling <= 50:
        raise InvalidInput("cpu_ceiling_percent", ceiling, "The percentage must be from 1 to 50")
    row = read_order(params["script"], bool(params["tapsets"]))
    signer = read_signer(params["sign"]) if params["sign"] else None
    check_owner(params["store"])
    root = Root()
    tools = read_toolchain(root)
    if tools.stap is None:
        raise TapvirtError("This host cannot build: stap is not installed. Delegate the task to a builder.")
    kernel = find_kernel(read_kernels(root, tools.compilers), params["kernel"], params["kernel_version"])
    guru = bool(row.get("guru"))
    target = target_of(root, kernel.release, tools.stap, guru)
    settings = read_settings(params, target)
    with script_option("script"):
        script = read_script(row["name"], row["text"], guru, settings.tapset.globals, target)
    debug = _debug_info(params, kernel, script, settings, root)
    order = BuildRequest(row["name"], row["text"], kernel, guru, ceiling, debug, settings)
    store = Store(params["store"], read_lock_timeout(params))
    cache = DebugCache(store, debug.source) if debug.source else None
    key = key_of(order, tools)
    known, plan = _look_up(order, key, signer, store.read if check_mode else store.use, cache)
    done: dict[str, bool] = {}
    if known is None and not check_mode:
        with script_option("script"):
            known, done["stap"] = build_once(order, tools, store, root, cache)
        if signer:
            known, done["sign-file"] = sign_once(known, signer, store, root)
        # This task did not make the changes of another one that ran at the same time.
        fetched = cache.fetched if cache else ()
        plan = Plan(change for change in plan if done.get(change.how, change.after in fetched))
    if known is None:
        return plan, None
    return plan, dict(known, schema=row["schema"], assigned=row["assigned"], guru_reason=row.get("guru_reason"))


def _debug_info(
    params: t.Mapping[str, t.Any], kernel: Kernel, script: Script, settings: Settings, root: Root
) -> DebugInfo:
    """Return where the debug information for a script and its settings comes from.

    :raises InvalidInput: as :func:`choose_debug_info`.
    """
    own = [point.text for point in script.points]
    points = [*own, *settings.tapset.points]
    probed = probed_modules(script.probes, points)
    if params["debuginfod"] is not None:
        probed = {**dict.fromkeys(modules_of_aliases(root, tapset_aliases(points)), False), **probed}
    needed = bool(settings.stack_modules) or needs_debug_info(script.text, own)
    return choose_debug_info(params, kernel, {**probed, **settings.stack_files()}, needed)


def _look_up(
    order: BuildRequest,
    key: str,
    signer: Signer | None,
    look: t.Callable[[str], dict[str, t.Any] | None],
    cache: DebugCache | None,
) -> tuple[dict[str, t.Any] | None, Plan]:
    """Return what the store has of an order (null: not all of it), and what is to be done."""
    known = look(signed_key(key, signer) if signer else key)
    if known is not None:
        return known, Plan()
    changes = []
    if signer is None or look(key) is None:
        missing = cache.missing(order.debug, order.kernel.release) if cache else {}
        for build_id, what in missing.items():
            why = "the store has no debug information of this build-id"
            changes.append(Change(f"debug information of {what}", None, build_id, "debuginfod", why))
        why = f"the store has no module of this script for {order.kernel.release}"
        changes.append(Change(order.module_name, None, key[:12], "stap", why))
    if signer is not None:
        why = f"the store has no copy of it that {signer.details.name or signer.certificate} signed"
        changes.append(Change(order.module_name, None, signer.row()["key_id"], "sign-file", why))
    return None, Plan(changes)


def read_order(script: t.Any, own_tapsets: bool = False) -> dict[str, t.Any]:
    """Return the description of a script, given as one or as a path on this host.

    :param own_tapsets: whether own tapsets may declare the arrays of the script.
    :raises InvalidInput: neither, the file cannot be read, or the script switches a protection off.
    :raises ScriptError: the script is not in the language.
    """
    if isinstance(script, str):
        if not script.startswith("/"):
            problem = "A script is the absolute path of a file on the builder, or what stap_script returned as script"
            raise InvalidInput("script", script, problem)
        try:
            text = Root().read_text(script)
        except OSError as error:
            raise InvalidInput("script", script, f"The file cannot be read on the builder: {error.strerror}") from None
        name = script_name("script", script)
        return prepare("script", name, text, {}, guru=False, own_tapsets=own_tapsets)[0]
    if not isinstance(script, dict) or not {"name", "text", "schema", "assigned"} <= set(script):
        raise InvalidInput("script", script, "The value is not what stap_script returned as script")
    guru = bool(script.get("guru"))
    with script_option("script"):
        read = read_script(str(script["name"]), str(script["text"]), guru, None if own_tapsets else ())
        check_safety("script", read, guru)
    if guru and not str(script.get("guru_reason") or "").strip():
        problem = "The script allows embedded C and gives no reason for it"
        raise InvalidInput("script.guru_reason", script.get("guru_reason"), problem, "Set guru_reason of stap_script")
    return script
