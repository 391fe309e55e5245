"""Named arrays of a checkpoint -> the linear maps that the network is made of, however each one is stored.

A module whose checkpoint has `<module>.scales` is quantized as `config.json` says; any other is BF16. Every shape and
dtype is checked against the header before an array is made, so that a wrong folder fails at once, naming the tensor.
Knows nothing about the use of the maps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import mlx.core as mx
import numpy as np

from ..device import fused
from .bf16 import as_f32
from .checkpoint import FLOATS, Checkpoint
from .config import ModelConfig, Quantization
from .safetensors import CheckpointError

PARTS = ("weight", "scales", "biases")  # of a matrix
# Modules that read the same input: converted files hold their parts one after the other, as if they were one module.
JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
VECTORS = (".bias", ".sinks", "norm.weight", ".router.weight")
SWITCHES = (".sinks", ".router.bias")  # where minus infinity switches a sink, or an expert, off


class Weights:
    """The checkpoint of one model, read as `dtype`: the dtype of activations on this device."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, dtype: mx.Dtype):
        self.checkpoint, self.config, self.dtype = checkpoint, config, dtype

    def check_finite(self) -> None:
        """Raise CheckpointError for NaN or infinity in small tensors: 18 MB of gpt-oss-20b.

        They need not show in the logits: an expert whose score is NaN is never chosen, and SwiGLU's clamp makes 7 of
        infinity.
        """
        for name in self.checkpoint.tensors:
            if name.endswith(VECTORS):
                values = as_f32(self.checkpoint.view(name))
                if name.endswith(SWITCHES):
                    values = np.where(np.isneginf(values), 0, values)
                if not np.isfinite(values).all():
                    raise CheckpointError(
                        f"{self.checkpoint.file_of[name]}: {name!r} holds NaN or infinity: the file is damaged."
                        f" `gptoss-mlx verify {self.checkpoint.folder}` checks all files; convert the checkpoint again"
                    )

    def vector(self, name: str, *shape: int) -> mx.array:
        """A small float tensor (norm, bias, sinks), cast to the dtype of activations."""
        return self._vectors([name], [shape])

    def _vectors(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> mx.array:
        for name, shape in zip(names, shapes, strict=True):
            self.check(name, shape, FLOATS)
        return self.checkpoint.joined(names).astype(self.dtype)

    def quantization(self, module: str) -> Quantization | None:
        """The quantization of `module.weight`; None for BF16. Raises CheckpointError where config.json has none."""
        if f"{module}.scales" not in self.checkpoint.tensors:
            return None
        if quantization := self.config.stored_form(module, self.checkpoint.tensors):
            return quantization
        raise CheckpointError(f"{module} has scales, but config.json has no quantization entry for it")

    def matrix(self, module: str, *shape: int) -> Matrix:
        """The weight of `module`: float [*shape], or quantized along the last dimension. Raises CheckpointError."""
        return self._matrices([module], [shape])

    def _matrices(self, modules: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Matrix:
        for module, shape in zip(modules, shapes, strict=True):
            self.check_matrix(module, *shape)

        def array(part: str) -> mx.array:
            return self.checkpoint.joined([f"{module}.{part}" for module in modules])

        q = self.quantization(modules[0])
        if q is None:
            return Matrix(array("weight"))
        if q.mode == "mxfp4":
            return Matrix(array("weight"), array("scales"), None, q)
        return Matrix(array("weight"), array("scales").astype(self.dtype), array("biases").astype(self.dtype), q)

    def joined(self, sizes: Mapping[str, int], *rest: int) -> tuple[Matrix, mx.array] | None:
        """The matrices of several modules, each [size, *rest], as one of all rows, and their biases in the same way.

        None where their parts do not lie one after the other in a file, in the same form, as `JOINED` ones do in
        converted files: other programs' have another order. Raises CheckpointError.
        """
        modules = list(sizes)
        forms = [self.quantization(module) for module in modules]
        parts = [part for part in (*PARTS, "bias") if f"{modules[0]}.{part}" in self.checkpoint.tensors]
        names = {part: [f"{module}.{part}" for module in modules] for part in parts}
        if forms != forms[:1] * len(forms) or not all(map(self.checkpoint.are_adjacent, names.values())):
            return None
        shapes = [(size, *rest) for size in sizes.values()]
        return self._matrices(modules, shapes), self._vectors(names["bias"], [shape[:-1] for shape in shapes])

    def embedding(self, module: str, count: int, width: int, *, on_gpu: bool) -> Embedding:
        """A table [count, width]. Raises CheckpointError."""
        self.check_matrix(module, count, width)
        return Embedding(self, module, on_gpu=on_gpu)

    def linear(self, module: str, outputs: int, inputs: int, *, bias: bool = True) -> Linear:
        vector = self.vector(f"{module}.bias", outputs) if bias else None
        return Linear(self.matrix(module, outputs, inputs), vector)

    def linears(self, sizes: Mapping[str, int], inputs: int) -> Callable[[mx.array], mx.array]:
        """The linear maps of modules over the same inputs, x [..., inputs] -> their outputs, one after the other."""
        if joined := self.joined(sizes, inputs):
            return Linear(*joined)
        apart = [self.linear(module, outputs, inputs) for module, outputs in sizes.items()]
        return lambda x: mx.concatenate([linear(x) for linear in apart], axis=-1)

    def check_matrix(self, module: str, *shape: int) -> None:
        """Raise CheckpointError unless the headers have the tensors that `matrix` needs; nothing is read or mapped."""
        q = self.quantization(module)
        if q is None:
            self.check(f"{module}.weight", shape, FLOATS)
            return
        rows, columns = shape[:-1], shape[-1]
        if columns % q.group_size or columns * q.bits % 32:
            raise CheckpointError(f"{module}: {columns} columns do not divide into groups of {q.group_size}")
        self.check(f"{module}.weight", (*rows, columns * q.bits // 32), ("U32",))
        grouped = (*rows, columns // q.group_size)
        parts = {"scales": ("U8",)} if q.mode == "mxfp4" else {"scales": FLOATS, "biases": FLOATS}
        for part, dtypes in parts.items():
            self.check(f"{module}.{part}", grouped, dtypes)

    def check(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
        """Raise CheckpointError unless the header has `name` with this shape and one of these dtypes."""
        tensor = self.checkpoint.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.checkpoint.folder} lacks the tensor {name!r}")
        if tensor.shape != shape or tensor.dtype not in dtypes:
            raise CheckpointError(
                f"{self.checkpoint.file_of[name]}: {name!r} is {tensor.dtype} {list(tensor.shape)},"
                f" and config.json asks for {'/'.join(dtypes)} {list(shape)}"
            )


class Matrix:
    """A weight [..., outputs, inputs], float, or with scales and quantized along `inputs`."""

    def __init__(
        self,
        weight: mx.array,
        scales: mx.array | None = None,
        biases: mx.array | None = None,
        quantization: Quantization | None = None,
    ):
        self.weight, self.scales, self.biases, self.quantization = weight, scales, biases, quantization
        self._form: dict[str, Any] = asdict(quantization) if quantization else {}

    def __repr__(self) -> str:
        q = self.quantization
        return f"Matrix({list(self.weight.shape)} {self.weight.dtype}, {f'{q.bits}-bit {q.mode}' if q else 'float'})"

    def apply(self, x: mx.array) -> mx.array:
        """x [..., inputs] -> [..., outputs]."""
        if self.scales is None:
            return x @ self.weight.astype(x.dtype).swapaxes(-1, -2)
        return mx.quantized_matmul(x, self.weight, self.scales, self.biases, transpose=True, **self._form)

    def apply_gathered(
        self, x: mx.array, index: mx.array, *, rows: mx.array | None = None, sorted_indices: bool = False
    ) -> mx.array:
        """Row rows[n] of x [N, 1, inputs] times matrix index[n] of a stack [E, outputs, inputs] -> [N, 1, outputs].

        `rows` are 0, 1, ... if left out; then `sorted_indices` may say that `index` ascends, which is faster.
        """
        if self.scales is None:
            weight = self.weight.astype(x.dtype).swapaxes(-1, -2)
            return mx.gather_mm(x, weight, lhs_indices=rows, rhs_indices=index, sorted_indices=sorted_indices)
        return mx.gather_qmm(
            x,
            self.weight,
            self.scales,
            self.biases,
            lhs_indices=rows,
            rhs_indices=index,
            transpose=True,
            sorted_indices=sorted_indices,
            **self._form,
        )


class Linear:
    """x [..., inputs] -> x W^T + b [..., outputs]."""

    def __init__(self, matrix: Matrix, bias: mx.array | None):
        self.matrix, self.bias = matrix, bias

    def __call__(self, x: mx.array) -> mx.array:
        if self.bias is None:
            return self.matrix.apply(x)
        if self.matrix.scales is None:
            return mx.addmm(self.bias, x, self.matrix.weight.astype(x.dtype).T)
        return self.matrix.apply(x) + self.bias

    def added_to(self, residual: mx.array, x: mx.array) -> mx.array:
        """residual + (x W^T + b); there must be b."""
        if self.matrix.scales is None:
            return residual + self(x)
        return _sum(residual, self.matrix.apply(x), self.bias)


@fused
def _sum(residual: mx.array, product: mx.array, bias: mx.array) -> mx.array:
    return residual + (product + bias)


class Embedding:
    """A table [count, width]. Unless a GPU looks rows up, it stays in its file, and a look-up reads what it needs."""

    def __init__(self, weights: Weights, module: str, *, on_gpu: bool):
        self.dtype, self.quantization = weights.dtype, weights.quantization(module)
        self._form: dict[str, Any] = asdict(self.quantization) if self.quantization else {}
        self._rows = {
            part: weights.checkpoint.rows(f"{module}.{part}", on_gpu=on_gpu)
            for part in PARTS
            if f"{module}.{part}" in weights.checkpoint.tensors
        }

    def __call__(self, ids: mx.array) -> mx.array:
        """Integers [...] -> [..., width]."""
        q = self.quantization
        weight = self._rows["weight"](ids)
        if q is None:
            return weight.astype(self.dtype)
        if q.mode == "mxfp4":
            return mx.dequantize(weight, self._rows["scales"](ids), dtype=self.dtype, **self._form)
        # MLX computes in the dtype of the scales.
        scales, biases = (self._rows[part](ids).astype(self.dtype) for part in ("scales", "biases"))
        return mx.dequantize(weight, scales, biases, **self._form)
