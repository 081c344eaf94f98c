"""From what the user names to files on this disk: a weight file, a folder, a model hub repository.

Assumes the hub's usual layouts. Promises that only weights, their index and the vocabulary file
are downloaded, never code; that what was downloaded serves offline; and one `HubError` that says
what to do when the hub refuses or cannot be reached.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import posixpath
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, HubError
from .choosing import INDEX_SUFFIX, WEIGHT_SUFFIXES, Chosen, Wanted, beside, choose
from .layout import MAX_DESCRIPTION_BYTES, read_text, refusal, shown

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# A file of a repository, as people copy it: its page's address, or its path behind the name.
IN_REPO = re.compile(
    r"(?P<scheme>https?://[^/]+/|hf://(?:models/)?|(?:www\.)?(?:huggingface\.co|hf\.co)/)?"
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[\w.-]+)"
    r"(?:(?:/(?:resolve|blob|raw|tree)/|[@:])(?P<revision>[^/]+))?"
    r"(?:/(?P<file>[^?]+\.(?:safetensors|pth|pt|bin|st|ckpt|json)))?(?P<slash>/?)(?:\?.*)?"
)
SHARD = re.compile(r"[\w.-]{1,240}\.(safetensors|bin)")
# What the system answers where the cache cannot be written.
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}
UNWRITABLE |= {errno.EEXIST, errno.ENAMETOOLONG, errno.ENOENT}
PASSING = (408, 429)  # ask again later: until then, as from 500 on, what is cached serves


@dataclass(frozen=True)
class Source:
    """Weight files on this disk and where they came from.

    name : what the user gave: a path or a repository
    files : weight files, in the order of their names if there are several
    index : the shards' index file, None for a single file
    vocabulary : the World vocabulary, None if there is none or no way to tell which
    vocabularies : names of those that it may be, where there is no way to tell
    revision : commit hash of a repository, None for a path
    """

    name: str
    files: tuple[Path, ...]
    index: Path | None = None
    vocabulary: Path | None = None
    vocabularies: tuple[str, ...] = ()
    revision: str | None = None


def resolve(
    source: str | os.PathLike[str],
    *,
    file: str | None = None,
    vocabulary: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Source:
    """Find the weight files that `source` names, downloading them where it names a repository.

    Parameters
    ----------
    source : a weight file, a folder with one model, or a hub repository "org/name"
    file : the weight file, or index of shards, in a folder or repository of several
    vocabulary : a World vocabulary on this disk, or in the folder or repository; None for the one
        beside the weights
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
    given = None if vocabulary is None else Path(os.path.expanduser(vocabulary))
    if given is not None and given.exists():
        wanted = Wanted(file)
    else:
        wanted, given = Wanted(file, None if vocabulary is None else os.fspath(vocabulary)), None
    found = _find(source, name, wanted, _place(revision, cache_dir, token), local_files_only)
    return found if given is None else replace(found, vocabulary=given, vocabularies=())


def _find(
    source: str | os.PathLike[str],
    name: str,
    wanted: Wanted,
    place: dict[str, Any],
    local_files_only: bool,
) -> Source:
    """What `resolve` says; a vocabulary that is wanted lies in the folder or repository."""
    if "\0" in name:
        raise FileNotFoundError(f"no model at {name!r}: a path holds no NUL character")
    path = Path(os.path.expanduser(name))
    if name and path.is_dir():
        return _source(name, path, choose(name, _names(path), wanted))
    if name and path.exists():
        if wanted.file is not None:
            raise CheckpointError(
                f"file={wanted.file!r}: {name} is a file itself; leave file= out, or give the "
                "folder or repository that holds several"
            )
        there = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
        return _source(name, path.parent, beside(name, there, path.name, wanted))
    a_path = isinstance(source, os.PathLike) or name.endswith(WEIGHT_SUFFIXES)
    if a_path or not REPO_ID.fullmatch(name):
        found = "a link that leads nowhere" if path.is_symlink() else "no such path"
        raise FileNotFoundError(
            f"no model at {name!r}: expected a weight file, a folder with one model, or a hub "
            f"repository 'org/name'; found {found}. {_remedy(name)}"
        )
    return _from_hub(name, wanted, place, local_files_only)


