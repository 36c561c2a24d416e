"""MLflow's server as `mfdiff-platform ui` runs it: behind a guard.

MLflow answers pages of foreign origin that only read; it lets whoever reaches it name any folder of
the machine as an experiment's, and so read what lies there; and it brings an assistant along that
runs programs. None of this is needed to choose a model, so it ends here.

`pyproject.toml` names `app` as the ``mlflow.app`` that ``mlflow ui --app-name mfdiff`` serves.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from mlflow.server.fastapi_app import app as mlflow_app
from mlflow.server.security_utils import get_allowed_origins_from_env

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_MAKES_EXPERIMENTS = "/mlflow/experiments/create"
_PLACES = ("artifact_location", "artifactLocation")
_ASSISTANT = "/mlflow/assistant"
_LONGEST_BODY = 1 << 20


class Guard:
    """An ASGI application in front of another; what it refuses gets 403 and never gets there.

    Args:
        application: what is guarded.
        origins: pages that may ask; requests without an Origin, as of a person who types an
            address, always may.
    """

    def __init__(self, application: Application, origins: frozenset[str]) -> None:
        self._application, self._origins = application, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        path, reason = scope["path"], ""
        if not self._is_ours(scope):
            reason = "requests from pages of another origin are refused"
        elif _ASSISTANT in path:
            reason = "the assistant is switched off: it runs programs beside patients' data"
        elif path.rstrip("/").endswith(_MAKES_EXPERIMENTS):
            body = await _body(receive)
            reason = _fault_of_experiment(body)
            receive = _again(body, receive)
        if reason:
            await _refuse(reason, send)
        else:
            await self._application(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
        return all(origin in self._origins for origin in origins)


def _fault_of_experiment(body: bytes) -> str:
    """What is wrong with a request for an experiment; "" for one that keeps to the workspace."""
    if len(body) > _LONGEST_BODY:
        return "the description of an experiment is too long"
    try:
        values = json.loads(body or b"{}")
    except ValueError:
        return "the description of an experiment is no JSON"
    if not isinstance(values, dict) or any(map(values.get, _PLACES)):
        return "an experiment keeps its files in the workspace: leave artifact_location out"
    return ""


async def _body(receive: Receive) -> bytes:
    """The request's body, not much beyond the longest that is of use."""
    body, more = b"", True
    while more and len(body) <= _LONGEST_BODY:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """A stream that begins with ``body``, which has been read already."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> dict[str, Any]:
        return waiting.pop() if waiting else await receive()

    return next_message


async def _refuse(reason: str, send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})


app = Guard(mlflow_app, frozenset(get_allowed_origins_from_env() or ()))
