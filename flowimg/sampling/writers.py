"""Samples on disk: written in parts, so that memory is bounded and a killed run continues where it stopped.

The samples are cut into parts of fixed rows; a part is written aside and renamed, so it is there whole or not at all.
For PNG a part is one picture, images/000042.png. For one file of all a part is a small array below .parts, and the
parts are joined at the end: (N, H, W, C) uint8 for pictures, (N, 2) float32 for points.
"""

import io
import shutil
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from flowimg.errors import SettingsError
from flowimg.files import written
from flowimg.flow.condition import Condition

ROWS = 64
"""Samples a part, where all go into one file."""


class Output(NamedTuple):
    """Where samples of these seeds go: a folder, a format (png, npz, npy, parquet), condition and class names."""

    folder: Path
    form: str
    seeds: range
    cond: Condition
    classes: tuple[str, ...]

    @property
    def file(self) -> Path:
        """The one file of all samples; for png the folder of pictures."""
        return self.folder / ("images" if self.form == "png" else f"samples.{self.form}")

    def parts(self) -> list[range]:
        """Row numbers 0 .. N - 1, a range for each part."""
        rows = 1 if self.form == "png" else ROWS
        return [range(start, min(start + rows, len(self.seeds))) for start in range(0, len(self.seeds), rows)]

    def path(self, part: range) -> Path:
        """The file of a part."""
        seed = self.seeds[part.start]
        return self.file / f"{seed:06d}.png" if self.form == "png" else self.folder / ".parts" / f"{seed:06d}.npy"


def check_format(output: Output) -> None:
    """Refuse, before anything is drawn, what the format cannot hold.

    Raises:
        SettingsError: If so.
    """
    try:
        if output.form == "parquet":
            _schema(output)
    except (ImportError, ValueError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise SettingsError(f"--format {output.form} cannot hold these samples ({said}): choose another") from None


def missing(output: Output) -> list[range]:
    """The parts that are not on disk yet; none if the one file of all is there."""
    if output.form != "png" and output.file.exists():
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
            if output.form == "png":
                file.write(_png(rows[0]))
            else:
                np.save(file, rows)


def first_rows(output: Output, count: int) -> np.ndarray:
    """The first samples, while their parts are there."""
    paths = [output.path(part) for part in output.parts() if part.start < count]
    if output.form == "png":
        return np.stack([np.atleast_3d(np.array(Image.open(path))) for path in paths])
    return np.concatenate([np.load(path, allow_pickle=False) for path in paths])[:count]


def join(output: Output) -> None:
    """Make one file of the parts, a part in memory at a time, and drop them."""
    if output.form == "png":
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
    """Columns image (PNG, the feature of `datasets`), seed and, where there are classes, label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(output)
    with pq.ParquetWriter(aside, schema) as writer:
        for rows, part in zip(output.parts(), parts, strict=True):
            pictures = [{"bytes": _png(pixels), "path": None} for pixels in np.load(part, allow_pickle=False)]
            columns: dict[str, Any] = {"image": pictures, "seed": [output.seeds[row] for row in rows]}
            if output.cond.label is not None:
                columns["label"] = output.cond.label[rows.start : rows.stop].tolist()
            writer.write_table(pa.Table.from_pydict(columns, schema=schema))


def _schema(output: Output) -> Any:
    """The columns of a parquet file of samples."""
    import datasets

    features = {"image": datasets.Image(), "seed": datasets.Value("int64")}
    if output.cond.label is not None:
        features["label"] = datasets.ClassLabel(names=list(output.classes))
    return datasets.Features(features).arrow_schema


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()
