"""RWKV-6 in PyTorch, for training the demo model: the published equations, with gradients.

Assumes whole sequences from a zero state, right-padded at most (causal, so padding changes no real
position). Promises tensor names and shapes as in the released checkpoints in Hugging Face naming,
and `wkv6` in two forms: the plain recurrence, and kernels for GPU and CPU that equal it.
"""

from __future__ import annotations

import ctypes
import math
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIXES = "wkvrg"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: V, C, L, N and the ranks of the low-rank mixes and of the decay."""

    vocab_size: int = 8192
    hidden_size: int = 192
    num_hidden_layers: int = 12
    head_size: int = 64
    mix_rank: int = 32
    decay_rank: int = 64

    @property
    def intermediate_size(self) -> int:
        return int(3.5 * self.hidden_size) // 32 * 32

    def as_config(self) -> dict[str, object]:
        """The fields of config.json."""
        fields = asdict(self) | {"intermediate_size": self.intermediate_size}
        return {"model_type": "rwkv6", "layer_norm_epsilon": 1e-5, "head_size_divisor": 8} | fields


def wkv6_plain(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """The recurrence token by token; r, k, v, w [B, T, H, N], u [H, N]; differentiable."""
    decay = torch.exp(-torch.exp(w))
    state = torch.zeros(*r.shape[:1], r.shape[2], r.shape[3], r.shape[3]).to(r)
    steps = []
    for t in range(r.shape[1]):
        kv = k[:, t, :, :, None] * v[:, t, :, None, :]
        steps.append((r[:, t, :, None, :] @ (state + u[..., None] * kv)).squeeze(-2))
        state = decay[:, t, :, :, None] * state + kv
    return torch.stack(steps, 1)


@lru_cache(maxsize=2)
def kernels(cuda: bool) -> ctypes.CDLL:
    """wkv6_train.cu or wkv6_train.c, compiled for the machine at hand; once a process."""
    source = Path(__file__).with_name("wkv6_train.cu" if cuda else "wkv6_train.c")
    library = Path(tempfile.mkdtemp()) / "wkv6_train.so"
    if cuda:
        major, minor = torch.cuda.get_device_capability()
        command = ["nvcc", "-O3", f"-arch=sm_{major}{minor}", "-Xcompiler", "-fPIC"]
    else:
        command = ["cc", "-O3", "-march=native", "-fopenmp-simd", "-fPIC"]
    subprocess.run([*command, "-shared", str(source), "-o", str(library), "-lm"], check=True)
    return ctypes.CDLL(str(library))


def launch(name: str, *tensors: Tensor) -> None:
    """Call a kernel, on the current stream if on a GPU; the first tensor is [B, T, H, N]."""
    cuda = tensors[0].is_cuda
    sizes = [ctypes.c_int(size) for size in tensors[0].shape[:3]]
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream if cuda else None)
    code = getattr(kernels(cuda), name)(*sizes, *pointers, stream)
    if code:
        raise RuntimeError(f"{name}: CUDA error {code}")


@torch.library.custom_op("rwkvsts_tools::wkv6", mutates_args=())
def wkv6_kernel(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """`wkv6_plain` by the kernel; contiguous float32 tensors, N = 64."""
    y = torch.empty_like(r)
    launch("wkv6_forward", r, k, v, w, u, y)
    return y


@torch.library.custom_op("rwkvsts_tools::wkv6_backward", mutates_args=())
def wkv6_kernel_backward(
    r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, gy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `wkv6_kernel` by r, k, v, w, u."""
    dr, scratch, dk, dv, dw = (torch.empty_like(r) for _ in range(5))
    du = r.new_empty(r.shape[0], *u.shape)
    launch("wkv6_backward", r, k, v, w, u, gy, dr, scratch, dk, dv, dw, du)
    return dr, dk, dv, dw, du.sum(0)


