"""Batches of streamed pictures: few shards are open at a time, and other processes decode.

Which picture comes when is a function of the step (`order.ShardOrder`), so a continued run reads on where it stopped. A
bad picture is replaced by another of its shard, the same one every time.
"""

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowimg.data.arrays import Reading, channels_of
from flowimg.data.batches import PictureBatches, middle
from flowimg.data.decode import Decoding, decode_some
from flowimg.data.find import GIVE, Bad
from flowimg.data.listing import Ints, Opened, Shape, Stream
from flowimg.data.order import ShardOrder, permute
from flowimg.data.scan import look
from flowimg.data.store import Images
from flowimg.data.workers import Pool
from flowimg.errors import DataError
from flowimg.flow.randomness import key
from flowimg.names import one_line

LOOKED_AT = 64
"""Pictures whose files are looked at beforehand, for size and colour."""
TRIES = 8
"""Replacements to try for a bad picture."""
ENOUGH = 1000
"""Pictures after which the share of bad ones is judged."""
TOLD = 10
"""Bad pictures to name as they come; more are only counted."""
SOME = 10_000
"""Pictures to fetch for a figure or a score at most."""
BATCH, OPEN = 64, 16
"""Their order is that of a run of this batch size with this number of open shards."""
KEPT_APART_FROM = 8
"""Shards that held-out pictures come from at least, if there are that many."""


