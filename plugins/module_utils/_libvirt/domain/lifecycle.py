# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The run states of a domain: words for them, the steps from one to another, and waiting until one is reached.

Private to the collection. The steps are pure; ``Lifecycle`` carries them out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
import typing as t

from ..._core.errors import InvalidInput, TapvirtError
from ..connection.connection import Connection, Domain, libvirt, libvirt_errors
from ..connection.deadline import call_with_deadline
from ..connection.workers import WorkerSlots

# virDomainState, in libvirt's order.
STATES = ("nostate", "running", "blocked", "paused", "shutdown", "shutoff", "crashed", "pmsuspended")
# What each wanted state accepts as reached. Xen calls a running domain "blocked" or "nostate" from moment to moment.
_REACHED = {
    "running": ("running", "blocked", "nostate"),
    "paused": ("paused",),
    "shutdown": ("shutoff",),
    "saved": ("shutoff",),
}
_POLL_SECONDS = 0.5

# Bits of virDomainUndefineFlags, and the versions of libvirt that brought those that are younger than 5.0.
UNDEFINE_MANAGED_SAVE, UNDEFINE_SNAPSHOTS, UNDEFINE_NVRAM, UNDEFINE_KEEP_NVRAM = 1, 2, 4, 8
UNDEFINE_CHECKPOINTS, UNDEFINE_TPM, UNDEFINE_KEEP_TPM = 16, 32, 64
_CHECKPOINTS_SINCE = 5006000
TPM_KEPT_SINCE = 8009000


#: How the message of a step that failed begins.
DOING = {
    "create": "Starting",
    "create_paused": "Starting",
    "destroy": "Destroying",
    "managed_save": "Saving",
    "resume": "Resuming",
    "shutdown": "Shutting down",
    "suspend": "Pausing",
    "wait_off": "Shutting down",
    "wakeup": "Waking up",
}


@dataclasses.dataclass(frozen=True)
class Waiting:
    """How long to wait for a guest, and what then: ``fail`` or ``destroy``; null where a user has no such choice."""

    timeout_seconds: float
    on_timeout: str | None


def reached(wanted: str, state: str, managed_save: bool) -> bool:
    """Tell whether a wanted state (``present`` is always there) is reached."""
    if wanted == "present":
        return True
    return state in _REACHED[wanted] and (managed_save or wanted != "saved")


def steps_to(wanted: str, state: str, active: bool, managed_save: bool) -> list[str]:
    """Return the steps from an observed state to a wanted one, as names of ``Lifecycle``'s methods.

    :raises InvalidInput: there is no way, such as saving the memory of a domain that does not run.
    """
    if reached(wanted, state, managed_save):
        return []
    if not active:
        return _steps_from_off(wanted)
    if state == "crashed":
        return ["destroy", *_steps_from_off(wanted)] if wanted != "shutdown" else ["destroy"]
    if state == "shutdown":
        return ["wait_off", *(_steps_from_off(wanted) if wanted != "shutdown" else [])]
    awake = {"pmsuspended": ["wakeup"], "paused": ["resume"]}.get(state, [])
    if wanted == "running":
        return awake
    if wanted == "paused":
        return [*awake, "suspend"]
    if wanted == "saved":
        return [*(awake if state == "pmsuspended" else []), "managed_save"]
    return [*awake, "shutdown"]


def _steps_from_off(wanted: str) -> list[str]:
    if wanted == "saved":
        raise InvalidInput("state", "saved", "The domain does not run, so it has no memory to save.")
    return {"running": ["create"], "paused": ["create_paused"], "shutdown": []}[wanted]


def undefine_flags(
    library_version: int, remove: t.Collection[str], managed_save: bool, snapshots: int, checkpoints: int
) -> int:
    """Return the flags for an undefine that keeps what is not named: NVRAM and TPM state stay unless in ``remove``."""
    flags = UNDEFINE_NVRAM if "nvram" in remove else UNDEFINE_KEEP_NVRAM
    if library_version >= TPM_KEPT_SINCE:
        flags |= UNDEFINE_TPM if "tpm" in remove else UNDEFINE_KEEP_TPM
    if managed_save:
        flags |= UNDEFINE_MANAGED_SAVE
    if snapshots:
        flags |= UNDEFINE_SNAPSHOTS
    if checkpoints and library_version >= _CHECKPOINTS_SINCE:
        flags |= UNDEFINE_CHECKPOINTS
    return flags