wkv6_kernel.register_fake(lambda r, k, v, w, u: torch.empty_like(r))
wkv6_kernel_backward.register_fake(
    lambda r, k, v, w, u, gy: (*(torch.empty_like(r) for _ in range(4)), torch.empty_like(u))
)
wkv6_kernel.register_autograd(
    lambda ctx, gy: wkv6_kernel_backward(*ctx.saved_tensors, gy.contiguous()),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def wkv6(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """The recurrence by the kernel, in float32; other types and head sizes token by token."""
    if r.dtype == torch.float64 or r.shape[-1] != 64:
        return wkv6_plain(r, k, v, w, u)
    return wkv6_kernel(*(x.float().contiguous() for x in (r, k, v, w, u)))


def shift(x: Tensor) -> Tensor:
    """x of the token before, zeros for the first; [B, T, C]."""
    return F.pad(x, (0, 0, 1, -1))


class Attention(nn.Module):
    """Time mix: five data-dependent lerps, the recurrence, group norm and gate."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        width, rank = shape.hidden_size, shape.mix_rank
        self.heads = width // shape.head_size
        depth = layer / max(shape.num_hidden_layers - 1, 1)
        rest = 1 - layer / shape.num_hidden_layers
        position = torch.arange(width).view(1, 1, width) / width
        exponent = {"x": 1.0, "w": 1.0, "k": 1.0, "v": 1.0, "r": 0.5, "g": 0.5}
        for name, power in exponent.items():
            bonus = 0.3 * depth if name == "v" else 0.0
            mix = 1 - (position ** (power * rest) + bonus)
            setattr(self, f"time_maa_{name}", nn.Parameter(mix))
        self.time_maa_w1 = nn.Parameter(torch.empty(width, 5 * rank).uniform_(-1e-2, 1e-2))
        self.time_maa_w2 = nn.Parameter(torch.empty(5, rank, width).uniform_(-1e-2, 1e-2))
        channel = torch.arange(width) / (width - 1)
        decay = -6 + 5 * channel ** (0.7 + 1.3 * depth)
        self.time_decay = nn.Parameter(decay.view(1, 1, width))
        rank = shape.decay_rank
        self.time_decay_w1 = nn.Parameter(torch.empty(width, rank).uniform_(-1e-2, 1e-2))
        self.time_decay_w2 = nn.Parameter(torch.empty(rank, width).uniform_(-1e-2, 1e-2))
        zigzag = ((torch.arange(width) + 1) % 3 - 1) * 0.1
        bonus = depth * (1 - channel) + zigzag
        self.time_faaaa = nn.Parameter(bonus.view(self.heads, shape.head_size))
        for name in ("receptance", "key", "value", "gate", "output"):
            setattr(self, name, nn.Linear(width, width, bias=False))
        for linear, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
            nn.init.orthogonal_(linear.weight, gain=gain)
        nn.init.orthogonal_(self.gate.weight, gain=0.1)
        nn.init.zeros_(self.output.weight)
        self.ln_x = nn.GroupNorm(self.heads, width, eps=64e-5)
        nn.init.constant_(self.ln_x.weight, ((1 + layer) / shape.num_hidden_layers) ** 0.7)

    def forward(self, a: Tensor) -> Tensor:
        """[B, T, C] of the normalised stream to what is added to the stream."""
        B, T, C = a.shape
        d = shift(a) - a
        z = torch.tanh((a + d * self.time_maa_x) @ self.time_maa_w1)
        z = z.view(B * T, 5, -1).transpose(0, 1)
        m = torch.bmm(z, self.time_maa_w2).view(5, B, T, C)
        mixed = {
            name: a + d * (getattr(self, f"time_maa_{name}") + m[i]) for i, name in enumerate(MIXES)
        }
        by_head = (B, T, self.heads, C // self.heads)
        r = self.receptance(mixed["r"]).view(by_head)
        k = self.key(mixed["k"]).view(by_head)
        v = self.value(mixed["v"]).view(by_head)
        g = F.silu(self.gate(mixed["g"]))
        low = torch.tanh(mixed["w"] @ self.time_decay_w1) @ self.time_decay_w2
        w = (self.time_decay + low.to(self.time_decay.dtype)).view(by_head)
        y = wkv6(r, k, v, w, self.time_faaaa).reshape(B * T, C)
        y = self.ln_x(y).view(B, T, C)
        return self.output(y * g)


class FeedForward(nn.Module):
    """Channel mix: relu squared, gated by a sigmoid."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        width = shape.hidden_size
        rest = 1 - layer / shape.num_hidden_layers
        mix = 1 - (torch.arange(width) / width).view(1, 1, width) ** rest
        self.time_maa_k = nn.Parameter(mix.clone())
        self.time_maa_r = nn.Parameter(mix.clone())
        self.key = nn.Linear(width, shape.intermediate_size, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(shape.intermediate_size, width, bias=False)
        nn.init.orthogonal_(self.key.weight, gain=math.sqrt(shape.intermediate_size / width))
        nn.init.zeros_(self.receptance.weight)
        nn.init.zeros_(self.value.weight)

    def forward(self, b: Tensor) -> Tensor:
        """[B, T, C] of the normalised stream to what is added to the stream."""
        d = shift(b) - b
        hidden = torch.relu(self.key(b + d * self.time_maa_k)) ** 2
        return torch.sigmoid(self.receptance(b + d * self.time_maa_r)) * self.value(hidden)


class Block(nn.Module):
    """One layer: time mix and channel mix, each added to the stream."""

    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(shape.hidden_size)
        self.ln2 = nn.LayerNorm(shape.hidden_size)
        if layer == 0:
            self.pre_ln = nn.LayerNorm(shape.hidden_size)
        self.attention = Attention(shape, layer)
        self.feed_forward = FeedForward(shape, layer)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln1(x))
        return x + self.feed_forward(self.ln2(x))


class RWKV6(nn.Module):
    """The stack with its head; `stream` is the residual stream before block 0 and after each."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        # Small beside the first norm's epsilon: how long a token's vector is remains to be learned.
        nn.init.uniform_(self.embeddings.weight, -2e-3, 2e-3)
        layers = range(shape.num_hidden_layers)
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in layers)
        self.ln_out = nn.LayerNorm(shape.hidden_size)
        self.head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        gain = 0.5 * math.sqrt(max(1.0, shape.vocab_size / shape.hidden_size))
        nn.init.orthogonal_(self.head.weight, gain=gain)

    def entering(self, ids: Tensor) -> Tensor:
        """What enters block 0, [B, T, C]: normalised embeddings; ids [B, T]."""
        return self.blocks[0].pre_ln(self.embeddings(ids))

    def stream(self, ids: Tensor) -> list[Tensor]:
        """Residual stream [B, T, C] before block 0 and after each block; ids [B, T]."""
        stream = [self.entering(ids)]
        for block in self.blocks:
            stream.append(block(stream[-1]))
        return stream

    def checkpoint(self) -> dict[str, Tensor]:
        """Tensors by their Hugging Face names, bfloat16 on the CPU, head included."""
        tensors = {}
        for name, value in self.state_dict().items():
            name = name.replace("_orig_mod.", "")
            prefix = "" if name.startswith("head.") else "rwkv."
            tensors[prefix + name] = value.detach().to("cpu", torch.bfloat16).contiguous()
        return tensors


def pooled(stream: Tensor, lengths: Tensor) -> Tensor:
    """Mean over the first `lengths` [B] positions of a stream [B, T, C]; float32 [B, C]."""
    inside = torch.arange(stream.shape[1], device=stream.device)[None] < lengths[:, None]
    total = (stream.float() * inside[..., None]).sum(1)
    return total / lengths[:, None].float()
