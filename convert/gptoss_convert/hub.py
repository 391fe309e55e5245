"""A repository of the hub at one commit: its list of files, parts of files by range, and whole files, checked.

Over the huggingface_hub library, which knows the user's token, endpoint, cache and offline mode. Every failure becomes
a GptOssError of one line. Knows nothing of conversion. Import it where the hub is used: the library takes a while.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import HfApi, constants, errors, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoSibling

from gptoss_mlx.errors import GptOssError
from gptoss_mlx.files import sha256
from gptoss_mlx.model.checkpoint import INDEX, Checkpoint, Shard, checked_index, weight_files
from gptoss_mlx.model.recognition import has_weights, without_weights
from gptoss_mlx.model.safetensors import CheckpointError, Header, header_length, parse_header
from gptoss_mlx.untrusted import parsed

from .partial_file import PartialFile, arrived
from .ranges import CONNECTIONS, ChangedError, Resource, download, of_the_disk

# Disable telemetry: huggingface_hub would send environment details.
constants.HF_HUB_DISABLE_TELEMETRY = True
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what matters of its warnings becomes an error here


@dataclass(frozen=True)
class RemoteFile:
    name: str
    size: int
    """Bytes."""
    sha256: str | None
    """In hexadecimal, of files in large file storage, as all weights are; None for small ones in git."""

    @property
    def resumes(self) -> bool:
        """Whether an earlier process's part of it is used: without a checksum, it might be of another file."""
        return self.sha256 is not None


@dataclass(frozen=True)
class Fetched:
    """A whole file on disk. `ours`: made by this fetch, so that the caller may delete it."""

    path: Path
    ours: bool
    sha256: str


@dataclass(frozen=True)
class Repository:
    """`files` are those at the top, without the copies of the weights that folders such as `original/` hold."""

    id: str
    commit: str
    files: Mapping[str, RemoteFile]

    @classmethod
    def open(cls, id: str, revision: str | None = None) -> Repository:
        """By one request; without a connection, what the user's cache has of it. Raises GptOssError."""
        with explained(id, revision):
            try:
                info = HfApi().model_info(
                    id, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
                )
            except (errors.HfHubHTTPError, errors.HFValidationError):
                raise
            except Exception:
                if (cached := _cached(id, revision)) is None:
                    raise
                return cached
            if info.sha is None or info.siblings is None:
                raise ValueError("neither commit nor files")
            at_the_top = [each for each in info.siblings if Path(each.rfilename).name == each.rfilename]
            return cls(id, _hexadecimal(info.sha, 40), {each.rfilename: _remote_file(each) for each in at_the_top})

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes start..end of a file, by default all of it, and nothing else of it. Raises GptOssError."""
        file = self._file(name)
        end = file.size if end is None else end
        with explained(self.id, self.commit):
            if path := self._in_cache(name):
                with path.open("rb") as cached:
                    cached.seek(start)
                    return cached.read(end - start)
            return self._resource(file).read(start, end)

    def headers(self) -> dict[str, Header]:
        """File name -> header, of all safetensors files of the model. Raises GptOssError."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return dict(zip(self.shards, pool.map(self._header, self.shards), strict=True))

    def checkpoint(self, folder: Path) -> Checkpoint:
        """Over those headers: its tensors can be viewed when their files are in `folder`. Raises GptOssError."""
        shards = {name: Shard(folder / name, header) for name, header in self.headers().items()}
        return Checkpoint.placed(folder, self._weight_map, shards)

    def fetch(self, name: str, folder: Path | None, on_read: Callable[[int], None] = lambda count: None) -> Fetched:
        """Have a whole file on disk, its SHA-256 checked where the hub gives one. Raises GptOssError.

        A copy in the user's cache is used from there. Otherwise the file comes into `folder`, or with None into the
        cache; a download that was killed resumes. `on_read` is called with each number of bytes that have arrived,
        several times a second; what it raises ends the transfer.
        """
        file = self._file(name)
        with explained(self.id, self.commit):
            cached = self._in_cache(name)
            if cached and (digest := sha256(cached)) == (file.sha256 or digest):
                on_read(file.size)
                return Fetched(cached, False, digest)
            if folder is not None:
                path = folder / name
                return Fetched(path, True, self._fetch_as(path, file, on_read))
            return self._fetch_into_cache(file, on_read)

    def _fetch_into_cache(self, file: RemoteFile, on_read: Callable[[int], None]) -> Fetched:
        path, blob = self._cache_paths(file)
        for folder in {path.parent, blob.parent}:
            folder.mkdir(parents=True, exist_ok=True)
        if not blob.is_file() or (digest := sha256(blob)) != file.sha256:
            blob.unlink(missing_ok=True)
            digest = self._fetch_as(blob, file, on_read)
        if path != blob:
            path.unlink(missing_ok=True)
            try:
                path.symlink_to(Path("..", "..", blob.parent.name, blob.name))
            except OSError:  # on a disk without links
                blob.replace(path)
        return Fetched(path, False, digest)

    def _fetch_as(self, path: Path, file: RemoteFile, on_read: Callable[[int], None]) -> str:
        """Returns the SHA-256."""
        unfinished, is_whole = self._unfinished(path, file), path.exists()
        if is_whole:
            path.replace(unfinished)
        with PartialFile(unfinished, file.size, resume=is_whole or file.resumes) as partial:
            try:
                digest = download(self._resource(file), partial, on_read)
            except ChangedError:
                if file.sha256 is None:
                    partial.discard()
                raise
            if digest != (file.sha256 or digest):
                partial.discard()
                raise GptOssError(
                    f"{file.name} of {self.id} arrived damaged, and was removed: run the same command again to download"
                    " it anew"
                )
            partial.complete(path)
        return digest

    def arrived(self, name: str, folder: Path | None) -> int:
        """The bytes of a file that `fetch` finds unfinished, and so does not report."""
        file = self._file(name)
        if self._in_cache(name):
            return 0
        path = folder / name if folder else self._cache_paths(file)[1]
        if path.exists():
            return file.size
        return arrived(self._unfinished(path, file), file.size) if file.resumes else 0

    def _unfinished(self, path: Path, file: RemoteFile) -> Path:
        return path.with_name(f".{file.name}.{(file.sha256 or self.commit)[:16]}.partial")

    def _cache_paths(self, file: RemoteFile) -> tuple[Path, Path]:
        """A file's path in the user's cache, and that of its bytes: what has a SHA-256 is a link to where others find
        it. The library's own downloads, with Xet or without, begin anew in each process."""
        repository = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=self.id, repo_type="model"))
        path = repository / "snapshots" / self.commit / file.name
        return path, repository / "blobs" / file.sha256 if file.sha256 else path

    def _resource(self, file: RemoteFile) -> Resource:
        return Resource(hf_hub_url(self.id, file.name, revision=self.commit), file.size, file.sha256 is not None)

    @cached_property
    def shards(self) -> list[str]:
        """The names of the files that hold the weights, in order. Raises GptOssError."""
        if not has_weights(self.files):
            raise CheckpointError(without_weights(self.id, self.files))
        return weight_files(self.id, self.files.keys(), self._weight_map)

    @cached_property
    def _weight_map(self) -> dict[str, str] | None:
        if INDEX not in self.files:
            return None
        where = Path(self.id) / INDEX
        return checked_index(where, parsed(where, self.read(INDEX), CheckpointError))

    def _header(self, name: str) -> Header:
        where, size = Path(self.id) / name, self.files[name].size
        length = header_length(where, self.read(name, 0, min(8, size)), size)
        return parse_header(where, self.read(name, 8, 8 + length), size)

    def _file(self, name: str) -> RemoteFile:
        if name not in self.files:
            raise GptOssError(f"{self.id} has no file {name}")
        return self.files[name]

    def _in_cache(self, name: str) -> Path | None:
        """The file in the user's cache, if it is there with all its bytes."""
        path = try_to_load_from_cache(self.id, name, revision=self.commit)
        return Path(path) if isinstance(path, str) and Path(path).stat().st_size == self.files[name].size else None


