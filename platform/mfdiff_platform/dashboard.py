"""Where Ray's dashboard is, and how to get in: loopback address, token, tunnel."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from mfdiff_platform.cluster import connect, is_addressed, is_connected, token_file
from mfdiff_platform.errors import ResourceError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Dashboard:
    """Address of a running dashboard.

    Attributes:
        url: where it listens.
        token_file: file with the token that its page asks for; empty if it asks for none.
        hints: what else a user needs to get in, a line each.
    """

    url: str
    token_file: str
    hints: tuple[str, ...]


def find_dashboard() -> Dashboard:
    """The dashboard of ``RAY_ADDRESS``, else of the Ray that runs on this machine.

    Raises:
        ResourceError: no Ray runs, or one without a dashboard.
    """
    if not is_connected() and not is_addressed():
        os.environ["RAY_ADDRESS"] = _running_here()
    head = os.environ.get("RAY_ADDRESS", "").rpartition("://")[2].rpartition(":")[0]
    with connect(purpose="dashboard") as cluster:
        url = cluster.dashboard
    if not url:
        raise ResourceError("this Ray runs without a dashboard; install ray[default] on its head")
    return describe(url, head)


def describe(url: str, head: str) -> Dashboard:
    """How to get to the dashboard at ``url`` of a cluster whose head is ``head``."""
    token, hints = _token(), []
    if token:
        hints.append(f"It asks for a token, once: `ray get-auth-token` prints it ({token}).")
    if urlsplit(url).hostname in LOOPBACK and not _is_here(head):
        port = urlsplit(url).port
        hints.append(
            f"It listens on the head's loopback only; first: ssh -L {port}:127.0.0.1:{port} {head}"
        )
    return Dashboard(url, token, tuple(hints))


def _running_here() -> str:
    """Address of the Ray that this user started last on this machine.

    Raises:
        ResourceError: none runs.
    """
    import psutil

    newest, address = 0.0, ""
    for process in psutil.process_iter(["name", "uids", "create_time", "cmdline"]):
        told = process.info
        if told["name"] != "raylet" or told["uids"].real != os.getuid():
            continue
        found = re.search(r"--gcs-address=(\S+)", " ".join(told["cmdline"] or []))
        if found and told["create_time"] > newest:
            newest, address = told["create_time"], found[1]
    if not address:
        raise ResourceError(
            "no Ray runs on this machine; it does while a command such as `mfdiff-platform"
            " pretrain` works, or set RAY_ADDRESS"
        )
    return address


def _is_here(host: str) -> bool:
    """Whether ``host`` is this machine."""
    if host in (*LOOPBACK, "auto", "", socket.gethostname()):
        return True
    from ray.util import get_node_ip_address

    return bool(host == get_node_ip_address())


def _token() -> str:
    """File of the token, when Ray asks for one."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return ""
    file = token_file()
    return str(file) if file.is_file() else ""
