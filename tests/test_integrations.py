"""The plugs, each against the real library: the bits are `encode`'s, through whatever it goes.

A library that is not installed skips its class, with the extra that brings it.
"""

from __future__ import annotations

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rwkvsts
from rwkvsts import RWKV
from rwkvsts.cli.main import _parser

TEXTS = [f"Sentence number {i} is {'long ' * (i % 5)}here." for i in range(23)]


def needs(module: str, extra: str) -> Any:
    return pytest.importorskip(module, reason=f"needs pip install 'rwkvsts[{extra}]'")


@pytest.fixture(scope="module")
def demo() -> RWKV:
    return rwkvsts.load("demo", device="cpu")


@pytest.mark.parametrize(
    ("plug", "library", "extra"),
    [
        ("sklearn", "sklearn", "sklearn"),
        ("langchain", "langchain_core", "langchain"),
        ("sentence_transformers", "sentence_transformers", "sentence-transformers"),
        ("mteb", "mteb", "mteb"),
    ],
)
def test_an_absent_library_is_told_with_its_extra(plug: str, library: str, extra: str) -> None:
    hide = f"import sys; sys.modules[{library!r}] = None; import rwkvsts.integrations.{plug}"
    done = subprocess.run(
        [sys.executable, "-c", hide],
        capture_output=True,
        text=True,
        cwd=Path(rwkvsts.__file__).parents[1],
    )
    assert done.returncode == 1
    assert f"install it with: pip install 'rwkvsts[{extra}]'" in done.stderr.splitlines()[-1]


class TestSklearn:
    @pytest.fixture(autouse=True)
    def library(self) -> None:
        needs("sklearn", "sklearn")

    def test_bits_names_clone_and_pickle(self, demo: RWKV) -> None:
        from sklearn.base import clone

        from rwkvsts.integrations.sklearn import Embedder

        expected = demo.encode(TEXTS, layers=7, pooling="last", normalize=True)
        for made in (
            Embedder("demo", layer=7, pooling="last", normalize=True),
            Embedder(demo, layer=7, pooling="last", normalize=True),
        ):
            cloned = clone(made)
            assert not hasattr(cloned, "model_")
            found = cloned.fit_transform(TEXTS)
            assert np.array_equal(found, expected)
            assert list(cloned.get_feature_names_out())[:2] == ["embedder0", "embedder1"]
            assert len(cloned.get_feature_names_out()) == 192
            again = pickle.loads(pickle.dumps(cloned))
            assert np.array_equal(again.transform(np.array(TEXTS)), expected)
        assert Embedder().set_params(layer=3).get_params()["layer"] == 3

    def test_transform_before_fit_says_so(self) -> None:
        from sklearn.exceptions import NotFittedError

        from rwkvsts.integrations.sklearn import Embedder

        with pytest.raises(NotFittedError):
            Embedder().transform(["a"])

    def test_what_is_no_list_of_texts_is_refused(self, demo: RWKV) -> None:
        import pandas

        from rwkvsts.integrations.sklearn import Embedder

        table = pandas.DataFrame({"text": ["One.", "Two."]})
        fitted = Embedder(demo, layer=3).fit(table["text"])
        assert fitted.transform(table["text"]).shape == (2, 192)
        with pytest.raises(TypeError, match="X is str: expected a list of texts"):
            fitted.transform("One.")
        with pytest.raises(TypeError, match="its column names would be taken; give one column"):
            fitted.transform(table)

    def test_in_a_pipeline_under_cross_validation(self) -> None:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, cross_val_score
        from sklearn.pipeline import make_pipeline

        from rwkvsts.integrations.sklearn import Embedder

        texts = [f"The {animal} eats {n} fish." for n in range(12) for animal in ("cat", "dog")]
        texts += [f"The {part} costs {n} euros." for n in range(12) for part in ("car", "house")]
        label = [0] * 24 + [1] * 24
        line = make_pipeline(Embedder("demo", layer=5), LogisticRegression(max_iter=1000))
        assert cross_val_score(line, texts, label, cv=3).mean() > 0.95
        search = GridSearchCV(line, {"embedder__layer": [1, 7]}, cv=2).fit(texts, label)
        assert search.best_params_["embedder__layer"] in (1, 7)


