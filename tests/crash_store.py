"""`python crash_store.py MODE SOURCE CACHE`: looking through and decoding a folder, killed or twice at once.

MODE kill: for each of POINTS a child that is killed (SIGKILL) there, in a cache CACHE/POINT of its own; prints how many
died so. MODE twice: two children at once in one cache; prints what each has. Patches nothing but where a process ends,
how much it does at a time and, in twice, that they meet.
"""

import os
import select
import signal
import sys
from pathlib import Path

import numpy as np
from survival import HANGING

from flowimg import files
from flowimg.data import cache, listing, scan, store
from flowimg.data.find import find

POINTS = [
    "looked at a third", "half of the scan", "the scan", "an empty folder", "decoded nothing", "decoded a third",
    "decoded all", "moved together", "labels", "half of the story", "the story", "synced", "renamed",
]  # fmt: skip


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def after(module, name, dying):
    """Call `dying` each time that a function of a module has returned, with what it was given."""
    done = getattr(module, name)

    def then(*given, **more):
        found = done(*given, **more)
        dying(*given)
        return found

    setattr(module, name, then)


def times(count):
    """Dies when it is called for the n-th time."""
    left = [count]

    def dying(*_):
        left[0] -= 1
        if left[0] == 0:
            die()

    return dying


def arm(point):
    """Die at this point; pictures are read two at a time, so that there are thirds."""
    listing.CHUNK = 2
    write_text, rename = Path.write_text, Path.rename

    def halved(path, text, **how):
        write_text(path, text[: len(text) // 2], **how)
        die()

    def renamed(path, target):
        rename(path, target)
        die()

    match point:
        case "looked at a third":
            after(scan, "look", times(4))
        case "half of the scan":
            savez = np.savez
            np.savez = lambda file, **arrays: (savez(file, **arrays), file.truncate(file.tell() // 2), die())
        case "the scan":
            after(scan, "keep_arrays", times(1))
        case "an empty folder":
            mkdir = Path.mkdir
            Path.mkdir = lambda path, *how, **more: (mkdir(path, *how, **more), die() if path.name[0] == "." else 0)
        case "decoded nothing":
            store.decode_into = lambda *_: die()
        case "decoded a third":
            after(store, "decode_into", times(4))
        case "decoded all":
            store._close_ranks = lambda *_: die()
        case "moved together":
            after(store, "_close_ranks", times(1))
        case "labels":
            after(np, "save", times(1))
        case "half of the story":
            Path.write_text = halved
        case "the story":
            after(Path, "write_text", times(1))
        case "synced":
            nth = times(4)  # three files and their folder; the scan was synced before
            after(files, "sync", lambda path, *_: "stores" in path.parts and nth())
        case "renamed":
            Path.rename = renamed


def build(source, folder, workers=1):
    found = find(source, Path(folder), max_bad=0.5, workers=workers)
    return store.store(found, Path(folder), max_bad=0.5, workers=workers)


def child(do):
    """Do it in a child; its process id."""
    number = os.fork()
    if number == 0:
        try:
            do()
        finally:
            os._exit(0)
    return number


def kill(source, folder):
    died = 0
    for point in POINTS:
        number = child(lambda point=point: (arm(point), build(source, f"{folder}/{point}")))
        died += os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == -signal.SIGKILL
    print(died, len(POINTS))


def twice(source, folder):
    listing.CHUNK = 2
    heard, say = os.pipe()
    met = []

    def told(*words, **more):
        print(*words, **more)
        os.write(say, b"w")

    def meet(*_):
        if not met:  # in the middle: the one that decodes goes on when the other waits for it
            met.append(select.select([heard], [], [], HANGING))

    cache.print = told
    after(store, "decode_into", meet)

    def do():
        made = build(source, folder)
        os.write(1, f"{made.fingerprint} {len(made.images.pixels)} {int(made.images.labels.sum())}\n".encode())

    for number in [child(do), child(do)]:
        os.waitpid(number, 0)


if __name__ == "__main__":
    mode, source, folder = sys.argv[1:]
    {"kill": kill, "twice": twice}[mode](source, folder)
