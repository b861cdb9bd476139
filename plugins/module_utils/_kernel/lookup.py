# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``kernel_symbol_info`` returns for each name, shell pattern and expression. Private to the collection."""

from __future__ import annotations

import fnmatch
import re
import typing as t

from .._core.errors import InvalidInput
from .._core.root import Root
from .config import read_config
from .exports import Exports
from .probeability import Probeability
from .symbols import CORE_OWNER, KALLSYMS, Symbol, SymbolTable, read_table, variant_kinds

_VARIANTS_SHOWN = 10
_NEAREST_FOR_NAMES = 10
_NAME = re.compile(r"^[^\s\[\]*?~]+$")
if t.TYPE_CHECKING:
    from .symbols import Found


class Query:
    """One entry of the option: a name, a shell pattern (``kvm_*``) or a regular expression (``~^kvm_.*_exit$``).

    :raises InvalidInput: empty, with white space, or not a regular expression.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.kind = "name"
        self.accept: t.Callable[[str], t.Any] = text.__eq__
        if text.startswith("~"):
            self.kind = "regex"
            try:
                self.accept = re.compile(text[1:]).search
            except re.error as error:
                raise InvalidInput("symbols", text, "is not a regular expression: {}".format(error)) from error
        elif any(letter in text for letter in "*?["):
            self.kind = "glob"
            self.accept = re.compile(fnmatch.translate(text)).match
        elif not _NAME.match(text):
            raise InvalidInput("symbols", text, "is not the name of a symbol, a shell pattern or ~ and an expression")


def look_up(root: Root, symbols: t.Sequence[str], owner: str | None, limit: int) -> dict[str, t.Any]:
    """Return ``symbols`` (one row for each entry, in order), ``source`` and ``truncated``.

    :raises InvalidInput: an entry cannot be looked up.
    """
    queries = [Query(text) for text in symbols]
    source: dict[str, t.Any] = {"name": "/" + KALLSYMS, "state": "readable", "reason": None}
    try:
        table = read_table(root)
    except OSError as error:
        source.update(state="absent" if isinstance(error, FileNotFoundError) else "denied", reason=error.strerror)
        table = SymbolTable(b"")
    if table.restricted:
        source.update(state="restricted", reason=_why_restricted(root))
    if table.empty:
        reason = "there is no symbol table to look in: {}".format(source["reason"] or "it is empty")
        rows = [_row(query, "data_unavailable", reason) for query in queries]
        return {"symbols": rows, "source": source, "truncated": False}
    rows = _Answers(root, table, owner, limit).rows(queries)
    return {"symbols": rows, "source": source, "truncated": any(row["truncated"] for row in rows)}


class _Answers:
    def __init__(self, root: Root, table: SymbolTable, owner: str | None, limit: int) -> None:
        self._root = root
        self._table = table
        self._owner = owner
        self._left = limit
        self._exact: dict[str, Found] = {}
        self._nearest_left = _NEAREST_FOR_NAMES
        self._release = (root.read_text_or("proc/sys/kernel/osrelease") or "").strip()

    def rows(self, queries: t.Sequence[Query]) -> list[dict[str, t.Any]]:
        self._exact = self._table.look_up_many({query.text for query in queries if query.kind == "name"})
        answers = []
        for query in queries:
            if query.kind == "name":
                found = [symbol for symbol in self._exact[query.text][0] if self._owner in (None, symbol.owner)]
                count = len(found)
            else:
                found, count = self._table.search(query.accept, self._left, self._owner)
            found = found[: self._left]
            self._left -= len(found)
            answers.append((query, found, count))
        options = read_config(self._root, self._release)
        kprobes = None if options is None else bool(options.get("CONFIG_KPROBES"))
        probes = Probeability(self._root, self._table, kprobes)
        names = {symbol.name for _query, found, _count in answers for symbol in found}
        exports = Exports(self._root, self._release, self._table, names)
        return [self._answer(query, found, count, probes, exports) for query, found, count in answers]

    def _answer(
        self, query: Query, found: list[Symbol], count: int, probes: Probeability, exports: Exports
    ) -> dict[str, t.Any]:
        status, reason = self._status(query, found, count)
        row = _row(query, status, reason)
        row.update(count=count, truncated=count > len(found), matches=[symbol.row() for symbol in found])
        verdicts = [(probes.verdict(symbol), exports.verdict(symbol)) for symbol in found]
        for match, ((probeable, why_not), (exported, export)) in zip(row["matches"], verdicts):
            match.update(probeable=probeable, exported=exported)
            if query.kind == "name":
                row.update(probeable_reason=why_not)
                if export is not None:
                    row.update(gpl_only=export.gpl_only, namespace=export.namespace)
        row["probeable"] = _common([match["probeable"] for match in row["matches"]])
        row["exported"] = _common([match["exported"] for match in row["matches"]])
        if query.kind == "name":
            row["aliases"] = self._table.aliases(found[0]) if found else []
            variants = [symbol for symbol in self._exact[query.text][1] if self._owner in (None, symbol.owner)]
            row["variants"] = [dict(v.row(), kinds=variant_kinds(v.name)) for v in variants[:_VARIANTS_SHOWN]]
            if not count:
                self._explain_absence(row, query.text)
        return row

    def _status(self, query: Query, found: list[Symbol], count: int) -> tuple[str, str | None]:
        if not count:
            if query.kind == "name" and self._owner in (None, CORE_OWNER) and not self._table.has_data_symbols:
                return "data_unavailable", "there is no function of this name, and this kernel does not list variables"
            return "absent", None
        if query.kind == "name" and count > 1:
            places = {symbol.address for symbol in found}
            if len(places) > 1 or self._table.restricted:
                return "ambiguous", "{} symbols have this name".format(count)
        if self._table.restricted:
            return "restricted", "it is there; its address is hidden"
        return "found", None

    def _explain_absence(self, row: dict[str, t.Any], name: str) -> None:
        if self._owner is not None and self._owner != CORE_OWNER and self._owner not in self._table.owners():
            row["reason"] = "{} is not loaded, or has no symbols".format(self._owner)
        elif row["variants"]:
            row["reason"] = "only variants that the compiler made of it are there; inlined copies are not listed"
        if self._nearest_left > 0:
            self._nearest_left -= 1
            row["nearest"] = self._table.nearest(name, owner=self._owner)


def _row(query: Query, status: str, reason: str | None) -> dict[str, t.Any]:
    row: dict[str, t.Any] = {
        "name": query.text,
        "status": status,
        "reason": reason,
        "count": 0,
        "matches": [],
        "truncated": False,
        "exported": None,
        "probeable": None,
    }
    if query.kind == "name":
        row.update(variants=[], aliases=[], nearest=[], probeable_reason=None)
    return row


def _common(values: t.Sequence[bool | None]) -> bool | None:
    """Return the value that all share, else null."""
    return values[0] if len(set(values)) == 1 else None


def _why_restricted(root: Root) -> str:
    value = (root.read_text_or("proc/sys/kernel/kptr_restrict") or "").strip()
    if value == "2":
        return "kernel.kptr_restrict is 2: nobody sees addresses"
    return "kernel.kptr_restrict is {}: only CAP_SYSLOG sees addresses, and this user lacks it".format(value or "set")