class TestLangChain:
    @pytest.fixture(autouse=True)
    def library(self) -> None:
        needs("langchain_core", "langchain")

    def test_bits_and_a_vector_store(self, demo: RWKV) -> None:
        from langchain_core.vectorstores import InMemoryVectorStore

        from rwkvsts.integrations.langchain import Embedder

        embedder = Embedder(demo, layer=5, query_prompt="Query: ")
        expected = demo.encode(TEXTS, layers=5, normalize=True)
        assert np.array_equal(np.array(embedder.embed_documents(TEXTS), np.float32), expected)
        query = demo.encode(TEXTS[3], layers=5, prompt="Query: ", normalize=True)
        assert np.array_equal(np.array(embedder.embed_query(TEXTS[3]), np.float32), query)
        assert embedder.embed_documents([]) == []
        store = InMemoryVectorStore.from_texts(["It rains.", "The cat sleeps."], Embedder("demo"))
        found = store.similarity_search("The cat is asleep.", k=1)
        assert [document.page_content for document in found] == ["The cat sleeps."]


class TestSentenceTransformers:
    @pytest.fixture(autouse=True)
    def library(self) -> None:
        needs("sentence_transformers", "sentence-transformers")

    def test_encode_similarity_prompts_and_search(self, demo: RWKV) -> None:
        from sentence_transformers import SentenceTransformer, util

        from rwkvsts.integrations.sentence_transformers import model

        st = model("demo", layer=7, prompts={"query": "Query: "}, device="cpu")
        assert isinstance(st, SentenceTransformer)
        plain = demo.encode(TEXTS, layers=7)
        assert np.array_equal(st.encode(TEXTS, batch_size=4), plain)
        assert np.array_equal(st.encode(TEXTS[0]), plain[0])
        prompted = demo.encode(TEXTS, layers=7, prompt="Query: ")
        assert np.array_equal(st.encode(TEXTS, prompt_name="query"), prompted)
        assert np.array_equal(st.encode_query(TEXTS), prompted)
        assert st.get_embedding_dimension() == 192
        unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
        assert np.allclose(st.similarity(plain, plain).numpy(), unit @ unit.T, atol=1e-5)
        hits = util.semantic_search(st.encode(TEXTS[4:5]), st.encode(TEXTS), top_k=1)
        assert hits[0][0]["corpus_id"] == 4

    def test_save_and_load_which_asks_for_trust(self, demo: RWKV, tmp_path: Path) -> None:
        from sentence_transformers import SentenceTransformer

        from rwkvsts.integrations.sentence_transformers import model

        model("demo", "final", "max", 8, {"q": "Q: "}, "q", device="cpu").save(str(tmp_path))
        with pytest.raises(ValueError, match="trust_remote_code"):
            SentenceTransformer(str(tmp_path), device="cpu")
        again = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
        expected = demo.encode(TEXTS, "final", "max", "Q: ", 8)
        assert np.array_equal(again.encode(TEXTS), expected)

    def test_a_copy(self, demo: RWKV) -> None:
        from rwkvsts.integrations.sentence_transformers import model

        copied = copy.deepcopy(model("demo", layer=3, device="cpu"))
        assert np.array_equal(copied.encode(TEXTS), demo.encode(TEXTS, layers=3))

    @pytest.mark.slow
    def test_several_processes(self, demo: RWKV) -> None:
        from rwkvsts.integrations.sentence_transformers import model

        st = model("demo", layer=3, device="cpu", threads=1)
        expected = demo.encode(TEXTS, layers=3)
        pool = st.start_multi_process_pool(["cpu", "cpu"])
        try:
            assert np.array_equal(st.encode(TEXTS, pool=pool, chunk_size=5), expected)
        finally:
            st.stop_multi_process_pool(pool)


