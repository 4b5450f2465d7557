"""SAVE: Segment Audio-Visual Easy way using the Segment Anything Model (arXiv 2407.02004).

SAM's image encoder with an adapter in every block, VGGish, and residual audio adapters that put the
sound into every block and, by the last one, into SAM's mask decoder as its one prompt:

    a   = VGGish(log_mel)
    h_i = h_{i-1} + MLP_i(h_{i-1}),        h_0 = W a
    x_i = Block_i(x_{i-1}) + P h_i,        Block_i with the image adapter beside its MLP
    M   = MaskDecoder(neck(x_L), prompt = h_L)

Frames are independent of each other. Shapes: B samples, S side of the image in pixels, D = 128
audio features, E = 256 channels, H = W = S/16 the grid, C encoder width, L blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from model import summary
from model.audio_adapter import AUDIO_DIM, PROMPT_DIM, ChainAudioAdapter, SamaAudioAdapter
from model.checkpoints import load_sam, load_vggish
from model.image_adapter import AdapterInit, Spatial
from model.image_encoder import PATCH, ImageEncoder
from model.mask_decoder import (
    UNUSED_DECODER_PARTS,
    UNUSED_PROMPT_PARTS,
    build_mask_decoder,
    build_prompt_encoder,
    decode_masks,
)
from model.vggish import EXAMPLE_FRAMES, MEL_BANDS, SmallVGGish, VGGish

AudioAdapter = Literal["chain", "sama"]
Choice = TypeVar("Choice", bound=str)

# ImageNet-normalised pixels lie in -2.2..2.7; anything far outside was not normalised.
LARGEST_PIXEL = 20.0


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """What determines a SAVE's shape; ``build_save(**dataclasses.asdict(config))`` rebuilds it."""

    name: str
    """One of the names that ``build_save`` knows."""
    image_size: int
    """Side of the square input in pixels, a multiple of 16."""
    adapter_init: AdapterInit
    """``parent``: adapters start as SAM-Med2D's and SAMA-AVS's; ``zero``: step 0 is SAM."""
    spatial: Spatial
    """Convolutions of the image adapters' spatial branch."""
    audio_adapter: AudioAdapter
    """Form of the residual audio adapters."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The numbers of one model size."""

    dim: int
    depth: int
    heads: int
    mlp_ratio: int
    global_blocks: tuple[int, ...]
    window: int
    decoder_mlp_dim: int
    decoder_attention_downsample: int
    audio_hidden_dim: int
    neck_groups: int
    relative_positions: bool
    audio_encoder: Callable[[], nn.Module]
    pretrained: bool
    """Built on published weights: then only the adapters and the mask decoder are trained."""
    adapter_init: AdapterInit
    spatial: Spatial


