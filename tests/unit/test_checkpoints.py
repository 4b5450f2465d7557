"""Published checkpoints: SAM's format in small, every size's width, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from segment_anything.modeling import Sam

from model import build_save, checkpoints
from model import save as save_module
from model.checkpoints import load_sam, load_vggish
from model.save import SAVE
from model.vggish import SmallVGGish
from tests.small_sam import relative_error, sam_embedding, sam_mask, small_sam, small_size

WIDTHS = {
    "save_vit_l": {"dim": 1024, "heads": 16},
    "save_vit_h": {"dim": 1280, "heads": 16},
}


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    return small_sam().eval()


@pytest.fixture(scope="module")
def files(sam: Sam, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    torch.save(sam.state_dict(), folder / "sam.pth")
    torch.save(SmallVGGish().state_dict(), folder / "vggish.pth")
    return {"sam_checkpoint": folder / "sam.pth", "vggish_checkpoint": folder / "vggish.pth"}


@pytest.fixture(scope="module")
def save_on_sam(files: dict[str, Path]) -> SAVE:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(save_module.SIZES, "save_vit_b", small_size())
        return build_save("save_vit_b", **files, adapter_init="zero").eval()


@torch.no_grad()
@pytest.mark.parametrize("name", WIDTHS)
def test_at_step_0_encoder_and_decoder_are_sams_at_256_in_the_larger_sizes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    sam = small_sam(**WIDTHS[name]).eval()
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    monkeypatch.setitem(save_module.SIZES, name, small_size(name, **WIDTHS[name]))
    save = build_save(
        name, sam_checkpoint=tmp_path / "sam.pth", adapter_init="zero", spatial="depthwise"
    ).eval()
    image = torch.randn(1, 3, 256, 256)
    theirs = sam_embedding(sam, image)
    assert relative_error(save.encode_image(image), theirs) < 1e-5
    # A zero start hears nothing in the encoder either.
    assert relative_error(save.encode_image(image, torch.rand(1, 128)), theirs) < 1e-5
    assert relative_error(save.decode_masks(theirs, None), sam_mask(sam, theirs)) < 1e-5
    whole = save.decode_masks(save.encode_image(image), None)
    assert relative_error(whole, sam_mask(sam, theirs)) < 1e-5


def test_every_tensor_of_the_checkpoint_is_loaded(sam: Sam, save_on_sam: SAVE) -> None:
    ours = save_on_sam.state_dict()
    resized = []
    for key, value in sam.state_dict().items():
        if key.startswith("pixel_"):
            continue
        if ours[key].shape == value.shape:
            assert torch.equal(ours[key], value), key
        else:
            resized.append(key.removeprefix("image_encoder."))
    assert resized == ["pos_embed", "blocks.1.attn.rel_pos_h", "blocks.1.attn.rel_pos_w"]
    assert ours["image_encoder.blocks.1.attn.rel_pos_h"].shape == (31, 32)
    assert ours["image_encoder.blocks.0.attn.rel_pos_h"].shape == (27, 32)


def test_vggish_weights_reach_the_model(save_on_sam: SAVE, files: dict[str, Path]) -> None:
    saved = torch.load(files["vggish_checkpoint"], weights_only=True)
    for key, value in save_on_sam.audio_encoder.state_dict().items():
        assert torch.equal(value, saved[key]), key


@pytest.fixture(scope="module")
def parts() -> dict[str, torch.nn.Module]:
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
        (
            lambda s: s.update({"image_encoder.blocks.0.Adapter.norm.bias": torch.ones(768)}),
            r"unexpected: image_encoder\.blocks\.0\.Adapter",
        ),
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

    def __init__(self, path: Path) -> None:
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


# --- the published files' sha256 ----------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "bucket_models_"])
def test_a_file_with_a_published_name_and_other_content_is_refused_as_damaged(
    prefix, parts, tmp_path
):
    path = tmp_path / f"{prefix}sam_vit_b_01ec64.pth"
    path.write_bytes(b"half a download")
    with pytest.raises(ValueError, match=r"is damaged: the published sam_vit_b_01ec64\.pth has"):
        load_sam(path, **parts)
    path = tmp_path / f"{prefix}vggish-10086976.pth"
    torch.save(SmallVGGish().state_dict(), path)
    with pytest.raises(ValueError, match=r"sha256 10086976.*another name"):
        load_vggish(path, SmallVGGish())


def test_a_published_file_is_accepted_and_an_unknown_one_recorded(tmp_path, monkeypatch):
    path, other = tmp_path / "vggish-10086976.pth", tmp_path / "mine.pth"
    for file in (path, other):
        torch.save(SmallVGGish().state_dict(), file)
    recorded = load_vggish(other, SmallVGGish())
    assert len(recorded) == 64
    assert recorded not in checkpoints.PUBLISHED_SHA256.values()
    found = checkpoints.checked_sha256(tmp_path / "mine.pth")
    assert found == recorded
    other.rename(path)
    monkeypatch.setitem(checkpoints.PUBLISHED_SHA256, path.name, recorded)
    assert load_vggish(path, SmallVGGish()) == recorded


def test_the_published_sha256_fit_their_file_names():
    for name, sha256 in checkpoints.PUBLISHED_SHA256.items():
        assert len(bytes.fromhex(sha256)) == 32
        if name.startswith("vggish-"):
            assert sha256.startswith(name.removeprefix("vggish-").removesuffix(".pth"))


def test_the_model_remembers_the_checkpoints_it_stands_on(save_on_sam, files):
    assert save_on_sam.base == {
        "sam": checkpoints.checked_sha256(files["sam_checkpoint"]),
        "vggish": checkpoints.checked_sha256(files["vggish_checkpoint"]),
    }
