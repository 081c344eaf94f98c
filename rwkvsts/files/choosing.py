"""Which files of a folder or a repository make the model: its weights and its vocabulary.

Assumes names as a listing gives them, folders with a slash. Promises one choice, made from names
alone before anything is read or downloaded; where it is not certain, one `CheckpointError` that
names the candidates and how to name one of them.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..errors import CheckpointError
from .layout import refusal, shown

USUAL_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
WEIGHT_SUFFIXES = (*USUAL_SUFFIXES, ".st", ".ckpt")
INDEX_SUFFIX = ".index.json"
# In this order, as transformers does: the first that is there wins.
STANDARD_NAMES = (
    "model.safetensors",
    "model.safetensors" + INDEX_SUFFIX,
    "pytorch_model.bin",
    "pytorch_model.bin" + INDEX_SUFFIX,
)
# What trainers leave beside the weights.
OF_TRAINING = re.compile(
    r"(training_args|optimizer\w*|scheduler\w*|sampler\w*|scaler\w*|rng_state\w*|\w+_optim_states)"
    r"\.(bin|pt|pth)"
)
ADAPTER = re.compile(r"adapter_(config\.json|model\.(safetensors|bin))")  # as PEFT names them
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")
VOCABULARY = "rwkv_vocab_v20230424.txt"
VOCABULARY_LIKE = re.compile(r".*vocab.*\.txt", re.IGNORECASE)


@dataclass(frozen=True)
class Wanted:
    """What the caller named, None where the listing decides.

    file : of weights, or an index of shards
    vocabulary : World vocabulary
    """

    file: str | None = None
    vocabulary: str | None = None


@dataclass(frozen=True)
class Chosen:
    """Names in the listing.

    weights : a weight file, or an index of shards
    vocabulary : None if there is none, or no way to tell which
    vocabularies : those that it may be, where there is no way to tell
    """

    weights: str
    vocabulary: str | None
    vocabularies: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Where the weights lie in the listing; empty for its top."""
        return posixpath.dirname(self.weights)


def choose(where: str, names: Collection[str], wanted: Wanted) -> Chosen:
    """The files of the one model among `names`.

    where : folder or repository, for the message

    Raises CheckpointError if there is no model, more than one, or not the one that is wanted.
    """
    weights = (
        _named(where, names, wanted.file) if wanted.file is not None else _weights(where, names)
    )
    return beside(where, names, weights, wanted)


def beside(where: str, names: Collection[str], weights: str, wanted: Wanted) -> Chosen:
    """The weights that are known, and the vocabulary among `names` that goes with them."""
    if wanted.vocabulary is not None:
        return Chosen(weights, _listed(where, names, wanted.vocabulary, "vocabulary"))
    found = _vocabularies(names, posixpath.dirname(weights))
    return Chosen(weights, found[0]) if len(found) == 1 else Chosen(weights, None, tuple(found))


def _weights(where: str, names: Collection[str]) -> str:
    """The file to start from: a standard name, or the only weight file; at the top if possible."""
    for folder in sorted({posixpath.dirname(name) for name in names}, key=_depth):
        inside = {posixpath.basename(n): n for n in names if posixpath.dirname(n) == folder}
        found = _in_folder(where, inside)
        if found is not None:
            return _only_folder(where, names, found, folder)
    others = ", ".join(map(shown, sorted(names)[:5])) + (", ..." if len(names) > 5 else "")
    gguf = any(name.lower().endswith((".gguf", ".ggml")) for name in names)
    raise refusal(
        where,
        "one of " + ", ".join(STANDARD_NAMES) + ", or a single .pth",
        f"no weight file among {others}" if names else "no weight file",
        "GGUF is not read: give the .pth or the Hugging Face weights."
        if gguf
        else "Check the name, or give the weight file itself.",
    )


