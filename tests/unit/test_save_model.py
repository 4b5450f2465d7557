"""The whole model: its names and options, its parts, what is trained, and SAM's checkpoints."""

import dataclasses
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry

from model import build_save, log_mel_examples
from model.checkpoints import load_sam
from model.vggish import VGGish
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


def relative_error(ours, theirs):
    assert ours.shape == theirs.shape
    return ((ours - theirs).norm() / theirs.norm()).item()


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


@pytest.mark.parametrize(
    ("name", "dense", "encoder", "audio"),
    [
        ("save_vit_b", 180_504_576, 89_670_912, 3_385_344),
        ("save_vit_l", 641_777_664, 308_278_272, 6_606_080),
        ("save_vit_h", 1_337_016_320, 637_026_048, 8_775_168),
    ],
)
def test_part_sizes_are_the_published_ones(name, dense, encoder, audio):
    with torch.device("meta"):
        model = build_save(name, image_size=1024)
    counts = {"adapters": 0, "encoder": 0}
    for key, parameter in model.image_encoder.named_parameters():
        counts["adapters" if ".Adapter." in key else "encoder"] += parameter.numel()
    assert counts == {"adapters": dense, "encoder": encoder}
    assert sum(p.numel() for p in model.audio_encoder.parameters()) == 72_141_184
    assert sum(p.numel() for p in model.audio_adapter.parameters()) == audio
    assert sum(p.numel() for p in model.mask_decoder.parameters()) == 4_058_340
    assert sum(p.numel() for p in model.prompt_encoder.parameters()) == 6_220


def test_the_summary_counts_what_is_trained():
    with torch.device("meta"):
        model = build_save("save_vit_b")
    rows = {line[:15].strip(): line[15:].split() for line in model.summary().splitlines()[1:]}
    assert rows["image adapters"][:2] == ["180,504,576", "180,504,576"]
    assert rows["image encoder"][1] == "0"
    trained = sum(parameter.numel() for _, parameter in model.trainable_parameters())
    assert rows["total"][:2] == [f"{sum(p.numel() for p in model.parameters()):,}", f"{trained:,}"]
    # 43.5 GFLOP of linear layers on 256 tokens, plus attention, patches and neck; SAM's own pass
    # projects its padding too and needs 69.
    assert 44 < float(rows["image encoder"][2]) < 47


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
def test_float64_agrees_with_float32_and_bf16_roughly():
    torch.manual_seed(0)
    model = build_save("save_tiny", image_size=SIDE, adapter_init="parent").eval()
    image, log_mel = batch()
    logits = model(image, log_mel)
    exact = model.double()(image.double(), log_mel.double())
    assert relative_error(logits.double(), exact) < 1e-5
    low = model.bfloat16()(image, log_mel)
    assert low.dtype == torch.bfloat16
    assert relative_error(low.double(), exact) < 5e-2


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


