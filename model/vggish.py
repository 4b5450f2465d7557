"""VGGish: 16 kHz sound to 128 numbers for each 0.96 s.

``log_mel_examples`` is the front end of TensorFlow's VGGish (``vggish_params.py``,
``mel_features.py``) in torch; ``VGGish`` is its network, with the parameter names of torchvggish.
``SmallVGGish`` is a network of the same kind that learns from scratch in minutes on a CPU.

Shapes: N samples of sound, T examples of 0.96 s, B batch.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn

SAMPLE_RATE = 16000
WINDOW = 400
HOP = 160
FFT = 512
MEL_BANDS = 64
LOWEST_HZ, HIGHEST_HZ = 125.0, 7500.0
LOG_OFFSET = 0.01
EXAMPLE_FRAMES = 96
EMBEDDING_DIM = 128
# Of a sample; full scale is 1. Its power in a spectrum is still far from float32's overflow.
LOUDEST = 1e12


def log_mel_examples(waveform: Tensor, sample_rate: int) -> Tensor:
    """Log-mel spectrogram of a mono waveform, cut into examples of 96 frames without overlap.

    Example k covers samples 15360 k to 15360 k + 15600 at 16 kHz; what is left over at the end is
    dropped, so fewer than 15,600 samples give no example at all.

    Args:
        waveform: float32 ``[N]`` in -1..1.
        sample_rate: Hz; other rates than 16000 are resampled.

    Returns:
        float32 ``[T, 1, 96, 64]``, natural logarithm of mel magnitudes plus 0.01.

    Raises:
        ValueError: the waveform is no float32 vector, holds NaN or samples beyond ``LOUDEST``, or
            the rate is not positive.
    """
    if waveform.ndim != 1 or waveform.dtype != torch.float32:
        raise ValueError(
            "log_mel_examples expects a mono waveform, float32 [samples], "
            f"got {waveform.dtype} {list(waveform.shape)}"
        )
    if sample_rate <= 0:
        raise ValueError(f"sample_rate must be a positive number of Hz, got {sample_rate}")
    # The extremes show what is not finite, in a tenth of the time of looking at each sample.
    if len(waveform) and not all(abs(float(end)) < LOUDEST for end in waveform.aminmax()):
        raise ValueError("the waveform holds NaN, infinite or absurdly large samples")
    if sample_rate != SAMPLE_RATE:
        # Only here: the network itself needs torch alone.
        import torchaudio

        waveform = torchaudio.functional.resample(waveform, sample_rate, SAMPLE_RATE)
    if len(waveform) < WINDOW:
        return waveform.new_zeros(0, 1, EXAMPLE_FRAMES, MEL_BANDS)

    # The window sits at the start of the FFT's 512 samples; torch.stft would centre it.
    windows = waveform.unfold(0, WINDOW, HOP)
    # Padded here, because rfft's own padding takes longer than the FFT.
    frames = windows.new_zeros(len(windows), FFT)
    frames[:, :WINDOW] = windows * _hann().to(waveform.device)
    # In a third of the time of ``abs``, which minds an overflow that LOUDEST rules out.
    power = torch.view_as_real(torch.fft.rfft(frames)).square()
    magnitude = (power[..., 0] + power[..., 1]).sqrt()
    mel = magnitude @ _mel_matrix().to(waveform.device)
    log_mel = (mel + LOG_OFFSET).log()
    examples = len(log_mel) // EXAMPLE_FRAMES
    whole: Tensor = log_mel[: examples * EXAMPLE_FRAMES]
    return whole.view(examples, 1, EXAMPLE_FRAMES, MEL_BANDS)


@cache
def _hann() -> Tensor:
    return torch.hann_window(WINDOW, periodic=True)


@cache
def _mel_matrix() -> Tensor:
    """``[257, 64]``: triangles that are linear in mel, not in Hz as torchaudio's are."""
    bins_hz = torch.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1, dtype=torch.float64)
    bins_mel = 1127.0 * torch.log1p(bins_hz / 700.0)
    low, high = (1127.0 * math.log1p(hz / 700.0) for hz in (LOWEST_HZ, HIGHEST_HZ))
    edges_mel = torch.linspace(low, high, MEL_BANDS + 2, dtype=torch.float64)
    left, centre, right = edges_mel[:-2], edges_mel[1:-1], edges_mel[2:]
    rising = (bins_mel[:, None] - left) / (centre - left)
    falling = (right - bins_mel[:, None]) / (right - centre)
    matrix = torch.minimum(rising, falling).clamp(min=0)
    matrix[0] = 0
    return matrix.float()


class VGGish(nn.Module):
    """The published network, its last ReLU included and without PCA or quantisation.

    72,141,184 parameters; ``features`` and ``embeddings`` are torchvggish's names. The embedding
    is never negative.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for stage in ((64,), (128,), (256, 256), (512, 512)):
            for width in stage:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096),
            nn.ReLU(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, EMBEDDING_DIM),
            nn.ReLU(),
        )

    def forward(self, log_mel_B1TF: Tensor) -> Tensor:
        """``[B, 1, 96, 64]`` to ``[B, 128]``."""
        features_BCTF = self.features(log_mel_B1TF)
        # TensorFlow's order of features: time, band, channel.
        out: Tensor = self.embeddings(features_BCTF.permute(0, 2, 3, 1).flatten(1))
        return out


class SmallVGGish(nn.Module):
    """Four conv stages of 16 to 128 channels, pooled over time by mean and maximum.

    Group normalisation keeps a sample's embedding independent of the rest of its batch, and so of
    the number of workers. LayerNorm at the end gives the audio adapters a unit scale from step 0.
    """

    # Brings log-mels to a scale near one; the first norm makes the exact numbers unimportant.
    MEAN, SPREAD = -1.5, 2.5

    def __init__(self) -> None:
        super().__init__()
        # The first stage halves by its stride: pooling the full 96 x 64 would cost a third of all.
        layers: list[nn.Module] = [
            nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
        ]
        channels = 16
        for width in (32, 64, 128):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1, bias=False),
                # Pooling before the norm: the norm then costs a quarter.
                nn.MaxPool2d(2),
                nn.GroupNorm(4, width),
                nn.ReLU(),
            ]
            channels = width
        self.features = nn.Sequential(*layers)
        bands = MEL_BANDS // 16
        self.embedding = nn.Sequential(
            nn.Linear(2 * channels * bands, EMBEDDING_DIM), nn.LayerNorm(EMBEDDING_DIM)
        )

    def forward(self, log_mel_B1TF: Tensor) -> Tensor:
        """``[B, 1, 96, 64]`` to ``[B, 128]``."""
        features_BCTF = self.features((log_mel_B1TF - self.MEAN) / self.SPREAD)
        pooled_BCF = torch.cat([features_BCTF.mean(2), features_BCTF.amax(2)], 1)
        out: Tensor = self.embedding(pooled_BCF.flatten(1))
        return out
