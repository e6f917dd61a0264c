import pytest
import torch
from aisec_common.testing import end_process

from tracerouter import discovery
from tracerouter.discovery import activities, checked, in_batches, influences, train_autoencoders

KEYS = [(0, "resid"), (1, "resid")]


def read(batch, keys, edits=None):
    """Block 0 gives the rows themselves, block 1 twice what an edit leaves of them."""
    rows = batch
    for key in (edits or {}).values():
        rows = key(rows)
    found = {(0, "resid"): rows, (1, "resid"): 2 * rows}
    return {key: found[key] for key in keys}


@pytest.fixture
def batches():
    return list(torch.randn(6, 20, 4, generator=torch.Generator().manual_seed(0)))


def as_they_are(key, rows):
    return rows


def test_activities_equal_the_whole_at_once(batches):
    found = activities(read, batches, KEYS, as_they_are, sign="abs", what="")
    rows = torch.cat(batches)
    torch.testing.assert_close(found[0, "resid"].wfs, rows.double().abs().mean(0))
    torch.testing.assert_close(found[1, "resid"].wfs, 2 * rows.double().abs().mean(0))


def test_influence_is_the_mean_change(batches):
    def halve(rows):
        return rows * torch.tensor([0.5, 1, 1, 1])

    seen = []
    delta = influences(read, batches, KEYS[1:], as_they_are, {KEYS[0]: halve}, lambda *said: seen.append(said))
    wanted = torch.cat(batches).double().abs().mean(0) * torch.tensor([1.0, 0, 0, 0])
    torch.testing.assert_close(delta[1, "resid"], wanted)
    assert seen[-1] == ("influence", 6, 6)


def test_autoencoders_depend_on_the_seed_alone_and_not_on_how_many_fit_into_memory(batches, monkeypatch):
    sizes = {"latents": None, "k": 3, "steps": 20, "tokens": 50, "seed": 1}
    together = train_autoencoders(read, batches, KEYS, **sizes)
    monkeypatch.setattr(discovery, "BUFFER", 1)
    apart = train_autoencoders(read, batches, KEYS, **sizes)
    for key in KEYS:
        assert together[key].latents == 32
        assert torch.equal(together[key].encoder, apart[key].encoder)
    assert not torch.equal(
        train_autoencoders(read, batches, KEYS, **sizes | {"seed": 2})[KEYS[0]].encoder, together[KEYS[0]].encoder
    )


def test_the_sample_is_as_large_as_asked_and_of_distinct_tokens(batches):
    kept = discovery._sampled(read, batches, KEYS, 50, 0, discovery.silent)
    assert kept[KEYS[0]].shape == (50, 4)
    assert len(kept[KEYS[0]].unique(dim=0)) == 50
    every = discovery._sampled(read, batches, KEYS, 1000, 0, discovery.silent)
    assert torch.equal(every[KEYS[0]], torch.cat(batches))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (torch.full((2, 4), torch.nan), "layer 0 holds NaN or infinite"),
        (torch.zeros(2, 4, dtype=torch.int8), "layer 0 holds torch.int8: de-quantise"),
    ],
)
def test_unusable_activations_name_their_place(rows, words):
    with pytest.raises(ValueError, match=words):
        checked(read)(rows, KEYS[:1])


def test_batches_must_hold_something():
    assert in_batches([1, 2, 3], 2) == [[1, 2], [3]]
    with pytest.raises(ValueError, match="batch_size"):
        in_batches([1], 0)


def _worker(rank, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    batches = list(torch.randn(5, 20, 4, generator=torch.Generator().manual_seed(0)))
    found = activities(read, batches, KEYS, as_they_are, sign="abs", what="")
    delta = influences(read, batches, KEYS[1:], as_they_are, {KEYS[0]: torch.zeros_like})
    torch.save({"wfs": found[0, "resid"].wfs, "delta": delta[1, "resid"]}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    end_process()


@pytest.mark.slow
def test_two_processes_share_the_batches_and_get_the_same_sums(tmp_path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
    batches = list(torch.randn(5, 20, 4, generator=torch.Generator().manual_seed(0)))
    alone = activities(read, batches, KEYS, as_they_are, sign="abs", what="")[0, "resid"].wfs
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(got["wfs"], alone)
        torch.testing.assert_close(got["delta"], 2 * alone)
