# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``kernel_symbol_info`` returns for each name, shell pattern and expression. Private to the collection."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import typing as t

from ..._core.errors import InvalidInput, option_path
from ..._core.root import Root
from ..image.config import read_config
from .compare import compare, drift
from .exports import SYMVERS_PLACES, Export, Exports
from .probeability import Probeability, Sections, in_ftrace
from .sources import Source, read_source
from .table import CORE_OWNER, Symbol, variant_kinds

_VARIANTS_SHOWN = 10
_NEAREST_FOR_NAMES = 10
_NAME = re.compile(r"^[^\s\[\]*?~]+\Z")
if t.TYPE_CHECKING:
    from .table import Found


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
                raise InvalidInput("", text, f"The regular expression is not valid: {error}.") from error
        elif any(letter in text for letter in "*?["):
            self.kind = "glob"
            self.accept = re.compile(fnmatch.translate(text)).match
        elif not _NAME.match(text):
            problem = "An entry is the name of a symbol, a shell pattern, or ~ and a regular expression."
            raise InvalidInput("", text, problem)


@dataclasses.dataclass(frozen=True)
class Place:
    """A source of symbols: one of ``symbol_sources.SOURCES``, and its file where that is not the usual one."""

    kind: str = "kallsyms"
    path: str | None = None


KALLSYMS_PLACE = Place()


def look_up(
    root: Root,
    symbols: t.Sequence[str],
    owner: str | None,
    limit: int,
    place: Place = KALLSYMS_PLACE,
    against: Place | None = None,
) -> dict[str, t.Any]:
    """Return ``symbols`` (one row for each entry, in order), ``source``, ``comparison`` and ``truncated``.

    :raises InvalidInput: an entry cannot be looked up.
    """
    queries = []
    for index, text in enumerate(symbols):
        with option_path(f"symbols[{index}]"):
            queries.append(Query(text))
    release = (root.read_text_or("proc/sys/kernel/osrelease") or "").strip()
    source = read_source(root, place.kind, place.path, release)
    other = read_source(root, against.kind, against.path, release) if against else None
    result: dict[str, t.Any] = {"source": source.row(), "comparison": None, "truncated": False}
    if other is not None:
        result["comparison"] = compare(source, other)
    if source.table.empty:
        reason = f"there is no symbol table to look in: {source.reason or 'it is empty'}"
        result["symbols"] = [_row(query, "data_unavailable", reason) for query in queries]
        return result
    rows = _Answers(root, source, release, owner, limit).rows(queries)
    if other is not None:
        _reconcile(rows, queries, source, other, result["comparison"])
    result.update(symbols=rows, truncated=any(row["truncated"] for row in rows))
    return result


def _reconcile(
    rows: t.Sequence[dict[str, t.Any]],
    queries: t.Sequence[Query],
    source: Source,
    other: Source,
    comparison: t.Mapping[str, t.Any],
) -> None:
    """Add each name's drift to its row, and take the addresses out that belong to another kernel than the one meant."""
    verdict = comparison["verdict"]
    for row, query in zip(rows, queries):
        if query.kind == "name":
            row["drift"] = None if other.table.empty else drift(query.text, source.table, other.table, verdict)
        if verdict == "another_kernel" and row["count"] and not source.is_running:
            row.update(status="data_unavailable", reason=f"{source.name} is of another kernel than {other.name}")
            for symbol in [*row["matches"], *row.get("variants", [])]:
                symbol["address"] = None


