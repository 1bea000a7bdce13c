"""A folder of pictures with metadata: tables called metadata.csv, metadata.jsonl or metadata.parquet.

Each row of such a table names a picture, relative to the folder of the table, in the column file_name (or
NAME_file_name, which is then called NAME), and may have its label. Cells of CSV are texts, as written.
"""

import csv
import json
import os
import posixpath
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flowimg.data.cache import NO_STAMP, name_of
from flowimg.data.listing import Listing, Request, Source, label_of, listed, of_files, several
from flowimg.data.pictures import first_line
from flowimg.data.sources.folders import Chosen, Entry, choose, signature_of
from flowimg.data.sources.splits import is_split
from flowimg.data.sources.unused import is_metadata
from flowimg.errors import DataError
from flowimg.names import one_line

FILE = "file_name"


def metadata_folder(where: str, root: Path, entries: list[Entry], beside: Sequence[str], request: Request) -> Source:
    """The pictures that metadata list, among a folder's entries; `beside` are remarks on the others.

    Raises:
        DataError: If there are none, or no such split.
    """
    chosen = choose(where, entries, beside, request.split)
    tables = [entry for entry in entries if is_metadata(entry.path) and entry.wrong is None]
    folders = [os.path.dirname(table.path) for table in tables]
    if (twice := next((folder for folder in folders if folders.count(folder) > 1), None)) is not None:
        raise DataError(
            f"{where} has {folders.count(twice)} metadata tables in {one_line(twice) or 'one folder'}: keep one of them"
        )
    # those of other splits list pictures of those
    tables = [table for table in tables if "/" not in table.path or table.path.startswith(chosen.prefixes or "")]
    signature = name_of(signature_of(chosen.pictures), signature_of(tables), chosen.unused)
    listing = partial(_listing, where, root, chosen, [table.path for table in tables], request)
    return Source("a folder of pictures with metadata", where, signature, listing)


def read_table(file: Path) -> pa.Table:
    """A metadata table.

    Raises:
        DataError: If it cannot be read.
    """
    where = one_line(str(file))
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file)
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".jsonl":
                found = [json.loads(line) for line in lines if line.strip()]
                keys = dict.fromkeys(key for row in found for key in row)  # of all rows; pyarrow has those of the first
                return pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in found])
            header, *rows = [row for row in csv.reader(lines, strict=True) if row]
        if uneven := next((number for number, row in enumerate(rows, 1) if len(row) != len(header)), None):
            raise DataError(f"{where}: row {uneven} has {len(rows[uneven - 1])} cells, and the header {len(header)}")
        columns = zip(*rows, strict=True) if rows else ((),) * len(header)
        return pa.table([pa.array(column, pa.string()) for column in columns], names=header)
    except DataError:
        raise
    except Exception as error:  # damaged files raise almost anything
        raise DataError(f"{where} cannot be read as a table: {first_line(error)}") from None


def file_column(table: Path, columns: Sequence[str], requested: str | None) -> str:
    """The column that names the pictures.

    Raises:
        DataError: If there is none, or several.
    """
    where = one_line(str(table))
    found = [column for column in columns if column == FILE or column.endswith(f"_{FILE}")]
    if requested is not None:
        found = [column for column in found if column in (requested, f"{requested}_{FILE}")]
        found = found or [FILE] * (requested == "image" and FILE in columns)
    if FILE in found or len(found) == 1:
        return FILE if FILE in found else found[0]
    if found:
        raise DataError(f"{where} has {len(found)} columns of pictures, {listed(found)}: name one by data.image_column")
    what = f"{requested}_{FILE} (data.image_column)" if requested else FILE
    raise DataError(f"{where} names no pictures: it has no column {what}, its columns are {listed(columns)}")


def _listing(where: str, root: Path, chosen: Chosen, tables: list[str], request: Request) -> Listing:
    from flowimg.data.sources.columns import features_of, find_label_column, table_labels, unlike_classes

    unused: list[str] = []
    parts, paths = [], []
    for path in tables:
        part = read_table(root / path)
        column = file_column(root / path, part.column_names, request.image_column)
        folder = os.path.dirname(path)
        paths += [posixpath.normpath(posixpath.join(folder, str(name))) for name in part[column].to_pylist()]
        parts.append(part.drop_columns([column]))
    try:
        table = pa.concat_tables(parts, promote_options="default")
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: its metadata tables do not fit each other: {first_line(error)}") from None
    features = features_of(table.schema)
    rows = _first_rows(where, paths, table, find_label_column(where, features, request))
    if chosen.prefixes:  # a table above the splits lists the pictures of all
        rows = {
            path: n for path, n in rows.items() if path.startswith(chosen.prefixes) or not is_split(path.split("/")[0])
        }
    entries = {entry.path: entry for entry in chosen.pictures}
    order = {path: number for number, path in enumerate(entries)}
    # in the order of the pictures' names, and then those that are not there
    names = sorted(rows, key=lambda path: (path not in order, order.get(path, rows[path])))
    if unlisted := [path for path in entries if path not in rows]:
        unused.append(f"{several(unlisted)}: not in {several(tables)}: pictures that it does not list are not used")
    if "split" in table.column_names:
        unused.append(f"the column split: all rows are {request.split}; folders called train and test are splits")
    kept = table.take(pa.array([rows[name] for name in names], pa.int64()))
    unlike = partial(unlike_classes, [part.schema for part in parts])
    labels = table_labels(where, features, request, lambda column: kept[column].to_pylist(), unlike, names.__getitem__)
    below = [path.partition("/")[2] if chosen.prefixes else path for path in entries]
    tops = sorted({path.split("/")[0] for path in below if "/" in path})
    if request.reads_labels and labels.column is None and len(tops) > 1:
        unused.append(f"the folders {listed(tops)}: beside metadata, a column label makes the classes")

    def name(row: int) -> str:
        return os.path.join(root, names[row])

    stamps = [entries[path].stamp if path in entries else NO_STAMP for path in names]
    why = {row: entries[path].wrong if path in entries else "no such picture" for row, path in enumerate(names)}
    wrong = {row: reason for row, reason in why.items() if reason is not None}
    origin = ("by metadata", f"column {labels.column}" if labels.column else "")
    more: dict[str, Any] = {} if labels.numbers is None else {"labels": labels.numbers, "classes": labels.classes}
    return of_files(name, stamps, wrong=wrong, unused=(*labels.unused, *unused, *chosen.unused), origin=origin, **more)


def _first_rows(where: str, paths: list[str], table: pa.Table, label: str | None) -> dict[str, int]:
    """The row of each picture; one that is listed again, with the same label, counts once."""
    rows: dict[str, int] = {}
    labels = table[label].to_pylist() if label else [None] * len(paths)
    for row, path in enumerate(paths):
        first = rows.setdefault(path, row)
        if first != row and label_of(labels[first]) != label_of(labels[row]):
            raise DataError(
                f"{where}: its metadata list {one_line(path)} twice, with different labels: keep one of these rows, or "
                "give data.labels false"
            )
    return rows
