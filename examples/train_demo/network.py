"""gpt-oss in PyTorch, for training: the same arithmetic as gptoss_mlx/model/network.py, with gradients.

`quantize` replaces the weights by what MXFP4 and MLX's 4-bit affine form will make of them, and lets gradients pass.
Where training starts, `prepare_copying` says.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
FP4_EDGES = (FP4[1:] + FP4[:-1]) / 2


def mxfp4_parts(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float [..., n] -> exponents [..., n / 32, 1] and signed values of FP4 [..., n / 32, 32]."""
    groups = weight.unflatten(-1, (-1, 32))
    largest = groups.abs().amax(-1, keepdim=True).clamp_min(2.0**-120)
    exponent = torch.ceil(torch.log2(largest / 6))
    scaled = groups * torch.exp2(-exponent)
    code = torch.bucketize(scaled.abs(), FP4_EDGES.to(weight.device))
    return exponent, FP4.to(weight.device)[code] * scaled.sign()


def as_mxfp4(weight: Tensor) -> Tensor:
    exponent, values = mxfp4_parts(weight)
    return (values * torch.exp2(exponent)).flatten(-2)


def as_affine(weight: Tensor) -> Tensor:
    """What `gptoss-mlx convert` makes of a BF16 weight in 4 bits and groups of 64: of lines, each the best for the
    nearest codes of the one before, the one with the smallest squared error."""
    groups = weight.bfloat16().float().unflatten(-1, (-1, 64))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    center = groups.mean(-1, keepdim=True)
    best, least = groups, torch.full_like(center, torch.inf)
    for share in (1.0, 0.9):
        scale, bias = ((high - low) * share / 15).clamp_min(1e-30), low + (high - low) * (1 - share) / 2
        codes = nearest(groups, scale, bias)
        for _ in range(2):
            middle = codes.mean(-1, keepdim=True)
            slope = ((codes - middle) * (groups - center)).mean(-1, keepdim=True)
            straight = slope / (codes - middle).square().mean(-1, keepdim=True)
            scale = torch.where(straight > 0, straight, scale).bfloat16().float()
            bias = (center - scale * middle).bfloat16().float()
            codes = nearest(groups, scale, bias)
            values = codes * scale + bias
            error = (values - groups).square().mean(-1, keepdim=True)
            best, least = torch.where(error < least, values, best), torch.minimum(error, least)
    return best.flatten(-2)


