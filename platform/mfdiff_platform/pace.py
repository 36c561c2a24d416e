"""What the points of a search may have cost by now."""

from __future__ import annotations

POINT_SHARE = 1 / 8
"""Of a full trial, for each point that has begun; one full trial comes on top."""


class Pace:
    """Training iterations promised to the points of a search, beside what may be promised so far.

    A point is promised its first rung when it begins, and the way to the next when it goes on. What
    may be promised grows with each that begins, so that points which the search suggests when it
    has learnt find as much left as the first. References are no points and cost what they cost.

    Args:
        full: iterations of a full trial.
        first: of the first rung.
    """

    def __init__(self, full: int, first: int) -> None:
        self._full, self._first = full, first
        self._promised = dict[str, int]()

    def begin(self, point: str) -> None:
        """A point begins, or begins again."""
        self._promised[point] = self._first

    def allows(self, point: str, iterations: int) -> bool:
        """Whether a point may go on to so many iterations without another's being in the way."""
        others = sum(self._promised.values()) - self._promised.get(point, 0)
        allowance = self._full * (1 + POINT_SHARE * len(self._promised))
        return others + iterations <= allowance

    def promise(self, point: str, iterations: int) -> None:
        """A point goes on to so many iterations; a reference may, too, and is not counted."""
        if point in self._promised:
            self._promised[point] = iterations

    def end(self, point: str, iterations: int) -> None:
        """A point ended after so many; what else it was promised is free again."""
        self.promise(point, iterations)
