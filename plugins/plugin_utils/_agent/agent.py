# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands and files in a guest, by QEMU's guest agent over a libvirt connection. Private to the collection."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import sys
import time
import typing as t

from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import (
    MASK,
    InvalidInput,
    NoEffect,
    TapvirtError,
)
from ansible_collections.tapvirt.host.plugins.module_utils._core.packages import read_distribution, remedy
from ansible_collections.tapvirt.host.plugins.module_utils._core.root import Root
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.connection import (
    LibvirtFailure,
    connected,
    libvirt,
    shown_uri,
)
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.deadline import call_with_deadline
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.lookup import find_domain
from ansible_collections.tapvirt.host.plugins.plugin_utils._agent.messages import (
    MOST_STDERR,
    MOST_STDOUT,
    Done,
    NotReached,
    answer,
    done,
    making_sense,
    message,
    missing,
)

try:
    import libvirt_qemu
except ImportError:
    libvirt_qemu = None

DEFAULT_URI = "qemu:///system"
#: The options that choose where to connect, and the variable of each.
VARIABLES = {
    "libvirt_uri": "tapvirt_libvirt_uri",
    "domain": "tapvirt_libvirt_domain",
    "domain_row": "tapvirt_domain",
}
# Libvirt looks through all that it has of an answer at every kilobyte that comes: small answers cost it less.
READ_BYTES = 256 << 10
# In base64, and with what is around it, it fits a request.
WRITE_BYTES = 45_000
LEAST_ANSWER_SECONDS = 10

# $0 is a shell, $1 its command, $2 a file that is its input, and gone before it begins. Descriptor 3 is our stdout, 4
# the pipe of stderr, 5 the one of the exit status. What is printed beyond a limit is read and thrown away: the command
# goes on as it would with a reader.
_RUN = f"""
if [ -z "${{HOME-}}" ]; then HOME=/; if [ -w ~root ]; then HOME=~root; fi; export HOME; fi
cd "$HOME" 2>/dev/null
if [ -n "$2" ]; then exec <"$2" && rm -f "$2" || exit; fi
some() {{ head -c "$1"; exec cat >/dev/null; }}
exec 3>&1
status=$({{
  {{
    {{ "$0" -c "$1" 3>&- 4>&- 5>&-; echo "$?" >&5; }} 2>&4 4>&- | some {MOST_STDOUT + 1} >&3
  }} 4>&1 | some {MOST_STDERR + 1} >&2
}} 5>&1)
exit "$status"
"""
_CREATE = 'umask 077 && : > "$1"'
# In memory where the guest has such a place.
_CREATE_ANY = """
for folder in /run /dev/shm /tmp; do
  if name=$(mktemp "$folder/tapvirt.XXXXXX" 2>/dev/null); then echo "$name"; exit; fi
done
echo "nothing can be written below /run, /dev/shm and /tmp" >&2
exit 1
"""
# Prints the size, and the digest of the first $2 bytes or "-" where nothing of the guest can tell it. A file that says
# it is empty is one, or one of a kernel's that has another text at each look.
_LOOK = """
if [ ! -s "$1" ]; then echo 0 -; exit; fi
size=$(wc -c < "$1") || exit
sum=$(head -c "$2" < "$1" | if command -v sha256sum >/dev/null; then sha256sum; else sha256 -q; fi 2>/dev/null)
echo $size "${sum:--}"
"""
_SHELL = "/bin/sh"
_SETTING = (
    "In the guest, the agent's own settings allow them: in /etc/sysconfig/qemu-ga take them out of BLACKLIST_RPC or "
    "BLOCK_RPCS, or add them to --allow-rpcs in FILTER_RPC_ARGS; elsewhere 'block-rpcs' ('blacklist' before QEMU 8) or "
    "'allow-rpcs' in /etc/qemu/qemu-ga.conf; then restart qemu-guest-agent. They are refused as well while the guest's "
    "file systems are frozen."
)
_CHANNEL = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
# Before every command libvirt asks the agent for a sign of life, for so long (QEMU_AGENT_WAIT_TIME); and a call of
# libvirt that has to be given up is waited for so much longer (deadline.within).
_SYNC_SECONDS = 5
_GRACE_SECONDS = 5
_FIRST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 0.5