def _sam(*, dim: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> Size:
    return Size(
        dim=dim,
        depth=depth,
        heads=heads,
        mlp_ratio=4,
        global_blocks=global_blocks,
        window=14,
        decoder_mlp_dim=2048,
        decoder_attention_downsample=2,
        audio_hidden_dim=512,
        neck_groups=1,
        relative_positions=True,
        audio_encoder=VGGish,
        pretrained=True,
        adapter_init="parent",
        spatial="dense",
    )


SIZES: dict[str, Size] = {
    "save_vit_b": _sam(dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "save_vit_l": _sam(dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "save_vit_h": _sam(dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    "save_tiny": Size(
        dim=128,
        depth=4,
        heads=4,
        mlp_ratio=3,
        global_blocks=(0, 1, 2, 3),
        window=14,
        decoder_mlp_dim=512,
        decoder_attention_downsample=4,
        audio_hidden_dim=256,
        neck_groups=256,
        relative_positions=False,
        audio_encoder=SmallVGGish,
        pretrained=False,
        adapter_init="zero",
        spatial="depthwise",
    ),
}


def build_save(
    name: str,
    *,
    image_size: int = 256,
    sam_checkpoint: str | Path | None = None,
    vggish_checkpoint: str | Path | None = None,
    adapter_init: AdapterInit | None = None,
    spatial: Spatial | None = None,
    audio_adapter: AudioAdapter = "chain",
) -> "SAVE":
    """Build a SAVE, on published weights where paths to them are given.

    Args:
        name: ``save_vit_b``, ``save_vit_l`` or ``save_vit_h``: SAM's sizes with VGGish.
            ``save_tiny``: the same parts with small numbers, all trained from scratch on a CPU.
        image_size: side of the square input in pixels, a multiple of 16.
        sam_checkpoint: official ``sam_vit_{b,l,h}_*.pth``; without it SAM's part starts random.
        vggish_checkpoint: torchvggish's or torchaudio's file; without it VGGish starts random.
        adapter_init: ``parent`` (default of the SAM sizes) or ``zero`` (of ``save_tiny``).
        spatial: ``dense`` (default of the SAM sizes), ``bottleneck`` or ``depthwise`` (of
            ``save_tiny``).
        audio_adapter: ``chain`` or ``sama``.

    Raises:
        ValueError: an unknown name or option, an image size that is no multiple of 16, or a
            checkpoint that is damaged or of another model.
        FileNotFoundError: a checkpoint path does not exist.
    """
    size = SIZES.get(name)
    if size is None:
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(SIZES)}")
    config = SaveConfig(
        name=name,
        image_size=image_size,
        adapter_init=_choice("adapter_init", adapter_init or size.adapter_init, AdapterInit),
        spatial=_choice("spatial", spatial or size.spatial, Spatial),
        audio_adapter=_choice("audio_adapter", audio_adapter, AudioAdapter),
    )
    if image_size <= 0 or image_size % PATCH:
        raise ValueError(f"image_size must be a positive multiple of {PATCH}, got {image_size}")
    if not size.pretrained and (sam_checkpoint or vggish_checkpoint):
        raise ValueError(
            f"{name} is trained from scratch and takes no published checkpoint, "
            f"got {sam_checkpoint or vggish_checkpoint}"
        )
    save = SAVE(config)
    if sam_checkpoint is not None:
        save.base["sam"] = load_sam(
            sam_checkpoint,
            image_encoder=save.image_encoder,
            prompt_encoder=save.prompt_encoder,
            mask_decoder=save.mask_decoder,
        )
    if vggish_checkpoint is not None:
        save.base["vggish"] = load_vggish(vggish_checkpoint, save.audio_encoder)
    return save


class SAVE(nn.Module):
    """An image and the sound heard with it, to the mask of what sounds.

    Build it with ``build_save``. Frozen parameters have ``requires_grad`` False; every other one
    gets a gradient in every step, so that no data-parallel wrapper has to search for unused ones.
    """

    def __init__(self, config: SaveConfig) -> None:
        super().__init__()
        size = SIZES[config.name]
        self.config = config
        self.base: dict[str, str] = {}
        """sha256 of the published checkpoints it stands on, by ``sam`` and ``vggish``."""
        self.image_encoder = ImageEncoder(
            image_size=config.image_size,
            dim=size.dim,
            depth=size.depth,
            heads=size.heads,
            mlp_ratio=size.mlp_ratio,
            global_blocks=size.global_blocks,
            window=size.window,
            relative_positions=size.relative_positions,
            neck_groups=size.neck_groups,
            spatial=config.spatial,
            adapter_init=config.adapter_init,
        )
        self.audio_encoder = size.audio_encoder()
        adapters = {"chain": ChainAudioAdapter, "sama": SamaAudioAdapter}
        self.audio_adapter = adapters[config.audio_adapter](
            encoder_dim=size.dim,
            depth=size.depth,
            init=config.adapter_init,
            hidden_dim=size.audio_hidden_dim,
        )
        self.prompt_encoder = build_prompt_encoder(config.image_size, config.image_size // PATCH)
        self.mask_decoder = build_mask_decoder(
            mlp_dim=size.decoder_mlp_dim, attention_downsample=size.decoder_attention_downsample
        )
        self._freeze(pretrained=size.pretrained)

    def forward(self, image: Tensor, log_mel: Tensor) -> Tensor:
        """Mask logits of each image with its sound.

        Args:
            image: ``[B, 3, S, S]``, RGB normalised with ImageNet's mean and spread, float32 or the
                model's own dtype.
            log_mel: ``[B, 1, 96, 64]``, from ``log_mel_examples``, of the same dtypes.

        Returns:
            logits ``[B, 1, S, S]`` in the model's dtype.

        Raises:
            ValueError: a shape, a dtype or the number of sounds is not as above; on a CPU also
                when a value is not finite or the image is not normalised.
        """
        audio_BD = self.embed_audio(log_mel)
        image = self._checked_image(image)
        self._check_batch(image, audio_BD)
        injections, prompt_BE = self.audio_adapter(audio_BD)
        embedding_BEHW = self.image_encoder(image, injections)
        return decode_masks(
            self.mask_decoder, self.prompt_encoder, embedding_BEHW, prompt_BE[:, None]
        )

    def embed_audio(self, log_mel: Tensor) -> Tensor:
        """Log-mel examples ``[B, 1, 96, 64]`` to audio embeddings ``[B, 128]``."""
        log_mel = self._checked("log_mel", log_mel, (1, EXAMPLE_FRAMES, MEL_BANDS))
        if not _all_finite(log_mel):
            raise ValueError("log_mel holds NaN or infinite values")
        embedding: Tensor = self.audio_encoder(log_mel)
        return embedding

    def encode_image(self, image: Tensor, audio: Tensor | None = None) -> Tensor:
        """Images ``[B, 3, S, S]`` to ``[B, 256, S/16, S/16]``.

        ``audio`` is ``[B, 128]`` from ``embed_audio``, or None for no sound at all: then nothing is
        added to the blocks. The image adapters work in both cases.
        """
        image = self._checked_image(image)
        if audio is None:
            injections = None
        else:
            audio = self._checked("audio", audio, (AUDIO_DIM,))
            self._check_batch(image, audio)
            injections, _ = self.audio_adapter(audio)
        embedding: Tensor = self.image_encoder(image, injections)
        return embedding

    def decode_masks(self, image_embedding: Tensor, audio: Tensor | None) -> Tensor:
        """Image embeddings ``[B, 256, S/16, S/16]`` and their sound to logits ``[B, 1, S, S]``.

        ``audio`` is ``[B, 128]`` from ``embed_audio``, or None for no prompt token at all.
        """
        grid = self.config.image_size // PATCH
        image_embedding = self._checked(
            "image_embedding", image_embedding, (PROMPT_DIM, grid, grid)
        )
        prompt_B1E = None
        if audio is not None:
            audio = self._checked("audio", audio, (AUDIO_DIM,))
            self._check_batch(image_embedding, audio)
            prompt_B1E = self.audio_adapter(audio)[1][:, None]
        return decode_masks(self.mask_decoder, self.prompt_encoder, image_embedding, prompt_B1E)

    def trainable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters of what is trained, in the order of ``named_parameters``."""
        return [(name, value) for name, value in self.named_parameters() if value.requires_grad]

    def summary(self) -> str:
        """A table of the parts: parameters, trainable and frozen, and GFLOP of one sample.

        A multiply-add counts as two operations. All products are counted, those of attention
        included; norms, activations and sums are not.
        """
        with torch.device("meta"):
            twin = SAVE(self.config)
        return summary.table(self, twin)

    def _freeze(self, *, pretrained: bool) -> None:
        unused = tuple(
            [f"prompt_encoder.{part}" for part in UNUSED_PROMPT_PARTS]
            + [f"mask_decoder.{part}" for part in UNUSED_DECODER_PARTS]
        )
        for name, parameter in self.named_parameters():
            learned_here = (
                name.startswith(("audio_adapter.", "mask_decoder.")) or ".Adapter." in name
            )
            parameter.requires_grad = (learned_here or not pretrained) and not name.startswith(
                unused
            )

    def _checked_image(self, image: Tensor) -> Tensor:
        side = self.config.image_size
        image = self._checked("image", image, (3, side, side))
        if not _all_finite(image, limit=LARGEST_PIXEL):
            raise ValueError(
                "image must be finite and normalised with ImageNet's mean and spread (about "
                f"-2.2 to 2.7), got values from {image.min():.4g} to {image.max():.4g}"
            )
        return image

    def _checked(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor in the model's dtype, or an error that says what was expected."""
        if tuple(tensor.shape[1:]) != shape or tensor.ndim != len(shape) + 1:
            raise ValueError(
                f"{name} must be [batch, {', '.join(map(str, shape))}] for {self.config.name} at "
                f"{self.config.image_size} pixels, got {list(tensor.shape)}"
            )
        dtype = self.prompt_encoder.no_mask_embed.weight.dtype
        # Under autocast, what one part of a float32 model gives the next has a lower precision.
        if tensor.dtype not in (dtype, torch.float32, torch.bfloat16, torch.float16):
            raise ValueError(
                f"{name} must be float32, or {dtype} as the model is, got {tensor.dtype}"
            )
        return tensor.to(dtype)

    def _check_batch(self, image: Tensor, audio: Tensor) -> None:
        # Not len(): it would fix the batch size of an exported graph.
        images, sounds = image.shape[0], audio.shape[0]
        if images != sounds:
            raise ValueError(
                f"expected one sound for each image, got {images} images and {sounds} sounds"
            )


def _all_finite(tensor: Tensor, limit: float = float("inf")) -> bool:
    """Whether all values are finite and within the limit; only asked where it costs no wait.

    On an accelerator the answer would stall the queue in every step, and a traced graph cannot
    branch on values.
    """
    if tensor.device.type != "cpu" or torch.compiler.is_compiling() or not tensor.numel():
        return True
    low, high = (float(value) for value in tensor.detach().aminmax())
    return isfinite(low) and isfinite(high) and -limit <= low and high <= limit


def _choice(option: str, value: Choice, choices: object) -> Choice:
    if value not in get_args(choices):
        raise ValueError(
            f"unknown {option} {value!r}: choose one of {', '.join(get_args(choices))}"
        )
    return value
