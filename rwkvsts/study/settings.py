"""What a study is asked for: models, tasks, ways to read a text; and the ladder of recipes.

Promises one list of readings, without repetition, from the options or a recipe. Knows no model and
computes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from ..embedder import PLACE, POOLING, Layer
from ..errors import DataError

AllLayers = Literal["all"]
PAPER_LAYERS: tuple[Layer, ...] = (1, 3, 5, 7, 9, 11)

BAR = "|"  # cuts endings off a prompt
# Prompts that have a name. The echo reads the text twice and pools the second reading. metaeol has
# two endings for each of MetaEOL's four tasks (arXiv 2402.18458), named after the text and not
# before it, so that one reading of the text serves all. contrast subtracts what an ending that asks
# for something else gives (after arXiv 2505.12831).
PROMPTS: dict[str, str | None] = {
    "none": None,
    "eol": f'This sentence: "{PLACE}" means in one word:"',
    "echo": f"Rewrite the sentence: {PLACE}\nRewritten sentence: {PLACE}",
    "metaeol": f'This sentence: "{PLACE}"'
    '| Its topic in one word:"| The group of texts that it belongs to, in one word:"'
    '| The feeling that it shows, in one word:"| The opinion that it gives, in one word:"'
    '| It means in one word:"| Said in another way, in one word:"'
    '| What matters most in it, in one word:"| What happens in it, in one word:"',
    "contrast": f'This sentence: "{PLACE}"| means in one word:"|- says nothing of, in one word:"',
}
STATE = "state"  # a pooling of the study: the vector of the state after the text
OWN = "own"  # the pooling of a trained embedder, by its own rule
POOLINGS = (*POOLING, STATE)
# Post-processing by name. The first learn from train sentences; the filter takes the model's head;
# the last join the layers of a reading to one row.
LEARNING = ("standardise", "abtt", "whitening")
JOINING = ("average", "concatenate")
POSTS = ("none", *LEARNING, "filter", *JOINING)
BASELINES = ("sif", "usif")
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
    pooling : of `POOLINGS`; "own" for a trained embedder
    skip_first : leave the text's first token out of the pooling
    prompt : a template, perhaps with endings (`endings`), or None
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

    models : "demo", files, folders or repositories, each perhaps with its own "@revision"
    tasks : data sets by name, or repositories in the layout of mteb/sts12-sts
    pairs : files of one's own pairs, each a task of its own
    columns : names of their two sentences and the label
    tokenizers : of RWKV models, as `rwkvsts.load` has them; another kind of model has its own
    lead : start each text from the state after token 0, which training documents begin with
    layers : "all" is every layer and "final"
    poolings, skip_first, prompts, posts : every combination is run that has a meaning: a state
        has no first token to skip, endings are pooled by their last token
    baselines : of `BASELINES`, beside the controls that stand in every table
    recipe : of `RECIPES`; replaces tokenizers, layers and the combinations
    splits : None takes the paper's for MRPC and the reported ones elsewhere
    data : folder of the tasks' files; None takes them from the hub
    glove : None takes the bundled word vectors
    revision : of the repositories that name none
    file, vocabulary : of the one model, where its folder or repository holds several
    device, dtype, batch_tokens : of every model, as `rwkvsts.load` and `encode` have them
    max_length : tokens; 128 is the paper's
    resamples, seed : of the bootstrap
    timed_pairs : run one by one for the time a pair; 0 times nothing
    norms : measure the stream's length by position and layer too
    cache_dir, local_files_only : of the hub, as in huggingface_hub

    Raises `DataError` for what is named twice, is not known, or has no meaning together.
    """

    models: tuple[str | Path, ...] = ("demo",)
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
    baselines: tuple[str, ...] = ()
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
        lists = ("models", "tasks", "pairs", "tokenizers", "poolings", "posts", "splits")
        for name in (*lists, "prompts", "baselines", "recipe"):
            _refuse_repetition(name, getattr(self, name) or ())
        if self.splits and not self.tasks:
            raise DataError(
                "splits are of tasks, and none is named; a file of pairs has its own, in a column "
                "called split"
            )
        for name in ("file", "vocabulary"):
            if getattr(self, name) is not None and len(self.models) > 1:
                raise DataError(
                    f"{name} speaks of one model, and {len(self.models)} are given: give the path "
                    "of each model's weights instead"
                )
        if self.layers != "all":
            _refuse_repetition("layers", self.layers)
        _refuse_unknown("recipe", self.recipe, RECIPES)
        _refuse_unknown("post-processing", self.posts, POSTS)
        _refuse_unknown("pooling", self.poolings, POOLINGS)
        _refuse_unknown("baseline", self.baselines, BASELINES)
        for prompt in self.prompts:
            endings(prompt)


