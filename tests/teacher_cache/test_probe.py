"""The probe of `cache plan`, by a clock that only the work itself moves."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from shared.imaging.images import ImageReference
from teacher_cache import probe as probing
from teacher_cache.probe import MEASURED, SECONDS, WARM, interval, probe
from tests.fixtures.targets import identity, key, matrix_record

pytestmark = pytest.mark.unit


class Work:
    """Encodes nothing: says how long each batch takes, and hands over one record a batch."""

    def __init__(self, monkeypatch, seconds, batch_size=2):
        self.now, self.done, self.closed = 0.0, 0, False
        self.seconds, self.batch_size = seconds, batch_size
        monkeypatch.setattr("teacher_cache.probe.time.perf_counter", lambda: self.now)

    def flow(self, keys, add):
        try:
            for number, one in enumerate(keys):
                batch, place = divmod(number, self.batch_size)
                if place == 0:
                    self.now += self.seconds(batch)
                    add(one, matrix_record(0))
                self.done += 1
                yield one, None
        finally:
            self.closed = True


def probed(work, count):
    keys = [key(number) for number in range(count)]
    by_key = {one: ImageReference(Path(f"{number}.png")) for number, one in enumerate(keys)}
    return probe(keys, by_key, identity(), work.batch_size, work.flow)


def test_neither_the_first_batches_nor_the_last_count(monkeypatch):
    """What fills the pipeline takes ten times as long, and what drains it no time."""
    last = WARM + MEASURED
    work = Work(monkeypatch, lambda batch: 10.0 if batch < WARM else 2.0 if batch < last else 0.0)
    found = probed(work, 1000)
    assert found.rate == pytest.approx((1.0, 1.0, 1.0))
    assert work.done == work.batch_size * last
    assert work.closed
    assert found.stored == last


def test_a_fast_device_is_measured_for_seconds(monkeypatch):
    work = Work(monkeypatch, lambda batch: 0.125)
    assert probed(work, 1000).rate == pytest.approx((1 / 16,) * 3)
    assert work.done == work.batch_size * (WARM + SECONDS / 0.125)


def test_the_interval_is_students_over_the_batches(monkeypatch):
    times = np.random.default_rng(0).uniform(1, 3, WARM + MEASURED)
    found = probed(Work(monkeypatch, lambda batch: times[batch]), 1000).rate
    each = times[WARM:] / 2
    low, high = stats.t.interval(0.95, MEASURED - 1, each.mean(), stats.sem(each))
    assert found == pytest.approx((each.mean(), low, high))


def test_no_build_is_foretold_to_be_faster_than_its_fastest_batch():
    assert interval([1.0, 9.0]).low == 1.0


@pytest.mark.parametrize("count", [1, 2 * WARM, 2 * (WARM + MEASURED)])
def test_of_few_images_all_are_encoded_and_their_whole_time_counts(monkeypatch, count):
    work = Work(monkeypatch, lambda batch: 10.0 if batch == 0 else 1.0)
    found = probed(work, count)
    assert work.done == count
    assert found.rate == pytest.approx(((10.0 + (count + 1) // 2 - 1) / count,) * 3)


def test_without_any_record_there_is_no_rate(monkeypatch):
    work = Work(monkeypatch, lambda batch: 1.0)
    found = probe([], {}, identity(), 2, work.flow)
    assert (found.stored, found.rate, found.record_size) == (0, None, None)


def test_the_disk_holds_one_segment_at_a_time(monkeypatch):
    monkeypatch.setattr(probing, "SECONDS", 1e9)
    most = 0
    real = probing._Scale.weigh

    def weigh(scale):
        nonlocal most
        most = max(most, len(scale._namespace.segments()))
        real(scale)

    monkeypatch.setattr(probing._Scale, "weigh", weigh)
    work = Work(monkeypatch, lambda batch: 1.0, batch_size=1)
    assert probed(work, 600).stored == 600
    assert most == 1


def test_images_are_taken_from_everywhere_and_those_of_a_file_together():
    keys = [key(number) for number in range(2000)]
    by_key = {
        one: ImageReference(Path(f"{number // 20}.nii"), str(number))
        for number, one in enumerate(keys)
    }
    order = probing._spread(keys, by_key)
    assert sorted(order) == sorted(keys)
    files = [int(str(by_key[one].path).removesuffix(".nii")) for one in order]
    assert [len(set(files[start : start + 20])) for start in range(0, 2000, 20)] == [1] * 100
    for count in (10, 20, 50):  # the files of each beginning leave no large gap
        first = sorted(files[: 20 * count : 20])
        assert max(np.diff([-1, *first, 100])) <= 3 * 100 / count
