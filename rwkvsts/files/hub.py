"""From what the user names to files on this disk: a weight file, a folder, a model hub repository.

Assumes the hub's usual layouts. Promises that only weights, their index and the vocabulary file
are downloaded, never code; that what was downloaded serves offline; and one `HubError` that says
what to do when the hub refuses or cannot be reached.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, HubError
from .layout import MAX_DESCRIPTION_BYTES, read_text, refusal, shown

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
INDEX_SUFFIX = ".index.json"
# In this order, as transformers does: the first that is there wins.
STANDARD_NAMES = (
    "model.safetensors",
    "model.safetensors" + INDEX_SUFFIX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX_SUFFIX,
)
VOCABULARY = "rwkv_vocab_v20230424.txt"
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SHARD = re.compile(r"[\w.-]{1,240}\.(safetensors|bin)")


@dataclass(frozen=True)
class Source:
    """Weight files on this disk and where they came from.

    name : what the user gave: a path or a repository
    files : weight files, in the order of their names if there are several
    index : the shards' index file, None for a single file
    vocabulary : the World vocabulary beside the weights, None if there is none
    revision : commit hash of a repository, None for a path
    """

    name: str
    files: tuple[Path, ...]
    index: Path | None = None
    vocabulary: Path | None = None
    revision: str | None = None


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Source:
    """Find the weight files that `source` names, downloading them where it names a repository.

    Parameters
    ----------
    source : a weight file, a folder with one model, or a hub repository "org/name"
    revision : branch, tag or commit of the repository, None for its main branch
    cache_dir : where downloads are kept, None for huggingface_hub's own place
    local_files_only : use what was downloaded before, without asking the hub
    token : of the hub, None for the one that `hf auth login` left

    Raises
    ------
    FileNotFoundError : no such path, and no name of a repository either
    CheckpointError : a folder without weights, or with several and no way to tell which
    HubError : the repository, or a file of it, cannot be had
    """
    name = os.fspath(source)
    path = Path(os.path.expanduser(name))
    if name and path.is_dir():
        return _from_folder(name, path)
    if name and path.exists():
        return Source(name, (path,), vocabulary=_vocabulary(path.parent))
    a_path = isinstance(source, os.PathLike) or name.endswith(WEIGHT_SUFFIXES)
    if a_path or not REPO_ID.fullmatch(name):
        raise FileNotFoundError(
            f"no model at {name!r}: expected a weight file, a folder with one model, or a hub "
            "repository 'org/name'; found no such path. Check the name."
        )
    return _from_hub(name, _place(revision, cache_dir, token), local_files_only)


def fetch(
    repo: str,
    file: str,
    *,
    repo_type: str = "model",
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """One file of a repository, from the cache when it is there and the hub cannot be reached.

    Raises HubError if it cannot be had.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    place = _place(revision, cache_dir, token)
    cause = "not in the cache: run once without local_files_only"
    try:
        if not local_files_only:
            # Asked first: without a network hf_hub_download retries for half a minute, aloud.
            where = {"repo_type": repo_type, "revision": revision, "endpoint": place["endpoint"]}
            get_hf_file_metadata(hf_hub_url(repo, file, **where), token=token)
    except Exception as error:
        if answer := _answer(error, repo, place):
            raise HubError(f"{repo}/{file}: {answer}.") from error
        cause = f"not in the cache, and the hub cannot be reached ({_first_line(error)}): "
        cause += "check the network"
        local_files_only = True
    try:
        found = hf_hub_download(
            repo, file, repo_type=repo_type, local_files_only=local_files_only, **place
        )
    except Exception as error:
        if not local_files_only:
            cause = f"the download broke off ({_first_line(error)}): run it again"
        raise HubError(f"{repo}/{file}: {_answer(error, repo, place) or cause}.") from error
    return Path(found)


def shard_names(index: Path) -> dict[str, str]:
    """The tensors that a shards' index names, and the file that holds each."""
    text = read_text(index, MAX_DESCRIPTION_BYTES)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refusal(str(index), "JSON text", str(error)[:100]) from error
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise refusal(str(index), "a mapping weight_map of tensors to files", "none")
    for name, file in shards.items():
        # A shard is a file beside the index: a path could lead anywhere.
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            raise refusal(
                f"{index}: tensor {shown(name)}", "the name of a weight file", shown(file)
            )
    return shards


def _from_folder(name: str, folder: Path) -> Source:
    """The one model in a folder."""
    chosen = _choose(name, [entry.name for entry in folder.iterdir()])
    source = Source(name, (folder / chosen,), vocabulary=_vocabulary(folder))
    if not chosen.endswith(INDEX_SUFFIX):
        return source
    index = folder / chosen
    files = tuple(folder / shard for shard in sorted(set(shard_names(index).values())))
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise refusal(
            str(index),
            f"{len(files)} shards beside it",
            f"{len(missing)} missing: {', '.join(missing[:3])}",
            "Download the missing files.",
        )
    return replace(source, files=files, index=index)


