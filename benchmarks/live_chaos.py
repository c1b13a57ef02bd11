"""A live source that misbehaves: stalls, jumps, damage, NaN, pictures of another size; with its ledger beside it."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import av

from benchmarks.live_ledger import Ledger
from merfast.errors import MediaError
from merfast.live_players import Due

ACTIONS = (
    *("stall sound", "stall picture", "stall both", "hold sound", "hold picture", "hold both"),
    *("damage", "nan", "forwards", "backwards", "size", "new size"),
)
"""stall: what comes is lost; hold: it comes later, at once; backwards and new size: an error, then a reset."""

SETTLE = 2.5
"""Seconds after damaged packets in which what a decoder makes of them may still be refused."""

MEAN_PAUSE = 5.0
"""Seconds between the end of one action and the next, on average."""


class Pushed(Protocol):
    """A session, as far as it is pushed to."""

    def push_audio(self, samples: Any, rate: int, t: float | None = None) -> None: ...

    def push_frame(self, frame: Any, t: float) -> None: ...

    def reset(self) -> None: ...


class Chaos:
    """Pushes what a player plays into a session, in its own bad ways; all in the player's thread.

    Args:
        session: that takes it.
        ledger: of the same stream.
        seed: of all that is random.
        actions: that are chosen from; none for a source that behaves.
        offset: seconds that are added to all times.

    Attributes:
        done: how often each action was begun; "refused push" for pushes that raised as they should.
        violations: errors that should not have been, and errors that should.
    """

    def __init__(
        self, session: Pushed, ledger: Ledger, seed: int, actions: Sequence[str] = ACTIONS, offset: float = 0.0
    ) -> None:
        self.done: Counter[str] = Counter()
        self.violations: list[str] = []
        self._session, self._ledger, self._actions = session, ledger, actions
        self._random = random.Random(seed)
        self._offset = offset
        self._until = {"stall sound": 0.0, "stall picture": 0.0, "hold sound": 0.0, "hold picture": 0.0, "damage": 0.0}
        self._held: deque[tuple[bool, Due]] = deque()  # whether it is sound
        self._size: tuple[int, int] | None = None  # that pictures are brought to
        self._newest = {True: -math.inf, False: -math.inf}  # time pushed, of sound and of pictures
        self._tolerant = -math.inf  # until then damage may show
        self._next = self._random.expovariate(1 / MEAN_PAUSE) if actions else math.inf
        self._bad: str | None = None  # what to do to the next event

    def damage(self, packet: av.Packet[Any]) -> av.Packet[Any]:
        """Flip some bytes of a packet while there is damage."""
        if not self._until["damage"]:
            return packet
        data = bytearray(bytes(packet))
        for _ in range(1 + len(data) // 200):
            data[self._random.randrange(len(data))] ^= self._random.randrange(1, 256)
        out: av.Packet[Any] = av.Packet(bytes(data))
        out.stream, out.pts, out.dts, out.time_base = packet.stream, packet.pts, packet.dts, packet.time_base
        out.duration, out.is_keyframe = packet.duration, packet.is_keyframe
        return out

    def push(self, event: Due) -> None:
        """Take one event when it is due."""
        now = event.due
        for name, until in self._until.items():
            if until and now >= until:
                self._until[name] = 0.0
                if name == "damage":
                    self._tolerant = now + SETTLE
        if now >= self._next:
            self._begin(now)
        kind = "sound" if event.rate else "picture"
        if self._until[f"stall {kind}"]:
            return
        if self._until[f"hold {kind}"]:
            self._held.append((bool(event.rate), event))
            return
        # What was held comes before what is new of its track.
        while self._held and not self._until[f"hold {'sound' if self._held[0][0] else 'picture'}"]:
            self._deliver(self._held.popleft()[1], now)
        self._deliver(event, now)

    def _begin(self, now: float) -> None:
        """Choose something to do, and when to do the next."""
        action = self._random.choice(self._actions)
        self.done[action] += 1
        lasts = 0.0
        if action.startswith(("stall", "hold")):
            lasts = self._random.uniform(0.2, 8.0 if action.startswith("stall") else 2.5)
            what, which = action.split()
            for kind in ("sound", "picture") if which == "both" else (which,):
                self._until[f"{what} {kind}"] = now + lasts
        elif action == "damage":
            lasts = self._random.uniform(0.3, 3.0)
            self._until["damage"] = now + lasts
        elif action == "forwards":
            self._offset += self._random.choice([0.3, 1.0, 3.0, 7.0, 45.0]) * self._random.uniform(0.8, 1.2)
        else:
            self._bad = action
        self._next = now + lasts + self._random.expovariate(1 / MEAN_PAUSE)

    def _deliver(self, event: Due, now: float) -> None:
        if self._bad == "backwards" and not self._held and math.isfinite(self._newest[bool(event.rate)]):
            self._bad = None
            self._go_back(event)
        if self._bad == "nan" and event.rate:
            self._bad = None
            samples = event.media.copy()
            samples[self._random.randrange(len(samples))] = self._random.choice([math.nan, math.inf, -math.inf])
            self._refused("NaN", lambda: self._push(event, samples))
            return
        if not event.rate:
            picture = event.media
            if self._bad in ("size", "new size"):
                action, self._bad = self._bad, None
                width, height = self._other_size(picture)
                smaller = picture.reformat(width=width, height=height)
                self._refused("another size", lambda: self._push(event, smaller))
                if action == "size" or self._held:
                    return
                self._size = width, height
                self._restart(event)
            if self._size is not None:
                picture = picture.reformat(*self._size)
            self._try(event, picture, now)
            return
        self._try(event, event.media, now)

    def _other_size(self, picture: av.VideoFrame) -> tuple[int, int]:
        now = self._size or (picture.width, picture.height)
        return self._random.choice([s for s in ((320, 180), (426, 240), (640, 360)) if s != now])

    def _go_back(self, event: Due) -> None:
        """The clock jumps back by more than the track's reach: an error, and a reset."""
        newest = self._newest[bool(event.rate)]
        self._offset = newest - self._random.uniform(2.0, 60.0) - event.start
        self._refused("a time that goes back", lambda: self._push(event, event.media))
        self._restart(event)

    def _restart(self, event: Due) -> None:
        """Reset, with times whose windows can be told from those before."""
        self._session.reset()
        self._ledger.reset()
        self.done["reset"] += 1
        self._held.clear()
        while not self._ledger.fits(event.start + self._offset):
            self._offset += self._random.uniform(0.02, 1.0)
        self._newest = {True: -math.inf, False: -math.inf}

    def _push(self, event: Due, media: Any) -> None:
        start, end = event.start + self._offset, event.start + self._offset
        if event.rate:
            end += len(media) / event.rate
        with self._ledger.pushing(start, end):
            if event.rate:
                self._session.push_audio(media, event.rate, start)
            else:
                self._session.push_frame(media, start)
        self._newest[bool(event.rate)] = max(self._newest[bool(event.rate)], end)

    def _refused(self, what: str, push: Callable[[], None]) -> None:
        """A push that must raise."""
        try:
            push()
        except MediaError:
            self.done["refused push"] += 1
        except Exception as error:
            self._wrong(f"{what}: got {type(error).__name__}: {error}, expected a MediaError")
        else:
            self._wrong(f"{what} was accepted, expected a MediaError")

    def _try(self, event: Due, media: Any, now: float) -> None:
        """A push that must not raise, but for what damage has done."""
        try:
            self._push(event, media)
        except MediaError as error:
            if self._until["damage"] or now < self._tolerant:
                self.done["refused damage"] += 1
                return
            self._wrong(f"a good push was refused: {error}")
        except Exception as error:
            self._wrong(f"a good push: {type(error).__name__}: {error}")

    def _wrong(self, text: str) -> None:
        if len(self.violations) < 10:
            self.violations.append(f"{self._ledger.name}: {text}")
