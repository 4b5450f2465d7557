"""The whole model: its names and options, its contract, and what is trained."""

import copy
import dataclasses
import json

import pytest
import torch

from model import build_save, log_mel_examples
from model import save as save_module
from tests.small_sam import relative_error, small_size, unsettle
from training.loss import mask_loss

SIDE = 64


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return build_save("save_tiny", image_size=SIDE, adapter_init="parent").eval()


def batch(size=3, side=SIDE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(size, 3, side, side, generator=generator)
    log_mel = torch.randn(size, 1, 96, 64, generator=generator)
    return image, log_mel


# --- names, options, configuration --------------------------------------------------------------


def test_the_config_rebuilds_the_model_and_survives_json():
    model = build_save("save_tiny", image_size=80, spatial="bottleneck", audio_adapter="sama")
    config = json.loads(json.dumps(dataclasses.asdict(model.config)))
    again = build_save(**config)
    assert again.config == model.config
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "save_vit_g"}, "'save_vit_g': choose one of save_vit_b, save_vit_l"),
        ({"name": "save_tiny", "spatial": "wide"}, "'wide': choose one of dense, bottleneck"),
        ({"name": "save_tiny", "adapter_init": "one"}, "'one': choose one of parent, zero"),
        ({"name": "save_tiny", "audio_adapter": "x"}, "'x': choose one of chain, sama"),
        ({"name": "save_tiny", "image_size": 100}, "multiple of 16, got 100"),
        ({"name": "save_tiny", "image_size": 0}, "multiple of 16, got 0"),
        ({"name": "save_tiny", "sam_checkpoint": "sam.pth"}, "from scratch .* got sam.pth"),
    ],
)
def test_an_unknown_name_or_option_is_refused_with_the_choices(arguments, words):
    with pytest.raises(ValueError, match=words):
        build_save(**arguments)


