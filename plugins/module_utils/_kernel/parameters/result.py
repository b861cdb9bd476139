# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rows of a result: what became of each parameter, and what is still to be done by others.

Private to the collection. Pure functions of what was planned and what was observed before and after.
"""

from __future__ import annotations

import typing as t

from ..._core.errors import TapvirtError, error_row
from ..._core.plan import Plan
from .layers import OWN_FILE, is_stale_in_initramfs, layer_of, notes_of, wanted_of
from .model import Item, Observed, Wanted
from .plan import Persist, Refresh, Reload, Step, Write
from .values import is_in_effect, is_put_back, parse_value


def steps_of(planned: Plan) -> list[Step]:
    """Return the plan's steps as what they are."""
    return [change for change in planned if isinstance(change, Step)]


def row(
    entry: Wanted, state: str, first: Observed, last: Observed, planned: t.Sequence[Step], check_mode: bool
) -> dict[str, t.Any]:
    """Return what became of one parameter."""
    item, before, now = last.items[entry.key], first.items[entry.key].current, last.items[entry.key].current
    steps = [step for step in planned if entry.key in step.keys]
    result: dict[str, t.Any] = {
        "module": entry.module,
        "name": entry.name,
        "type": item.kind.word,
        "before": None if before is None else before.shown,
        "after": None if now is None else now.shown,
        "wanted": None,
        "persisted_in": None,
        "pending": [],
        "notes": [],
        "changed": bool(steps),
        "verdict": ("restored" if state == "restored" else "changed") if steps else "unchanged",
        "error": None,
    }
    if check_mode:
        result["after"] = _planned_value(entry, item, steps, result["after"])
    if state == "restored":
        result["pending"] = list(_pending_restored(entry, item, last, steps))
    else:
        _present(result, entry, item, last, steps, check_mode)
    if not (check_mode and any(isinstance(step, Refresh) for step in steps)):
        result["pending"] += _pending_image(entry, item, state, last)
    if result["pending"] and not steps:
        result["verdict"] = "pending"
    return result


def failed_row(
    entry: Wanted,
    before: Item,
    now: Item,
    *,
    wanted: t.Any,
    error: TapvirtError | None,
    is_done: bool,
    left: t.Sequence[str],
) -> dict[str, t.Any]:
    """Return what became of one parameter of a run that failed and was undone.

    :param error: why the run failed, for a parameter that made it fail.
    :param is_done: the run had done something about it.
    :param left: why that could not be undone, in words.
    """
    was, value = before.current, now.current
    verdict = "rolled_back" if is_done else "unchanged"
    if left:
        verdict = "not_rolled_back"
        error = error or TapvirtError(f"This could not be put back: {'; '.join(left)}.")
    elif error is not None:
        verdict = "failed"
    return {
        "module": entry.module,
        "name": entry.name,
        "type": before.kind.word,
        "before": None if was is None else was.shown,
        "after": None if value is None else value.shown,
        "wanted": wanted,
        "persisted_in": None,
        "pending": ["this could not be put back: " + text for text in left],
        "notes": [],
        "changed": bool(left),
        "verdict": verdict,
        "error": error_row(error),
    }


def _present(
    result: dict[str, t.Any], entry: Wanted, item: Item, last: Observed, steps: t.Sequence[Step], check_mode: bool
) -> None:
    """Fill in what only a wanted value has."""
    value = wanted_of(entry, item)
    layer = layer_of(entry, item, last)
    planned = check_mode and not layer.flaws and any(isinstance(step, Persist) for step in steps)
    planned_file = OWN_FILE if planned else None
    result.update(wanted=value.shown, persisted_in=layer.persisted_in or planned_file, pending=list(layer.pending))
    if entry.persist != "none":
        result["notes"] = notes_of(item, last)
    reloaded = any(isinstance(step, Reload) for step in steps)
    if not entry.runtime or (item.current is not None and is_in_effect(item.kind, item.current, value)):
        return
    known = last.journal.get("adjusted", {}).get(entry.label, {})
    if item.current is not None and known == {"wanted": value.text, "read": item.current.text}:
        result["verdict"] = "adjusted"
    elif not item.writable and not reloaded:
        result["pending"].insert(0, _takes_effect(entry, item, last))


def _planned_value(entry: Wanted, item: Item, steps: t.Sequence[Step], now: t.Any) -> t.Any:
    for step in steps:
        if isinstance(step, Write):
            now = step.after
        elif isinstance(step, Reload):
            now = step.after[entry.name]
    return now


def _takes_effect(entry: Wanted, item: Item, observed: Observed) -> str:
    """Say when a parameter that cannot be set now gets the value that is kept for it."""
    if item.built_in:
        return "not in effect: it takes effect when the kernel is started with it"
    if not item.loaded:
        return "not in effect: it takes effect when the module is loaded"
    text = "not in effect: it takes effect when the module is loaded again"
    if item.text is None:
        text = "it cannot be seen whether it is in effect; it takes effect when the module is loaded again"
    if item.current is not None and item.read_back(entry.read_back) in ("rounded", "clamped"):
        text = f"in effect if {item.current.shown} is what the kernel makes of it; "
        text += "else it takes effect when the module is loaded again"
    return _not_done_now(text, entry, observed)


def _pending_restored(entry: Wanted, item: Item, last: Observed, steps: t.Sequence[Step]) -> t.Iterator[str]:
    original = last.originals.get(entry.label)
    if item.writable or not item.loaded or item.built_in or any(isinstance(step, Reload) for step in steps):
        return
    if original is None or item.current is None:
        stays = any(isinstance(step, Persist) for step in steps)
    else:
        stays = not is_put_back(item.kind, item.current, parse_value(item.kind, original, item.word_bits))
    if stays:
        yield _not_done_now("the running value stays until the module is loaded again", entry, last)


def _not_done_now(text: str, entry: Wanted, observed: Observed) -> str:
    """Return the text, with what was in the way of a reload that was asked for."""
    loaded = observed.modules.get(entry.module)
    if entry.reload == "never" or loaded is None or not loaded.reload_blockers:
        return text
    return f"{text}; that was not done now: {'; '.join(loaded.reload_blockers)}"


def _pending_image(entry: Wanted, item: Item, state: str, observed: Observed) -> t.Iterator[str]:
    image = observed.image
    if image is None or item.built_in:
        return
    if image.unreadable is not None:
        yield f"it cannot be seen whether {image.path} has the module with other options: {image.unreadable}"
    elif is_stale_in_initramfs(entry, item, state, observed):
        option = image.options.get(entry.key)
        has = "without this option" if option is None else f"with {option.word}"
        how = f" with {' '.join(image.maker)} (refresh_initramfs: true)" if image.maker else ""
        yield f"{image.path} has the module {has}, and loads it so when the host starts; make it anew{how}"
