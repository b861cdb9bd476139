# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said to QEMU's guest agent, and what its answers mean. Private to the collection.

The sizes: libvirt ends all talk with an agent whose answer has 10 MiB (QEMU_AGENT_MAX_RESPONSE in its
``src/qemu/qemu_agent.c``), and passes on answers of 4 MiB (REMOTE_STRING_MAX in ``src/remote/remote_protocol.x``). Of a
request that does not fit the send buffer of the agent's socket, 212,992 bytes on Linux, it sends the beginning twice
(qemuAgentIOWrite there, safewrite in ``src/util/virfile.c``; seen with 9.0), and the agent hears nothing any more. One
that has less than half of that is sent whole or not at all (unix_stream_sendmsg in Linux).
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import typing as t

from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, TapvirtError

MOST_REQUEST = 64 << 10
# Together, in base64 and with what is around them, they fit an answer.
MOST_STDOUT = 2_500_000
MOST_STDERR = 500_000
NEEDED = (
    "guest-exec",
    "guest-exec-status",
    "guest-file-open",
    "guest-file-read",
    "guest-file-write",
    "guest-file-close",
)


class NotReached(TapvirtError):
    """Nobody answered, or not in a way that makes sense."""


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command did; a command ended by signal N has the status 128 + N."""

    status: int
    stdout: bytes
    stderr: bytes


def message(command: str, arguments: t.Mapping[str, t.Any]) -> str:
    """Return the text of a request.

    :raises TapvirtError: it has characters that cannot be sent, or is longer than libvirt brings over.
    """
    for value in [text for given in arguments.values() for text in (given if isinstance(given, list) else [given])]:
        if isinstance(value, str) and ("\0" in value or not _is_utf8(value)):
            raise InvalidInput(command, value, "The agent accepts only UTF-8 without NUL characters.")
    text = json.dumps({"execute": command, "arguments": arguments}, ensure_ascii=False)
    size = len(text.encode())
    if size > MOST_REQUEST:
        raise TapvirtError(
            f"{command}: the request has {size} bytes, and libvirt transfers at most {MOST_REQUEST}. Put it in a file."
        )
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def answer(text: t.Any) -> t.Any:
    """Return what an answer's text says.

    :raises NotReached: it is no answer.
    """
    with making_sense():
        return json.loads(text)["return"]


@contextlib.contextmanager
def making_sense() -> t.Iterator[None]:
    """A guest may answer anything."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise NotReached(f"The agent's answer makes no sense ({type(error).__name__}: {str(error)[:200]}).") from error


def missing(info: t.Any) -> list[str]:
    """Return which of the commands that are needed an agent does not have or does not allow (answer to guest-info)."""
    with making_sense():
        enabled = {str(row["name"]) for row in info["supported_commands"] if row["enabled"] is True}
    return [name for name in NEEDED if name not in enabled]


def done(status: t.Any) -> Done | None:
    """Return what an ended command did, null while it runs (answer to guest-exec-status).

    :raises TapvirtError: it printed more than can be brought over; the status is told.
    """
    with making_sense():
        if not status["exited"]:
            return None
        code = int(status["exitcode"]) if "exitcode" in status else 128 + int(status["signal"])
        stdout, stderr = (base64.b64decode(status.get(key, ""), validate=True) for key in ("out-data", "err-data"))
        cut = [name for name in ("out", "err") if status.get(f"{name}-truncated")]
    for name, data, most in (("stdout", stdout, MOST_STDOUT), ("stderr", stderr, MOST_STDERR)):
        if len(data) > most or name[3:] in cut:
            raise TapvirtError(
                f"The command printed more than {most} bytes on {name}, and the agent does not transfer more. The "
                f"command has ended with status {code}. Let it write a file, and fetch that file without 'become'."
            )
    return Done(code, stdout, stderr)
