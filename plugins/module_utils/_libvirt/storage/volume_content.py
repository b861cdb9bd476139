# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The content of volumes: files of this host that go into one, and what is in one, through libvirt's streams.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import typing as t

from ..._core.errors import InvalidInput, NoEffect, TapvirtError
from ..._core.files import open_regular
from ..connection.connection import Connection, libvirt, libvirt_errors
from ..disk.images import backing_file
from .storage import Volume, shown_size
from .volume_data import SourceFile

_CHUNK_BYTES = 1 << 20
_TOLD_PARTS = 10
# QEMU's page "Qcow2 image format": magic, version, backing file's offset and length, cluster bits, virtual size.
_QCOW2 = struct.Struct(">4sIQIIQ")
_QCOW2_MAGIC = b"QFI\xfb"

Log = t.Callable[[str], None]


def inspect_source(path: str) -> SourceFile:
    """Return what a file of this host is.

    :raises InvalidInput: the file cannot be read, is empty, or is an image with a backing file.
    """
    try:
        with open_regular(path) as stream:
            found = os.fstat(stream.fileno())
            header = stream.read(_QCOW2.size)
    except OSError as error:
        raise InvalidInput("source", path, f"The file cannot be read on this host: {error.strerror}") from error
    if not found.st_size:
        raise InvalidInput("source", path, "The file is empty")
    if len(header) < _QCOW2.size or not header.startswith(_QCOW2_MAGIC):
        return SourceFile(path, found.st_size, "raw", found.st_size)
    _magic, _version, backing_offset, _length, _cluster_bits, capacity = _QCOW2.unpack(header)
    if backing_offset:
        below = backing_file(path)
        has = "a backing file on another host" if below is None else f"the backing file {below}"
        problem = f"The image has {has}, and only a standalone image can be uploaded"
        raise InvalidInput("source", path, problem, "Convert it to a standalone image with qemu-img convert")
    return SourceFile(path, found.st_size, "qcow2", int(capacity))


def digest_of_file(path: str) -> str:
    """Return the SHA-256 of a file of this host, in hex."""
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: str) -> t.Iterator[bytes]:
    try:
        with open_regular(path) as stream:
            yield from iter(lambda: stream.read(_CHUNK_BYTES), b"")
    except OSError as error:
        raise TapvirtError(f"{path} cannot be read on this host: {error.strerror}.") from error


@contextlib.contextmanager
def _stream(connection: Connection, doing: str) -> t.Iterator[t.Any]:
    with libvirt_errors(doing):
        stream = connection.newStream(0)
        try:
            yield stream
            stream.finish()
        except BaseException:
            with contextlib.suppress(libvirt.libvirtError):
                stream.abort()
            raise


def digest_of_volume(connection: Connection, name: str, volume: Volume, length: int) -> str:
    """Return the SHA-256 of a volume's first bytes, in hex; of all that it has, where that is less."""
    digest = hashlib.sha256()
    with _stream(connection, f"Reading the content of volume {name}") as stream:
        volume.download(stream, 0, length, 0)
        for chunk in iter(lambda: stream.recv(_CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def upload(connection: Connection, name: str, volume: Volume, source: SourceFile, log: Log) -> str:
    """Put a file into a volume and read it back; return the SHA-256 of what is in there.

    Progress goes to the host's log, in at most ten lines.

    :raises NoEffect: what is read back is something else.
    """
    digest, sent, told = hashlib.sha256(), 0, 0
    with _stream(connection, f"Uploading {source.path} to volume {name}") as stream:
        volume.upload(stream, 0, source.size, 0)
        for chunk in _chunks(source.path):
            if sent + len(chunk) > source.size:
                raise TapvirtError(f"{source.path} grew while it was uploaded to volume {name!r}.")
            _send(stream, chunk)
            digest.update(chunk)
            sent += len(chunk)
            part = sent * _TOLD_PARTS // source.size
            if part > told:
                told = part
                log(f"{name}: {shown_size(sent)} of {shown_size(source.size)} uploaded")
    if sent < source.size:
        raise TapvirtError(f"{source.path} shrank while it was uploaded to volume {name!r}.")
    found = digest_of_volume(connection, name, volume, source.size)
    if found != digest.hexdigest():
        raise NoEffect(
            f"{source.path} was uploaded to volume {name!r} without an error, but the volume contains something else."
        )
    return found


def _send(stream: t.Any, chunk: bytes) -> None:
    while chunk:
        chunk = chunk[stream.send(chunk) :]
