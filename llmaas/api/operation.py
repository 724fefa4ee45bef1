"""An operation of a client: a request, and how its result is read; and the methods that clients make of it.

Law: pure, and knows no operation.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from llmaas.api import messages as msg
from llmaas.api import replies
from llmaas.calls import Done
from llmaas.errors import BadRequest, MalformedFrame
from llmaas.frozen import frozen

P = ParamSpec("P")
T = TypeVar("T")
Method = TypeVar("Method", bound=Callable[..., Any])


@frozen
class Operation(Generic[T]):
    """A request, and the function that reads its result."""

    request: msg.Request
    read: Callable[[object], T]
    join: Callable[[Any, Any], object] | None = None
    """Joins the results of two pages, for a request whose result comes in pages."""

    def next_request(self, after: str | None) -> msg.Request | None:
        """The request for the page that begins at ``after``; None if there is none to be asked for."""
        request = self.request
        if after is None or not isinstance(request, msg.ListContexts | msg.ListRequests | msg.Show):
            return None
        return replace(request, after=after)

    def joined(self, first: object, second: object) -> object:
        """Two pages as one. Raises MalformedFrame."""
        assert self.join is not None
        try:
            return self.join(first, second)
        except (TypeError, KeyError, IndexError) as e:
            raise MalformedFrame("the daemon's reply cannot be read: its pages do not fit together") from e


@frozen
class Question(Generic[T]):
    """A request for an answer, and the function that reads the whole answer: its text, and how it ended."""

    request: msg.Generate
    read: Callable[[str, Done], T]


def as_method(operation: Callable[..., Any], returns: str | None = None) -> Callable[[Method], Method]:
    """Give a client's method the name, the documentation and the signature of ``operation``.

    The method returns what the operation reads from its reply, unless ``returns`` names another class.
    """

    def dress(method: Method) -> Method:
        functools.update_wrapper(method, operation, ("__name__", "__qualname__", "__doc__"), ())
        vars(method).pop("__wrapped__")  # inspect.signature would follow it, and miss ``self``
        signature = inspect.signature(operation)
        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        result = returns or re.sub(r"^(?:Operation|Question)\[(.*)\]$", r"\1", str(signature.return_annotation))
        parameters = [itself, *signature.parameters.values()]
        vars(method)["__signature__"] = signature.replace(parameters=parameters, return_annotation=result)
        return method

    return dress


class BlockingAsker:
    """What ``blocking`` wants of a client."""

    def _ask(self, operation: Operation[T]) -> T:
        """Send the request, wait, and return its result or raise its error."""
        raise NotImplementedError


class AsyncAsker:
    """What ``awaitable`` wants of a client."""

    async def _ask(self, operation: Operation[T]) -> T:
        """Send the request, wait, and return its result or raise its error."""
        raise NotImplementedError


def blocking(operation: Callable[P, Operation[T]]) -> Callable[Concatenate[BlockingAsker, P], T]:
    """The method of a synchronous client for an operation."""

    @as_method(operation)
    def method(client: BlockingAsker, /, *args: P.args, **named: P.kwargs) -> T:
        return client._ask(operation(*args, **named))

    return method


def awaitable(operation: Callable[P, Operation[T]]) -> Callable[Concatenate[AsyncAsker, P], Coroutine[Any, Any, T]]:
    """The method of an asynchronous client for an operation."""

    @as_method(operation)
    async def method(client: AsyncAsker, /, *args: P.args, **named: P.kwargs) -> T:
        return await client._ask(operation(*args, **named))

    return method


def checked(make: Callable[..., T], *args: Any, **named: Any) -> T:
    """What ``make`` makes. A ValueError of it becomes BadRequest, as it would on the daemon's side."""
    try:
        return make(*args, **named)
    except ValueError as e:
        raise BadRequest(str(e)) from e


def changed(record: T, **changes: Any) -> T:
    """``record`` with those of ``changes`` that are not None. Raises BadRequest."""
    given = {name: value for name, value in changes.items() if value is not None}
    return checked(replace, record, **given) if given else record


def record(cls: type[T]) -> Callable[[object], T]:
    """Reads a result that is one record of class ``cls``."""
    return functools.partial(replies.result, cls)


def records(cls: type[T]) -> Callable[[object], list[T]]:
    return functools.partial(replies.result_list, cls)


def nothing(result: object) -> None:
    """Reads no result, whatever the daemon may add in a later version."""
