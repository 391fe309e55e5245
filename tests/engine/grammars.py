"""What tests of grammars share: the demo's tokenizer, grammars of it, and texts drawn among what one allows."""

import json

import numpy as np
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from gptoss_mlx.demo import CHECKPOINT
from gptoss_mlx.engine.json_grammar import JsonGrammar
from gptoss_mlx.engine.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(CHECKPOINT)
STOP = TOKENIZER.special("<|return|>")
VOCABULARY = 1600  # more logits than the tokenizer has ids
TEXT_IDS = np.setdiff1d(np.arange(1526), [*TOKENIZER.specials])
TEXTS = {id_: TOKENIZER.decode([int(id_)]) for id_ in TEXT_IDS}
CLOSING = [id_ for id_, text in TEXTS.items() if text[0] in '"}]']
BLANK = [id_ for id_, text in TEXTS.items() if not text.strip()]


def closed(**properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


INTEGER, STRING, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}


def grammar_of(schema):
    return JsonGrammar(schema, TOKENIZER, VOCABULARY, STOP)


def written(grammar, seed, *, preferred=(), most=400):
    """A text of at most `most` tokens, None where it did not end. Some ids may be preferred to all others, and the more
    so, the longer the text, those that close something. What a grammar promises is checked at every step."""
    random = np.random.default_rng(seed)
    logits = np.zeros(VOCABULARY)
    logits[STOP], logits[[*preferred]] = 5, 100
    ids = []
    while len(ids) < most:
        allowed = np.array(grammar.allowed())
        assert allowed.shape == (VOCABULARY,)
        assert np.isin(np.flatnonzero(allowed), [*TEXT_IDS, STOP]).all()
        assert (np.flatnonzero(allowed).tolist() == [STOP]) == grammar.finished
        logits[CLOSING] += 0.03
        id_ = int(np.argmax(np.where(allowed, logits + 2 * random.gumbel(size=VOCABULARY), -np.inf)))
        grammar.accept(id_)
        if id_ == STOP:
            assert grammar.finished
            assert np.flatnonzero(np.array(grammar.allowed())).tolist() == [STOP]
            return TOKENIZER.decode(ids)
        ids.append(id_)
    return None


def assert_valid(schema, text):
    kind = validator_for(schema, default=Draft202012Validator)
    kind(schema, format_checker=kind.FORMAT_CHECKER).validate(json.loads(text))
