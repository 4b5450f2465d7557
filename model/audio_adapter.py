"""The residual audio adapters: how the sound reaches the image encoder and the mask decoder.

One adapter per encoder block, joined by residual connections. What adapter i gives is projected to
the encoder's width and added to the output of block i, the same for every grid cell; what the last
one gives is the mask decoder's one sparse prompt token.

    chain:  h_0 = W a,  h_i = h_{i-1} + W2_i GELU(W1_i h_{i-1}),  t_i = P h_i,  prompt = h_L
    sama:   t_i = t_{i-1} + P GELU(W_i a),  t_0 = 0,              prompt = Q t_L

``sama`` is SAMA-AVS's prompt generator (WACV 2024: unshared first layers, one shared second layer)
with SAVE's residual connections; ``chain`` runs in the width of the prompt itself.

Shapes: B samples, D audio features (128), E prompt width (256), C encoder width, L blocks.
"""

from torch import Tensor, nn

from model.image_adapter import AdapterInit

AUDIO_DIM = 128
PROMPT_DIM = 256
HIDDEN_DIM = 512


class ChainAudioAdapter(nn.Module):
    """Residual adapters in the prompt's own 256 dimensions, with one shared projection.

    Args:
        encoder_dim: C.
        depth: L.
        init: ``zero`` starts the shared projection at zero, so that the image encoder does not
            hear anything at step 0; ``parent`` starts it as SAMA-AVS does.
        hidden_dim: width inside each adapter.
    """

    def __init__(
        self, *, encoder_dim: int, depth: int, init: AdapterInit, hidden_dim: int = HIDDEN_DIM
    ) -> None:
        super().__init__()
        self.input = nn.Linear(AUDIO_DIM, PROMPT_DIM)
        self.adapters = nn.ModuleList(
            nn.Sequential(
                nn.Linear(PROMPT_DIM, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, PROMPT_DIM)
            )
            for _ in range(depth)
        )
        self.projection = nn.Linear(PROMPT_DIM, encoder_dim)
        _init_projection(self.projection, init)

    def forward(self, audio_BD: Tensor) -> tuple[list[Tensor], Tensor]:
        """The L injections ``[B, C]``, one for each block, and the prompt ``[B, E]``."""
        h_BE = self.input(audio_BD)
        injections: list[Tensor] = []
        for adapter in self.adapters:
            h_BE = h_BE + adapter(h_BE)
            injections.append(self.projection(h_BE))
        return injections, h_BE


class SamaAudioAdapter(nn.Module):
    """SAMA-AVS's adapters with residual connections; the arguments are those of the chain."""

    def __init__(
        self, *, encoder_dim: int, depth: int, init: AdapterInit, hidden_dim: int = HIDDEN_DIM
    ) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(
            nn.Sequential(nn.Linear(AUDIO_DIM, hidden_dim), nn.GELU()) for _ in range(depth)
        )
        for adapter in self.adapters:
            assert isinstance(adapter, nn.Sequential)
            _init_projection(adapter[0], "parent")
        self.projection = nn.Linear(hidden_dim, encoder_dim)
        _init_projection(self.projection, init)
        self.prompt = nn.Linear(encoder_dim, PROMPT_DIM)

    def forward(self, audio_BD: Tensor) -> tuple[list[Tensor], Tensor]:
        """The L injections ``[B, C]``, one for each block, and the prompt ``[B, E]``."""
        injections: list[Tensor] = []
        for adapter in self.adapters:
            step_BC = self.projection(adapter(audio_BD))
            injections.append(injections[-1] + step_BC if injections else step_BC)
        prompt_BE: Tensor = self.prompt(injections[-1])
        return injections, prompt_BE


def _init_projection(layer: nn.Module, init: AdapterInit) -> None:
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.bias)
    if init == "zero":
        nn.init.zeros_(layer.weight)
    else:
        nn.init.trunc_normal_(layer.weight, std=0.02)