class TestMteb:
    @pytest.fixture(autouse=True)
    def library(self) -> None:
        needs("mteb", "mteb")

    @staticmethod
    def task() -> Any:
        """The real STSBenchmark task on pairs of our own: its data lies on a hub."""
        import datasets
        import mteb

        rng = np.random.default_rng(0)
        score = rng.uniform(0, 5, 40)
        pairs = {
            "sentence1": [f"A cat eats {i} fish." for i in range(40)],
            "sentence2": [
                f"A {'cat' if s > 2.5 else 'car'} eats {i}." for i, s in enumerate(score)
            ],
            "score": score.tolist(),
        }
        task = mteb.get_task("STSBenchmark")
        task.dataset, task.data_loaded = {"test": datasets.Dataset.from_dict(pairs)}, True
        return task

    @pytest.mark.filterwarnings("ignore:The task 'STSBenchmark' is superseded")
    def test_evaluate_gives_spearman_and_keeps_layers_apart(
        self, demo: RWKV, tmp_path: Path
    ) -> None:
        import mteb
        from scipy.stats import spearmanr

        from rwkvsts.integrations.mteb import Embedder

        cache = mteb.ResultCache(tmp_path)
        for layer, pooling, prompts in [
            (3, "mean", None),
            (7, "mean", None),
            (7, "last", None),
            (7, "last", {"STS": "Say: "}),
        ]:
            task = self.task()
            embedder = Embedder(demo, layer, pooling, prompts=prompts)
            result = mteb.evaluate(embedder, task, cache=cache, show_progress_bar=False)
            prompt = prompts and prompts["STS"]
            a, b = (
                demo.encode(task.dataset["test"][side], layer, pooling, prompt).astype(float)
                for side in ("sentence1", "sentence2")
            )
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            expected = spearmanr((a * b).sum(1) / norms, task.dataset["test"]["score"]).statistic
            assert result[0].scores["test"][0]["cosine_spearman"] == pytest.approx(
                expected, abs=1e-3
            )
        assert len(list(tmp_path.rglob("STSBenchmark.json"))) == 4

    @pytest.mark.filterwarnings("ignore:The task 'STSBenchmark' is superseded")
    def test_the_command_writes_a_result_for_each_layer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import mteb

        from rwkvsts import cli

        task = self.task()
        monkeypatch.setattr(mteb, "get_task", lambda _: task)
        argv = ["mteb", "--task", "STSBenchmark", "--layers", "2,5", "--out", str(tmp_path)]
        assert cli.main([*argv, "--device", "cpu"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines[1:3]] == ["2", "5"]
        assert len(list(tmp_path.rglob("STSBenchmark.json"))) == 2

    def test_meta_data_are_true(self, demo: RWKV) -> None:
        from rwkvsts.integrations.mteb import Embedder, _name

        meta = Embedder(demo, max_length=9).mteb_model_meta
        assert (meta.name, meta.embed_dim, meta.max_tokens) == ("rwkvsts/demo", 192, 9)
        assert meta.experiment_kwargs["layer"] == 6 and meta.experiment_kwargs["max_length"] == 9
        assert _name("RWKV/v6-Finch-1B6-HF") == "RWKV/v6-Finch-1B6-HF"
        assert _name("/home/me/a model.pth") == "rwkvsts/a-model.pth"


ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "INTEGRATIONS.md"


def runs(code: str, names: dict[str, Any]) -> None:
    """Run a page's lines; skips where a library that they import is not installed."""
    for library in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        pytest.importorskip(library, reason=f"the page's lines need {library}")
    try:
        exec(compile(code, str(PAGE), "exec"), names)
    except ImportError as error:  # of a plug, which says what to install
        if "pip install 'rwkvsts[" not in str(error):
            raise
        pytest.skip(str(error))


def test_the_readmes_lines_name_what_there_is() -> None:
    section = (ROOT / "README.md").read_text().split("## Where it plugs in")[1].split("\n## ")[0]
    found = re.findall(r"`(rwkvsts[. ][^`]*)`", section)
    assert len(found) == 8
    for line in found:
        if line.startswith("rwkvsts "):
            _parser().parse_args(line.split()[1:])
        else:
            module, call = re.fullmatch(r"([\w.]+)\.(\w+\(.*\))", line).groups()
            library = module.split(".")[-1].replace("langchain", "langchain_core")
            pytest.importorskip(library, reason=f"README's line needs {library}")
            runs(f"from {module} import *\nfrom {module} import {call.split('(')[0]}\n{call}", {})


def test_the_pages_lines_run() -> None:
    needs("sentence_transformers", "sentence-transformers")
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 8
    skipped = []
    for block in blocks:
        try:
            runs(block, names)
        except pytest.skip.Exception as reason:
            skipped.append(str(reason))
    if skipped:
        pytest.skip(f"the rest ran; {'; '.join(skipped)}")
