"""Who became champion when, and why: a file that only grows.

Every line is a JSON object and carries the hash of the line before it, so a line that was
changed, removed or put in between is noticed.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mfdiff_core.config import from_dict
from mfdiff_core.errors import ConfigError, DataError
from mfdiff_core.files import sha256_text
from mfdiff_platform.durable import append_text, cut_torn_line, locked

Action = Literal["promoted", "overridden", "refused", "rolled back"]

FILE = "promotions.jsonl"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One line of the log.

    Attributes:
        action: what was decided.
        domain: whose champion it is about.
        model: the version that was judged or brought back.
        before, champion: champion before and after; "" for none.
        summary: what the gates said.
        reason: given by the person who overrode or rolled back.
        weights_sha256, data_fingerprint: what was judged, on what.
        at, by: time (UTC) and account.
        previous: hash of the line before; "" in the first.
    """

    action: Action
    domain: str
    model: str
    before: str
    champion: str
    summary: str = ""
    reason: str = ""
    weights_sha256: str = ""
    data_fingerprint: str = ""
    at: str = ""
    by: str = ""
    previous: str = ""


class PromotionLog:
    """The log of a workspace."""

    def __init__(self, workspace: Path) -> None:
        self.path = workspace / FILE

    def append(self, decision: Decision) -> None:
        """Add a decision, with time, account and the hash of the line before.

        Raises:
            DataError: the log has been tampered with.
        """
        with locked(self.path.with_name(f"{FILE}.lock")):
            cut_torn_line(self.path)
            lines = self._lines()
            stamped = asdict(decision) | {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "by": _account(),
                "previous": sha256_text(lines[-1]) if lines else "",
            }
            append_text(self.path, json.dumps(stamped) + "\n")

    def decisions(self, domain: str = "") -> list[Decision]:
        """All decisions, oldest first, or those about one domain.

        Raises:
            DataError: a line was changed, removed or put in between; names it.
        """
        found = [_read(line, f"{self.path}, line {n}") for n, line in enumerate(self._lines(), 1)]
        return [decision for decision in found if domain in ("", decision.domain)]

    def _lines(self) -> list[str]:
        """Complete lines, after a look at their chain."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        expected = ""
        for number, line in enumerate(lines, 1):
            if _object(line).get("previous") != expected:
                raise DataError(
                    f"{self.path}, line {number}: does not follow the line before; the promotion "
                    "log only grows, put back an untouched copy"
                )
            expected = sha256_text(line)
        return lines

    def champions(self, domain: str) -> list[str]:
        """Champions to go back through, the present one last; what was rolled back is gone."""
        stack: list[str] = []
        for decision in self.decisions(domain):
            if decision.action == "refused":
                continue
            if decision.action == "rolled back":
                while stack and stack[-1] != decision.champion:
                    stack.pop()
            # One that somebody made champion by hand, in MLflow, counts too.
            else:
                _push(stack, decision.before)
            _push(stack, decision.champion)
        return stack


def _push(stack: list[str], champion: str) -> None:
    if champion and champion not in stack[-1:]:
        stack.append(champion)


def _object(line: str) -> Mapping[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _read(line: str, where: str) -> Decision:
    try:
        return from_dict(Decision, _object(line), where)
    except ConfigError as fault:
        raise DataError(str(fault)) from None


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