def _remote_file(entry: RepoSibling) -> RemoteFile:
    """Raises ValueError for an entry that cannot be right."""
    if entry.size is None:
        raise ValueError(entry.rfilename)
    return RemoteFile(entry.rfilename, int(entry.size), _hexadecimal(entry.lfs.sha256, 64) if entry.lfs else None)


def _hexadecimal(text: str, digits: int) -> str:
    """Raises ValueError for anything else: it becomes a part of file names."""
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
        raise ValueError(text)
    return text


def _cached(id: str, revision: str | None) -> Repository | None:
    """A repository as far as the user's cache has it."""
    config = try_to_load_from_cache(id, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    snapshot = Path(config).parent
    files = {}
    for path in snapshot.iterdir():
        if path.is_file():
            # A link to a blob, which has its SHA-256 for a name if it is in large file storage.
            blob = path.readlink().name if path.is_symlink() else ""
            files[path.name] = RemoteFile(path.name, path.stat().st_size, blob if len(blob) == 64 else None)
    return Repository(id, snapshot.name, files)


@contextmanager
def explained(id: str, revision: str | None = None) -> Iterator[None]:
    """Turn the library's errors about the repository `id` into a GptOssError that says what to do."""
    try:
        yield
    except GptOssError:
        raise
    except Exception as error:
        raise GptOssError(_explanation(id, revision, error)) from None


def _explanation(id: str, revision: str | None, error: BaseException) -> str:
    if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and error.__cause__:
        return _explanation(id, revision, error.__cause__)  # the library's wrappings
    match error:
        case errors.HFValidationError():
            return f"{id} is neither a folder nor a hub repository id (owner/name)"
        case errors.GatedRepoError():
            return f"{id} asks for your consent: accept it on its page, then run `hf auth login`"
        case errors.RepositoryNotFoundError():
            return f"the hub has no repository {id}, or it is private: run `hf auth login`"
        case errors.RevisionNotFoundError():
            return f"{id} has no revision {revision}"
        case errors.HfHubHTTPError():
            return _refusal(id, error.response.status_code)
        case ChangedError():
            return f"the hub has other files for {id} than it lists: run the same command again to ask it anew"
        case KeyError() | TypeError() | ValueError():
            return f"unexpected response from {constants.ENDPOINT} about {id}: is HF_ENDPOINT right?"
        case OSError() if of_the_disk(error):
            return f"cannot save {error.filename or 'files'} of {id}: {error.strerror}"
    if constants.is_offline_mode():
        return f"HF_HUB_OFFLINE is set, and not all of {id} is on this machine: unset it to go online"
    # What the HTTP library below raises is no interface; all of it is cured by trying again.
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"cannot reach the hub for {id} ({reason}): check the network, and run the same command again to resume"


def _refusal(id: str, status: int) -> str:
    if status in (401, 403):
        return f"the hub refuses this for {id}: run `hf auth login` with a token that allows it"
    if status == 429:
        return "the hub limits requests: wait a few minutes, and run the same command again to resume"
    return f"the hub failed for {id} (HTTP status {status}): run the same command again later to resume"
