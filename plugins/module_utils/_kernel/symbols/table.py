# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The running kernel's symbol table, read once and searched in place.

Private to the collection. The format is that of ``s_show`` in the kernel's kernel/kallsyms.c: address, one type
letter, name and, for what does not belong to the kernel image, a TAB and the owner in brackets. The file cannot be
mapped, and reading it costs more than searching it, so a ``SymbolTable`` keeps its bytes and every question searches
them; there is never an object for every line.

Reading and finding take about 20 ms more than the kernel's own formatting of the file. typing, dataclasses and re
together take longer than that to import, so this file does without, or imports inside the function that needs it.
"""

from __future__ import annotations

import io

from ..._core.files import open_regular
from ..._core.root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing as t

CORE_OWNER = "vmlinux"
KALLSYMS = "proc/kallsyms"

# Names that the build derives from a function: padding, static call keys, compiler variants (GCC and Clang).
_DERIVED_PREFIXES = (b"__pfx_", b"__cfi_", b"__SC", b"__traceiter_", b"__probestub_", b"__ksymtab_", b"__kstrtab")
_VARIANT_KINDS = ("isra", "constprop", "part", "cold", "llvm", "lto_priv")
_TEXT_TYPES = "tTwW"
_DATA_TYPES = rb"^.{%d}[dDbBrR] "
_DATA_LETTERS = "dDbBrR"
_NEWLINE, _DOT = b"\n."
_NAME_ENDS = b"\n\t."
# Section markers are a few dozen; a kernel's variables are tens of thousands.
_DATA_SYMBOLS = 1000
# From this many names on, one walk over the lines is cheaper than one search for each name.
_WALK_FROM_NAMES = 60
if TYPE_CHECKING:
    #: The symbols of a name, and the variants that the compiler made of it.
    Found = t.Tuple[t.List["Symbol"], t.List["Symbol"]]


class _Record:
    """A plain record: equal when all fields are."""

    __slots__: tuple[str, ...] = ()

    def _fields(self) -> tuple[t.Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self._fields()!r}"


class Symbol(_Record):
    """One line of the table. ``address`` is null where the kernel hides it, ``owner`` is ``vmlinux`` or the module."""

    __slots__ = ("address", "name", "owner", "type")

    def __init__(self, name: str, letter: str, address: int | None, owner: str) -> None:
        self.name = name
        self.type = letter
        self.address = address
        self.owner = owner

    @property
    def is_function(self) -> bool:
        """Tell whether the symbol lies in text (weak symbols count: in the kernel image they are functions)."""
        return self.type in _TEXT_TYPES

    def row(self) -> dict[str, t.Any]:
        """Return the symbol as it appears in a result: the address as text, as 64 bits do not fit JSON's numbers."""
        return {
            "name": self.name,
            "type": self.type,
            "address": None if self.address is None else f"{self.address:#x}",
            "owner": self.owner,
        }


class Counts(_Record):
    """How many symbols there are, by type letter and by owner, and the fingerprints of both parts of the table."""

    __slots__ = ("by_owner", "by_type", "core_fingerprint", "extras_fingerprint", "total")

    def __init__(
        self,
        total: int,
        by_type: dict[str, int],
        by_owner: dict[str, int],
        core_fingerprint: str,
        extras_fingerprint: str,
    ) -> None:
        self.total = total
        self.by_type = by_type
        self.by_owner = by_owner
        self.core_fingerprint = core_fingerprint
        self.extras_fingerprint = extras_fingerprint

    @property
    def has_data_symbols(self) -> bool:
        """Tell what ``SymbolTable.has_data_symbols`` tells, without another look at the table."""
        return sum(self.by_type.get(letter, 0) for letter in _DATA_LETTERS) >= _DATA_SYMBOLS


def variant_kinds(name: str) -> list[str]:
    """Return what the compiler made of a function, from its name: ``foo.constprop.0.isra.0`` -> constprop, isra.

    An empty list: the name itself, not a variant. An unknown suffix counts as ``other``.
    """
    parts = name.split(".")[1:]
    kinds = [part for part in parts if part in _VARIANT_KINDS]
    return kinds or (["other"] if parts else [])


def _encode(name: str) -> bytes:
    """Return a name that a user gave as bytes; one that is not UTF-8 is no symbol's."""
    return name.encode("utf-8", "surrogatepass")


