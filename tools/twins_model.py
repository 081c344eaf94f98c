"""The twins of TWINS.md: two language models that differ in the mixer of their blocks alone.

Assumes whole sequences of one length from an empty past. Promises that twins of one seed start from
the same embeddings and LM head, that their totals of parameters differ by less than 0.5 %, and that
`checkpoint` of the RWKV twin is an RWKV-6 checkpoint in Hugging Face naming.
"""

from __future__ import annotations

import math

import torch
from rwkv6_torch import RWKV6, Attention, Shape
from torch import Tensor, nn
from torch.nn import functional as F
from twins_names import MIXERS

SHAPE = Shape(vocab_size=8192, hidden_size=384, num_hidden_layers=12)
ROTARY_BASE = 10000.0


def rotate(x: Tensor) -> Tensor:
    """Turn x [B, H, T, N] by its position: channel i with channel i + N/2, as GPT-NeoX does."""
    half = x.shape[-1] // 2
    channel = torch.arange(half, device=x.device, dtype=torch.float32)
    position = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
    angle = position[:, None] * ROTARY_BASE ** (-channel / half)
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half].float(), x[..., half:].float()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class SoftmaxAttention(nn.Module):
    """Causal softmax attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.hidden_size
        self.head_size = shape.head_size
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nn.Linear(width, width, bias=False))
        for linear in (self.query, self.key, self.value):
            nn.init.orthogonal_(linear.weight)
        nn.init.zeros_(self.output.weight)

    def forward(self, a: Tensor) -> Tensor:
        """[B, T, C] of the normalised stream to what is added to the stream."""
        projections = (self.query(a), self.key(a), self.value(a))
        q, k, v = (x.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for x in projections)
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.output(y.transpose(1, 2).flatten(2))


class ChannelMix(nn.Module):
    """RWKV-6's channel mix without its token shift: nothing moves between positions."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, hidden, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(hidden, width, bias=False)
        nn.init.orthogonal_(self.key.weight, gain=math.sqrt(hidden / width))
        nn.init.zeros_(self.receptance.weight)
        nn.init.zeros_(self.value.weight)

    def forward(self, b: Tensor) -> Tensor:
        """[B, T, C] of the normalised stream to what is added to the stream."""
        return torch.sigmoid(self.receptance(b)) * self.value(torch.relu(self.key(b)) ** 2)


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(parameter.numel() for parameter in module.parameters())


def hidden_size(mixer: str, shape: Shape) -> int:
    """Width of the channel mix; the softmax twin's makes up for its mixer's fewer parameters."""
    if mixer == "rwkv":
        return shape.intermediate_size
    with torch.random.fork_rng():
        more = parameters(Attention(shape, 0)) - parameters(SoftmaxAttention(shape))
    return shape.intermediate_size + more // (2 * shape.hidden_size) // 32 * 32


class Twin(RWKV6):
    """RWKV-6 with the channel mix of both twins and, for "softmax", the other mixer."""

    def __init__(self, mixer: str, seed: int, shape: Shape = SHAPE) -> None:
        if mixer not in MIXERS:
            raise ValueError(f"mixer {mixer!r}: expected one of {MIXERS}")
        torch.manual_seed(seed)
        super().__init__(shape)  # draws the embeddings and the head alike for both twins
        self.mixer = mixer
        hidden = hidden_size(mixer, shape)
        for block in self.blocks:
            if mixer == "softmax":
                block.attention = SoftmaxAttention(shape)
            block.feed_forward = ChannelMix(shape.hidden_size, hidden)

    def tail_loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Mean cross entropy in nats of the next tokens [B, T], from the last stream [B, T, C]."""
        logits = self.head(self.ln_out(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())

    def streams(self, ids: Tensor) -> list[Tensor]:
        """[B, T, C] entering block 0, after each block, and after the last norm; ids [B, T]."""
        streams = self.stream(ids)
        return [*streams, self.ln_out(streams[-1])]

    def checkpoint(self) -> dict[str, Tensor]:
        """RWKV-6 tensors, bfloat16 on the CPU; the missing token shift as mixes of zero."""
        if self.mixer != "rwkv":
            raise ValueError("the softmax twin is no RWKV-6 checkpoint")
        tensors = super().checkpoint()
        zeros = torch.zeros(1, 1, self.shape.hidden_size, dtype=torch.bfloat16)
        for layer in range(self.shape.num_hidden_layers):
            for name in ("time_maa_k", "time_maa_r"):
                tensors[f"rwkv.blocks.{layer}.feed_forward.{name}"] = zeros.clone()
        return tensors
