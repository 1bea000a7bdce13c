"""Samples on disk: written in parts, so that memory is bounded and a killed run continues where it stopped.

The samples are cut into parts of fixed rows; a part is written aside and renamed, so it is there whole or not at all.
For PNG and TIFF a part is one picture, images/000042.png. For one file of all a part is a small array below .parts, and
the parts are joined at the end: (N, H, W, C) of the stored type for pictures, (N, 2) float32 for points.
"""

import shutil
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowimg.errors import SettingsError
from flowimg.files import written
from flowimg.flow.condition import Condition

ROWS = 64
"""Samples a part, where all go into one file."""
SINGLE = {"png": "png", "tiff": "tif"}
"""Formats of one file a picture, and its ending."""


class Output(NamedTuple):
    """Where samples of these seeds go.

    A folder, a format (png, tiff, npz, npy, parquet), condition, class names, and the space of the samples.
    """

    folder: Path
    form: str
    seeds: Sequence[int]
    cond: Condition
    classes: tuple[str, ...]
    space: Any

    @property
    def single(self) -> bool:
        """Whether each picture has a file of its own."""
        return self.form in SINGLE

    @property
    def file(self) -> Path:
        """The one file of all samples; for png and tiff the folder of pictures."""
        return self.folder / ("images" if self.single else f"samples.{self.form}")

    def parts(self) -> list[range]:
        """Row numbers 0 .. N - 1, a range for each part."""
        rows = 1 if self.single else ROWS
        return [range(start, min(start + rows, len(self.seeds))) for start in range(0, len(self.seeds), rows)]

    def path(self, part: range) -> Path:
        """The file of a part."""
        name = f"{self.seeds[part.start]:06d}"
        return self.file / f"{name}.{SINGLE[self.form]}" if self.single else self.folder / ".parts" / f"{name}.npy"


def check_format(output: Output) -> None:
    """Refuse, before anything is drawn, what the format cannot hold.

    Raises:
        SettingsError: If so.
    """
    try:
        if output.form == "parquet":
            _features(output)
    except (ImportError, ValueError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise SettingsError(f"--format {output.form} cannot hold these samples ({said}): choose another") from None


def missing(output: Output) -> list[range]:
    """The parts that are not on disk yet; none if the one file of all is there."""
    if not output.single and output.file.exists():
        return []
    return [part for part in output.parts() if not output.path(part).exists()]


def write_parts(output: Output, parts: Sequence[range], batches: Iterable[np.ndarray]) -> Iterator[int]:
    """Write the rows of these parts as they come in.

    Args:
        output: Where to.
        parts: The parts that are drawn, in order.
        batches: All their rows, in order, cut anywhere.
    Yields:
        The rows of each batch, once they are taken in; those of the batches before are on disk then.
    """
    waiting = deque(parts)
    held: list[np.ndarray] = []
    # pictures are encoded and written beside the next batch; what ends this waits for those that are being written
    with ThreadPoolExecutor(1, "samples") as thread:
        before = thread.submit(_write, output, [])  # nothing yet
        for batch in batches:
            held.extend(batch)
            ready: list[tuple[range, np.ndarray]] = []
            while waiting and len(held) >= len(waiting[0]):
                part = waiting.popleft()
                ready.append((part, np.stack(held[: len(part)])))
                held = held[len(part) :]
            before.result()
            before = thread.submit(_write, output, ready)
            yield len(batch)
        before.result()


def _write(output: Output, ready: Sequence[tuple[range, np.ndarray]]) -> None:
    """Parts with their rows, each written aside and renamed."""
    for part, rows in ready:
        with written(output.path(part)) as aside, aside.open("wb") as file:
            if output.single:
                file.write(output.space.as_file(rows[0], output.form))
            else:
                np.save(file, rows)


def first_rows(output: Output, count: int) -> np.ndarray:
    """The first samples, while their parts are there."""
    paths = [output.path(part) for part in output.parts() if part.start < count]
    if output.single:
        return np.stack([output.space.of_file(path.read_bytes()) for path in paths])
    return np.concatenate([np.load(path, allow_pickle=False) for path in paths])[:count]


def join(output: Output) -> None:
    """Make one file of the parts, a part in memory at a time, and drop them."""
    if output.single:
        return
    parts = [output.path(part) for part in output.parts()]
    if not output.file.exists():
        with written(output.file) as aside:
            {"npy": _join_npy, "npz": _join_npz, "parquet": _join_parquet}[output.form](output, parts, aside)
    shutil.rmtree(output.folder / ".parts", ignore_errors=True)


def _rows(output: Output, parts: Sequence[Path], file: Any) -> None:
    """All samples as one array in the format of NumPy."""
    first = np.load(parts[0], allow_pickle=False)
    shape, descr = (len(output.seeds), *first.shape[1:]), np.lib.format.dtype_to_descr(first.dtype)
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    for part in parts:
        file.write(np.load(part, allow_pickle=False).tobytes())


def _join_npy(output: Output, parts: Sequence[Path], aside: Path) -> None:
    with aside.open("wb") as file:
        _rows(output, parts, file)


def _join_npz(output: Output, parts: Sequence[Path], aside: Path) -> None:
    others = {"seeds": np.array(output.seeds)}
    if output.cond.label is not None:
        others["labels"] = output.cond.label.numpy()
    with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("samples.npy", "w", force_zip64=True) as file:
            _rows(output, parts, file)
        for name, array in others.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _join_parquet(output: Output, parts: Sequence[Path], aside: Path) -> None:
    """Columns image (PNG or else Array3D, features of `datasets`), seed and, where there are classes, label."""
    import datasets
    import pyarrow.parquet as pq

    features = _features(output)
    with pq.ParquetWriter(aside, features.arrow_schema) as writer:
        for rows, part in zip(output.parts(), parts, strict=True):
            pictures = np.load(part, allow_pickle=False)
            images: Any = list(pictures)
            if _png_holds(output):
                images = [{"bytes": output.space.as_file(one, "png"), "path": None} for one in pictures]
            columns: dict[str, Any] = {"image": images, "seed": [output.seeds[row] for row in rows]}
            if output.cond.label is not None:
                columns["label"] = output.cond.label[rows.start : rows.stop].tolist()
            writer.write_table(datasets.Dataset.from_dict(columns, features).data.table)


def _png_holds(output: Output) -> bool:
    return "png" in output.space.formats


def _features(output: Output) -> Any:
    """The columns of a parquet file of samples."""
    import datasets

    space = output.space
    channels, height, width = space.shape
    image = datasets.Image() if _png_holds(output) else datasets.Array3D((height, width, channels), space.depth.type)
    features = {"image": image, "seed": datasets.Value("int64")}
    if output.cond.label is not None:
        features["label"] = datasets.ClassLabel(names=list(output.classes))
    return datasets.Features(features)
