"""A converted folder -> a repository on the hub, with a model card that says where it comes from and what is in it.

Reads what a conversion wrote; knows nothing of how it did. `contents` opens no connection.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_token
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # not marked as exported

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.memory.system import size_text
from gptoss_mlx.model.model_store import HUB_ID
from gptoss_mlx.provenance import PROVENANCE, json_object
from gptoss_mlx.untrusted import read_json

from .hub import explained
from .inspection import Inspection, Subject, count_text, inspect
from .recipes import RECIPES
from .verification import verify

CARD = "README.md"
FIDELITY = "fidelity.json"  # what `gptoss-mlx compare --json` prints, where somebody kept it
UPLOADED = ("[!.]*.safetensors", "[!.]*.json", "[!.]*.jinja", "LICENSE", "USAGE_POLICY")

# Label -> the name of a result in fidelity.json, and its format.
RESULTS = {
    "KL divergence from the source, mean": ("kl_mean", "{:.5f} nats a token"),
    "KL divergence, 99th percentile": ("kl_p99", "{:.5f} nats a token"),
    "perplexity of the source": ("source_perplexity", "{:.4f}"),
    "perplexity of this model": ("model_perplexity", "{:.4f}"),
    "the same likeliest token": ("same_top", "{:.2%}"),
}


def contents(folder: Path, repository: str) -> dict[str, Path | bytes]:
    """The content of an upload of a converted folder to `repository`, by name: files, and the card.

    Raises GptOssError for a folder that gptoss-mlx did not convert, and for a name that is none.
    """
    if not HUB_ID.fullmatch(repository):
        raise GptOssError(f"{repository!r} is not the name of a hub repository: give OWNER/NAME")
    made: dict[str, Path | bytes] = {CARD: model_card(folder, repository).encode()}
    for pattern in (CARD, *UPLOADED):
        made |= {path.name: path for path in sorted(folder.glob(pattern)) if path.is_file()}
    return made


def size_of(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def upload(folder: Path, repository: str, on_file: Callable[[str, int], None] = lambda name, size: None) -> str:
    """Check a converted folder, and make it the content of a repository in one commit; returns its address.

    `on_file` is called with the name and size of each file before it is sent; in a terminal, huggingface_hub shows the
    progress. Files that an earlier upload brought there are not sent again. Raises GptOssError.
    """
    files = contents(folder, repository)
    if wrong := verify(folder):
        raise GptOssError(f"{folder} is damaged, and was not uploaded: {wrong[0]}; convert it again")
    if get_token() is None:
        raise GptOssError("an upload needs a token with write access: run `hf auth login`")
    if not sys.stderr.isatty():
        disable_progress_bars()
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    with explained(repository):
        api = HfApi()
        address = api.create_repo(repository, exist_ok=True)
        for operation in operations:
            on_file(operation.path_in_repo, size_of(files[operation.path_in_repo]))
            api.preupload_lfs_files(repository, additions=[operation])
        api.create_commit(repository, operations, commit_message="Upload with gptoss-mlx")
    return str(address)


def model_card(folder: Path, repository: str) -> str:
    """The README.md, in Markdown after YAML, of a converted folder in `repository`. Raises GptOssError."""
    found = inspect(Subject.of_folder(folder))
    if found.provenance is None:
        raise GptOssError(f"{folder} has no {PROVENANCE}: it was not converted by gptoss-mlx")
    license = folder / "LICENSE"
    sections = [
        _front_matter(found.provenance, license.read_text(errors="replace") if license.is_file() else ""),
        _introduction(found, repository),
        _weights(found),
        _use(repository),
        _fidelity(folder / FIDELITY),
        _checksums(found.provenance, repository),
        "## License\n\n" + ("As the source: see LICENSE." if license.is_file() else "The source came without one."),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _front_matter(made: dict[str, Any], license: str) -> str:
    entries: dict[str, Any] = {"library_name": "mlx", "pipeline_tag": "text-generation"}
    if "Apache License" in license and "Version 2.0" in license:
        entries["license"] = "apache-2.0"
    elif license:
        entries |= {"license": "other", "license_link": "LICENSE"}
    if base := _hub_id(made):
        entries |= {"base_model": base, "base_model_relation": "quantized"}
    entries["tags"] = ["mlx", "gpt-oss", str(made.get("recipe"))]
    # JSON is YAML.
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in entries.items()), "---"])


def _introduction(found: Inspection, repository: str) -> str:
    made = found.provenance or {}
    recipe, base = made.get("recipe"), _hub_id(made)
    source = f"[{base}](https://huggingface.co/{base})" if base else _plain(_source(made).get("id"))
    if revision := _source(made).get("revision"):
        source += f", revision `{_plain(revision)}`,"
    summary = f" ({RECIPES[recipe].summary})" if recipe in list(RECIPES) else ""
    return (
        f"# {repository.split('/')[1]}\n\n"
        f"{source} for [MLX](https://github.com/ml-explore/mlx): converted by {_plain(made.get('tool'))} "
        f"with the recipe `{_plain(recipe)}`{summary}.\n\n"
        f"{found.layers} layers, {found.experts_per_token} of {found.experts} experts a token, "
        f"context {found.context:,} tokens."
    )


def _weights(found: Inspection) -> str:
    rows = [
        (
            group.name,
            count_text(group.parameters),
            count_text(group.active),
            size_text(group.bytes),
            f"{group.bits_per_weight:.2f}",
            group.main_dtype,
        )
        for group in found.groups
    ]
    total = (count_text(found.total("parameters")), count_text(found.total("active")), size_text(found.total("bytes")))
    rows.append(("in all", *total, f"{found.bits_per_weight:.2f}", ""))
    return "## Weights\n\n" + _table(("", "weights", "per token", "size", "bits per weight", "stored as"), rows)


def _use(repository: str) -> str:
    name = repository.split("/")[1]
    return (
        "## Use\n\nWith gptoss-mlx, offline after the download:\n\n"
        f"```\nhf download {repository} --local-dir {name}\ngptoss-mlx chat ./{name}\n```\n\n"
        f"With MLX-LM:\n\n```\npip install mlx-lm\nmlx_lm.chat --model {repository}\n```"
    )


def _fidelity(path: Path) -> str:
    if not path.is_file():
        return ""
    found = json_object(path, read_json(path))
    names = ["tokens", *(name for name, _ in RESULTS.values())]
    if strange := [name for name in names if not isinstance(found.get(name), int | float)]:
        raise GptOssError(
            f"{path} has no number {strange[0]!r}: write it again with `gptoss-mlx compare --json`, or remove it"
        )
    rows = [(label, form.format(found[name])) for label, (name, form) in RESULTS.items()]
    return f"## Fidelity\n\nOn {found['tokens']:,} tokens of a text, in FP32:\n\n" + _table(("", ""), rows)


def _checksums(made: dict[str, Any], repository: str) -> str:
    rows = [
        (f"{whose}: {_plain(name)}", f"`{_plain(digest)}`")
        for whose, key in (("source", "source_sha256"), ("this", "sha256"))
        for name, digest in (made[key].items() if isinstance(made.get(key), dict) else ())
    ]
    check = f"`gptoss-mlx verify ./{repository.split('/')[1]}` checks a download against them."
    return "## Checksums\n\n" + _table(("file", "SHA-256"), rows) + f"\n\n{check}"


def _source(made: dict[str, Any]) -> dict[str, Any]:
    return made["source"] if isinstance(made.get("source"), dict) else {}


def _hub_id(made: dict[str, Any]) -> str | None:
    """The repository that it was made from, if that is on the hub."""
    id = _source(made).get("id")
    return id if isinstance(id, str) and HUB_ID.fullmatch(id) else None


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _plain(value: object) -> str:
    """A value from provenance.json as text that can break neither a line nor a table."""
    return " ".join(re.sub(r"[|`<>\[\]]", " ", str(value)).split())
