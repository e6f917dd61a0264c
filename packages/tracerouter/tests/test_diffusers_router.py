import pytest
import torch

pytest.importorskip("diffusers")
from aisec_common.torch.hf_tokenizer import word_tokenizer
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tiny_router import WORDS
from transformers import CLIPTextConfig, CLIPTextModel

from tracerouter.diffusers_router import PIPELINE, DiffusionRouter, modules_of
from tracerouter.hf_router import TraceRouter
from tracerouter.tracing import Recipe

SIZE = {"height": 8, "width": 8}
RECIPE = Recipe(sae_width=24, sae_k=4, sae_steps=10, k=3)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    tokenizer = word_tokenizer(WORDS)
    tokenizer.model_max_length = 8
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=2,
            eos_token_id=3,
            pad_token_id=0,
        )
    ).eval()
    unet = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=4,
    ).eval()
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()
    return StableDiffusionPipeline(
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        vae=vae,
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="module")
def router(pipe):
    return DiffusionRouter(pipe, sites=("resid", "attn_out"), onset=1, recipe=RECIPE, steps=2, call=SIZE)


@pytest.fixture(scope="module")
def found(router, pairs):
    return router.fit(pairs[:4])


def image(pipe, prompt, **settings):
    made = torch.Generator().manual_seed(5)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt, num_inference_steps=2, generator=made, output_type="latent", height=32, width=32, **settings
    ).images


def test_blocks_run_through_the_encoder_and_on_through_the_denoiser(pipe):
    names = [name for name, _ in PIPELINE.blocks(modules_of(pipe))]
    assert [name.split(".")[0] for name in names] == ["text_encoder"] * 3 + ["unet"] * 4
    assert [name.split(".")[1] for name in names[3:]] == ["down_blocks", "mid_block", "up_blocks", "up_blocks"]


def test_the_cross_attention_is_what_reads_the_text(router):
    assert router.names[3, "attn_out"].endswith("attn2")
    assert router.names[0, "attn_out"].endswith("self_attn")


def test_every_timestep_counts_alike(pipe, pairs, router):
    batch, key = [pairs[0].sensitive], (3, "resid")
    rows = router.read(batch, [key, (0, "resid")])
    twice = DiffusionRouter(pipe, onset=1, recipe=RECIPE, steps=4, call=SIZE).read(batch, [key, (0, "resid")])
    assert len(twice[key]) == 2 * len(rows[key])
    assert torch.equal(twice[0, "resid"], rows[0, "resid"]), "the encoder runs once"
    assert torch.equal(router.read(batch, [key])[key], rows[key])


def test_the_path_goes_from_the_encoder_into_the_denoiser(found):
    assert found.onset == 1
    assert found.blocks == 7
    assert {key[0] for key in found.delta} == {2, 3, 4, 5, 6}
    assert all((delta > 0).any() for delta in found.delta.values())
    assert any(len(units) for (layer, _), units in found.path.items() if layer >= 3)


def test_suppression_changes_the_image_and_leaves_no_trace(pipe, router, found, pairs, tmp_path):
    prompt = pairs[0].sensitive
    plain = image(pipe, prompt)
    with router.suppress(found):
        cut = image(pipe, prompt)
    found.save(tmp_path)
    with router.suppress(TraceRouter.load(router.model, tmp_path, PIPELINE)):
        again = image(pipe, prompt)
    assert not torch.allclose(cut, plain)
    assert torch.equal(again, cut)
    assert torch.equal(image(pipe, prompt), plain)
    with router.suppress(found, gamma=1.0):
        assert torch.equal(image(pipe, prompt), plain)


@pytest.mark.filterwarnings("ignore:.*no local peak:UserWarning")
def test_the_onset_is_found_in_the_text_encoder(pipe, pairs):
    found = DiffusionRouter(pipe, recipe=RECIPE, steps=1, call=SIZE).fit(pairs[:2])
    assert len(found.onset_curve) == 3
    assert found.onset < 2


def test_wrong_input(pipe, router):
    with pytest.raises(ValueError, match=r"onset must be in 0\.\.5"):
        DiffusionRouter(pipe, onset=6)
    with pytest.raises(ValueError, match="steps"):
        DiffusionRouter(pipe, steps=0)
    with pytest.raises(ValueError, match="pairs is empty"):
        router.fit([])

    class Lone:
        components = {"vae": pipe.vae}  # noqa: RUF012

    with pytest.raises(ValueError, match="must have a text encoder"):
        modules_of(Lone())