def _remedy(name: str) -> str:
    """How to give what a name seems to mean: a file of a repository, or the repository's page."""
    found = IN_REPO.fullmatch(name)
    if found is None or not any(found[part] for part in ("scheme", "revision", "file", "slash")):
        return "Check the name."
    call = f"source={found['repo']!r}"
    if found["revision"] not in (None, "main"):
        call += f", revision={found['revision']!r}"
    if found["file"]:
        call += f", file={found['file']!r}"
    return f"Check the name; a repository on the hub is given as {call}."


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
        cause = f"not in the cache, and {_unreachable(error)}"
        local_files_only = True
    try:
        found = hf_hub_download(
            repo, file, repo_type=repo_type, local_files_only=local_files_only, **place
        )
    except Exception as error:
        if not local_files_only:
            cause = _disk(error) or f"the download broke off ({_first_line(error)}): run it again"
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


def _names(folder: Path) -> list[str]:
    """Files of a folder and of its subfolders, as a repository lists them, no deeper."""
    names = []
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            names += [entry.name] if entry.exists() else []  # the cache's links may lead nowhere
        elif os.access(entry, os.R_OK | os.X_OK):
            names += [f"{entry.name}/{inner.name}" for inner in entry.iterdir() if inner.is_file()]
    return names


def _source(name: str, folder: Path, chosen: Chosen) -> Source:
    """The files on this disk that were chosen in a folder."""
    weights = folder / chosen.weights
    vocabulary = None if chosen.vocabulary is None else folder / chosen.vocabulary
    source = Source(name, (weights,), None, vocabulary, chosen.vocabularies)
    if not chosen.weights.endswith(INDEX_SUFFIX):
        return source
    files = tuple(weights.parent / shard for shard in sorted(set(shard_names(weights).values())))
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise refusal(
            str(weights),
            f"{len(files)} shards beside it",
            f"{len(missing)} missing: {', '.join(missing[:3])}",
            "Download the missing files.",
        )
    return replace(source, files=files, index=weights)


def _place(revision: str | None, cache_dir: Any, token: str | bool | None) -> dict[str, Any]:
    """Where to ask and what for, as huggingface_hub's functions take it."""
    # Read on every call: the library itself reads its variable once, when it is imported.
    given = os.environ.get("HF_ENDPOINT", "")
    endpoint = given.rstrip("/") or None
    if given and not re.match(r"https?://[^/]", given):
        raise HubError(
            f"HF_ENDPOINT={given!r}: expected an address as https://huggingface.co; set it so, or "
            "unset it"
        )
    if isinstance(token, str) and not re.fullmatch(r"[!-~]+", token):
        raise HubError(
            "token=...: it holds a blank, a line end or another sign that no token has; copy it "
            "anew, or leave it out for a public repository"
        )
    if revision is not None and not re.fullmatch(r"\S+", revision):
        raise HubError(f"revision={revision!r}: expected the name of a branch or tag, or a commit")
    return {"revision": revision, "cache_dir": cache_dir, "token": token, "endpoint": endpoint}


def _from_hub(repo: str, wanted: Wanted, place: dict[str, Any], local_files_only: bool) -> Source:
    """The one model in a repository, from the cache when the hub cannot be reached.

    place : revision, cache_dir, token and endpoint, as huggingface_hub's functions take them
    """
    # Imported here: it takes longer than all else in the package, and no local file needs it.
    from huggingface_hub import snapshot_download

    listing = None if local_files_only else _listing(repo, place)
    chosen = None
    if isinstance(listing, list):
        chosen = choose(repo, listing, wanted)
        _download(repo, place, chosen)
    unreachable = listing if isinstance(listing, Exception) else None
    cause = f"revision {place['revision'] or 'main'!r} is not wholly in the cache"
    if local_files_only:
        cause += ": run once without local_files_only"
    elif unreachable is not None:
        cause += f", and {_unreachable(unreachable)}, or give the path of a local file"
    try:
        # No pattern: only asks where the cache keeps this revision.
        folder = Path(snapshot_download(repo, **place, local_files_only=True, allow_patterns=[]))
        source = _source(repo, folder, chosen or choose(repo, _names(folder), wanted))
    except CheckpointError as error:
        if chosen is not None:
            raise  # Downloaded just now: the repository itself is not right.
        raise HubError(f"{repo}: {cause}. In the cache: {error}") from unreachable
    except Exception as error:
        raise HubError(f"{repo}: {cause}.") from (unreachable or error)
    return replace(source, revision=folder.name)