def place(uri: str | None, name: str | None, row: t.Mapping[str, t.Any] | None, host: str) -> tuple[str, str]:
    """Return the URI and the domain's name: as they were given, as the inventory has them, or from the host's name.

    :raises InvalidInput: the inventory has a URI whose password it does not tell.
    """
    row = row or {}
    found = uri or row.get("uri")
    if not uri and found and f":{MASK}@" in found:
        raise InvalidInput(
            "libvirt_uri",
            found,
            "The inventory does not contain the password of this URI.",
            "Set libvirt_uri yourself.",
        )
    return found or DEFAULT_URI, name or row.get("name") or host


def refuse_facts(facts: t.Any, given: t.Mapping[str, t.Any]) -> None:
    """Refuse a libvirt, or a domain, that comes from a guest's facts: Ansible makes a variable of every fact.

    :param facts: the facts, by name.
    :param given: the values of the options that choose where to connect, by the names of the options.
    :raises InvalidInput: a value is that of a fact with the name of the option's variable.
    """
    for option, value in given.items():
        variable = VARIABLES[option]
        if isinstance(facts, t.Mapping) and value is not None and variable in facts and facts[variable] == value:
            raise InvalidInput(
                option,
                value,
                f"The value is that of {variable} among the facts of the guest, and a guest must not choose where the "
                "controller connects to. set_fact with cacheable makes such a fact, too.",
                f"Set {variable} in the inventory, or with set_fact without cacheable.",
            )