class Lifecycle:
    """Carries steps out and waits for their effect, woken by libvirt's events where the driver sends them.

    Many threads may use one, each for a domain of its own; a turn that one has is given up while it waits.
    """

    def __init__(self, connection: Connection, turns: WorkerSlots | None = None) -> None:
        self._connection = connection
        self._turns = turns
        self._woken = threading.Condition()
        self._events = 0
        self._callback: int | None = None

    def watch(self) -> None:
        """Ask for lifecycle events. A driver without them is asked for states twice a second instead."""
        with contextlib.suppress(libvirt.libvirtError):
            self._callback = self._connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_event, None
            )

    def close(self) -> None:
        """Stop watching."""
        if self._callback is not None:
            with contextlib.suppress(libvirt.libvirtError):
                self._connection.domainEventDeregisterAny(self._callback)
            self._callback = None

    def _on_event(self, *_details: t.Any) -> None:
        with self._woken:
            self._events += 1
            self._woken.notify_all()

    def step(self, name: str, domain: Domain, step: str, waiting: Waiting) -> None:
        """Carry one step of ``steps_to`` out and wait until it has taken effect.

        :raises LibvirtFailure: libvirt refused.
        :raises TapvirtError: the guest did not follow in time.
        """
        with libvirt_errors(f"{DOING[step]} domain {name}"):
            if step == "shutdown":
                self._shut_down(name, domain, waiting)
            elif step == "wait_off":
                self._wait_off(name, domain, waiting)
            elif step == "managed_save":
                # Blocks as long as it takes to write the memory.
                doing = f"Saving domain {name}"
                call_with_deadline(waiting.timeout_seconds, doing, domain.managedSave, domain.abortJob)
                self._wait(name, domain, _REACHED["saved"], waiting.timeout_seconds, step)
            else:
                CALLS[step](domain)
                self._wait(name, domain, _AFTER[step], waiting.timeout_seconds, step)

    def _shut_down(self, name: str, domain: Domain, waiting: Waiting) -> None:
        call_unless_off(domain, domain.shutdown)
        self._wait_off(name, domain, waiting)

    def _wait_off(self, name: str, domain: Domain, waiting: Waiting) -> None:
        try:
            self._wait(name, domain, ("shutoff",), waiting.timeout_seconds, "shutdown")
        except TapvirtError as error:
            if waiting.on_timeout != "destroy":
                hint = " Set on_timeout: destroy to force it off." if waiting.on_timeout is not None else ""
                raise TapvirtError(f"{error.message} The guest may ignore the request.{hint}") from error
            call_unless_off(domain, domain.destroy)
            self._wait(name, domain, ("shutoff",), waiting.timeout_seconds, "destroy")

    def _wait(self, name: str, domain: Domain, states: t.Sequence[str], timeout_seconds: float, step: str) -> None:
        deadline = time.monotonic() + timeout_seconds
        with self._turns.released() if self._turns is not None else contextlib.nullcontext():
            while True:
                seen = self._events
                state = state_of(domain)[0]
                if state in states:
                    return
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TapvirtError(
                        f"Domain {name} is still {state} {timeout_seconds:g} s after {step.replace('_', ' ')}."
                    )
                self._wait_for_event(seen, min(left, _POLL_SECONDS))

    def _wait_for_event(self, seen: int, timeout_seconds: float) -> None:
        with self._woken:
            self._woken.wait_for(lambda: self._events != seen, timeout_seconds)


def state_of(domain: Domain) -> tuple[str, int]:
    """Return a domain's state as a word, and libvirt's reason code. A domain that is gone is ``shutoff``."""
    try:
        code, reason = domain.state()
    except libvirt.libvirtError as error:
        # A transient domain vanishes when it ends.
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return "shutoff", 0
        raise
    return STATES[code] if code < len(STATES) else "nostate", reason


def call_unless_off(domain: Domain, call: t.Callable[[], t.Any]) -> None:
    """Call something that ends a domain; ignore its failure if the domain has ended on its own.

    :raises libvirtError: the call failed, and the domain is not off.
    """
    try:
        call()
    except libvirt.libvirtError:
        if state_of(domain)[0] != "shutoff":
            raise


def _create_paused(domain: Domain) -> None:
    try:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_NO_SUPPORT):
            raise
        # The driver cannot start a domain paused; it runs for a moment then.
        domain.create()
        domain.suspend()


#: The steps that are one call of libvirt.
CALLS: dict[str, t.Callable[[Domain], t.Any]] = {
    "create": lambda domain: domain.create(),
    "create_paused": _create_paused,
    "resume": lambda domain: domain.resume(),
    "suspend": lambda domain: domain.suspend(),
    "wakeup": lambda domain: domain.pMWakeup(),
    "destroy": lambda domain: domain.destroy(),
}
_AFTER = {
    "create": _REACHED["running"],
    "create_paused": ("paused",),
    "resume": _REACHED["running"],
    "suspend": ("paused",),
    "wakeup": _REACHED["running"],
    "destroy": ("shutoff",),
}
