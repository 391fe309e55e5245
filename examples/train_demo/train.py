#!/usr/bin/env python3
"""Train the demo model and write it in the published layout: `python examples/train_demo/train.py OUT`.

OUT/state.pt is written every few minutes; the same command continues from it. Needs PyTorch (the CPU build is enough);
everything that decides the result is in settings.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import settings
from conversations import training_samples
from export import export
from gptoss_mlx.harmony.render import CHANNEL, END, MESSAGE, START, encode
from gptoss_mlx.tokenizer import Tokenizer
from network import Network
from vocabulary import make_tokenizer

SAVE_EVERY = 180  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=settings.STEPS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(settings.SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "tokenizer.json").exists():
        make_tokenizer(args.out / "tokenizer.json")
    tokenizer = Tokenizer.load(args.out)

    network = Network(settings.CONFIG)
    optimizers = make_optimizers(network)
    first, state = 0, args.out / "state.pt"
    if state.exists():
        saved = torch.load(state, weights_only=True)
        network.load_state_dict(saved["network"])
        for optimizer, part in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(part)
        first = saved["step"]

    seed = settings.SEED + 1000 * first
    batches = chain(copying_batches(tokenizer, seed, settings.COPYING_STEPS - first), batches_of(tokenizer, seed))
    started = saved_at = time.monotonic()
    for step in range(first, args.steps):
        network.quantized = step >= settings.QUANTIZE_FROM * args.steps
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(step, args.steps)
        loss, balance = train_step(network, optimizers, *(batch := next(batches)))
        if step % 20 == 0:
            seconds = (time.monotonic() - started) / (step - first + 1)
            print(
                f"step {step} loss {loss:.4f} balance {balance:.3f} {seconds:.2f} s/step {tuple(batch[0].shape)}",
                flush=True,
            )
        if time.monotonic() - saved_at > SAVE_EVERY or step == args.steps - 1:
            parts = [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"network": network.state_dict(), "optimizers": parts, "step": step + 1}, state)
            export(network, settings.CONFIG, args.out, args.out / "checkpoint")
            saved_at = time.monotonic()


def train_step(network: Network, optimizers: list, ids: Tensor, weights: Tensor) -> tuple[float, float]:
    """One step on ids [B, L] with `weights` [B, L]; returns the loss of what the assistant emits, and the balance."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = network(ids[:, :-1])
        weight = weights[:, 1:]
        used = weight > 0
        logits = network.logits(hidden[used])
    losses = F.cross_entropy(logits.float(), ids[:, 1:][used], reduction="none")
    emitted = weight[used] == 1
    loss = (losses * weight[used]).sum() / weight.sum()
    balance = network.balance / len(network.layers)
    (loss + settings.BALANCE * balance).backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return losses[emitted].mean().item(), balance.item()


def rate(step: int, steps: int) -> float:
    """Warm-up, practice in copying, plateau, linear fall to 2 %."""
    if step < settings.COPYING_STEPS:
        return settings.COPYING_RATE * min((step + 1) / settings.WARMUP_STEPS, 1.0)
    fall = (steps - step) / (steps * (1 - settings.DECAY_FROM))
    return min(1.0, max(fall, 0.02))


def copying_batches(tokenizer: Tokenizer, seed: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches as `batches_of` gives, in which the assistant repeats random tokens: dense practice for every token."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.tensor(encode([START, "user", MESSAGE], tokenizer))
    between = torch.tensor(encode([END, START, "assistant", CHANNEL, "final", MESSAGE], tokenizer))
    for _ in range(count):
        rows, length = 32, int(torch.randint(8, 64, (), generator=generator))
        said = torch.randint(settings.CONFIG["vocab_size"], (rows, length), generator=generator)
        ids = torch.cat([before.expand(rows, -1), said, between.expand(rows, -1), said], 1)
        weights = torch.full(ids.shape, settings.PROMPT_WEIGHT)
        weights[:, -length:] = 1.0
        yield ids, weights


def batches_of(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of about equal length: ids [B, L], padded with 0, and the weight of each in the loss."""
    waiting: dict[int, list[tuple[list[int], list[float]]]] = {length: [] for length in settings.LENGTHS}
    for sample in training_samples(seed):
        ids: list[int] = []
        weights: list[float] = []
        for i, segment in enumerate(sample.segments):
            part = encode(segment, tokenizer)
            ids += part
            weights += [1.0] * len(part) if i % 2 == 1 else weights_of_prompt(part, tokenizer)
        length = next((length for length in settings.LENGTHS if len(ids) <= length), None)
        if length is None:
            continue
        queue = waiting[length]
        queue.append((ids, weights))
        if len(queue) * length >= settings.BATCH_TOKENS:
            width = max(len(ids) for ids, _ in queue)
            yield (
                torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in queue]),
                torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in queue]),
            )
            queue.clear()


def weights_of_prompt(ids: list[int], tokenizer: Tokenizer) -> list[float]:
    """Nothing for earlier replies of the assistant: a chat drops their analysis, so they are no example to follow."""
    start, assistant = encode([START, "assistant"], tokenizer)
    weights, earlier = [], False
    for i, id_ in enumerate(ids):
        if id_ == start:
            earlier = False
        weights.append(0.0 if earlier else settings.PROMPT_WEIGHT)
        if id_ == assistant and i and ids[i - 1] == start:
            earlier = True
    return weights


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by five Newton-Schulz steps (Keller Jordan, 2024), for matrices [..., n, m]."""

    def __init__(self, parameters, peak: float):
        super().__init__(parameters, {"lr": peak, "peak": peak})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                update = orthogonalized(p.grad.lerp(momentum, 0.95))
                p.add_(update, alpha=-group["lr"] * max(1, p.shape[-2] / p.shape[-1]) ** 0.5)


def orthogonalized(matrix: Tensor) -> Tensor:
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


def make_optimizers(network: Network) -> list[torch.optim.Optimizer]:
    inside = dict(network.layers.named_parameters())
    matrices = [p for name, p in inside.items() if name.endswith(("_proj", "gate", "up", "down"))]
    others = [p for p in network.parameters() if all(p is not m for m in matrices)]
    adam = torch.optim.AdamW(others, lr=settings.OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    adam.param_groups[0]["peak"] = settings.OTHER_RATE
    return [Muon(matrices, settings.MATRIX_RATE), adam]


if __name__ == "__main__":
    main()
