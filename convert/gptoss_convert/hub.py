"""A hub repository id -> a local snapshot of the files that a conversion needs."""

from __future__ import annotations

from pathlib import Path

from gptoss_mlx.errors import GptOssError

# Not the `original/` and `metal/` copies of the same weights that the published repositories also hold.
FILES = ["*.json", "*.safetensors", "*.jinja", "LICENSE", "USAGE_POLICY"]


def download(repository: str, revision: str | None) -> Path:
    """The snapshot folder, named by its commit; files that are there already are not fetched again."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES, ignore_patterns=["*/*"]))
    except HFValidationError:
        raise GptOssError(f"{repository} is neither a folder nor a hub repository id (owner/name)") from None
    except LocalEntryNotFoundError:
        raise GptOssError(
            f"cannot reach the hub for {repository}, and no copy of it is here: check the network"
        ) from None
    except HfHubHTTPError as error:
        raise GptOssError(f"the hub refused {repository}: {str(error).splitlines()[0]}") from None
    except OSError as error:
        raise GptOssError(f"cannot download {repository}: {error}") from None
