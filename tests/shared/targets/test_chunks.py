"""A shard's index, as zarr writes it."""

import numpy as np
import pytest
import zarr

from shared.targets.segment.chunks import DamagedChunk, decode_shard_index, shard_index_length

pytestmark = pytest.mark.unit


def shard_of(folder, written):
    """Return the shard of four records that zarr writes where only some of them are filled."""
    array = zarr.create_array(
        folder, shape=(4, 8), chunks=(1, 8), shards=(4, 8), dtype="uint8", fill_value=0
    )
    for record in written:
        array[record] = np.arange(record + 1, record + 9, dtype=np.uint8)
    return (folder / "c" / "0" / "0").read_bytes()


def test_offsets_and_lengths_lead_to_each_record(tmp_path):
    index = decode_shard_index(shard_of(tmp_path / "whole", range(4))[-shard_index_length(4) :], 4)
    assert index.shape == (4, 2)
    assert len({int(offset) for offset in index[:, 0]}) == 4
    assert (index[:, 1] > 0).all()


@pytest.mark.parametrize("absent", range(4))
def test_a_record_without_a_chunk_is_damage(tmp_path, absent):
    written = [record for record in range(4) if record != absent]
    shard = shard_of(tmp_path / "lacking", written)
    with pytest.raises(DamagedChunk, match="lacks a record"):
        decode_shard_index(shard[-shard_index_length(4) :], 4)


@pytest.mark.parametrize("cut", [1, 4, 16])
def test_a_short_index_is_damage(tmp_path, cut):
    tail = shard_of(tmp_path / "whole", range(4))[-shard_index_length(4) :]
    with pytest.raises(DamagedChunk, match="index is damaged"):
        decode_shard_index(tail[cut:], 4)