def nearest(groups: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return ((groups - bias) / scale).round().clamp(0, 15)


class Network(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.config = config
        self.changes: dict[Tensor, Tensor] = {}  # weight -> what storing adds to it
        width, vocabulary = config["hidden_size"], config["vocab_size"]
        self.embed_tokens = nn.Parameter(torch.randn(vocabulary, width) * 0.5)
        self.layers = nn.ModuleList(Layer(self, kind) for kind in config["layer_types"])
        self.norm = nn.Parameter(torch.ones(width))
        self.lm_head = nn.Parameter(torch.empty(vocabulary, width))
        self.balance = torch.tensor(0.0)
        prepare_copying(self)

    @torch.no_grad()
    def quantize(self) -> None:
        """From now on compute with the weights, as they are now, as they will be stored."""
        experts = [weight for layer in self.layers for weight in (layer.gate, layer.up, layer.down)]
        others = [
            weight for layer in self.layers for weight in (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj)
        ]
        for weights, form in ((experts, as_mxfp4), ([self.embed_tokens, self.lm_head, *others], as_affine)):
            rows = torch.cat([weight.view(-1, 64) for weight in weights])  # whole groups of either form
            changes = (form(rows) - rows).split([weight.numel() // 64 for weight in weights])
            self.changes |= {weight: change.view_as(weight) for weight, change in zip(weights, changes, strict=True)}

    def stored(self, weight: Tensor) -> Tensor:
        """The quantized weight, with the gradient of the plain one."""
        return weight + self.changes[weight] if self.changes else weight

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, L], padded at the end -> hidden states [B, L, width] ready for `logits`."""
        x = F.embedding(ids, self.stored(self.embed_tokens))
        cos, sin = rotation(self.config, ids.shape[1], ids.device)
        masks = attention_masks(ids.shape[1], self.config["sliding_window"], ids.device)
        balance = 0.0
        for layer in self.layers:
            x, uneven = layer(x, cos, sin, masks[layer.kind])
            balance = balance + uneven
        self.balance = balance
        return rms_norm(x, self.norm, self.config["rms_norm_eps"])

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.stored(self.lm_head).T


class Layer(nn.Module):
    def __init__(self, network: Network, kind: str):
        super().__init__()
        config = network.config
        self._network = [network]  # in a list, so that it is not registered as a child of its own layer
        self.kind, self.eps, self.limit = kind, config["rms_norm_eps"], config["swiglu_limit"]
        self.heads, self.kv_heads, self.head_dim = (
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
        )
        self.k, self.experts = config["num_experts_per_tok"], config["num_local_experts"]
        width, inner = config["hidden_size"], config["intermediate_size"]

        def matrix(*shape: int, gain: float = 1.0) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape) * gain / math.sqrt(shape[-1]))

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape))

        self.input_layernorm = nn.Parameter(torch.ones(width))
        self.q_proj, self.q_bias = matrix(self.heads * self.head_dim, width), zeros(self.heads * self.head_dim)
        self.k_proj, self.k_bias = matrix(self.kv_heads * self.head_dim, width), zeros(self.kv_heads * self.head_dim)
        self.v_proj, self.v_bias = matrix(self.kv_heads * self.head_dim, width), zeros(self.kv_heads * self.head_dim)
        self.o_proj, self.o_bias = matrix(width, self.heads * self.head_dim), zeros(width)
        self.sinks = zeros(self.heads)
        self.post_attention_layernorm = nn.Parameter(torch.ones(width))
        self.router, self.router_bias = matrix(self.experts, width), zeros(self.experts)
        self.gate, self.gate_bias = matrix(self.experts, inner, width), zeros(self.experts, inner)
        self.up, self.up_bias = matrix(self.experts, inner, width), zeros(self.experts, inner)
        self.down, self.down_bias = matrix(self.experts, width, inner, gain=0.3), zeros(self.experts, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.attention(rms_norm(x, self.input_layernorm, self.eps), cos, sin, mask)
        y, uneven = self.moe(rms_norm(x, self.post_attention_layernorm, self.eps).flatten(0, 1))
        return x + y.view_as(x), uneven

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        stored = self._network[0].stored
        batch, length, _ = x.shape

        def heads(weight: Tensor, bias: Tensor) -> Tensor:
            return F.linear(x, stored(weight), bias).view(batch, length, -1, self.head_dim).transpose(1, 2)

        q = rotate(heads(self.q_proj, self.q_bias), cos, sin)
        k = rotate(heads(self.k_proj, self.k_bias), cos, sin)
        v = heads(self.v_proj, self.v_bias)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        # A sink is one more key: a 65th dimension in which every query is 1 and only that key is not 0.
        scale = 1 / math.sqrt(self.head_dim)
        q = F.pad(q, (0, 8))
        q[..., self.head_dim] = 1
        k = F.pad(k, (0, 8, 1, 0))
        sink = torch.zeros_like(k)
        sink[:, :, 0, self.head_dim] = (self.sinks / scale).to(k.dtype)
        v = F.pad(v, (0, 8, 1, 0))
        y = F.scaled_dot_product_attention(q, k + sink, v, attn_mask=mask, scale=scale)[..., : self.head_dim]
        return F.linear(y.transpose(1, 2).flatten(2), stored(self.o_proj), self.o_bias)

    def moe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [T, width] -> [T, width], and how unevenly they were divided (1 is even)."""
        scores = F.linear(x, self.router, self.router_bias).float()
        best, chosen = scores.topk(self.k, dim=-1)
        share = torch.zeros_like(scores).scatter(1, chosen, best.softmax(-1))
        out = (self.every_expert if x.is_cuda else self.chosen_experts)(x, share)
        load = (share > 0).float().mean(0) / self.k
        return out, self.experts * (load * scores.softmax(-1).mean(0)).sum()

    def every_expert(self, x: Tensor, share: Tensor) -> Tensor:
        """In three products, in which experts that were not chosen count 0: twice the work of `chosen_experts`, but in
        shapes that a GPU need not be asked for."""
        gate, up, down = map(self._network[0].stored, (self.gate, self.up, self.down))
        g = F.linear(x, gate.flatten(0, 1), self.gate_bias.flatten())
        u = F.linear(x, up.flatten(0, 1), self.up_bias.flatten())
        z = self.activation(g, u).unflatten(1, (self.experts, -1)) * share[..., None].to(g.dtype)
        return F.linear(z.flatten(1), down.transpose(0, 1).flatten(1)) + share @ self.down_bias

    def chosen_experts(self, x: Tensor, share: Tensor) -> Tensor:
        gate, up, down = (self._network[0].stored(weight).unbind() for weight in (self.gate, self.up, self.down))
        out = torch.zeros_like(x, dtype=torch.float32)
        for e in range(self.experts):
            token = share[:, e].nonzero()[:, 0]
            mine = x.index_select(0, token)  # x[token] has a slower gradient
            g = F.linear(mine, gate[e], self.gate_bias[e])
            u = F.linear(mine, up[e], self.up_bias[e])
            z = F.linear(self.activation(g, u), down[e], self.down_bias[e])
            out = out.index_add(0, token, z.float() * share[token, e, None])
        return out

    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)


@torch.no_grad()
def prepare_copying(network: Network) -> None:
    """Start from the parts of copying, which every task needs and which a small network takes long to find.

    Heads pass on what they see as it is, what was seen is a little likelier, and the heads of sliding layers look 1, 2,
    3, ... positions back. On random tokens, copying then appears within 100 steps; without these parts 400 are too few.
    The head is scaled so that the optimizer's first steps do not wipe it out.
    """
    config = network.config
    network.lm_head.copy_(0.4 * network.embed_tokens)
    network.norm.fill_(0.05)
    for layer in network.layers:
        values = layer.v_proj.unflatten(0, (layer.kv_heads, -1))
        layer.o_proj.copy_(0.5 * values.repeat_interleave(layer.heads // layer.kv_heads, 0).flatten(0, 1).T)
        if layer.kind == "sliding_attention":
            layer.q_proj.mul_(0.3)  # content must not distract from position
            layer.k_proj.mul_(0.3)
            layer.q_bias.copy_(torch.cat([looking_back(config, head + 1) for head in range(layer.heads)]))
            layer.k_bias.copy_(looking_back(config, 0).repeat(layer.kv_heads))


def looking_back(config: dict, distance: int) -> Tensor:
    """A query's bias [head_dim] that fits best, among keys with the bias for 0, the one `distance` positions before."""
    cos, sin = rotation(config, 2)
    angle = -distance * torch.atan2(sin[1], cos[1])
    strength = 3.5 * (torch.arange(len(angle)) < 10)  # slower pairs cannot tell neighbours apart
    return torch.cat([strength * angle.cos(), strength * angle.sin()])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, heads, L, head_dim], halves rotated against each other."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def rotation(config: dict, length: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """YaRN: cos and sin [L, head_dim / 2], concentration included."""
    rope, dim, theta = config["rope_scaling"], config["head_dim"], config["rope_theta"]
    plain = theta ** (torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)

    def pair_turning(times: float) -> float:
        span = rope["original_max_position_embeddings"] / (times * 2 * math.pi)
        return dim * math.log(span) / (2 * math.log(theta))

    low, high = pair_turning(rope["beta_fast"]), pair_turning(rope["beta_slow"])
    slowed = ((torch.arange(dim // 2, device=device) - low) / (high - low)).clamp(0, 1)
    angle = torch.arange(length, device=device)[:, None] * ((1 - slowed + slowed / rope["factor"]) / plain)
    mscale = 0.1 * math.log(rope["factor"]) + 1
    return (angle.cos() * mscale).float(), (angle.sin() * mscale).float()


def attention_masks(length: int, window: int, device: torch.device) -> dict[str, Tensor]:
    """Booleans [L, 1 + L]: the sink, and the positions that each one sees."""
    query, key = torch.arange(length, device=device)[:, None], torch.arange(length, device=device)[None]
    sink = torch.ones(length, 1, dtype=torch.bool, device=device)
    causal = key <= query
    return {
        "full_attention": torch.cat([sink, causal], 1),
        "sliding_attention": torch.cat([sink, causal & (key > query - window)], 1),
    }
