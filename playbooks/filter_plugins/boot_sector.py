# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The smallest guest that talks: a boot sector of 512 bytes that prints a line on the serial port, halts, repeats.

For the demonstration and the tests. What a line costs is known exactly: one port write for each of its bytes and one
that acknowledges the timer, so ``length + 3`` I/O exits, and one ``hlt`` exit; the timer ticks 18.2 times a second.

A disk of 512 bytes has to be on an IDE bus, so the machine is ``pc``. On other buses SeaBIOS passes over a disk that is
smaller than a cylinder, 516096 bytes; a file that is filled up with zeros to that size boots there, too.
"""

from __future__ import annotations

import base64
import typing as t

from ansible.errors import AnsibleFilterError

_LOAD_ADDRESS = 0x7C00
_MAX_LENGTH = 256

# Runs in real mode, loaded by the BIOS at 0000:7c00. Two rules make the count of exits exact: interrupts are off while
# a line is printed, and the timer's handler returns with them off, so that one "sti; hlt" takes one tick, however late
# it is (a tick that is already pending, or one that the hypervisor delivers again, waits for the next "hlt").
_SET_UP = bytes([
    0xFA,                                 # cli
    0x31, 0xC0,                           # xor  ax, ax
    0x8E, 0xD8,                           # mov  ds, ax
    0x8E, 0xD0,                           # mov  ss, ax
    0xBC, 0x00, 0x7C,                     # mov  sp, 0x7c00
    0xFC,                                 # cld
    # The first serial port: 115200 baud, 8 bits, no parity, one stop bit, FIFO on, no interrupts.
    0xBA, 0xF9, 0x03,                     # mov  dx, 0x3f9
    0xEE,                                 # out  dx, al          (al = 0: no interrupts)
    0xBA, 0xFB, 0x03,                     # mov  dx, 0x3fb
    0xB0, 0x80,                           # mov  al, 0x80
    0xEE,                                 # out  dx, al          (divisor latch)
    0xBA, 0xF8, 0x03,                     # mov  dx, 0x3f8
    0xB0, 0x01,                           # mov  al, 1
    0xEE,                                 # out  dx, al
    0x42,                                 # inc  dx
    0x30, 0xC0,                           # xor  al, al
    0xEE,                                 # out  dx, al
    0xBA, 0xFB, 0x03,                     # mov  dx, 0x3fb
    0xB0, 0x03,                           # mov  al, 3
    0xEE,                                 # out  dx, al          (8N1)
    0x4A,                                 # dec  dx
    0xB0, 0x07,                           # mov  al, 7
    0xEE,                                 # out  dx, al          (FIFO on and empty)
    # The timer: channel 0, square wave, divisor 65536, its interrupt alone let through.
    0xB0, 0x36,                           # mov  al, 0x36
    0xE6, 0x43,                           # out  0x43, al
    0x30, 0xC0,                           # xor  al, al
    0xE6, 0x40,                           # out  0x40, al
    0xE6, 0x40,                           # out  0x40, al
    0xB0, 0xFF,                           # mov  al, 0xff
    0xE6, 0xA1,                           # out  0xa1, al
    0xB0, 0xFE,                           # mov  al, 0xfe
    0xE6, 0x21,                           # out  0x21, al
])  # fmt: skip


def _word(value: int) -> list[int]:
    return [value & 0xFF, value >> 8]


def _assemble(handler: int, message: int, length: int) -> tuple[bytes, bytes, bytes]:
    """Return the vector's set-up, the loop and the timer's handler, given the addresses of handler and text."""
    vector = bytes([
        0xC7, 0x06, 0x20, 0x00, *_word(handler),  # mov  word [8*4], handler
        0xC7, 0x06, 0x22, 0x00, *_word(0),    # mov  word [8*4+2], 0
    ])  # fmt: skip
    loop = bytes([
        0xBE, *_word(message),                # mov  si, message
        0xB9, *_word(length),                 # mov  cx, length
        0xBA, 0xF8, 0x03,                     # mov  dx, 0x3f8
        0xAC,                                 # lodsb                 (next:)
        0xEE,                                 # out  dx, al
        0xE2, 0xFC,                           # loop next
        0xFB,                                 # sti                   (takes effect once the hlt has begun)
        0xF4,                                 # hlt
        0xEB, 0xEF,                           # jmp  to the beginning, 17 bytes back
    ])  # fmt: skip
    timer = bytes([
        0x50,                                 # push ax
        0xB0, 0x20,                           # mov  al, 0x20
        0xE6, 0x20,                           # out  0x20, al         (end of interrupt)
        0x89, 0xE5,                           # mov  bp, sp
        0x80, 0x66, 0x07, 0xFD,               # and  byte [bp+7], 0xfd (saved flags: interrupts stay off)
        0x58,                                 # pop  ax
        0xCF,                                 # iret
    ])  # fmt: skip
    return vector, loop, timer


def sector(line: bytes) -> bytes:
    """Return the 512 bytes: set-up, loop, handler, text, padding, signature."""
    text = line + b"\r\n"
    vector, loop, timer = _assemble(0, 0, len(text))
    handler = _LOAD_ADDRESS + len(_SET_UP) + len(vector) + len(loop)
    code = _SET_UP + b"".join(_assemble(handler, handler + len(timer), len(text))) + text
    return code + bytes(510 - len(code)) + b"\x55\xaa"


def boot_sector(line: t.Any) -> str:
    """Return the boot sector for a line of 1 to 256 printable ASCII characters, in Base64."""
    if not isinstance(line, str) or not 1 <= len(line) <= _MAX_LENGTH or not (line.isascii() and line.isprintable()):
        raise AnsibleFilterError(
            f"boot_sector: {line!r} is not a line of 1 to {_MAX_LENGTH} printable ASCII characters."
        )
    return base64.b64encode(sector(line.encode("ascii"))).decode("ascii")


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., str]]:
        """Return filter names and functions."""
        return {"boot_sector": boot_sector}
