"""VGGish: the front end against numpy in float64, the network against a plain reading of it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model import log_mel_examples
from model.checkpoints import load_vggish
from model.vggish import SmallVGGish, VGGish


def reference_log_mel(wave):
    """VGGish's front end written out in float64, frame by frame and band by band."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    starts = range(0, len(wave) - 400 + 1, 160)
    spectra = np.array([np.abs(np.fft.rfft(wave[s : s + 400] * window, 512)) for s in starts])

    def mel(hz):
        return 1127.0 * np.log(1.0 + hz / 700.0)

    edges = np.linspace(mel(125.0), mel(7500.0), 66)
    weights = np.zeros((257, 64))
    for bin_ in range(1, 257):
        m = mel(bin_ * 8000.0 / 256)
        for band in range(64):
            low, centre, high = edges[band : band + 3]
            weights[bin_, band] = max(
                0.0, min((m - low) / (centre - low), (high - m) / (high - centre))
            )
    log_mel = np.log(spectra @ weights + 0.01)
    return np.array([log_mel[s : s + 96] for s in range(0, len(log_mel) - 95, 96)])


def chirp(samples, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / 16000
    wave = 0.5 * np.sin(2 * np.pi * (100 + 700 * t) * t) + 0.1 * rng.standard_normal(samples)
    return torch.from_numpy(wave.astype(np.float32))


def test_log_mel_matches_a_float64_reference():
    wave = chirp(80000)
    examples = log_mel_examples(wave, 16000)
    assert examples.shape == (5, 1, 96, 64)
    assert examples.dtype == torch.float32
    difference = np.abs(examples[:, 0].numpy() - reference_log_mel(wave.double().numpy()))
    assert difference.max() < 1e-4


@pytest.mark.parametrize(
    ("samples", "examples"),
    [(0, 0), (399, 0), (15_599, 0), (15_600, 1), (77_039, 4), (77_040, 5), (80_000, 5)],
)
def test_the_number_of_examples_is_vggishs_for_every_length(samples, examples):
    assert log_mel_examples(torch.zeros(samples), 16000).shape == (examples, 1, 96, 64)


def test_silence_is_the_logarithm_of_the_offset():
    assert torch.allclose(log_mel_examples(torch.zeros(16000), 16000), torch.tensor(0.01).log())


def test_example_k_begins_at_sample_15360_k():
    wave = chirp(77_040)
    whole = log_mel_examples(wave, 16000)
    third = log_mel_examples(wave[15360 * 3 : 15360 * 3 + 15600], 16000)
    assert torch.allclose(whole[3:4], third, atol=1e-5)


def test_other_rates_are_resampled():
    t = torch.arange(2 * 44100, dtype=torch.float64) / 44100
    high = log_mel_examples((0.5 * torch.sin(2 * torch.pi * 440 * t)).float(), 44100)
    t = torch.arange(2 * 16000, dtype=torch.float64) / 16000
    low = log_mel_examples((0.5 * torch.sin(2 * torch.pi * 440 * t)).float(), 16000)
    assert high.shape == low.shape
    loud = low > 0
    assert (high - low)[loud].abs().max() < 0.1


@pytest.mark.parametrize(
    ("wave", "rate", "words"),
    [
        (torch.zeros(2, 16000), 16000, r"\[2, 16000\]"),
        (torch.zeros(16000, dtype=torch.int16), 16000, "int16"),
        (torch.zeros(16000), 0, "positive number of Hz, got 0"),
        (torch.full((16000,), float("nan")), 16000, "NaN"),
        (torch.full((16000,), 1e13), 16000, "absurdly large"),
    ],
)
def test_a_wrong_waveform_is_refused_with_what_it_is(wave, rate, words):
    with pytest.raises(ValueError, match=words):
        log_mel_examples(wave, rate)


@pytest.fixture(scope="module")
def vggish():
    torch.manual_seed(0)
    return VGGish().eval()


def test_vggish_has_the_published_keys_and_size(vggish):
    shapes = {key: tuple(value.shape) for key, value in vggish.state_dict().items()}
    convolutions = {
        0: (64, 1),
        3: (128, 64),
        6: (256, 128),
        8: (256, 256),
        11: (512, 256),
        13: (512, 512),
    }
    linears = {0: (4096, 12288), 2: (4096, 4096), 4: (128, 4096)}
    expected = {f"features.{i}.weight": (*s, 3, 3) for i, s in convolutions.items()}
    expected |= {f"features.{i}.bias": s[:1] for i, s in convolutions.items()}
    expected |= {f"embeddings.{i}.weight": s for i, s in linears.items()}
    expected |= {f"embeddings.{i}.bias": s[:1] for i, s in linears.items()}
    assert shapes == expected
    assert sum(value.numel() for value in vggish.parameters()) == 72_141_184


@torch.no_grad()
def test_vggish_computes_what_its_weights_say(vggish):
    x = torch.randn(2, 1, 96, 64)
    weights = vggish.state_dict()
    y = x
    for layer, pool in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
        y = F.conv2d(
            y, weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"], padding=1
        )
        y = F.max_pool2d(y.relu(), 2) if pool else y.relu()
    # torchvggish's two transpositions, to TensorFlow's order of features.
    y = y.transpose(1, 3).transpose(1, 2).reshape(2, -1)
    for layer in (0, 2, 4):
        y = F.linear(
            y, weights[f"embeddings.{layer}.weight"], weights[f"embeddings.{layer}.bias"]
        ).relu()
    assert torch.allclose(vggish(x), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["torchvggish", "torchaudio"])
def test_published_checkpoints_load_by_their_own_keys(form, tmp_path):
    with torch.device("meta"):
        vggish = VGGish()
    # One number of its own seen through each tensor's shape: the file stays small.
    expected = {
        key: torch.full((), float(number)).expand(value.shape)
        for number, (key, value) in enumerate(vggish.state_dict().items(), start=1)
    }
    state = expected
    if form == "torchaudio":
        state = {
            key.replace("features.", "features_network.").replace(
                "embeddings.", "embedding_network."
            ): value
            for key, value in state.items()
        }
    torch.save(state, tmp_path / "vggish.pth")
    vggish = vggish.to_empty(device="cpu")
    load_vggish(tmp_path / "vggish.pth", vggish)
    for key, value in vggish.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_missing_key_is_named(tmp_path):
    torch.save({"features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "part.pth")
    with torch.device("meta"):
        vggish = VGGish()
    with pytest.raises(ValueError, match=r"missing: features\.0\.bias"):
        load_vggish(tmp_path / "part.pth", vggish)


def test_the_small_networks_embedding_does_not_depend_on_the_rest_of_the_batch():
    torch.manual_seed(0)
    network = SmallVGGish().train()
    x = torch.randn(4, 1, 96, 64)
    whole = network(x)
    assert whole.shape == (4, 128)
    alone = torch.cat([network(x[i : i + 1]) for i in range(4)])
    assert torch.allclose(whole, alone, atol=1e-5)
