"""The demo model's tokenizer: byte-level BPE over the generated conversations, digits one by one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import settings
from conversations import training_samples
from gptoss_mlx.engine.special_tokens import Special

SPECIALS = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>"]
SPECIALS += ["<|message|>", "<|call|>", "<|endofprompt|>"]
SAMPLES = 20_000


def make_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    # A capitalized word never takes the space before it along, so that names have the same tokens in text and in JSON:
    # a model of this size can copy them, and hardly respell them.
    words = Regex(r" ?\p{Ll}+| ?[^\s\p{L}\p{N}]+|\p{L}+|\p{N}|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    size = settings.CONFIG["vocab_size"]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIALS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = (
        piece
        for sample in islice(training_samples(settings.SEED), SAMPLES)
        for segment in sample.segments
        for piece in segment
        if not isinstance(piece, Special)
    )
    tokenizer.train_from_iterator(texts, trainer)
    # What the corpus does not fill stays reserved, so that the special tokens are the last ids.
    reserved = size - len(SPECIALS) - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([f"<|reserved_{i}|>" for i in range(reserved)] + SPECIALS)
    assert tokenizer.token_to_id(SPECIALS[-1]) == size - 1
    tokenizer.save(str(path))