def _in_folder(where: str, inside: Mapping[str, str]) -> str | None:
    """The weights among the files of one folder, by their names there; None if there are none."""
    candidates = sorted(base for base in inside if is_weights(base) and not ADAPTER.fullmatch(base))
    candidates = [base for base in candidates if base.endswith(USUAL_SUFFIXES)] or candidates
    found = next((name for name in STANDARD_NAMES if name in inside), None)
    shard = SHARD.fullmatch(candidates[0]) if candidates else None
    if found is None and shard is not None and int(shard[2]) > 1:
        found = f"{shard[1]}{shard[3]}{INDEX_SUFFIX}"
        if found not in inside:
            raise refusal(
                where,
                "an index that tells which tensors each shard holds",
                f"{len(candidates)} of {int(shard[2])} shards without one",
                f"Download {found} and every shard into one folder.",
            )
    if found is None and len(candidates) > 1:
        raise _several(where, [inside[base] for base in candidates])
    if found is None and not candidates:
        adapters = sorted(filter(is_weights, inside))
        return inside[adapters[0]] if adapters else None  # whose tensors tell what it is
    found = found or candidates[0]
    if adapter := next(filter(ADAPTER.fullmatch, sorted(inside)), None):
        raise refusal(
            where,
            "a model alone",
            f"{adapter} beside it, an adapter that would be ignored in silence",
            "Merge it into the model and give that; for the model as it is, name it: "
            f"file={inside[found]!r} (--file on the command line).",
        )
    return inside[found]


def _only_folder(where: str, names: Collection[str], found: str, folder: str) -> str:
    """`found`, unless it lies in one of several subfolders that hold weights."""
    if folder:
        weights = [n for n in names if is_weights(n) or n.endswith(INDEX_SUFFIX)]
        others = sorted(n for n in weights if posixpath.dirname(n) != folder)
        if others:
            raise _several(where, [found, *others])
    return found


def _several(where: str, candidates: list[str]) -> CheckpointError:
    return refusal(
        where,
        "one model",
        f"{len(candidates)} weight files: {', '.join(candidates[:5])}",
        f"Name one of them: file={candidates[0]!r} (--file on the command line).",
    )


def _named(where: str, names: Collection[str], file: str) -> str:
    """The weight file that the caller named."""
    found = _listed(where, names, file, "file")
    if not is_weights(found) and not found.endswith(INDEX_SUFFIX):
        kinds = ", ".join([*WEIGHT_SUFFIXES, INDEX_SUFFIX])
        raise refusal(where, f"file= with one of the endings {kinds}", shown(file), "Name another.")
    return found


def _listed(where: str, names: Collection[str], wanted: str, option: str) -> str:
    """A name of the listing, given in full or, where no other file has it, without its folder."""
    found = [name for name in names if wanted in (name, posixpath.basename(name))]
    if wanted in found:
        return wanted
    if len(found) == 1:
        return found[0]
    like = is_weights if option == "file" else VOCABULARY_LIKE.fullmatch
    others = sorted(name for name in names if like(posixpath.basename(name)))
    there = f"no such file; there is {', '.join(others[:5])}" if others else "no such file"
    raise refusal(where, f"{option}={wanted!r}", there, "Name a file that is listed there.")


def is_weights(name: str) -> bool:
    """Whether a file may hold weights by its name."""
    base = posixpath.basename(name)
    return base.endswith(WEIGHT_SUFFIXES) and not OF_TRAINING.fullmatch(base)


def _vocabularies(names: Collection[str], folder: str) -> list[str]:
    """What may be the vocabulary: beside the weights, else at the top, else the one by its name."""
    for place in dict.fromkeys((folder, "")):
        inside = [name for name in names if posixpath.dirname(name) == place]
        if (exact := posixpath.join(place, VOCABULARY)) in inside:
            return [exact]
        if like := sorted(n for n in inside if VOCABULARY_LIKE.fullmatch(posixpath.basename(n))):
            return like
    elsewhere = [name for name in names if posixpath.basename(name) == VOCABULARY]
    return elsewhere if len(elsewhere) == 1 else []


def _depth(folder: str) -> tuple[int, str]:
    return folder.count("/") + bool(folder), folder
