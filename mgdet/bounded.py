"""Calls into libraries that may never return: each has a deadline, after which nobody waits for it any more.

A timeout of a socket bounds one read. It does not help against a server that sends a byte now and then, asks for a
pause of an hour, or redirects in circles, nor where a library connects by itself. So the whole call runs in a thread of
its own, which is left to itself when its time is over.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MOST_GIVEN_UP = 4
"""Calls of this process that were given up and have not come back. While there are so many, others fail at once."""

_given_up: list[threading.Thread] = []
_here = threading.local()


class Caller:
    """Runs calls one after another in one thread, so that what a call opens belongs to the thread of the next ones.

    The thread is a daemon: a call that hangs does not keep the process from ending. After a call that came too late
    the caller is `dead`, and the thread ends as soon as that call returns.
    """

    def __init__(self, name: str) -> None:
        self.dead = False
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def call(self, seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of the call. Raises what it raises, and `TimeoutError` when `seconds` have passed."""
        _given_up[:] = [thread for thread in _given_up if thread.is_alive()]
        if self.dead or len(_given_up) >= MOST_GIVEN_UP:
            raise TimeoutError("earlier calls have not come back")
        answer = self.submit(function, *args, **kwargs)
        try:
            return answer.result(seconds)
        except TimeoutError:
            if answer.done():  # it was the function itself that raised it
                raise
            self.dead = True
            _given_up.append(self._thread)
            self.end()
            raise TimeoutError(f"no whole answer within {seconds:g} s") from None

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begin a call; whoever wants its result may wait for it."""
        answer: Future[T] = Future()
        self._tasks.put((answer, lambda: function(*args, **kwargs)))
        return answer

    def end(self) -> None:
        """Let the thread end, after the calls that were begun."""
        self._tasks.put(None)

    def _work(self) -> None:
        _here.caller = self
        while (task := self._tasks.get()) is not None:
            answer, function = task
            try:
                answer.set_result(function())
            except BaseException as error:  # it belongs to whoever waits
                answer.set_exception(error)
            del task, answer, function


def within(seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of one call in a thread of its own, with the deadline of `Caller.call`."""
    caller = Caller(f"call of {getattr(function, '__name__', 'a function')}")
    try:
        return caller.call(seconds, function, *args, **kwargs)
    finally:
        if not caller.dead:
            caller.end()


def require_wanted() -> None:
    """Raise `TimeoutError` in a call that was given up: to be asked before it makes something lasting."""
    caller: Caller | None = getattr(_here, "caller", None)
    if caller is not None and caller.dead:
        raise TimeoutError("nobody waits for this call any more")
