"""Calls by operation and outcome, counted at the cost of one look-up each."""

OK = ""
"""The outcome of a call that succeeded."""


class CallCounts:
    """How many calls of each operation ended how, and how long they took, in seconds."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], list[float]] = {}

    def note(self, operation: str, outcome: str, seconds: float) -> None:
        """Count one call; `outcome` is its error code, or OK."""
        held = self._held.get((operation, outcome))
        if held is None:
            held = self._held[operation, outcome] = [0, 0.0]
        held[0] += 1
        held[1] += max(seconds, 0.0)

    def items(self) -> list[tuple[str, str, int, float]]:
        """Return (operation, outcome, calls, seconds), sorted."""
        return [(name, code, int(calls), spent) for (name, code), (calls, spent) in sorted(self._held.items())]
