"""The bytes of each part of a model with given settings, from its config.json and its headers.

Reads no weights. Leaves the choice of settings to `plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..model.checkpoint import Checkpoint
from ..model.config import ModelConfig
from ..model.kv_cache import KV_CHUNK, MAX_SNAPSHOTS
from ..model.network import keys_at_a_time
from ..model.recognition import open_converted
from ..model.safetensors import CheckpointError
from .devices import Device

# Memory of Python, MLX and the kernels, and of a tokenizer for each byte of its tokenizer.json: measured.
RUNTIME_BYTES = 60_000_000
TOKENIZER_FACTOR = 9

WORKSPACE = "prefill workspace"


@dataclass(frozen=True)
class EngineConfig:
    """The settings that decide how much memory a model needs."""

    context: int
    """Maximum of tokens in the KV cache."""
    kv_bits: int
    """Bits per value in the KV cache of full layers: 16 or 8."""
    prefill_chunk: int
    """Tokens that are prefilled at a time."""
    expert_slots: int | None = None
    """Experts in memory at a time, of all layers together; None for all of them."""
    cpu_expert_layers: int = 0
    """Layers whose experts a CPU computes beside a GPU."""
    embeddings_on_gpu: bool = False
    """Whether a GPU looks up embeddings, so that they count as its own."""
    workspace: int | None = None
    """Maximum of bytes that MLX keeps for its next results; None for MLX's default."""
    allocations: int | None = None
    """Maximum of bytes that MLX has in all; None for MLX's default."""


@dataclass(frozen=True)
class PlanRow:
    """The bytes of one part of the model or the process."""

    name: str
    bytes: int
    mapped: bool
    """Whether they are pages of the model's files, which the system can drop and read again, or anonymous memory."""
    on_gpu: bool
    """Whether they count against a GPU's limit."""


TRUNK, EXPERTS, EMBEDDINGS = PARTS = ("trunk", "experts", "embeddings")


def part_of(tensor: str) -> str:
    """The part of the model to which a tensor of this name belongs."""
    return EXPERTS if ".mlp.experts." in tensor else EMBEDDINGS if "embed_tokens" in tensor else TRUNK


@dataclass(frozen=True)
class ModelHeaders:
    """All that a plan knows of a converted model, which need not be written yet."""

    name: str
    config: ModelConfig
    checkpoint: Checkpoint
    tokenizer_bytes: int
    """Bytes of its tokenizer.json; 0 without one."""

    @classmethod
    def of_folder(cls, folder: Path) -> ModelHeaders:
        """Raises GptOssError for a folder that holds no converted model."""
        vocabulary = folder / "tokenizer.json"
        return cls(str(folder), *open_converted(folder), vocabulary.stat().st_size if vocabulary.is_file() else 0)

    @property
    def file_bytes(self) -> int:
        """The sizes of all weight files: each ends with a tensor."""
        ends: dict[Path, int] = {}
        for name, tensor in self.checkpoint.tensors.items():
            path = self.checkpoint.file_of[name]
            ends[path] = max(ends.get(path, 0), tensor.end)
        return sum(ends.values())


