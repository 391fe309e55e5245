#!/usr/bin/env python3
"""Train the demo model and write it in the published layout: `python examples/train_demo/train.py OUT`.

OUT/checkpoint and OUT/state.pt are written every few minutes; the same command continues from the latter. Needs PyTorch
(the CPU build is enough; a GPU is used where there is one) and safetensors; everything that decides the result is in
settings.py.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import settings
from batches import Row, batches_of, padded, row_of
from conversations import WATCHED, Generator
from export import export, restore
from generator import some_instructions
from gptoss_mlx.engine.special_tokens import CHANNEL, END, MESSAGE, START
from gptoss_mlx.engine.tokenizer import Tokenizer
from gptoss_mlx.harmony.render import encode
from network import Network
from vocabulary import make_tokenizer

SAVE_EVERY = 120  # seconds
REPORT_EVERY = 20  # steps
Batch = tuple[Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", dest="source", type=Path, metavar="CHECKPOINT", help="begin with these weights")
    parser.add_argument("--steps", type=int, default=settings.STEPS)
    parser.add_argument("--minutes", type=float, help="train for this time instead, interruptions apart")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(args.threads)
    torch.manual_seed(settings.SEED)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.source:
        shutil.copyfile(args.source / "tokenizer.json", args.out / "tokenizer.json")
    elif not (args.out / "tokenizer.json").exists():
        make_tokenizer(args.out / "tokenizer.json")
    tokenizer = Tokenizer.load(args.out)

    network = Network(settings.CONFIG)
    if args.source:
        restore(network, args.source)
    network.to(device)
    optimizers = make_optimizers(network)
    state = args.out / "state.pt"
    first, trained = load(state, network, optimizers) if state.exists() else (0, 0.0)

    seed = settings.SEED + 1000 * first
    copying = 0 if args.source else max(0, settings.COPYING_STEPS - first)
    batches = chain(copying_batches(tokenizer, seed, copying), generated_batches(args.out, seed, device))
    held_out = {task: held_out_rows(task, tokenizer) for task in WATCHED}
    started = saved_at = time.monotonic()
    step, seconds, waited, tokens = first, trained, 0.0, 0
    while (share := seconds / (60 * args.minutes) if args.minutes else step / args.steps) < 1:
        factor = continued_rate(step, share, device.type) if args.source else rate(step, share)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
        if args.source or share >= settings.QUANTIZE_FROM:
            network.quantize()
        asked = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - asked
        tokens += batch[0].numel()
        loss, balance = train_step(network, optimizers, *(part.to(device, non_blocking=True) for part in batch))
        step += 1
        seconds = trained + time.monotonic() - started
        if step % REPORT_EVERY == 0:
            report = f"step {step} ({share:.1%}) loss {loss.item():.4f} balance {balance.item():.3f}"
            passed = time.monotonic() - started
            print(f"{report} {tokens / passed:,.0f} tokens/s, {waited / passed:.0%} waiting for them", flush=True)
        if time.monotonic() - saved_at > SAVE_EVERY:
            keep(args.out, network, optimizers, step, seconds)
            saved_at = time.monotonic()
    keep(args.out, network, optimizers, step, seconds)
    print_shares(network, held_out)


def keep(out: Path, network: Network, optimizers: list[torch.optim.Optimizer], step: int, seconds: float) -> None:
    """Write the state and the checkpoint, each of them whole at every moment."""
    partial = out / "state.pt.partial"
    parts = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"network": network.state_dict(), "optimizers": parts, "step": step, "seconds": seconds}, partial)
    partial.replace(out / "state.pt")
    export(network, settings.CONFIG, out, out / "checkpoint")


def load(state: Path, network: Network, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Continue from what `keep` wrote; returns the steps and the seconds that there were."""
    saved = torch.load(state, weights_only=True, map_location=network.norm.device)
    network.load_state_dict(saved["network"])
    for optimizer, part in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(part)
    return saved["step"], saved["seconds"]