def _listing(repo: str, place: dict[str, Any]) -> list[str] | Exception:
    """The repository's files; or the exception that shows that the hub cannot be reached.

    Raises HubError if the hub answers but refuses. The exceptions are caught by their base: which
    ones a lost connection raises depends on the HTTP client, and huggingface_hub has changed it
    twice.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(endpoint=place["endpoint"], token=place["token"])
        listing = api.model_info(repo, revision=place["revision"])
    except Exception as error:
        if answer := _answer(error, repo, place):
            raise HubError(f"{repo}: {answer}.") from error
        return error
    names = [entry.rfilename for entry in listing.siblings or ()]
    return [name for name in names if ".." not in name.split("/") and not name.startswith("/")]


def _download(repo: str, place: dict[str, Any], chosen: Chosen) -> None:
    """Bring the weights and the vocabulary into the cache.

    Raises HubError if the hub refuses, the transfer breaks off, or the cache cannot be written.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    wanted = [name for name in (chosen.weights, chosen.vocabulary) if name is not None]
    try:
        if chosen.weights.endswith(INDEX_SUFFIX):
            index = hf_hub_download(repo, chosen.weights, **place)
            shards = set(shard_names(Path(index)).values())
            wanted += [posixpath.join(chosen.folder, shard) for shard in shards]
        snapshot_download(repo, **place, allow_patterns=[glob.escape(name) for name in wanted])
    except CheckpointError:
        raise
    except Exception as error:
        broken = f"the download broke off ({_first_line(error)}). Files that were complete are kept"
        answer = _answer(error, repo, place) or _disk(error) or f"{broken}: run it again"
        raise HubError(f"{repo}: {answer}.") from error


def _unreachable(error: Exception) -> str:
    """Why the hub was not asked or gave no answer, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to ask the hub: unset it and start anew"
    status = _status(error)
    if status is not None and status >= 500:
        return f"the hub is in trouble ({_first_line(error)}): wait a while"
    if status in PASSING:
        return f"the hub is busy ({_first_line(error)}): wait a while"
    return f"the hub cannot be reached ({_first_line(error)}): check the network"


def _disk(error: Exception) -> str | None:
    """What to do where the cache cannot be written; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in UNWRITABLE:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return (
        f"the cache cannot be written ({where}{error.strerror}): give another folder with "
        "cache_dir= or the variable HF_HOME, or make room there"
    )


def _status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _answer(error: Exception, repo: str, place: dict[str, Any]) -> str | None:
    """What a refusal of the hub means and what to do; None if the hub gave no answer."""
    from huggingface_hub import errors

    page = f"{place['endpoint'] or 'https://huggingface.co'}/{repo}"
    log_in = "pass token=, or run `hf auth login`"
    status = _status(error)
    if isinstance(error, errors.HFValidationError):
        return f"not a repository's name ({_first_line(error)}): check the name"
    if isinstance(error, errors.GatedRepoError):
        return f"gated: accept its terms on {page} while logged in, then {log_in}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such repository, or a private one: check the name, or {log_in} if it is private"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {place['revision']!r}: give a branch, tag or commit listed on {page}"
    if status == 401 and _sends_token(place["token"]):
        return (
            "the token that was sent is not accepted, it may have expired. A public repository "
            "needs none: leave token= out, unset HF_TOKEN or run `hf auth logout`; for a private "
            "one run `hf auth login` again"
        )
    if status in (401, 403):
        return f"access denied ({_first_line(error)}): {log_in} with a token that may read it"
    if status is not None and 400 <= status < 500 and status not in PASSING:
        return f"the hub refused ({_first_line(error)}): look at {page}"
    return None


def _sends_token(token: str | bool | None) -> bool:
    from huggingface_hub import get_token

    return isinstance(token, str) or (token is not False and get_token() is not None)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
