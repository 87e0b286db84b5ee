"""Stop strings in a stream of text, also where one comes in several tokens."""

from __future__ import annotations


class StopStrings:
    """Passes text on, holds back what may begin a stop string, ends before a whole one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        """Empty strings would stop everything and are left out."""
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The text that can be shown now; `stopped` tells whether a stop string was met."""
        if self.stopped:
            return ""
        text = self._held + text
        # The one that is whole first, so that it does not matter how the text was cut.
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self._stops]
        whole = [(end, start) for end, start in found if start >= 0]
        if whole:
            self.stopped, self._held = True, ""
            return text[: min(whole)[1]]
        keep = self._possible_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
