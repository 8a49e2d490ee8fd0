"""The clock of a file: where it begins again, as in recordings that were joined, later packets follow earlier ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import av

# A packet is the next of its stream if it begins so much before or after the latest one.
_BACK_SECONDS, _AHEAD_SECONDS = 0.5, 1.0
# A jump ahead of all streams by more than this is a new clock, in formats whose clock may change. Without audio it may
# be a slide show.
_JUMP_SECONDS, _JUMP_SECONDS_WITHOUT_AUDIO = 60, 3600


@dataclass
class _Clock:
    shift: float = 0.0  # seconds
    latest: dict[int, float] = field(default_factory=dict)  # shifted decoding time of each stream's latest packet
    before: dict[int, float] = field(default_factory=dict)  # of the packet before that, which tells a wrong time

    def continues(self, index: int, seconds: float) -> bool:
        time, late = seconds + self.shift, float("inf")
        if -_BACK_SECONDS <= time - self.latest.get(index, late) <= _AHEAD_SECONDS:
            return True
        return -_BACK_SECONDS <= time - self.before.get(index, late) <= _AHEAD_SECONDS


class ContinuousClock:
    """Shifts the times of packets, in the order of the file, so that they go on where the file's clock begins again.

    All streams are shifted alike, so that they stay in step. One packet with a wrong time does not begin a clock.

    Attributes:
        joints: number of times that the clock began again.
    """

    def __init__(self, streams: Sequence[av.stream.Stream], *, may_jump: bool) -> None:
        self._ticks = {stream.index: Fraction(stream.time_base or 1) for stream in streams}
        self._seconds = {index: float(tick) for index, tick in self._ticks.items()}
        has_audio = any(stream.type == "audio" for stream in streams)
        longest = _JUMP_SECONDS if has_audio else _JUMP_SECONDS_WITHOUT_AUDIO
        self._longest_jump = longest if may_jump else float("inf")
        self._clock = _Clock()
        self._former: _Clock | None = None
        self._start, self._end = float("inf"), float("-inf")  # of all packets so far
        self._first_joint = 0.0
        self.joints = 0

    def place(self, packet: av.Packet) -> None:
        """Shift the times of the next packet."""
        dts, pts = packet.dts, packet.pts
        time, begin = pts if dts is None else dts, dts if pts is None else pts
        if time is None or begin is None:
            return
        index = packet.stream_index
        tick = self._seconds[index]
        clock, seconds = self._clock, time * tick
        latest = clock.latest.get(index)
        if latest is None or not -_BACK_SECONDS <= seconds + clock.shift - latest <= _AHEAD_SECONDS:
            if not clock.continues(index, seconds):
                clock = self._clock_of(index, seconds, begin * tick)
            self._start = min(self._start, begin * tick + clock.shift)
            latest = clock.latest.get(index)
        if latest is not None:
            clock.before[index] = latest
        clock.latest[index] = seconds + clock.shift
        if clock.shift:
            ticks = round(Fraction(clock.shift) / self._ticks[index])
            packet.pts = None if pts is None else pts + ticks
            packet.dts = None if dts is None else dts + ticks
        end = (begin + (packet.duration or 0)) * tick + clock.shift
        if end > self._end:
            self._end = end

    @property
    def note(self) -> str:
        """A note on the joints, empty without any."""
        if not self.joints:
            return ""
        often = "" if self.joints == 1 else f", {self.joints} times in all"
        return f"times begin again {self._first_joint:.3g} s after the start{often}: read on from there"

    def _clock_of(self, index: int, seconds: float, begin: float) -> _Clock:
        """The clock of a packet that does not continue its stream, by its decoding time; at `begin` it is shown."""
        clock, former = self._clock, self._former
        if index not in clock.before and former is not None and former.continues(index, seconds):
            if index in clock.latest:  # what began the new clock was one packet with a wrong time
                self._clock, self._former = former, None
                self.joints -= 1
            return former
        if index in clock.latest:
            time = seconds + clock.shift
            back = time < clock.latest[index] - _BACK_SECONDS
            if back or time > max(clock.latest.values()) + self._longest_jump:
                self._former, self._clock = clock, _Clock(self._end - begin)
                self._first_joint = self._first_joint or self._end - self._start
                self.joints += 1
        return self._clock
