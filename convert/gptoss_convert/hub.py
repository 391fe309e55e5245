"""A hub repository id -> a local snapshot of the files that a conversion needs."""

from __future__ import annotations

from pathlib import Path

from gptoss_mlx.errors import GptOssError

# Not the `original/` and `metal/` copies of the same weights that the published repositories also hold.
FILES = ["*.json", "*.safetensors", "*.jinja", "LICENSE", "USAGE_POLICY"]


def download(repository: str, revision: str | None) -> Path:
    """The snapshot folder, named by its commit; files that are there already are not fetched again."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES, ignore_patterns=["*/*"]))
    except errors.HFValidationError:
        raise GptOssError(f"{repository} is neither a folder nor a hub repository id (owner/name)") from None
    except errors.GatedRepoError:
        raise GptOssError(f"{repository} asks for consent first: accept it on its page, then `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise GptOssError(f"the hub has no repository {repository}, or it is private: `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise GptOssError(f"{repository} has no revision {revision}") from None
    except errors.LocalEntryNotFoundError:
        raise GptOssError(
            f"cannot reach the hub for {repository}, and no copy of it is here: check the network"
        ) from None
    except Exception as error:
        # What the HTTP libraries below raise is no interface; all of it is cured by trying again.
        reason = str(error).strip() or type(error).__name__
        raise GptOssError(
            f"the download of {repository} broke off ({reason.splitlines()[0]}): run the same command again to go on"
        ) from None