# --- the contract -------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("audio_adapter", ["chain", "sama"])
def test_forward_is_the_three_parts_one_after_the_other(audio_adapter):
    model = build_save("save_tiny", image_size=SIDE, audio_adapter=audio_adapter).eval()
    image, log_mel = batch()
    audio = model.embed_audio(log_mel)
    embedding = model.encode_image(image, audio)
    logits = model.decode_masks(embedding, audio)
    assert audio.shape == (3, 128)
    assert embedding.shape == (3, 256, SIDE // 16, SIDE // 16)
    assert logits.shape == (3, 1, SIDE, SIDE)
    assert torch.allclose(model(image, log_mel), logits, atol=1e-5)


@torch.no_grad()
def test_a_batch_equals_its_samples_one_by_one(tiny):
    image, log_mel = batch(4)
    whole = tiny(image, log_mel)
    alone = torch.cat([tiny(image[i : i + 1], log_mel[i : i + 1]) for i in range(4)])
    assert relative_error(whole, alone) < 1e-5


@torch.no_grad()
def test_the_sound_reaches_both_the_encoder_and_the_decoder(tiny):
    image, log_mel = batch(2)
    image = image[:1].expand(2, -1, -1, -1)
    audio = tiny.embed_audio(log_mel)
    embedding = tiny.encode_image(image, audio)
    assert (embedding[0] - embedding[1]).abs().max() > 1e-3
    silent = tiny.encode_image(image)
    assert torch.equal(silent[0], silent[1])
    assert not torch.allclose(silent[0], embedding[0], atol=1e-3)
    masks = tiny.decode_masks(silent, audio)
    assert (masks[0] - masks[1]).abs().max() > 1e-3
    assert not torch.allclose(tiny.decode_masks(silent, None)[0], masks[0], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("adapter_init", ["parent", "zero"])
def test_float64_agrees_with_float32_and_bf16_within_a_hundredth(adapter_init):
    torch.manual_seed(0)
    model = build_save("save_tiny", image_size=SIDE, adapter_init=adapter_init).eval()
    unsettle(model)
    image, log_mel = batch()
    logits = model(image, log_mel)
    exact = copy.deepcopy(model).double()(image.double(), log_mel.double())
    assert relative_error(logits, exact) < 1e-5
    # What rounding does in the pass: weights and input are the same rounded numbers in both.
    low, image, log_mel = model.bfloat16(), image.bfloat16(), log_mel.bfloat16()
    exact = copy.deepcopy(low).double()(image.double(), log_mel.double())
    rounded = low(image, log_mel)
    assert rounded.dtype == torch.bfloat16
    assert relative_error(rounded, exact) < 1e-2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = copy.deepcopy(low).float()(image.float(), log_mel.float())
    assert relative_error(rounded, exact) < 1e-2


def test_bf16_autocast_runs_through_all_parts(tiny):
    image, log_mel = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        audio = tiny.embed_audio(log_mel)
        logits = tiny.decode_masks(tiny.encode_image(image, audio), audio)
    assert logits.isfinite().all()


IMAGE, LOG_MEL = batch(2)


@pytest.mark.parametrize(
    ("image", "log_mel", "words"),
    [
        (IMAGE[:, :, :48], LOG_MEL, r"image must be \[batch, 3, 64, 64\].*got \[2, 3, 48, 64\]"),
        (IMAGE[0], LOG_MEL, r"got \[3, 64, 64\]"),
        (IMAGE, LOG_MEL[:, 0], r"log_mel must be \[batch, 1, 96, 64\].*got \[2, 96, 64\]"),
        (IMAGE, LOG_MEL[:1], "2 images and 1 sounds"),
        (IMAGE.to(torch.uint8), LOG_MEL, "image must be float32.*got torch.uint8"),
        (IMAGE.double(), LOG_MEL, "got torch.float64"),
        (IMAGE * float("nan"), LOG_MEL, "finite"),
        (IMAGE.abs() * 100, LOG_MEL, "normalised with ImageNet's mean"),
        (IMAGE, LOG_MEL / 0, "log_mel holds NaN or infinite"),
    ],
)
def test_wrong_input_is_refused_with_what_was_expected_and_what_came(tiny, image, log_mel, words):
    with pytest.raises(ValueError, match=words):
        tiny(image, log_mel)


def test_a_wrong_embedding_is_refused(tiny):
    with pytest.raises(ValueError, match=r"image_embedding must be \[batch, 256, 4, 4\]"):
        tiny.decode_masks(torch.zeros(1, 256, 5, 5), None)
    with pytest.raises(ValueError, match=r"audio must be \[batch, 128\]"):
        tiny.encode_image(IMAGE, torch.zeros(2, 64))


# --- what is trained ----------------------------------------------------------------------------


@pytest.mark.parametrize("audio_adapter", ["chain", "sama"])
@pytest.mark.parametrize("adapter_init", ["parent", "zero"])
def test_every_trainable_parameter_gets_a_gradient_and_no_frozen_one(audio_adapter, adapter_init):
    model = build_save(
        "save_tiny", image_size=SIDE, audio_adapter=audio_adapter, adapter_init=adapter_init
    )
    image, log_mel = batch()
    mask_loss(model(image, log_mel), (image[:, :1] > 0).float())[0].backward()
    trained = [name for name, _ in model.trainable_parameters()]
    assert trained == [name for name, p in model.named_parameters() if p.grad is not None]
    frozen = {name for name, _ in model.named_parameters()} - set(trained)
    unused = ("iou_prediction_head", "output_hypernetworks_mlps", "point", "mask_downscaling")
    assert all(any(part in name for part in unused) for name in frozen)
    assert not any("output_hypernetworks_mlps.0" in name for name in frozen)


@pytest.mark.parametrize("spatial", ["dense", "bottleneck", "depthwise"])
def test_on_sams_sizes_gradients_reach_all_that_is_trained_and_nothing_else(spatial, monkeypatch):
    monkeypatch.setitem(save_module.SIZES, "save_vit_b", small_size())
    model = build_save("save_vit_b", image_size=SIDE, spatial=spatial)
    image, log_mel = batch()
    mask_loss(model(image, log_mel), (image[:, :1] > 0).float())[0].backward()
    trained = [name for name, _ in model.trainable_parameters()]
    assert trained == [name for name, p in model.named_parameters() if p.grad is not None]
    assert all(p.grad.any() for _, p in model.trainable_parameters())
    assert not any(name.startswith("audio_encoder.") for name in trained)


def test_the_sam_sizes_train_adapters_and_decoder_alone():
    with torch.device("meta"):
        model = build_save("save_vit_b")
    trained = [name for name, _ in model.trainable_parameters()]
    frozen = {name for name, _ in model.named_parameters()} - set(trained)
    assert all(
        ".Adapter." in name or name.startswith(("audio_adapter.", "mask_decoder."))
        for name in trained
    )
    assert not any(".Adapter." in name or name.startswith("audio_adapter.") for name in frozen)
    assert {name.split(".")[1] for name in frozen if name.startswith("mask_decoder.")} == {
        "iou_prediction_head",
        "output_hypernetworks_mlps",
    }


def test_a_tiny_model_learns_which_of_two_objects_sounds():
    """Left or right half of noise, told by a high or a low tone: only the sound can tell."""
    torch.manual_seed(0)
    model = build_save("save_tiny", image_size=32)
    t = torch.arange(15_600) / 16_000
    tones = torch.cat(
        [log_mel_examples(0.3 * torch.sin(6.283 * f * t), 16_000) for f in (300, 3000)]
    )
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, :, :, :16] = 1
    masks[1, :, :, 16:] = 1
    optimizer = torch.optim.AdamW([p for _, p in model.trainable_parameters()], 1e-3)
    for _ in range(40):
        image = torch.randn(2, 3, 32, 32)
        which = torch.tensor([0, 1])
        loss, _ = mask_loss(model(image, tones[which]), masks[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image = torch.randn(1, 3, 32, 32).expand(2, -1, -1, -1)
    with torch.no_grad():
        predicted = model(image, tones) > 0
    assert (predicted == masks.bool()).float().mean() > 0.9
