"""The demo model in plain torch: Gemma 4 Unified's arithmetic, only what training needs.

No cache, no generation.  Weights go to Google's names by `google_names`; the export check holds the
logits against transformers' class.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.demo.tasks import AUX_HEADS, FRAME, IGNORE, PATCH

# The auxiliary heads read the output of these layers: what lies in a patch is needed one layer
# before a question can look it up.
AUX_LAYER_SOFT, AUX_LAYER_TEXT = 2, 3
# Most patches and frames are empty: where a head says what lies in one, "none" counts less.
SPARSE_HEADS = ("shape", "colour", "digit", "digit ordinal", "key", "ordinal")
NONE_WEIGHT = 0.2


@dataclass(frozen=True)
class DemoConfig:
    """Sizes of the demo checkpoint; names as in config.json."""

    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: int = 640
    num_hidden_layers: int = 6
    num_attention_heads: int = 2
    num_key_value_heads: int = 1
    head_dim: int = 256
    global_head_dim: int = 512
    num_global_key_value_heads: int = 1
    sliding_window: int = 128
    mm_embed_dim: int = 192
    mm_posemb_size: int = 128
    rms_norm_eps: float = 1e-6
    final_logit_softcapping: float = 30.0
    rope_theta_sliding: float = 10_000.0
    rope_theta_full: float = 1_000_000.0
    partial_rotary_factor: float = 0.25

    def is_global(self, layer: int) -> bool:
        return layer % 6 == 5


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    x = x.float()
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return x if weight is None else x * weight


def rope_tables(config: DemoConfig, positions: Tensor, is_global: bool) -> tuple[Tensor, Tensor]:
    """cos and sin, each [B, L, 1, Dh / 2]; global layers rotate a quarter of their dims."""
    if is_global:
        Dh, theta = config.global_head_dim, config.rope_theta_full
        rotated = int(config.partial_rotary_factor * Dh // 2)
    else:
        Dh, theta = config.head_dim, config.rope_theta_sliding
        rotated = Dh // 2
    frequencies = 1.0 / theta ** (torch.arange(0, 2 * rotated, 2, dtype=torch.float32) / Dh)
    frequencies = F.pad(frequencies, (0, Dh // 2 - rotated))
    angles = positions[..., None, None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Layer(nn.Module):
    """One decoder layer; `rows` picks the queries wanted: the last layer needs answers alone."""

    def __init__(self, config: DemoConfig, index: int) -> None:
        super().__init__()
        self.config = config
        self.is_global = config.is_global(index)
        self.Dh = config.global_head_dim if self.is_global else config.head_dim
        D, H, width = config.hidden_size, config.num_attention_heads, config.intermediate_size
        self.q_proj = nn.Linear(D, H * self.Dh, bias=False)
        self.k_proj = nn.Linear(D, self.Dh, bias=False)
        if not self.is_global:
            self.v_proj = nn.Linear(D, self.Dh, bias=False)
        self.o_proj = nn.Linear(H * self.Dh, D, bias=False)
        self.gate_proj = nn.Linear(D, width, bias=False)
        self.up_proj = nn.Linear(D, width, bias=False)
        self.down_proj = nn.Linear(width, D, bias=False)
        # The attention scale is 1.0: q_norm starts at what 1 / sqrt(Dh) would do.
        self.q_norm = nn.Parameter(torch.full((self.Dh,), self.Dh**-0.5))
        self.k_norm = nn.Parameter(torch.ones(self.Dh))
        self.input_layernorm = nn.Parameter(torch.ones(D))
        self.post_attention_layernorm = nn.Parameter(torch.full((D,), 0.3))
        self.pre_feedforward_layernorm = nn.Parameter(torch.ones(D))
        self.post_feedforward_layernorm = nn.Parameter(torch.full((D,), 0.3))

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        eps, H = self.config.rms_norm_eps, self.config.num_attention_heads
        B, L, D = x.shape
        normed = rms_norm(x, self.input_layernorm, eps)
        k_raw = self.k_proj(normed)
        v = rms_norm(k_raw if self.is_global else self.v_proj(normed), None, eps)
        k = rotate(rms_norm(k_raw, self.k_norm, eps)[:, :, None], cos, sin)[:, :, 0]
        if rows is not None:
            x = x.gather(1, rows[..., None].expand(-1, -1, D))
            normed = normed.gather(1, rows[..., None].expand(-1, -1, D))
            visible = visible.gather(1, rows[..., None].expand(-1, -1, L))
            cos, sin = (
                t.gather(1, rows[..., None, None].expand(-1, -1, 1, t.shape[-1]))
                for t in (cos, sin)
            )
        R = x.shape[1]
        q = rms_norm(self.q_proj(normed).view(B, R, H, self.Dh), self.q_norm, eps)
        q = rotate(q, cos, sin).reshape(B, R * H, self.Dh)
        # One key head: the query heads are rows of one matrix product.
        dtype = torch.bfloat16 if self.training else torch.float32
        scores = torch.bmm(q.to(dtype), k.to(dtype).transpose(1, 2)).float().view(B, R, H, L)
        scores = scores.masked_fill(~visible[:, :, None], -1e30)
        weights = scores.softmax(-1).view(B, R * H, L)
        mixed = torch.bmm(weights.to(dtype), v.to(dtype)).view(B, R, H * self.Dh)
        x = x + rms_norm(self.o_proj(mixed), self.post_attention_layernorm, eps)
        normed = rms_norm(x, self.pre_feedforward_layernorm, eps)
        hidden = (
            F.gelu(self.gate_proj(normed).float(), approximate="tanh")
            * self.up_proj(normed).float()
        )
        return x + rms_norm(self.down_proj(hidden), self.post_feedforward_layernorm, eps)


class DemoModel(nn.Module):
    """Embedders, decoder, tied head, and the auxiliary head that training drops on export."""

    def __init__(self, config: DemoConfig, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = config
        D, M = config.hidden_size, config.mm_embed_dim
        self.embed_tokens = nn.Parameter(torch.randn(config.vocab_size, D) * D**-0.5)
        self.patch_dense = nn.Linear(3 * PATCH**2, M)
        self.patch_ln2 = nn.LayerNorm(M)
        self.pos_embedding = nn.Parameter(torch.randn(config.mm_posemb_size, 2, M) * 0.5)
        self.pos_norm = nn.LayerNorm(M)
        self.vision_projection = nn.Linear(M, D, bias=False)
        self.audio_projection = nn.Linear(FRAME, D, bias=False)
        self.layers = nn.ModuleList([Layer(config, k) for k in range(config.num_hidden_layers)])
        self.norm = nn.Parameter(torch.ones(D))
        self.aux = nn.Linear(D, sum(AUX_HEADS.values()))
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        nn.init.zeros_(self.patch_dense.bias)
        nn.init.zeros_(self.aux.bias)

    def embed_patches(self, patches: Tensor, patch_positions: Tensor) -> Tensor:
        """Soft tokens [B, P, D] of patches [B, P, 6912] uint8; patch_ln1 stays at 1 and 0."""
        pixels = patches.float() / 255
        pixels = pixels - pixels.mean(-1, keepdim=True)
        pixels = pixels * torch.rsqrt(pixels.pow(2).mean(-1, keepdim=True) + 1e-5)
        hidden = self.patch_ln2(
            self.patch_dense(pixels.bfloat16() if self.training else pixels).float()
        )
        x, y = patch_positions.unbind(-1)
        hidden = self.pos_norm(hidden + self.pos_embedding[x, 0] + self.pos_embedding[y, 1])
        return self.vision_projection(rms_norm(hidden, None, self.config.rms_norm_eps))

    def embed_frames(self, frames: Tensor) -> Tensor:
        return self.audio_projection(rms_norm(frames, None, self.config.rms_norm_eps))

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        """Input embeddings [B, L, D]: text scaled by sqrt(D), soft tokens as they are."""
        x = F.embedding(batch["ids"], self.embed_tokens) * self.config.hidden_size**0.5
        if "patches" in batch:
            soft = self.embed_patches(batch["patches"], batch["patch_positions"])
        elif "frames" in batch:
            soft = self.embed_frames(batch["frames"])
        else:
            return x
        index = batch["soft"].clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
        return torch.where(batch["soft"][..., None] >= 0, soft.float().gather(1, index), x)

    def masks(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Boolean [B, L, L], global and sliding; only sliding layers see a picture both ways."""
        position, branch, block = batch["positions"], batch["branches"], batch["blocks"]
        same_branch = (branch[:, None] == 0) | (branch[:, None] == branch[:, :, None])
        distance = position[:, :, None] - position[:, None]
        causal = same_branch & (distance >= 0)
        same_block = (block[:, None] == block[:, :, None]) & (block[:, None] >= 0)
        # A padding row sees what has its own branch number, other padding: no row is empty.
        return causal, (causal | same_block) & (distance < self.config.sliding_window)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits at the target positions [B, K, V] and auxiliary logits [B, L, sum of classes]."""
        config = self.config
        x = self.embed(batch)
        causal, sliding = self.masks(batch)
        local = rope_tables(config, batch["positions"], is_global=False)
        wide = rope_tables(config, batch["positions"], is_global=True)
        aux = x
        last = config.num_hidden_layers - 1
        for index, layer in enumerate(self.layers):
            rows = batch["target_positions"] if index == last else None
            tables, visible = (wide, causal) if layer.is_global else (local, sliding)
            x = layer(x, *tables, visible, rows)
            if index == AUX_LAYER_SOFT:
                aux = x
            elif index == AUX_LAYER_TEXT:
                aux = torch.where(batch["soft"][..., None] >= 0, aux, x)
        logits = F.linear(rms_norm(x, self.norm, config.rms_norm_eps), self.embed_tokens).float()
        cap = config.final_logit_softcapping
        return cap * torch.tanh(logits / cap), self.aux(
            rms_norm(aux, None, config.rms_norm_eps)
        ).float()


def losses(logits: Tensor, aux: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Answer loss and auxiliary loss (means) and, [B, K], whether each target token is right."""
    targets = batch["target_ids"]
    answer = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    total, start = logits.new_zeros(()), 0
    for head, (name, classes) in enumerate(AUX_HEADS.items()):
        labels = batch["labels"][..., head].flatten()
        part = aux[..., start : start + classes].flatten(0, 1)
        loss = F.cross_entropy(part, labels.clamp(min=0), reduction="none")
        weight = (labels >= 0).float()
        if name in SPARSE_HEADS:
            weight = torch.where(labels == 0, NONE_WEIGHT, weight)
        total = total + (loss * weight).sum() / weight.sum().clamp(min=1)
        start += classes
    return answer, total, (logits.argmax(-1) == targets) | (targets == IGNORE)
