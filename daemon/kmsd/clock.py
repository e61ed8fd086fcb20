"""The realm's time: what is over stays over, whatever somebody does to the machine's clock."""

from collections.abc import Callable

JUMP_SECONDS = 86_400.0
"""A clock that is so far ahead of what has passed has jumped."""


class RealmClock:
    """Seconds since the epoch that do not go back: a clock that is set back revives no token, no grant and no material.

    `wall` is the machine's clock, `passed` counts seconds whatever that does (CLOCK_BOOTTIME, clock_gettime(2)), `floor` is the last
    time that the audit log knows.
    """

    def __init__(self, wall: Callable[[], float], passed: Callable[[], float], floor: float) -> None:
        self._wall = wall
        self._passed = passed
        now = max(wall(), floor)
        self._start = self._ahead = now - passed()
        """What is added to the seconds that passed: as it was at the start, and as far ahead as the clock ever was."""

    def __call__(self) -> float:
        """Return the time: where the machine's clock was furthest ahead, and what has passed since then."""
        # In this order: a process that is stopped between the two looks must not find itself ahead for ever.
        wall = self._wall()
        passed = self._passed()
        self._ahead = max(self._ahead, wall - passed)
        return passed + self._ahead

    def steady(self) -> float:
        """Return the time by what has passed since the start alone: for what cannot be undone, a jump ahead does not count."""
        return self._passed() + self._start

    @property
    def jumped(self) -> bool:
        """Whether the machine's clock is far ahead of what has passed."""
        return self._wall() - self.steady() > JUMP_SECONDS