def look_into(
    stream: Stream, shape: tuple[int, int] | None, channels: str, background: Sequence[int], reading: Reading
) -> tuple[Shape, str]:
    """The shape after decoding, from a few pictures spread over the shards; and their kinds, in words.

    Raises:
        DataError: If they have several sizes and data.size is not given, or none of them can be read.
    """
    count = len(stream.counts)
    shards = sorted({place * (count - 1) // max(KEPT_APART_FROM - 1, 1) for place in range(KEPT_APART_FROM)})
    some = []
    for shard in shards:
        opened = stream.open(shard)
        rows = range(min(int(stream.counts[shard]), LOOKED_AT // len(shards)))
        some += [seen for seen in look([opened.picture(row) for row in rows], reading=reading) if seen.wrong is None]
    if not some:
        raise DataError(f"{stream.where}: none of the pictures looked at can be read")
    sizes = {(seen.height, seen.width) for seen in some}
    if shape is None and len(sizes) > 1:
        raise DataError(f"{stream.where} has pictures of several sizes: {GIVE}")
    modes = {seen.kind.split()[0] for seen in some}
    tinted = len(set(background)) > 1 and any(seen.clear for seen in some)
    height, width = shape or next(iter(sizes))
    kinds = f"{'/'.join(sorted(modes))} among the {len(some)} looked at"
    try:
        return (channels_of(channels, modes, tinted), height, width), kinds
    except ValueError as error:
        raise DataError(f"{stream.where} has {error}") from None


def keep_apart(counts: Ints, count: int) -> Ints:
    """How many of the last pictures of each shard to hold out, (S,); the same whatever the seed of the run.

    Raises:
        ValueError: If half of the pictures are not enough.
    """
    order = permute(np.arange(len(counts), dtype=np.uint64), len(counts), key("held out")).astype(np.int64)
    share = -(-count // min(KEPT_APART_FROM, len(counts)))
    held, left = np.zeros_like(counts), count
    for most in (np.minimum(counts // 2, share), counts // 2):
        for shard in order.tolist():
            more = min(int(most[shard] - held[shard]), left)
            held[shard] += more
            left -= more
    if left:
        raise ValueError(f"{count} of {counts.sum()} pictures are more than half of them")
    return held


@dataclass
class StreamBatches(PictureBatches):
    """Streamed pictures; see `PictureBatches`.

    `held` (S,) are the last pictures of each shard that no step sees; `workers` processes decode.
    """

    stream: Stream
    how: Decoding
    held: Ints
    open_shards: int
    workers: int
    max_bad: float = 0.01

    def __post_init__(self) -> None:
        self.seen = 0
        self.bad: dict[tuple[int, int], Bad] = {}
        counts = self.stream.counts - self.held
        self.shards = np.flatnonzero(counts)
        self.order = ShardOrder(counts[self.shards], self.open_shards, self.seed, self.batch_size)
        self.fingerprint: str = self.stream.fingerprint[:16]
        self.size = self.order.total
        self.ready = False  # they are decoded as they come
        self._lock = threading.Lock()
        self._lanes: set[int] = set()
        self._opened: OrderedDict[int, Opened] = OrderedDict()
        self._pool: Pool | None = None

    def _stored(self, step: int, positions: range) -> Images:
        return self._decoded(*self._places(step, positions))

    def rows(self, step: int, positions: range) -> list[int]:
        """Which pictures a step sees at these positions, counted through all shards."""
        shards, rows = self._places(step, positions)
        before = np.cumsum(self.stream.counts) - self.stream.counts
        return (before[shards] + rows).tolist()

    def some(self, count: int) -> Images:
        """`count` pictures, `SOME` at most, the same for every run on these shards, without random changes."""
        count = min(count, self.size, SOME)
        fixed = replace(self, offset=0, seed=0, batch_size=BATCH, open_shards=OPEN)
        steps = -(-count // BATCH)
        self._lanes.update(range(fixed.order.lanes))
        found = [self._decoded(*fixed._places(step, range(BATCH))) for step in range(steps)]
        pixels = middle(torch.cat([images.pixels for images in found])[:count], self.window)
        labels = [images.labels for images in found if images.labels is not None]
        return Images(pixels, torch.cat(labels)[:count] if labels else None, self.stream.classes)

    def _apart(self, count: int) -> Images:
        shards = np.repeat(np.arange(len(self.held)), self.held)[:count]
        ends = np.cumsum(self.held)
        rows = self.stream.counts[shards] - (ends[shards] - np.arange(len(shards)))
        return self._decoded(shards, rows)

    def close(self) -> None:
        """Shut down the decoder processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _places(self, step: int, positions: range) -> tuple[Ints, Ints]:
        self._lanes.update(self.order.lanes_of(positions))
        shards, rows = self.order(step, positions, self.offset)
        return self.shards[shards], rows

    def _open(self, shard: int) -> Opened:
        """A shard that is open or is opened now; those open longest without use are forgotten."""
        with self._lock:  # a thread reads ahead while another draws the held-out pictures
            if shard not in self._opened:
                # two of each of this process's lanes are open while one takes over from the other
                while len(self._opened) >= max(2, 2 * self.order.group * len(self._lanes)):
                    self._opened.popitem(last=False)
                self._opened[shard] = self.stream.open(shard)
            self._opened.move_to_end(shard)
            return self._opened[shard]

    def _decoded(self, shards: Ints, rows: Ints) -> Images:
        """Some pictures and their labels, each bad one replaced."""
        found: list[NDArray[Any]] = []
        labels: list[int] = []
        pairs = list(zip(shards.tolist(), rows.tolist(), strict=True))
        for (shard, row), pixels in zip(pairs, self._read(pairs), strict=True):
            for again in range(TRIES):
                if not isinstance(pixels, str):
                    break
                self._tell(shard, row, pixels)
                shard, row = self._instead(shard, row, again)
                pixels = next(self._read([(shard, row)]))
            opened = self._open(shard)
            if isinstance(pixels, str):
                name = one_line(opened.name(row))
                raise DataError(f"{name}: {pixels}; so are {TRIES} others: are the shards whole?")
            found.append(pixels)
            if opened.labels is not None:
                labels.append(int(opened.labels[row]))
        self.seen += len(pairs)
        if len(self.bad) > self.max_bad * max(self.seen, ENOUGH):
            some = "; ".join(f"{name} ({reason})" for name, reason in list(self.bad.values())[:3])
            raise DataError(
                f"{self.stream.where}: {len(self.bad):,} of {self.seen:,} pictures read cannot be used, more than "
                f"data.max_bad {self.max_bad:g} allows: {some}; mend the shards, or raise data.max_bad"
            )
        named = torch.tensor(labels) if self.stream.classes else None
        return Images(torch.from_numpy(np.stack(found)), named, self.stream.classes)

    def _instead(self, shard: int, row: int, again: int) -> tuple[int, int]:
        """A replacement for a bad picture: from its own shard, which is open, then from any; held out if it was."""
        keyed = key("instead", self.fingerprint, shard, row, again)
        learned = self.stream.counts - self.held
        apart = row >= learned[shard]
        if again >= TRIES // 2:
            shards = np.flatnonzero(self.held) if apart else self.shards
            shard = int(shards[keyed % len(shards)])
        if apart:
            return shard, int(learned[shard]) + key(keyed, "row") % int(self.held[shard])
        return shard, key(keyed, "row") % int(learned[shard])

    def _read(self, pairs: list[tuple[int, int]]) -> Iterator[NDArray[Any] | str]:
        """Pictures decoded by the workers, in order; for a bad one, the reason."""
        with self._lock:
            self._pool = self._pool or Pool(self.workers)
        encoded = [self._open(shard).picture(row) for shard, row in pairs]
        run = max(4, -(-len(encoded) // (2 * self.workers)))
        parts = [encoded[at : at + run] for at in range(0, len(encoded), run)]
        for task in [self._pool.submit(partial(decode_some, self.how), part) for part in parts]:
            yield from task.result()

    def _tell(self, shard: int, row: int, reason: str) -> None:
        if (shard, row) in self.bad:
            return
        self.bad[shard, row] = Bad(one_line(self._open(shard).name(row)), reason)
        if len(self.bad) <= TOLD:
            more = "; further ones are only counted" if len(self.bad) == TOLD else ""
            print(f"warning   {self.bad[shard, row].name}: {reason}; replaced by another{more}", file=sys.stderr)
