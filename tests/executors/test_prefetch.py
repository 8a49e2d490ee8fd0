"""Batches are read ahead in order, errors arrive where they belong, and the threads' settings stay theirs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from avdistill.executors.prefetch import prefetch


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_everything_comes_in_order_and_no_more_than_two_batches_ahead_per_thread(threads: int) -> None:
    asked: list[int] = []

    def read(number: int) -> int:
        asked.append(number)
        return number * number

    for position, value in enumerate(prefetch(read, range(5, 25), threads)):
        assert value == (5 + position) ** 2
        assert len(asked) <= position + 1 + 2 * threads
    assert sorted(asked) == list(range(5, 25))


def test_threads_read_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)  # breaks unless two are inside at once

    def read(number: int) -> int:
        both.wait()
        return number

    assert list(prefetch(read, range(8), 2)) == list(range(8))


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_is_raised_at_its_batch_and_the_threads_end(threads: int) -> None:
    def read(number: int) -> int:
        if number == 3:
            raise OSError("clip 3 cannot be read")
        return number

    got = []
    with pytest.raises(OSError, match="clip 3"):
        got.extend(prefetch(read, range(10), threads))
    for number in prefetch(read, range(3), threads):
        got.append(number)
        break
    assert not [t for t in threading.enumerate() if t.name.startswith("avdistill-reader")]


def test_a_thread_that_cannot_be_started_is_an_error_and_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    original, begun = threading.Thread.start, []

    def start(self: threading.Thread) -> None:
        begun.append(self)
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        original(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(prefetch(lambda number: number, range(5), 3))
    begun[0].join(timeout=30)
    assert not begun[0].is_alive()


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_short_readings_end_however_late_a_thread_wakes_up(batches: int) -> None:
    def many() -> None:
        for _ in range(300):
            assert list(prefetch(abs, range(batches), 4)) == list(range(batches))

    reading = threading.Thread(target=many, daemon=True)
    reading.start()
    reading.join(timeout=120)
    assert not reading.is_alive()


def test_readers_compute_alone_and_nobody_else_is_told_to() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        inside = list(prefetch(lambda _: torch.get_num_threads(), range(6), 2))
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(torch.get_num_threads).result()
        assert (inside, torch.get_num_threads(), other) == ([1] * 6, 3, 3)
    finally:
        torch.set_num_threads(before)
