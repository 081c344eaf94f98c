"""What a study is asked for: models, tasks, ways to read a text; and the ladder of recipes.

Promises one list of readings for each model, without repetition, from the options or a recipe.
Knows no model and computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from ..embedder import PLACE, Layer
from ..errors import DataError
from ..model import PAPER_LAYERS

AllLayers = Literal["all"]

# Prompts that have a name. The echo reads the text twice and pools the second reading.
PROMPTS: dict[str, str | None] = {
    "none": None,
    "eol": f'This sentence: "{PLACE}" means in one word:"',
    "echo": f"Rewrite the sentence: {PLACE}\nRewritten sentence: {PLACE}",
}
# Post-processing by name; all but the filter, which takes the model's head, learn from train
# sentences.
POSTS = ("none", "standardise", "abtt", "whitening", "filter")
RECIPES = ("paper", "world", "best")
STEPS = (
    "the paper's mode: gpt2 ids",
    "World tokenizer",
    "leading token 0",
    "every layer",
    "pooling",
    "post-processing",
    "prompts",
)


@dataclass(frozen=True)
class Reading:
    """How a model reads a text: one pass over the texts gives every layer of it.

    tokenizer : "world" or "gpt2" for RWKV; None where a model has its own
    lead : start from the state after token 0, which training documents begin with
    skip_first : leave the text's first token out of the pooling
    prompt : a template, or None
    posts : names of post-processing, "none" among them for the plain embedding
    """

    tokenizer: str | None = "world"
    lead: bool = False
    pooling: str = "mean"
    skip_first: bool = False
    prompt: str | None = None
    layers: tuple[Layer, ...] | AllLayers = PAPER_LAYERS
    posts: tuple[str, ...] = ("none",)


@dataclass(frozen=True)
class StudyConfig:
    """What to run.

    models : "demo", files, folders or repositories
    tasks : data sets by name, or repositories in the layout of mteb/sts12-sts
    pairs : files of one's own pairs, each a task of its own
    columns : names of their two sentences and the label
    layers : "all" is every layer and "final"
    poolings, skip_first, prompts, posts : every combination is run
    recipe : of `RECIPES`; replaces tokenizers, layers and the combinations
    splits : None takes the paper's for MRPC and the reported ones elsewhere
    glove : None takes the bundled word vectors
    file, vocabulary : of the one model, where its folder or repository holds several
    max_length : tokens; 128 is the paper's
    timed_pairs : run one by one for the time a pair; 0 times nothing
    norms : measure the stream's length by position and layer too
    """

    models: tuple[str, ...] = ("demo",)
    tasks: tuple[str, ...] = ("demo",)
    pairs: tuple[str | Path, ...] = ()
    columns: tuple[str, str, str] = ("sentence1", "sentence2", "label")
    tokenizers: tuple[str, ...] = ("world",)
    lead: bool = False
    layers: tuple[Layer, ...] | AllLayers = PAPER_LAYERS
    poolings: tuple[str, ...] = ("mean",)
    skip_first: tuple[bool, ...] = (False,)
    prompts: tuple[str | None, ...] = (None,)
    posts: tuple[str, ...] = ("none",)
    recipe: tuple[str, ...] = ()
    splits: tuple[str, ...] | None = None
    data: str | Path | None = None
    glove: str | Path | None = None
    revision: str | None = None
    file: str | None = None
    vocabulary: str | Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    max_length: int | None = 128
    batch_tokens: int | None = None
    resamples: int = 1000
    seed: int = 0
    timed_pairs: int = 20
    norms: bool = False
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    def __post_init__(self) -> None:
        for name in ("models", "tasks", "pairs", "tokenizers", "poolings", "posts", "splits"):
            _refuse_repetition(name, getattr(self, name) or ())
        for name in ("file", "vocabulary"):
            if getattr(self, name) is not None and len(self.models) > 1:
                raise DataError(
                    f"{name} speaks of one model, and {len(self.models)} are given: give the path "
                    "of each model's weights instead"
                )
        if self.layers != "all":
            _refuse_repetition("layers", self.layers)
        for name in self.recipe:
            if name not in RECIPES:
                raise DataError(f"no recipe {name!r}; choose of {', '.join(RECIPES)}")
        for name in self.posts:
            if name not in POSTS:
                raise DataError(f"no post-processing {name!r}; choose of {', '.join(POSTS)}")


def readings(config: StudyConfig) -> list[Reading]:
    """All readings of an RWKV model, in the order of the table."""
    if config.recipe:
        return list(dict.fromkeys(r for name in config.recipe for r in _recipe(name)))
    listed = product(config.tokenizers, config.skip_first, config.poolings, config.prompts)
    return [
        Reading(tokenizer, config.lead, pooling, skip, prompt, config.layers, config.posts)
        for tokenizer, skip, pooling, prompt in listed
    ]


def _recipe(name: str) -> list[Reading]:
    """The readings that a recipe adds."""
    if name == "paper":
        return [Reading("gpt2")]
    if name == "world":
        return [Reading(), Reading(lead=True, layers="all")]
    posts = tuple(post for post in POSTS if post != "filter")  # not every file has a head
    return [
        *(Reading("world", True, p, layers="all", posts=posts) for p in ("mean", "weighted")),
        Reading("world", True, "mean", True, layers="all"),
        Reading("world", True, "last", prompt=PROMPTS["eol"], layers="all", posts=posts),
        Reading("world", True, "mean", prompt=PROMPTS["echo"], layers="all", posts=posts),
    ]


def _refuse_repetition(name: str, values: tuple[object, ...]) -> None:
    """Twice the same would stand in the table as two results, and be computed twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise DataError(f"{name}: {value!r} is named twice; name it once")