class MemoryEstimate:
    """The bytes of each part of a model, from its headers."""

    def __init__(self, model: Path | ModelHeaders):
        """Raises GptOssError for a folder that holds no converted model."""
        headers = ModelHeaders.of_folder(model) if isinstance(model, Path) else model
        self.name, self.config, self.checkpoint = headers.name, headers.config, headers.checkpoint
        self.tensors = self.checkpoint.tensors
        if not self.experts:
            raise CheckpointError(f"{self.name} has no experts: not a gpt-oss model")
        self.all_experts = self.config.num_layers * self.config.num_experts
        self.min_slots = 2 * self.config.experts_per_token
        self._weights_on: dict[str, Sequence[tuple[int, bool]]] = {}
        self.tokenizer = TOKENIZER_FACTOR * headers.tokenizer_bytes

    @cached_property
    def experts(self) -> int:
        return sum(tensor.nbytes for name, tensor in self.tensors.items() if part_of(name) == EXPERTS)

    @cached_property
    def expert_bytes(self) -> int:
        return -(-self.experts // self.all_experts)

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of weights that one decoded token reads: of the experts its own, of the embeddings next to nothing."""
        trunk = sum(tensor.nbytes for name, tensor in self.tensors.items() if part_of(name) == TRUNK)
        return trunk + self.experts * self.config.experts_per_token // self.config.num_experts

    def token_disk_bytes(self, settings: EngineConfig) -> int:
        """Bytes of them that are not in memory, if every expert is as likely as any other."""
        if settings.expert_slots is None:
            return 0
        chosen = self.config.num_layers * self.config.experts_per_token * self.expert_bytes
        return chosen * (self.all_experts - settings.expert_slots) // self.all_experts

    @cached_property
    def cpu_can_compute_experts(self) -> bool:
        """Whether the kernels can, with tensors that they map themselves: other programs' may not be aligned, or be in
        another dtype."""
        experts = [name for name in self.tensors if part_of(name) == EXPERTS]
        forms = {self.config.stored_form(name.rpartition(".")[0], self.tensors) for name in experts}
        return all(form is None or form.bits in (4, 8) for form in forms) and all(
            self.checkpoint.can_be_mapped(name, 1) and self.tensors[name].dtype in ("U8", "U32", "BF16")
            for name in experts
        )

    def copied(self, device: Device) -> int:
        """Bytes of tensors that MLX reads as copies, where others would be mapped."""
        unit = device.traits.map_unit
        copied = (name for name in self.tensors if unit and not self.checkpoint.can_be_mapped(name, unit))
        return sum(self.tensors[name].nbytes for name in copied)

    def _weights(self, device: Device) -> Sequence[tuple[int, bool]]:
        """Of each of PARTS, the bytes of its tensors, and whether they are mapped. A GPU adopts whole pages."""
        if device.backend not in self._weights_on:
            unit = device.traits.map_unit
            page = unit if unit and device.gpu is not None else 1
            sizes, mapped = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, True)
            for name, tensor in self.tensors.items():
                is_mapped = self.checkpoint.can_be_mapped(name, unit)
                part = part_of(name)
                mapped[part] &= is_mapped
                pages = -(-tensor.end // page) - tensor.start // page
                sizes[part] += pages * page if is_mapped else tensor.nbytes
            self._weights_on[device.backend] = [(sizes[part], mapped[part]) for part in PARTS]
        return self._weights_on[device.backend]

    def rows(self, settings: EngineConfig, device: Device) -> list[PlanRow]:
        """The maximum of everything that is in memory with these settings."""
        weights = self._weights(device)
        paged, layers = settings.expert_slots is not None, self.config.num_layers
        (trunk, trunk_mapped), (experts, experts_mapped), (embeddings, embeddings_mapped) = weights
        on_cpu = 0 if paged else experts * settings.cpu_expert_layers // layers
        slots = (settings.expert_slots or 0) * self.expert_bytes
        on_gpu = settings.embeddings_on_gpu
        rows = [
            PlanRow("attention, routers, head", trunk, mapped=trunk_mapped, on_gpu=True),
            # What the CPU looks up is a map in any case.
            PlanRow("embeddings", embeddings, mapped=embeddings_mapped or not on_gpu, on_gpu=on_gpu),
            PlanRow("experts", 0 if paged else experts - on_cpu, mapped=experts_mapped, on_gpu=True),
            PlanRow("experts on the CPU", on_cpu, mapped=True, on_gpu=False),
            PlanRow("expert slots", slots, mapped=False, on_gpu=True),
            PlanRow("expert read buffers", self._read_buffers() if paged else 0, mapped=False, on_gpu=False),
            *self._kv(settings, device),
            PlanRow(WORKSPACE, self._workspace(settings, device), mapped=False, on_gpu=True),
            PlanRow("FP32 copies of weights", self._fp32_copies(device), mapped=False, on_gpu=False),
            PlanRow("tokenizer", self.tokenizer, mapped=False, on_gpu=False),
            PlanRow("runtime", RUNTIME_BYTES, mapped=False, on_gpu=False),
        ]
        return [row for row in rows if row.bytes]

    def _kv(self, settings: EngineConfig, device: Device) -> list[PlanRow]:
        config = self.config
        values = 2 * config.num_kv_heads * config.head_dim
        full = config.layer_types.count("full_attention")
        plain = device.traits.kv_bytes
        # In an 8-bit KV cache each head has a scale and a bias in BF16.
        per_position = values * plain if settings.kv_bits == 16 else values + values // config.head_dim * 4
        context = -(-settings.context // 256) * 256
        ring = (config.num_layers - full) * config.sliding_window * values * plain
        return [
            PlanRow(
                f"KV cache, full layers, {settings.kv_bits} bits",
                full * context * per_position,
                mapped=False,
                on_gpu=True,
            ),
            # The old buffer of a layer's keys or values, while the larger one is filled.
            PlanRow("KV cache, growing", context * per_position // 2 * 4 // 5, mapped=False, on_gpu=True),
            PlanRow("KV cache, sliding layers", ring, mapped=False, on_gpu=True),
            PlanRow("KV cache, snapshots", MAX_SNAPSHOTS * ring, mapped=False, on_gpu=True),
            PlanRow("KV cache, saving", full * min(KV_CHUNK, context) * per_position, mapped=False, on_gpu=True),
        ]

    def _workspace(self, settings: EngineConfig, device: Device) -> int:
        """Activations of one chunk of a prompt, in attention or in the experts, and the logits of one token."""
        config, chunk = self.config, settings.prefill_chunk
        heads, k = config.num_heads * config.head_dim, config.experts_per_token
        of_hidden, of_intermediate = device.traits.expert_activations
        per_expert = of_hidden * config.hidden_size + of_intermediate * config.intermediate_size
        per_token = 4 * config.hidden_size + max(4 * heads, k * per_expert)
        logits = 6 * 4 * config.vocab_size
        return int(chunk * device.traits.activation_bytes * per_token) + logits + self._scores(settings, device)

    def _scores(self, settings: EngineConfig, device: Device) -> int:
        """Attention scores of one chunk in FP32, three times, unless attention keeps those of a few keys only."""
        if settings.kv_bits in device.traits.tiled_kv_bits:
            return 0
        rows, keys = settings.prefill_chunk * self.config.num_heads, settings.context
        if settings.kv_bits == 8:
            keys = min(keys, keys_at_a_time(rows))
        return 3 * 4 * rows * keys

    def _fp32_copies(self, device: Device) -> int:
        """FP32 copies that MLX makes on a CPU: of scales and biases for good, of plain matrices one at a time."""
        if device.backend != "cpu":
            return 0
        floats = {name: t for name, t in self.tensors.items() if t.dtype == "BF16"}
        plain = [2 * t.nbytes for name, t in floats.items() if name.endswith(".weight") and len(t.shape) > 1]
        return sum(2 * t.nbytes for t in floats.values()) - sum(plain) + max(plain, default=0)

    def _read_buffers(self) -> int:
        from ..model.expert_pool import ExpertPool

        largest = max(t.nbytes // t.shape[0] for name, t in self.tensors.items() if ".mlp.experts." in name)
        return ExpertPool.READERS * (largest + 2 * 4096)