class _Answers:
    def __init__(self, root: Root, source: Source, release: str, owner: str | None, limit: int) -> None:
        self._root = root
        self._source = source
        self._table = source.table
        self._release = release
        self._owner = owner
        self._left = limit
        self._exact: dict[str, Found] = {}
        self._nearest_left = _NEAREST_FOR_NAMES

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
        verdicts = _Verdicts(self._root, self._source, self._release, [s for _q, found, _c in answers for s in found])
        return [self._answer(query, found, count, verdicts) for query, found, count in answers]

    def _answer(self, query: Query, found: list[Symbol], count: int, verdicts: _Verdicts) -> dict[str, t.Any]:
        status, reason = self._status(query, found, count)
        row = _row(query, status, reason)
        row.update(count=count, truncated=count > len(found), matches=[symbol.row() for symbol in found])
        for match, symbol in zip(row["matches"], found):
            verdicts.add(match, symbol)
        row["probeable"] = _common([match["probeable"] for match in row["matches"]])
        row["exported"] = _common([match["exported"] for match in row["matches"]])
        if query.kind == "name":
            details = [verdicts.details(symbol) for symbol in found]
            for key in {key for detail in details for key in detail}:
                row[key] = _common([detail.get(key) for detail in details])
            row["aliases"] = self._table.aliases(found[0]) if found else []
            variants = [symbol for symbol in self._exact[query.text][1] if self._owner in (None, symbol.owner)]
            row["variants"] = [dict(v.row(), kinds=variant_kinds(v.name)) for v in variants[:_VARIANTS_SHOWN]]
            if not count:
                self._explain_absence(row, query.text)
        return row

    def _status(self, query: Query, found: list[Symbol], count: int) -> tuple[str, str | None]:
        kallsyms = self._source.kind == "kallsyms"
        if not count:
            core = query.kind == "name" and self._owner in (None, CORE_OWNER)
            if kallsyms and core and not self._table.has_data_symbols:
                return "data_unavailable", "there is no function of this name, and this kernel does not list variables"
            return "absent", None
        if query.kind == "name" and count > 1:
            places = {symbol.address for symbol in found}
            if len(places) > 1 or self._table.restricted:
                return "ambiguous", f"{count} symbols have this name"
        if kallsyms and self._table.restricted:
            return "restricted", "it is there; its address is hidden"
        return "found", None

    def _explain_absence(self, row: dict[str, t.Any], name: str) -> None:
        if self._owner is not None and self._owner != CORE_OWNER and self._owner not in self._table.owners():
            row["reason"] = f"{self._owner} is not loaded, or has no symbols"
        elif row["variants"]:
            row["reason"] = "only variants that the compiler made of it are there; inlined copies are not listed"
        if self._nearest_left > 0:
            self._nearest_left -= 1
            row["candidates"] = self._table.nearest(name, owner=self._owner)


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
        row.update(variants=[], aliases=[], candidates=[], probeable_reason=None, section=None, ftrace=None, drift=None)
    return row


def _common(values: t.Sequence[t.Any]) -> t.Any:
    """Return the value that all share, else null."""
    return values[0] if len(set(values)) == 1 else None


class _Verdicts:
    """What can be said of the symbols found: may modules use them, and can they be traced?

    The latter only of the running kernel's own table: no other source tells what can be done there.
    """

    def __init__(self, root: Root, source: Source, release: str, symbols: t.Collection[Symbol]) -> None:
        self._probes: Probeability | None = None
        self._ftrace: set[tuple[str, str]] | None = None
        self._exports: Exports | None = None
        self._all_exported = source.kind == "module_symvers"
        if source.kind == "kallsyms":
            options = read_config(root, release)
            kprobes = None if options is None else bool(options.get("CONFIG_KPROBES"))
            self._probes = Probeability(root, source.table, kprobes)
            self._ftrace = in_ftrace(root, symbols) if any(symbol.is_function for symbol in symbols) else None
        if source.kind != "xen_syms":
            places = [source.name] if self._all_exported else [place.format(release) for place in SYMVERS_PLACES]
            self._exports = Exports(root, places, source.table, {symbol.name for symbol in symbols})
        self._sections = self._probes.sections if self._probes else Sections(source.table)

    def add(self, match: dict[str, t.Any], symbol: Symbol) -> None:
        """Add what every match tells."""
        match.update(probeable=self._probeable(symbol)[0], exported=self._exported(symbol)[0])
        export = self._exported(symbol)[1]
        if export is not None:
            match.update(gpl_only=export.gpl_only, namespace=export.namespace)
        if self._all_exported:
            match["type"] = None

    def details(self, symbol: Symbol) -> dict[str, t.Any]:
        """Return the details of a symbol that was requested by its name."""
        row: dict[str, t.Any] = {"probeable_reason": self._probeable(symbol)[1], "section": self._sections.of(symbol)}
        export = self._exported(symbol)[1]
        if export is not None:
            row.update(gpl_only=export.gpl_only, namespace=export.namespace)
        if self._ftrace is not None:
            row["ftrace"] = (symbol.name, symbol.owner) in self._ftrace
        return row

    def _probeable(self, symbol: Symbol) -> tuple[bool | None, str | None]:
        if self._probes is None:
            return None, "only the running kernel's own table tells what can be probed"
        return self._probes.verdict(symbol)

    def _exported(self, symbol: Symbol) -> tuple[bool | None, Export | None]:
        if self._exports is None:
            return None, None
        exported, export = self._exports.verdict(symbol)
        return (True if self._all_exported else exported), export