class SymbolTable:
    """Questions to the bytes of ``/proc/kallsyms`` (or of a file in its format).

    Addresses may be hidden (all zero) and every answer but the address is still right.
    """

    def __init__(self, data: bytes) -> None:
        # The first line tells how wide an address is; "(null)", as some kernels print, is padded to that width.
        self._width = 8 if data[8:9] == b" " and data[10:11] == b" " else 16
        self._data = data if data.endswith(b"\n") or not data else data + b"\n"
        tab = self._data.find(b"\t")
        self._core_end = len(self._data) if tab < 0 else self._data.rfind(b"\n", 0, tab) + 1
        self._lists_data: bool | None = None
        #: Whether every address is hidden (kptr_restrict, no CAP_SYSLOG).
        self.restricted = bool(self._data) and not self._shows_addresses()

    @property
    def empty(self) -> bool:
        """Tell whether the table has no line at all."""
        return not self._data

    @property
    def has_data_symbols(self) -> bool:
        """Tell whether the table lists variables (CONFIG_KALLSYMS_ALL).

        A kernel without it still lists the linker's section markers, which are few.
        """
        if self._lists_data is None:
            import re

            pattern = re.compile(_DATA_TYPES % (self._width + 1), re.MULTILINE)
            found = pattern.finditer(self._data, 0, self._core_end)
            self._lists_data = sum(1 for _number, _match in zip(range(_DATA_SYMBOLS), found)) == _DATA_SYMBOLS
        return self._lists_data

    def has_prefix(self, prefix: str) -> bool:
        """Tell whether any name begins with this text."""
        return b" " + _encode(prefix) in self._data

    def find(self, name: str) -> list[Symbol]:
        """Return every symbol of exactly this name (names are not unique), in the table's order."""
        return self.look_up(name)[0]

    def variants(self, name: str) -> list[Symbol]:
        """Return what the compiler made of a function: ``name.isra.0``, ``name.cold``, ``name.llvm.123``, ..."""
        return self.look_up(name)[1]

    def look_up(self, name: str) -> Found:
        """Return what ``find`` and ``variants`` do, in one search."""
        found: Found = ([], [])
        needle = b" " + _encode(name)
        position = self._data.find(needle)
        while position >= 0:
            after = position + len(needle)
            end = self._data[after]
            start = position - self._width - 2
            # A type letter is preceded by a space as well; then no line starts where this name's line would.
            if end in _NAME_ENDS and start >= 0 and (start == 0 or self._data[start - 1] == _NEWLINE):
                found[end == _DOT].append(self._symbol(start))
            position = self._data.find(needle, after)
        return found

    def look_up_many(self, names: t.Collection[str]) -> dict[str, Found]:
        """Return for each name what ``look_up`` does; the time hardly grows with the number of names."""
        if len(names) < _WALK_FROM_NAMES:
            return {name: self.look_up(name) for name in names}
        found: dict[bytes, Found] = {_encode(name): ([], []) for name in names}
        for line in io.BytesIO(self._data):
            name = line[self._width + 3 : -1].partition(b"\t")[0]
            if name in found:
                found[name][0].append(self._parse(line))
            dot = name.find(b".")
            while dot >= 0:
                if name[:dot] in found:
                    found[name[:dot]][1].append(self._parse(line))
                dot = name.find(b".", dot + 1)
        return {name: found[_encode(name)] for name in names}

    def search(
        self, accept: t.Callable[[str], t.Any], limit: int, owner: str | None = None, functions_only: bool = False
    ) -> tuple[list[Symbol], int]:
        """Return the first ``limit`` symbols whose name is accepted, and how many there are in all."""
        kept: list[Symbol] = []
        count = 0
        for symbol in self._walk(accept):
            if (owner is None or symbol.owner == owner) and (symbol.is_function or not functions_only):
                count += 1
                if count <= limit:
                    kept.append(symbol)
        return kept, count

    def glob(
        self, pattern: str, limit: int, owner: str | None = None, functions_only: bool = False
    ) -> tuple[list[Symbol], int]:
        """Return what ``search`` does for a shell pattern (``*``, ``?``, ``[...]``), as ``fnmatch`` reads it."""
        import fnmatch
        import re

        return self.search(re.compile(fnmatch.translate(pattern)).match, limit, owner, functions_only)

    def aliases(self, symbol: Symbol) -> list[str] | None:
        """Return the other names of a symbol's address; null where addresses are hidden."""
        if symbol.address is None:
            return None
        line_start = f"{symbol.address:0{self._width}x} ".encode()
        names: list[str] = []
        start = 0 if self._data.startswith(line_start) else self._data.find(b"\n" + line_start) + 1
        while self._data.startswith(line_start, start):
            other = self._symbol(start).name
            if other != symbol.name and other not in names:
                names.append(other)
            start = self._data.find(b"\n" + line_start, start) + 1 or len(self._data)
        return names

    def nearest(self, name: str, limit: int = 3, owner: str | None = None) -> list[str]:
        """Return the functions whose names look most like an absent one, without the names the build derives."""
        from ..._core.errors import nearest_names

        base = name.partition(".")[0]
        return nearest_names(base, self._functions_like(base, owner), limit)

    def owners(self) -> list[str]:
        """Return the modules (and ``bpf``, ``__builtin__ftrace``, ...) that have symbols of their own, sorted."""
        import re

        found = set(re.findall(rb"\t\[([^\]\n]+)\]\n", self._data[self._core_end :]))
        return sorted(owner.decode("utf-8", "replace") for owner in found)

    def function_addresses(self) -> dict[str, int | None]:
        """Return the addresses of the kernel image's functions by name; null for a name that several have."""
        letters = {letter.encode() for letter in _TEXT_TYPES}
        found: dict[str, int | None] = {}
        for line in io.BytesIO(self._data[: self._core_end]):
            if line[self._width + 1 : self._width + 2] in letters:
                name = line[self._width + 3 : -1].decode("utf-8", "replace")
                found[name] = None if name in found else _address(line[: self._width])
        return found

    def counts(self) -> Counts:
        """Count by type and owner, and hash both parts.

        A fingerprint covers types and names in order, not addresses: it is the same for root, for a user who may
        not see addresses, and on every boot of the same kernel image.
        """
        import collections
        import hashlib
        import operator

        core = self._data[: self._core_end]
        extras = self._data[self._core_end :].splitlines()
        types: t.Counter[bytes] = collections.Counter()
        digest = hashlib.sha256()
        tail = operator.itemgetter(slice(self._width + 1, None))
        letter = operator.itemgetter(slice(self._width + 1, self._width + 2))
        total = 0
        stream = io.BytesIO(core)
        for lines in iter(lambda: stream.readlines(1 << 18), []):
            total += len(lines)
            types.update(map(letter, lines))
            digest.update(b"".join(map(tail, lines)))
        owners: t.Counter[str] = collections.Counter()
        if total:
            owners[CORE_OWNER] = total
        for line in extras:
            owners[_owner(line.partition(b"\t")[2])] += 1
        types.update(map(letter, extras))
        return Counts(
            total=total + len(extras),
            by_type={code.decode("ascii", "replace"): number for code, number in sorted(types.items())},
            by_owner=dict(owners.most_common()),
            core_fingerprint=digest.hexdigest()[:32],
            extras_fingerprint=hashlib.sha256(b"\n".join(sorted(map(tail, extras)))).hexdigest()[:32],
        )

    def _shows_addresses(self) -> bool:
        # The last line settles it where addresses are shown: only the first ones of a table may be zero.
        last = self._data.rfind(b"\n", 0, -1) + 1
        if _is_shown(self._data[last : last + self._width]):
            return True
        return any(_is_shown(line[: self._width]) for line in io.BytesIO(self._data))

    def _walk(self, accept: t.Callable[[str], t.Any]) -> t.Iterator[Symbol]:
        for line in io.BytesIO(self._data):
            if accept(line[self._width + 3 : -1].partition(b"\t")[0].decode("utf-8", "replace")):
                yield self._parse(line)

    def _symbol(self, start: int) -> Symbol:
        return self._parse(self._data[start : self._data.index(b"\n", start)])

    def _parse(self, line: bytes) -> Symbol:
        name, _tab, owner = line[self._width + 3 :].rstrip(b"\n").partition(b"\t")
        return Symbol(
            name.decode("utf-8", "replace"),
            line[self._width + 1 : self._width + 2].decode("ascii", "replace"),
            None if self.restricted else _address(line[: self._width]),
            _owner(owner) if owner else CORE_OWNER,
        )

    def _functions_like(self, name: str, owner: str | None) -> t.Iterator[str]:
        """Yield the functions of about the name's length (as far as ``nearest_names`` would look)."""
        slack = max(3, len(name) // 3)
        lengths = range(len(name) - slack, len(name) + slack + 1)
        letters = _TEXT_TYPES.encode()
        for line in io.BytesIO(self._data):
            other, _tab, other_owner = line[self._width + 3 : -1].partition(b"\t")
            if len(other) not in lengths or line[self._width + 1 : self._width + 2] not in letters or b"." in other:
                continue
            if not other.startswith(_DERIVED_PREFIXES) and owner in (None, _owner(other_owner)):
                yield other.decode("utf-8", "replace")


def _is_shown(field: bytes) -> bool:
    """Tell whether an address is one; a hidden one is zeros, or ``(null)``."""
    return field.lstrip(b"0")[:1].isalnum()


def _address(field: bytes) -> int | None:
    try:
        return int(field, 16)
    except ValueError:
        # A damaged line.
        return None


def _owner(field: bytes) -> str:
    return field.strip().strip(b"[]").decode("utf-8", "replace") or CORE_OWNER


def read_table(root: Root, name: str = KALLSYMS) -> SymbolTable:
    """Read the table of the running kernel.

    :raises OSError: absent (a kernel without CONFIG_KALLSYMS, a proc mounted with ``subset=pid``) or not readable.
    """
    with open_regular(root.path(name), buffering=0) as stream:
        return SymbolTable(stream.read())
