import pytest
import torch
from aisec_common.seeding import torch_rng

from procon import projection_cache
from procon.projection_cache import ProjectionCache


def samples(number=9, layers=3):
    rng = torch_rng(0, "cache")
    return {bytes([k] * 16): torch.randn(k % 4 + 1, layers, generator=rng) for k in range(number)}


@pytest.mark.parametrize("shard_bytes", [1, 60, 10**6])
def test_what_is_kept_comes_back_also_from_disk(tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(projection_cache, "SHARD_BYTES", shard_bytes)
    cache = ProjectionCache(tmp_path)
    for key, z in samples().items():
        cache.add(key, z)
        cache.add(key, z + 1)  # the first stays
    cache.flush()
    order = list(samples())[::-1]
    expected = torch.cat([samples()[key] for key in order])
    for found in (cache, ProjectionCache(tmp_path)):
        assert len(found) == 9
        assert torch.equal(found.lookup(order), expected)


def test_halves_are_near_and_overflow_is_refused(tmp_path):
    cache = ProjectionCache(tmp_path, "float16")
    for key, z in samples().items():
        cache.add(key, z)
    cache.flush()
    kept, exact = cache.lookup(samples()), torch.cat(list(samples().values()))
    assert kept.dtype == torch.float32
    assert ((kept - exact).abs() <= 1e-3 * exact.abs() + 1e-6).all()
    with pytest.raises(ValueError, match="cache_dtype='float32'"):
        cache.add(b"x" * 16, torch.tensor([[1e6]]))
    with pytest.raises(ValueError, match="NaN"):
        cache.add(b"y" * 16, torch.tensor([[float("nan")]]))


def test_several_writers_share_a_folder_and_a_damaged_file_is_made_anew(tmp_path):
    items = list(samples().items())
    writers = [ProjectionCache(tmp_path, writer=k) for k in range(2)]
    for k, (key, z) in enumerate(items):
        writers[k % 2].add(key, z)
    for writer in writers:
        writer.flush()
    writers[0].reload()
    assert all(key in writers[0] for key, _ in items)
    file = sorted(tmp_path.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-10])
    again = ProjectionCache(tmp_path)
    assert not file.exists()
    assert [key in again for key, _ in items] == [k % 2 == 1 for k in range(9)]


def test_an_unknown_sample_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no projections of a training sample") as raised:
        ProjectionCache(tmp_path).lookup([b"z" * 16])
    assert "\n" not in str(raised.value)
