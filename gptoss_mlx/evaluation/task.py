"""Everything that one command evaluates: with a reference, whose predictions are written before the model is loaded."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import mlx.core as mx

from .. import device
from ..engine.generate import load
from ..engine.tokenizer import Tokenizer
from ..errors import GptOssError
from ..files import free_disk
from ..memory.plan import MemoryPlan
from ..memory.system import size_text
from ..model.config import ModelConfig
from ..progress import Progress
from ..provenance import recipe_and_source
from .journal import EvaluationJournal, model_key
from .needle import Needles
from .prompts import Prompts
from .report import EvaluationReport, EvaluationSettings
from .run import Evaluation, measured, run
from .text import LogProbabilities, Text


@dataclass(frozen=True)
class Chosen:
    """What is to be evaluated; None for what is not."""

    text: Text | None = None
    prompts: Prompts | None = None
    held_out: Prompts | None = None
    needle: Needles | None = None

    @property
    def all(self) -> list[Evaluation]:
        parts = (getattr(self, field.name) for field in fields(self))
        return [part for part in parts if part is not None]

    @property
    def context(self) -> int:
        """Positions that any of it takes at most."""
        return max(part.context for part in self.all)


class Task:
    """Evaluations of the model of `plan`. The text is also compared with the model of `reference`, if there is one."""

    def __init__(self, plan: MemoryPlan, chosen: Chosen, reference: MemoryPlan | None = None):
        """Writes nothing yet. Raises GptOssError where a plan, the reference or the disk does not fit the choice."""
        self._plan, self._chosen, self._reference = plan, chosen, reference
        _check_context(plan, chosen.context)
        plans = [plan]
        if reference is not None and chosen.text is not None:
            _check_context(reference, chosen.text.context)
            plans.append(reference)
        self._journal = EvaluationJournal(
            {
                "models": [model_key(Path(each.model), each.settings) for each in plans],
                "evaluations": {part.name: part.key for part in chosen.all},
            }
        )
        self._predictions = self._file_for(reference, chosen.text) if reference and chosen.text else None

    def _file_for(self, reference: MemoryPlan, text: Text) -> LogProbabilities:
        """The file of the reference's predictions, which are there or will be."""
        folders = Path(self._plan.model), Path(reference.model)
        ours, theirs = (ModelConfig.load(folder).vocab_size for folder in folders)
        if ours != theirs or not text.is_encoded_by(Tokenizer.load(folders[1])):
            raise GptOssError(f"{folders[1]} has another vocabulary than {folders[0]}: it cannot be compared with it")
        predictions = LogProbabilities(self._journal.path.with_suffix(".predictions"), text.windows, ours)
        if not predictions.exists and (free := free_disk(predictions.path.parent)) < predictions.nbytes:
            raise GptOssError(
                f"the predictions of {folders[1]} take {size_text(predictions.nbytes)} of disk, and"
                f" {predictions.path.parent} has {size_text(free)} free: lower --tokens, or set GPTOSS_MLX_HOME"
            )
        text.compare_with(folders[1].resolve().name, predictions)
        return predictions

    def run(self, check: Callable[[], None], show: Callable[[Progress], None]) -> None:
        """Measure what an interrupted run has not measured yet. `check` may raise Interrupted.

        Raises GptOssError for a model that cannot be read, a disk that is full, and where the same is running already.
        """
        self._journal.open()
        try:
            if self._predictions is not None and self._reference is not None:
                load(self._plan.model, self._plan.settings)  # an error of it comes before hours of the other's
                if not self._predictions.exists:
                    self._journal.clear()  # it may name windows whose predictions are gone
                    self._predictions.make()
                self._measure(self._reference, [self._predictions], check, show)
            self._measure(self._plan, self._chosen.all, check, show)
        except BaseException:
            if not self._journal.values:
                self.remove()
            raise

    def _measure(
        self,
        plan: MemoryPlan,
        evaluations: list[Evaluation],
        check: Callable[[], None],
        show: Callable[[Progress], None],
    ) -> None:
        """Load a model, and measure what is left."""
        todo = [each for each in evaluations if len(measured(each, self._journal)) < len(each.items)]
        if not todo:
            return
        gc.collect()  # the model that was loaded before
        mx.clear_cache()
        model = load(plan.model, plan.settings)
        for evaluation in todo:
            run(evaluation, model, self._journal, check, show)

    def report(self) -> EvaluationReport:
        """The results so far."""
        chosen, folder, settings = self._chosen, Path(self._plan.model), self._plan.settings
        values = {each.name: measured(each, self._journal) for each in chosen.all}
        runtime = device.runtime()
        return EvaluationReport(
            model=folder.resolve().name,
            recipe=recipe_and_source(folder)[0],
            settings=EvaluationSettings(
                version=runtime.version,
                device=runtime.device,
                kernels=runtime.kernels,
                kv_bits=settings.kv_bits,
                prefill_chunk=settings.prefill_chunk,
            ),
            finished=all(len(values[each.name]) == len(each.items) for each in chosen.all),
            text=chosen.text.results(values[chosen.text.name]) if chosen.text else None,
            prompts=chosen.prompts.results(values[chosen.prompts.name]) if chosen.prompts else None,
            held_out=chosen.held_out.results(values[chosen.held_out.name]) if chosen.held_out else None,
            needle=chosen.needle.results(values[chosen.needle.name]) if chosen.needle else [],
        )

    @property
    def kept(self) -> list[Path]:
        """The files from which the same command would continue, where something was measured."""
        files = [self._journal, self._predictions] if self._journal.values else []
        return [file.path for file in files if file is not None]

    def remove(self) -> None:
        """Keep nothing: all is done and reported, or nothing is done."""
        if self._predictions:
            self._predictions.remove()
        self._journal.remove()


def _check_context(plan: MemoryPlan, wanted: int) -> None:
    if plan.settings.context < wanted:
        raise GptOssError(
            f"this takes a context of {wanted:,} tokens, and the plan has {plan.settings.context:,}:"
            " give more --memory or a longer --context, or ask for less"
        )