def _place(revision: str | None, cache_dir: Any, token: str | bool | None) -> dict[str, Any]:
    """Where to ask and what for, as huggingface_hub's functions take it."""
    # Read on every call: the library itself reads its variable once, when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    return {"revision": revision, "cache_dir": cache_dir, "token": token, "endpoint": endpoint}


def _from_hub(repo: str, place: dict[str, Any], local_files_only: bool) -> Source:
    """The one model in a repository, from the cache when the hub cannot be reached.

    place : revision, cache_dir, token and endpoint, as huggingface_hub's functions take them
    """
    # Imported here: it takes longer than all else in the package, and no local file needs it.
    from huggingface_hub import snapshot_download

    unreachable = None if local_files_only else _download(repo, place)
    cause = f"revision {place['revision'] or 'main'!r} is not wholly in the cache"
    if unreachable is None:
        cause += ": run once without local_files_only"
    else:
        cause = f"the hub cannot be reached ({_first_line(unreachable)}) and {cause}"
        cause += ": check the network, or give the path of a local file"
    try:
        # No pattern: only asks where the cache keeps this revision.
        folder = snapshot_download(repo, **place, local_files_only=True, allow_patterns=[])
        source = _from_folder(repo, Path(folder))
    except CheckpointError as error:
        if unreachable is None and not local_files_only:
            raise  # Downloaded just now: the repository itself is not right.
        raise HubError(f"{repo}: {cause}. In the cache: {error}") from unreachable
    except Exception as error:
        raise HubError(f"{repo}: {cause}.") from (unreachable or error)
    return replace(source, revision=Path(folder).name)


def _download(repo: str, place: dict[str, Any]) -> Exception | None:
    """Bring a repository's weights and vocabulary into the cache.

    Returns None, or the exception that shows that the hub cannot be reached and the cache must do.
    Raises HubError if the hub answers but refuses, or if the transfer breaks off.

    The exceptions are caught by their base: which ones a lost connection raises depends on the HTTP
    client, and huggingface_hub has changed it twice.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    try:
        api = HfApi(endpoint=place["endpoint"], token=place["token"])
        listing = api.model_info(repo, revision=place["revision"])
    except Exception as error:
        if answer := _answer(error, repo, place):
            raise HubError(f"{repo}: {answer}.") from error
        return error
    names = [entry.rfilename for entry in listing.siblings or ()]
    wanted = [_choose(repo, names)]
    vocabulary = _choose_vocabulary(names)
    if vocabulary is not None:
        wanted.append(vocabulary)
    try:
        if wanted[0].endswith(INDEX_SUFFIX):
            index = hf_hub_download(repo, wanted[0], **place)
            wanted += set(shard_names(Path(index)).values())
        snapshot_download(repo, **place, allow_patterns=wanted)
    except CheckpointError:
        raise
    except Exception as error:
        broken = f"the download broke off ({_first_line(error)}). Files that were complete are kept"
        answer = _answer(error, repo, place) or f"{broken}: run it again"
        raise HubError(f"{repo}: {answer}.") from error
    return None


def _answer(error: Exception, repo: str, place: dict[str, Any]) -> str | None:
    """What a refusal of the hub means and what to do; None if the hub gave no answer."""
    from huggingface_hub import errors

    page = f"{place['endpoint'] or 'https://huggingface.co'}/{repo}"
    log_in = "pass token=, or run `hf auth login`"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return f"not a repository's name ({_first_line(error)}): check the name"
    if isinstance(error, errors.GatedRepoError):
        return f"gated: accept its terms on {page} while logged in, then {log_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such repository, or a private one: check the name, or {log_in} if it is private"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {place['revision']!r}: give a branch, tag or commit listed on {page}"
    if status in (401, 403):
        return f"access denied ({_first_line(error)}): {log_in} with a token that may read it"
    if status is not None and 400 <= status < 500:
        return f"the hub refused ({_first_line(error)}): look at {page}"
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _choose(where: str, names: Collection[str]) -> str:
    """The file among `names` to start from: a weight file, or an index of shards."""
    for name in STANDARD_NAMES:
        if name in names:
            return name
    candidates = sorted(name for name in names if name.endswith(WEIGHT_SUFFIXES))
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise refusal(
            where,
            "one of " + ", ".join(STANDARD_NAMES) + ", or a single .pth",
            "no weight file",
            "Check the name, or give the weight file itself.",
        )
    raise refusal(
        where,
        "one model",
        f"{len(candidates)} weight files: {', '.join(candidates[:5])}",
        "Give the path of one of them.",
    )


def _vocabulary(folder: Path) -> Path | None:
    """The World vocabulary in a folder: the file of that name, or the only one like it."""
    name = _choose_vocabulary([entry.name for entry in folder.iterdir()])
    return folder / name if name else None


def _choose_vocabulary(names: Collection[str]) -> str | None:
    if VOCABULARY in names:
        return VOCABULARY
    candidates = [name for name in names if re.fullmatch(r".*vocab.*\.txt", name)]
    return candidates[0] if len(candidates) == 1 else None