class Guest:
    """One domain, spoken to through its agent.

    ``answer_seconds``: how long libvirt and the agent may take for each answer, at least 10. ``command_seconds``: how
    long a command, or the transfer of a file, may take.
    """

    def __init__(self, uri: str, name: str, answer_seconds: int, command_seconds: int) -> None:
        for option, value, least in (
            ("answer_timeout_seconds", answer_seconds, LEAST_ANSWER_SECONDS),
            ("command_timeout_seconds", command_seconds, 1),
        ):
            if value < least:
                raise InvalidInput(option, value, f"The least number of seconds is {least}.")
        self._uri, self._name = uri, name
        self._where = f"The agent of {name} ({shown_uri(uri)})"
        self._answer_seconds, self._command_seconds = answer_seconds, command_seconds
        self._open = contextlib.ExitStack()
        self._domain: t.Any = None

    def open(self) -> None:
        """Connect, find the domain, and see that its agent answers and may do what is needed.

        :raises TapvirtError: one of these did not succeed; names the domain and the URI without its password.
        """
        if libvirt is None or libvirt_qemu is None:
            raise NotReached(
                f"The Python that Ansible runs under ({sys.executable}) cannot import 'libvirt_qemu'. "
                "Install the package libvirt-python of PyPI for it; where it is the system's own Python, "
                f"{remedy('libvirt', read_distribution(Root()))}."
            )
        try:
            connection = self._open.enter_context(connected(self._uri, self._answer_seconds, option="libvirt_uri"))
            self._domain = self._bounded(lambda: find_domain(connection, self._name, "domain"))
            if not self._bounded(self._domain.isActive):
                raise NotReached("the domain is not running.")
            refused = missing(self._ask("guest-info", {}, self._deadline()))
        except TapvirtError as error:
            self.close()
            raise NotReached(f"{self._where}: {self._hinted(error)}") from error
        if refused:
            self.close()
            raise NotReached(f"{self._where} does not allow {', '.join(refused)}. {_SETTING}")

    def close(self) -> None:
        """Close the connection."""
        self._domain = None
        self._open.close()

    def run(self, shell: str, command: str, stdin: bytes | None) -> Done:
        """Run a shell's command in its user's home folder.

        :raises NotReached: the agent stopped answering.
        :raises TapvirtError: it did not end in time and goes on (its process is named), or printed too much.
        """
        with self._told("running a command"):
            deadline = self._deadline()
            given, kept = (stdin, "") if len(stdin or b"") <= WRITE_BYTES // 2 else (None, self._kept(stdin, deadline))
            return self._execute([_SHELL, "-c", _RUN, shell, command, kept], given, deadline)

    def put(self, source: t.BinaryIO, path: str) -> None:
        """Write a file, a new one for its owner only, and compare what the guest has then.

        :raises TapvirtError: it could not be written, or is not there as it was sent.
        """
        with self._told(f"writing {path}"):
            deadline = self._deadline()
            self._script(deadline, _CREATE, path)
            size, digest = self._send(source, path, deadline)
            there, found = self._look(path, size, deadline)
            if there == size and found is None and size:
                found = self._read(path, lambda _chunk: None, deadline)[1]
            if there != size or (size and found != digest):
                raise NoEffect(f"{size} bytes were sent, and {there} bytes that are not the same are there.")

    def fetch(self, path: str, target: t.BinaryIO) -> None:
        """Read a file into another one.

        :raises TapvirtError: it could not be read, or was changed meanwhile.
        """
        with self._told(f"reading {path}"):
            deadline = self._deadline()
            size, digest = self._read(path, target.write, deadline)
            there, found = self._look(path, size, deadline)
            if there and (there < size or found not in (None, digest)):
                raise NoEffect("it was changed while it was read.")

    def _deadline(self) -> float:
        return time.monotonic() + self._command_seconds

    @contextlib.contextmanager
    def _told(self, doing: str) -> t.Iterator[None]:
        """Name the guest, and what was under way, in every error."""
        try:
            yield
        except (LibvirtFailure, NotReached) as error:
            kind = TapvirtError if self._refused(error) else NotReached
            raise kind(f"{self._where}, {doing}: {self._hinted(error)}", **error.fields) from error
        except TapvirtError as error:
            raise TapvirtError(f"{self._where}, {doing}: {error.message}", **error.fields) from error

    @staticmethod
    def _refused(error: TapvirtError) -> bool:
        """Tell whether the agent itself answered, with an error of its own."""
        return isinstance(error, LibvirtFailure) and "unable to execute QEMU agent command" in error.message

    @staticmethod
    def _hinted(error: TapvirtError) -> str:
        """Return an error's text with what to look at."""
        code = error.code if isinstance(error, LibvirtFailure) else 0
        hint = ""
        if "has been disabled" in error.message or "not allowed" in error.message:
            hint = _SETTING
        elif code == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
            hint = "Is qemu-guest-agent installed and running in the guest?"
        elif code == libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED:
            hint = f"The domain needs {_CHANNEL} among its devices."
        elif code in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_OPERATION_UNSUPPORTED):
            hint = "Only domains of libvirt's QEMU driver have such an agent."
        return f"{error.message} {hint}".rstrip()

    def _bounded(self, call: t.Callable[[], t.Any], doing: str = "Looking for it") -> t.Any:
        """Call something of libvirt; return its result, or raise its error, within the time of an answer."""
        outcome: list[t.Any] = []

        def note() -> None:
            try:
                outcome.append(call())
            except TapvirtError as error:
                outcome.append(error)

        call_with_deadline(self._answer_seconds - _GRACE_SECONDS, doing, note, lambda: None)
        if isinstance(outcome[0], TapvirtError):
            raise outcome[0]
        return outcome[0]

    def _ask(self, command: str, arguments: t.Mapping[str, t.Any], deadline: float) -> t.Any:
        text = message(command, arguments)
        if time.monotonic() > deadline:
            raise TapvirtError(f"it was not done within {self._command_seconds} s.")
        seconds = max(1, self._answer_seconds - _GRACE_SECONDS - _SYNC_SECONDS)
        return answer(self._bounded(lambda: libvirt_qemu.qemuAgentCommand(self._domain, text, seconds, 0), command))

    def _execute(self, argv: list[str], stdin: bytes | None, deadline: float) -> Done:
        arguments: dict[str, t.Any] = {"path": argv[0], "arg": argv[1:], "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode("ascii")
        started = self._ask("guest-exec", arguments, deadline)
        with making_sense():
            pid = int(started["pid"])
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                ended = done(self._ask("guest-exec-status", {"pid": pid}, time.monotonic() + self._answer_seconds))
            except (LibvirtFailure, NotReached) as error:
                raise NotReached(f"{self._hinted(error)} The command was process {pid} of the guest.") from error
            if ended is not None:
                return ended
            left = deadline - time.monotonic()
            if left <= 0:
                raise TapvirtError(
                    f"the command has not ended within {self._command_seconds} s. It continues as process {pid} of the "
                    "guest, with the processes that it started.",
                    pid=pid,
                )
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)

    def _script(self, deadline: float, script: str, *words: str) -> str:
        """Run a script of ours and return what it prints."""
        ended = self._execute([_SHELL, "-c", script, _SHELL, *words], None, deadline)
        if ended.status:
            said = " ".join(ended.stderr.decode("utf-8", "replace").split())
            raise TapvirtError(f"{said[:500] or 'the command printed no message'} (status {ended.status}).")
        return ended.stdout.decode("ascii", "replace")

    def _look(self, path: str, size: int, deadline: float) -> tuple[int, str | None]:
        """Return how large a file is, and the digest of its first bytes where the guest can tell it."""
        words = self._script(deadline, _LOOK, path, str(size)).split()
        with making_sense():
            return int(words[0]), None if words[1] == "-" else words[1]

    @contextlib.contextmanager
    def _file(self, path: str, mode: str, deadline: float) -> t.Iterator[int]:
        with making_sense():
            handle = int(self._ask("guest-file-open", {"path": path, "mode": mode}, deadline))
        try:
            yield handle
        except BaseException:
            with contextlib.suppress(TapvirtError):
                self._ask("guest-file-close", {"handle": handle}, time.monotonic() + self._answer_seconds)
            raise
        # What does not fit the guest's disk is found out here.
        self._ask("guest-file-close", {"handle": handle}, time.monotonic() + self._answer_seconds)

    def _kept(self, data: bytes | None, deadline: float) -> str:
        """Write what a request cannot hold to a file of the guest that only its owner can read; return its path."""
        path = self._script(deadline, _CREATE_ANY).strip()
        try:
            self._send(io.BytesIO(data or b""), path, deadline)
        except TapvirtError:
            with contextlib.suppress(TapvirtError):
                self._script(time.monotonic() + self._answer_seconds, 'rm -f "$1"', path)
            raise
        return path

    def _send(self, source: t.BinaryIO, path: str, deadline: float) -> tuple[int, str]:
        """Write a whole file that is there, chunk by chunk; return its size and SHA-256 digest."""
        size, digest = 0, hashlib.sha256()
        with self._file(path, "wb", deadline) as handle:
            for chunk in iter(lambda: source.read(WRITE_BYTES), b""):
                self._write(handle, chunk, deadline)
                size += len(chunk)
                digest.update(chunk)
        return size, digest.hexdigest()

    def _write(self, handle: int, chunk: bytes, deadline: float) -> None:
        while chunk:
            data = base64.b64encode(chunk).decode("ascii")
            written = self._ask("guest-file-write", {"handle": handle, "buf-b64": data}, deadline)
            with making_sense():
                count = int(written["count"])
            if not 0 < count <= len(chunk):
                raise NotReached(f"The agent says it wrote {count} of {len(chunk)} bytes.")
            chunk = chunk[count:]

    def _read(self, path: str, take: t.Callable[[bytes], t.Any], deadline: float) -> tuple[int, str]:
        """Read a whole file, chunk by chunk; return its size and SHA-256 digest."""
        size, digest = 0, hashlib.sha256()
        with self._file(path, "rb", deadline) as handle:
            while True:
                read = self._ask("guest-file-read", {"handle": handle, "count": READ_BYTES}, deadline)
                with making_sense():
                    chunk = base64.b64decode(read["buf-b64"], validate=True)
                    whole, ended = int(read["count"]) == len(chunk) <= READ_BYTES, bool(read["eof"])
                if not whole:
                    raise NotReached("The agent's answer has not as many bytes as it says.")
                take(chunk)
                size += len(chunk)
                digest.update(chunk)
                if ended or not chunk:
                    return size, digest.hexdigest()