def readings(config: StudyConfig) -> list[Reading]:
    """All readings of an RWKV model, in the order of the table."""
    if config.recipe:
        asked = [reading for name in config.recipe for reading in _recipe(name)]
    else:
        listed = product(config.tokenizers, config.skip_first, config.poolings, config.prompts)
        asked = [
            Reading(tokenizer, config.lead, pooling, skip, prompt, config.layers, config.posts)
            for tokenizer, skip, pooling, prompt in listed
        ]
    posts: dict[Reading, tuple[str, ...]] = {}  # two recipes may read alike: one pass serves both
    for reading in filter(None, map(_with_meaning, asked)):
        alike = replace(reading, posts=())
        posts[alike] = tuple(dict.fromkeys((*posts.get(alike, ()), *reading.posts)))
    return [replace(reading, posts=listed) for reading, listed in posts.items()]


def endings(prompt: str | None) -> tuple[str, list[tuple[int, str]]] | None:
    """A prompt that bars cut: what is read once, then each ending with its sign; None without bars.

    The vectors after the endings are averaged; one after "|-" is subtracted.

    >>> endings("Say: {text}| in a word:|- at length:")
    ('Say: {text}', [(1, ' in a word:'), (-1, ' at length:')])
    """
    template, *rest = (prompt or "").split(BAR)
    if not rest:
        return None
    signed = [(-1, end[1:]) if end.startswith("-") else (1, end) for end in rest]
    if not all(end for _, end in signed) or PLACE in "".join(rest):
        raise DataError(
            f"prompt {prompt!r}: expected {PLACE} before the first bar and words after each, as in "
            f"'{PLACE}| in one word:| in short:'"
        )
    return (template if PLACE in template else template + PLACE), signed


def _with_meaning(reading: Reading) -> Reading | None:
    """The reading without options that have no meaning in it; None where it has none itself."""
    branches = endings(reading.prompt) is not None
    if reading.pooling != STATE:
        return replace(reading, pooling="last", skip_first=False) if branches else reading
    layers = reading.layers
    if layers != "all":
        layers = tuple(layer for layer in layers if isinstance(layer, int))
    posts = tuple(post for post in reading.posts if post != "filter")  # a head reads the stream
    if branches or not layers or not posts:
        return None
    return replace(reading, skip_first=False, layers=layers, posts=posts)


def _recipe(name: str) -> list[Reading]:
    """The readings that a recipe adds."""
    if name == "paper":
        return [Reading("gpt2")]
    if name == "world":
        return [Reading(), Reading(lead=True, layers="all")]
    posts = tuple(post for post in POSTS if post != "filter")  # not every file has a head
    return [
        *(Reading("world", True, p, layers="all", posts=posts) for p in ("mean", "weighted")),
        Reading("world", False, "mean", True, layers="all"),  # token 0 first: nothing to skip
        Reading("world", True, STATE, layers="all"),
        *(
            Reading("world", True, pooling, prompt=PROMPTS[prompt], layers="all", posts=posts)
            for prompt, pooling in (("eol", "last"), ("echo", "mean"), ("metaeol", "last"))
        ),
        Reading("world", True, "last", prompt=PROMPTS["contrast"], layers="all"),
    ]


def _refuse_unknown(what: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    for value in values:
        if value not in known:
            raise DataError(f"no {what} {value!r}; choose of {', '.join(known)}")


def _refuse_repetition(name: str, values: tuple[object, ...]) -> None:
    """Twice the same would stand in the table as two results, and be computed twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            shown = str(value) if isinstance(value, Path) else repr(value)
            raise DataError(f"{name}: {shown} is named twice; name it once")
