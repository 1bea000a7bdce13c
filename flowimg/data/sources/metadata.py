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
from flowimg.data.listing import Listing, Request, Source, listed, of_files, several
from flowimg.data.pictures import first_line
from flowimg.data.sources.folders import Chosen, Entry, choose, signature_of
from flowimg.data.sources.splits import is_split
from flowimg.data.sources.unused import is_metadata
from flowimg.errors import DataError

FILE = "file_name"


def metadata_folder(where: str, root: Path, entries: list[Entry], again: list[str], request: Request) -> Source:
    """The pictures that metadata list, among a folder's entries.

    Raises:
        DataError: If there are none, or no such split.
    """
    chosen = choose(where, entries, again, request.split)
    tables = [entry for entry in entries if is_metadata(entry.path) and entry.wrong is None]
    folders = [os.path.dirname(table.path) for table in tables]
    if (twice := next((folder for folder in folders if folders.count(folder) > 1), None)) is not None:
        raise DataError(
            f"{where} has {folders.count(twice)} metadata tables in {twice or 'one folder'}: keep one of them"
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
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file)
        with file.open(encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".jsonl":
                return pa.Table.from_pylist([json.loads(line) for line in lines if line.strip()])
            header, *rows = [row for row in csv.reader(lines, strict=True) if row]
        if uneven := next((number for number, row in enumerate(rows, 1) if len(row) != len(header)), None):
            raise DataError(f"{file}: row {uneven} has {len(rows[uneven - 1])} cells, and the header {len(header)}")
        columns = zip(*rows, strict=True) if rows else ((),) * len(header)
        return pa.table([pa.array(column, pa.string()) for column in columns], names=header)
    except DataError:
        raise
    except Exception as error:  # damaged files raise almost anything
        raise DataError(f"{file} cannot be read as a table: {first_line(error)}") from None


def file_column(table: Path, columns: Sequence[str], requested: str | None) -> str:
    """The column that names the pictures.

    Raises:
        DataError: If there is none, or several.
    """
    found = [column for column in columns if column == FILE or column.endswith(f"_{FILE}")]
    if requested is not None:
        found = [column for column in found if column in (requested, f"{requested}_{FILE}")]
        found = found or [FILE] * (requested == "image" and FILE in columns)
    if FILE in found or len(found) == 1:
        return FILE if FILE in found else found[0]
    if found:
        raise DataError(f"{table} has {len(found)} columns of pictures, {listed(found)}: name one by data.image_column")
    what = f"{requested}_{FILE} (data.image_column)" if requested else FILE
    raise DataError(f"{table} names no pictures: it has no column {what}, its columns are {listed(columns)}")


def _listing(where: str, root: Path, chosen: Chosen, tables: list[str], request: Request) -> Listing:
    from datasets import Features  # takes a second to import

    from flowimg.data.sources.columns import table_labels

    unused = list(chosen.unused)
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
    rows = _first_rows(where, paths, table)
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
    features = Features.from_arrow_schema(table.schema)
    kept = table.take(pa.array([rows[name] for name in names], pa.int64()))
    text = {os.path.splitext(path)[1] for path in tables} == {".csv"}

    def cells(column: str) -> list[Any]:
        found = kept[column].to_pylist()
        return as_numbers(found) if text else found

    labels = table_labels(where, features, request, cells, names.__getitem__)
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
    return of_files(name, stamps, wrong=wrong, unused=(*unused, *labels.unused), origin=origin, **more)


def as_numbers(texts: Sequence[str]) -> list[Any]:
    """Texts of CSV as integers, if they all are (or empty); `01` stays a text, or it would be another name."""

    def number(text: str) -> int | None:
        whole = text.strip().removesuffix(".0")
        return int(whole) if whole.removeprefix("-").isdecimal() and str(int(whole)) == whole else None

    numbers = [number(text) for text in texts]
    return (
        numbers
        if all(n is not None or not text.strip() for n, text in zip(numbers, texts, strict=True))
        else list(texts)
    )


def _first_rows(where: str, paths: list[str], table: pa.Table) -> dict[str, int]:
    """The row of each picture; one that is listed again, with the same label, counts once."""
    rows: dict[str, int] = {}
    labels = [table[name] for name in ("label", "labels", "class") if name in table.column_names]
    for row, path in enumerate(paths):
        first = rows.setdefault(path, row)
        if first != row and any(column[first] != column[row] for column in labels):
            raise DataError(f"{where}: its metadata list {path} twice, with different labels")
    return rows
