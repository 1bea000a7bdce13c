"""Adding lines to a run's metrics, all of them or none."""

from flowimg.runs.folder import RunFolder


def append(folder: RunFolder, lines: str) -> None:
    """Add lines to metrics.jsonl, all of them or none.

    Raises:
        OSError: If the disk is full or cannot be written.
    """
    size = folder.metrics.stat().st_size if folder.metrics.exists() else 0
    try:
        with folder.metrics.open("a", encoding="utf-8") as file:
            file.write(lines)
    except OSError:
        with folder.metrics.open("r+b") as file:
            file.truncate(size)
        raise
