"""What the tests let worker processes do; they find it by its name, and it must need no torch."""

import os
import signal
import sys
import time

from flowimg.data.workers import Pool


class OddError(Exception):
    """An error with more than a text in it."""

    def __init__(self, text, number):
        super().__init__(text, number)
        self.number = number


def late(number):
    """The earlier ones take longer."""
    time.sleep(max(0, 6 - number) * 0.03)
    return number * number


def fail(number):
    if number == 5:
        raise OddError("five is odd", 5)
    return number


def die(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def leave(number):
    os._exit(7)


def process(_):
    return os.getpid()


def here(_):
    return os.getpid(), os.getpgrp()


def modules(_):
    return sorted(sys.modules)


def chatter(number):
    """Prints, by Python and below it."""
    print("hello from the worker", flush=True)
    os.write(1, b"\x80\x05 not a pickle\n")
    return number


def large(size):
    return bytes(size)


def unsendable(_):
    return lambda: None


def slow(seconds):
    time.sleep(seconds)
    return seconds


if __name__ == "__main__":  # a parent that is killed while its workers work
    sys.path.insert(0, os.path.dirname(__file__))
    import tasks

    pool = Pool(2)
    for seconds in (0.2, float(sys.argv[1])):
        both = [pool.submit(tasks.slow, seconds) for _ in range(2)]
        if seconds == 0.2:
            [one.result() for one in both]
    time.sleep(0.2)
    print(*[worker.pid for worker in pool._all], flush=True)
    time.sleep(60)