def train_step(
    network: Network, optimizers: list[torch.optim.Optimizer], ids: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """One step on ids [B, L] with `weights` [B, L]; returns the loss of what the assistant emits, and the balance."""
    with torch.autocast(ids.device.type, torch.bfloat16, fast_in_half(ids.device)):
        logits = network.logits(network(ids[:, :-1]))
    weight = weights[:, 1:]
    losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(weight)
    loss = (losses * weight).sum() / weight.sum()
    balance = network.balance / len(network.layers)
    (loss + settings.BALANCE * balance).backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    emitted = weight == 1
    return (losses.detach() * emitted).sum() / emitted.sum(), balance.detach()


def fast_in_half(device: torch.device) -> bool:
    """Processors without instructions for BF16 are several times slower with it."""
    return device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def rate(step: int, share: float) -> float:
    """Warm-up, practice in copying, plateau, linear fall to 2 %, where this share of the run is over."""
    if step < settings.COPYING_STEPS:
        return settings.COPYING_RATE * warmed_up(step)
    return fallen(share)


def continued_rate(step: int, share: float, device: str) -> float:
    return settings.CONTINUED_RATE[device] * warmed_up(step) * fallen(share)


def warmed_up(step: int) -> float:
    return min((step + 1) / settings.WARMUP_STEPS, 1.0)


def fallen(share: float) -> float:
    return min(1.0, max((1 - share) / (1 - settings.DECAY_FROM), 0.02))


def copying_batches(tokenizer: Tokenizer, seed: int, count: int) -> Iterator[Batch]:
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


class Batches(IterableDataset):
    """What `batches_of` gives, other samples in every process."""

    def __init__(self, folder: Path, seed: int, tokens: int):
        self.folder, self.seed, self.tokens = folder, seed, tokens

    def __iter__(self) -> Iterator:
        worker = get_worker_info()
        return batches_of(Tokenizer.load(self.folder), self.seed + (worker.id if worker else 0), self.tokens)


def generated_batches(folder: Path, seed: int, device: torch.device) -> Iterator[Batch]:
    """Made in this process for a CPU, which has enough to do, and in others for a GPU, which must not wait."""
    on_gpu = device.type == "cuda"
    batches = Batches(folder, seed, settings.BATCH_TOKENS[device.type])
    return iter(DataLoader(batches, batch_size=None, num_workers=settings.WORKERS if on_gpu else 0, pin_memory=on_gpu))


def held_out_rows(task: str, tokenizer: Tokenizer) -> list[Row]:
    generator = Generator(settings.SEED, held_out=True, instructions=some_instructions)
    rows = [row_of(generator.sample(task), tokenizer) for _ in range(settings.EXAMINED)]
    return sorted(rows, key=lambda row: len(row[0]))


@torch.no_grad()
def examine(network: Network, rows: list[Row]) -> float:
    """The share of rows in which all that the assistant emits, reasoning included, is what the network finds likeliest:
    what a greedy chat would have written."""
    right, device = 0, network.norm.device
    network.quantize()
    for some in (rows[i : i + 10] for i in range(0, len(rows), 10)):
        ids, weights = (torch.from_numpy(array).to(device) for array in padded(some, len(some[-1][0])))
        with torch.autocast(device.type, torch.bfloat16, fast_in_half(device)):
            likeliest = network.logits(network(ids[:, :-1])).argmax(-1)
        right += ((likeliest == ids[:, 1:]) | (weights[:, 1:] < 1)).all(1).sum().item()
    return right / len(rows)


def print_shares(network: Network, held_out: dict[str, list[Row]]) -> None:
    print("right: " + ", ".join(f"{task} {examine(network, rows):.0%}" for task, rows in held_out.items()), flush=True)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by five Newton-Schulz steps (Keller Jordan, 2024), for matrices [..., n, m].

    The matrices of a parameter group have one shape and are updated together.
    """

    def __init__(self, groups: list[list[nn.Parameter]], peak: float):
        super().__init__([{"params": group} for group in groups], {"lr": peak, "peak": peak})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            matrices = group["params"]
            gradient = torch.stack([matrix.grad for matrix in matrices])
            momentum = self.state[matrices[0]].setdefault("momentum", torch.zeros_like(gradient))
            momentum.lerp_(gradient, 0.05)
            update = orthogonalized(gradient.lerp(momentum, 0.95))
            *_, rows, columns = update.shape
            torch._foreach_add_(matrices, update.unbind(), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)


def orthogonalized(matrix: Tensor) -> Tensor:
    x = matrix.bfloat16() if fast_in_half(matrix.device) else matrix
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


def make_optimizers(network: Network) -> list[torch.optim.Optimizer]:
    by_shape: dict[torch.Size, list[nn.Parameter]] = {}
    others = [network.embed_tokens, network.norm, network.lm_head]
    for name, parameter in network.layers.named_parameters():
        inside = name.endswith(("_proj", "gate", "up", "down"))
        (by_shape.setdefault(parameter.shape, []) if inside else others).append(parameter)
    adam = torch.optim.AdamW(others, lr=settings.OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    adam.param_groups[0]["peak"] = settings.OTHER_RATE
    return [Muon(list(by_shape.values()), settings.MATRIX_RATE), adam]


if __name__ == "__main__":
    main()