# --- SAM's checkpoints --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sam():
    """SAM ViT-B at 1024 pixels as published, random where a new one has zeros and ones."""
    torch.manual_seed(0)
    model = sam_model_registry["vit_b"]().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "pos" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def sam_file(sam, tmp_path_factory):
    path = tmp_path_factory.mktemp("sam") / "sam_vit_b.pth"
    torch.save(sam.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def vggish_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vggish") / "vggish.pth"
    torch.save(VGGish().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def save_on_sam(sam_file, vggish_file):
    return build_save(
        "save_vit_b",
        sam_checkpoint=sam_file,
        vggish_checkpoint=vggish_file,
        adapter_init="zero",
        spatial="depthwise",
    ).eval()


@torch.no_grad()
def test_at_step_0_the_encoder_is_sams_at_256(sam, save_on_sam):
    # segment-anything's own pass at 256: it resizes relative positions as it runs, and of the
    # absolute ones a factor of four without antialiasing is the mean of the middle 2 x 2 of 4 x 4.
    image = torch.randn(1, 3, 256, 256)
    encoder = sam.image_encoder
    blocks = encoder.pos_embed.view(16, 4, 16, 4, 768)
    x = encoder.patch_embed(image) + blocks[:, 1:3, :, 1:3].mean((1, 3))
    for block in encoder.blocks:
        x = block(x)
    theirs = encoder.neck(x.permute(0, 3, 1, 2))
    assert relative_error(save_on_sam.encode_image(image), theirs) < 1e-5
    # A zero start hears nothing in the encoder either.
    sound = torch.rand(1, 128)
    assert relative_error(save_on_sam.encode_image(image, sound), theirs) < 1e-5


@torch.no_grad()
def test_without_sound_the_decoder_is_sams(sam, save_on_sam):
    embedding = torch.randn(1, 256, 16, 16)
    prompts = sam.prompt_encoder
    masks, _ = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=prompts.pe_layer((16, 16))[None],
        sparse_prompt_embeddings=torch.zeros(1, 0, 256),
        dense_prompt_embeddings=prompts.no_mask_embed.weight.view(1, 256, 1, 1).expand(
            1, -1, 16, 16
        ),
        multimask_output=False,
    )
    theirs = F.interpolate(masks, (256, 256), mode="bilinear", align_corners=False)
    assert relative_error(save_on_sam.decode_masks(embedding, None), theirs) < 1e-5


def test_every_tensor_of_the_checkpoint_is_loaded(sam, save_on_sam):
    ours = save_on_sam.state_dict()
    resized = 0
    for key, value in sam.state_dict().items():
        if key.startswith("pixel_"):
            continue
        if ours[key].shape == value.shape:
            assert torch.equal(ours[key], value), key
        else:
            resized += 1
    assert resized == 1 + 2 * 4  # pos_embed, and two tables in each global block
    assert ours["image_encoder.blocks.2.attn.rel_pos_h"].shape == (31, 64)
    assert ours["image_encoder.blocks.0.attn.rel_pos_h"].shape == (27, 64)


@pytest.fixture(scope="module")
def parts():
    """The parts of a ViT-B without memory: enough for a checkpoint to be refused."""
    with torch.device("meta"):
        model = build_save("save_vit_b", image_size=1024, spatial="depthwise")
    return {
        "image_encoder": model.image_encoder,
        "prompt_encoder": model.prompt_encoder,
        "mask_decoder": model.mask_decoder,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: s.pop("mask_decoder.iou_token.weight"),
            r"missing: mask_decoder\.iou_token\.weight",
        ),
        (lambda s: s.update({"mask_decoder.new": torch.ones(1)}), r"unexpected: mask_decoder\.new"),
        (lambda s: s.update({"text_encoder.w": torch.ones(1)}), r"got text_encoder\.w"),
        (
            lambda s: s.update({"image_encoder.pos_embed": torch.ones(1, 64, 64, 1024)}),
            r"expected shape image_encoder\.pos_embed \[1, 64, 64, 768\] but got \[1, 64",
        ),
        (
            lambda s: s.update({"image_encoder.blocks.0.attn.rel_pos_h": torch.ones(31, 64)}),
            r"blocks\.0\.attn\.rel_pos_h \[27, 64\] but got \[31, 64\]",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_key(change, words, parts, tmp_path):
    # One number seen through many shapes: the file stays small.
    state = {
        f"{part}.{key}": torch.zeros(()).expand(value.shape)
        for part, module in parts.items()
        for key, value in module.state_dict().items()
        if ".Adapter." not in key
    }
    change(state)
    torch.save(state, tmp_path / "sam.pth")
    with pytest.raises(ValueError, match=words):
        load_sam(tmp_path / "sam.pth", **parts)


def test_an_absent_truncated_or_foreign_file_is_refused_in_one_sentence(parts, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file at .*absent\.pth"):
        load_sam(tmp_path / "absent.pth", **parts)
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"image_encoder.x": torch.zeros(1000)}, whole)
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.pth cannot be read as a checkpoint"):
        load_sam(cut, **parts)
    torch.save({"epoch": 3}, whole)
    with pytest.raises(ValueError, match="not a flat mapping of names to tensors"):
        load_sam(whole, **parts)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_nothing_in_a_checkpoint_is_executed(parts, tmp_path):
    made = tmp_path / "made"
    torch.save({"image_encoder.x": Evil(made)}, tmp_path / "evil.pth")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil(made), protocol=2))
    for name in ("evil.pth", "evil.pkl"):
        with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors"):
            load_sam(tmp_path / name, **parts)
    assert not made.exists()


def test_vggish_weights_reach_the_model(save_on_sam, vggish_file):
    saved = torch.load(vggish_file, weights_only=True)
    for key, value in save_on_sam.audio_encoder.state_dict().items():
        assert torch.equal(value, saved[key]), key
