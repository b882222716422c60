"""Ctrl-C and SIGTERM mean the same to a command: the first asks it to stop in order, the second to stop at once.

    with heed(), on_stop(ask_workers):
        ...  # the first signal calls `ask_workers`, the second raises KeyboardInterrupt

Outside `on_stop` there is nothing to put in order, and the first one raises it. `received` then tells which signal it
was, and so the exit status. A library cannot put handlers of its own in place within `on_stop`. Those that do so while
they start are called within `keep`.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_S = 0.5
"""A signal that comes so soon after the first is the same one, sent to the process and to its group."""


@dataclass
class _State:
    number: int | None = None
    when: float = 0.0
    heeded: bool = False
    at_once: bool = False
    actions: list[tuple[Callable[[], object], str]] = field(default_factory=list)


_state = _State()


def received() -> int | None:
    """The signal that asked this process to stop, since the last `heed` began; None where none came."""
    return _state.number


@contextmanager
def heed() -> Iterator[None]:
    """Handle both signals within the block, in the main thread; elsewhere, or within another `heed`, do nothing."""
    global _state
    if _state.heeded or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state = _State(heeded=True)
    before = {number: signal.signal(number, _arrived) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        _state.heeded = False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def on_stop(
    action: Callable[[], object] = lambda: None, says: str = "stopping at the next checkpoint"
) -> Iterator[None]:
    """Call `action` at the first signal within the block, and say so; the second raises `KeyboardInterrupt`.

    Without an action the block ends first, unless there is a second signal. Outside the main thread, where Python
    allows no handler, signals are left as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with heed(), _unchanged():
        _state.actions.append((action, says))
        try:
            yield
        finally:
            _state.actions.pop()


@contextmanager
def _unchanged() -> Iterator[None]:
    """Let no library replace the handlers of both signals by `signal.signal` within the block.

    Ray Train does, with one for Ctrl-C that aborts a training without a checkpoint, and has no option not to. Another
    version may do it elsewhere, so that this is done to Python's function and not to Ray's. A handler that came past it
    is told.
    """
    whole, process = signal.signal, os.getpid()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def set_others(number: int, handler: Any) -> Any:
        ours = number in STOP_SIGNALS and os.getpid() == process  # a process that was forked decides for itself
        return signal.getsignal(number) if ours else whole(number, handler)

    signal.signal = set_others  # type: ignore[assignment]  # it takes and gives what the whole one does
    try:
        yield
    finally:
        signal.signal = whole
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                logger.warning(
                    "a library has replaced the handler of %s, so that it may have ended the work without a checkpoint",
                    signal.Signals(number).name,
                )
                signal.signal(number, handler)


def interrupt() -> None:
    """Raise `KeyboardInterrupt` in the main thread, whatever `on_stop` says; to be called in another thread."""
    import _thread

    _state.at_once = True
    _thread.interrupt_main()


@contextmanager
def keep() -> Iterator[None]:
    """Put both handlers back that a library replaces within the block.

    What that library makes of SIGTERM meanwhile, an exit of the process, becomes `KeyboardInterrupt`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        _state.number = signal.SIGTERM
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _arrived(number: int, frame: Any) -> None:
    now = time.monotonic()
    first = _state.number is None
    if first and not _state.at_once:
        _state.number, _state.when = number, now
    if not first and not _state.at_once and now - _state.when < SAME_S:
        return
    if _state.at_once or not first or not _state.actions:
        raise KeyboardInterrupt  # nothing else: Ray passes on no other exception of a handler
    action, says = _state.actions[-1]
    with suppress(OSError):  # not the log: it may be in the middle of a line
        os.write(2, f"{says}; a second signal stops at once\n".encode())
    action()


_apart = False


def _leave_group() -> None:
    if _apart:
        with suppress(OSError):
            os.setpgid(0, 0)


os.register_at_fork(after_in_child=_leave_group)


@contextmanager
def apart() -> Iterator[None]:
    """Give processes that are started within the block, with a `preexec_fn`, process groups of their own.

    A signal to the group of this process, as a terminal or a batch system sends it, does not reach them: this process
    decides what becomes of them.
    """
    global _apart
    _apart = True
    try:
        yield
    finally:
        _apart = False
