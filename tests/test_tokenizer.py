"""Tokenizers: equal to a plain greedy reference, any bytes round-trip, bad files refused."""

from __future__ import annotations

import ast
import json
import os
import pickle
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvsts import CheckpointError, _core
from rwkvsts.files.hub import Source
from rwkvsts.tokenizer import GPT2Tokenizer, World, load, read_vocabulary

NAME = "rwkv/rwkv_vocab_v20230424.txt"


def no_fetch(repo: str, file: str) -> Path:
    raise AssertionError(f"{repo}/{file} was fetched")


def longest_by_start(entries: dict[bytes, int]) -> dict[bytes, int]:
    """The longest entry that begins with these two bytes: spares the reference hopeless tries."""
    longest: dict[bytes, int] = {}
    for value in entries:
        longest[value[:2]] = max(longest.get(value[:2], 1), len(value))
    return longest


def greedy(entries: dict[bytes, int], longest: dict[bytes, int], text: bytes) -> list[int]:
    """The specification: at each place the longest entry that matches."""
    ids, at = [], 0
    while at < len(text):
        length = min(longest.get(text[at : at + 2], 1), len(text) - at)
        while text[at : at + length] not in entries:
            length -= 1
        ids.append(entries[text[at : at + length]])
        at += length
    return ids


def lines(entries: dict[int, bytes]) -> list[str]:
    """Vocabulary lines, text literals where the bytes are text, as in the published file."""
    out = []
    for token, value in entries.items():
        try:
            literal = repr(value.decode())
        except UnicodeDecodeError:
            literal = repr(value)
        out.append(f"{token} {literal} {len(value)}")
    return out


def write(path: Path, text_lines: list[str], newline: str = "\n") -> Path:
    path.write_bytes(newline.join([*text_lines, ""]).encode())
    return path


def nested_entries(seed: int, n: int = 3000) -> dict[int, bytes]:
    """All single bytes, and longer entries that are prefixes and extensions of each other."""
    rng = random.Random(seed)
    known = {bytes([c]) for c in range(256)}
    pool = sorted(known)
    while len(known) < 256 + n:
        more = rng.choice(pool)[:20] + rng.choice(pool)[: rng.randint(1, 20)]
        if rng.random() < 0.2:
            more = bytes(rng.choice(b"ab \n'\"\\\x00\xc3\xa9\xe2\x80\xa8") for _ in range(5))
        known.add(more)
        pool.append(more)
    return dict(enumerate(sorted(known, key=lambda value: (len(value), value)), 1))


def random_texts(seed: int, n: int, pool: list[bytes]) -> list[bytes]:
    """Half noise, half joined entries cut anywhere, so that matches end in every way."""
    rng = random.Random(seed)
    texts = []
    for i in range(n):
        if i % 2:
            texts.append(rng.randbytes(rng.randint(0, 12)))
        else:
            joined = b"".join(rng.choice(pool) for _ in range(rng.randint(1, 4)))
            texts.append(joined[: rng.randint(0, len(joined))])
    return texts


def check_against_greedy(path: Path, n: int) -> None:
    entries = {value: token for token, value in read_vocabulary(path).items()}
    texts = random_texts(1, n, list(entries))
    world = World(path, 2**17)
    ids, start = world.encode_many(texts)
    assert ids.dtype == np.int32 and start.dtype == np.int64
    longest = longest_by_start(entries)
    expected = [greedy(entries, longest, text) for text in texts]
    assert np.array_equal(np.diff(start), [len(one) for one in expected])
    assert ids.tolist() == [i for one in expected for i in one]
    for text, one in zip(texts[:2000], expected, strict=False):
        assert world.encode(text) == one
        assert world.decode(one) == text


def test_equals_the_reference_on_made_entries(tmp_path: Path) -> None:
    for seed in range(3):
        path = write(tmp_path / "v.txt", lines(nested_entries(seed)))
        check_against_greedy(path, 20_000)


def test_equals_the_reference_on_the_published_vocabulary(shared: Path) -> None:
    check_against_greedy(shared / NAME, 100_000)


def test_golden_encodings(shared: Path) -> None:
    world = World(shared / NAME, 65536)
    eiffel = [6699, 304, 25740, 109, 39990, 4600, 4596, 22590, 30449, 4706]
    assert world.encode("The Eiffel tower is in the city of") == eiffel
    assert world.encode("def fibonacci(n):\n    ") == [7334, 21676, 41943, 41, 111, 501, 28352]
    assert world.encode("two  spaces") == [8851, 267, 42287]
    assert world.encode("\n\n") == [261] and world.encode("\n") == [11]
    assert world.decode([0, 261, 0]) == b"\n\n"


def test_the_published_vocabulary_is_read_whole(shared: Path) -> None:
    entries = read_vocabulary(shared / NAME)
    assert list(entries) == list(range(1, 65530))
    assert max(map(len, entries.values())) == 128
    assert len(set(entries.values())) == 65529
    assert all(entries[c + 1] == bytes([c]) for c in range(256))
    for line in (shared / NAME).read_text("utf-8").splitlines():
        token, rest = line.split(" ", 1)
        value = ast.literal_eval(rest.rsplit(" ", 1)[0])
        assert entries[int(token)] == (value.encode() if isinstance(value, str) else value)


def test_line_ends_do_not_matter(tmp_path: Path) -> None:
    text_lines = lines(nested_entries(4))
    expected = read_vocabulary(write(tmp_path / "lf.txt", text_lines))
    assert expected == nested_entries(4)
    assert read_vocabulary(write(tmp_path / "crlf.txt", text_lines, "\r\n")) == expected
    (tmp_path / "cut.txt").write_text("\n".join(text_lines))
    assert read_vocabulary(tmp_path / "cut.txt") == expected


def test_literals_mean_what_they_mean_in_python(tmp_path: Path) -> None:
    """Above all where str.splitlines, str.split or a hasty unquoting would go wrong."""
    literals = {
        "'a b'": b"a b",
        "' '": b" ",
        "'\u2028\x85\x0c'": b"\xe2\x80\xa8\xc2\x85\x0c",
        r"'\u2028\x80'": b"\xe2\x80\xa8\xc2\x80",
        r"b'\x80'": b"\x80",
        r"'\'\\'": b"'\\",
        '"it\'s"': b"it's",
        "'\"'": b'"',
        r"'\n\r\t\0'": b"\n\r\t\0",
        "'é'": b"\xc3\xa9",
    }
    text_lines = [f"{i} {k} {len(v)}" for i, (k, v) in enumerate(literals.items(), 1)]
    path = write(tmp_path / "v.txt", text_lines)
    assert list(read_vocabulary(path).values()) == list(literals.values())


BASE = lines({i + 1: bytes([i]) for i in range(256)})
BAD = {
    "a single byte is missing": (BASE[:65] + BASE[66:], r"lacks the single byte 0x41"),
    "an id twice": ([*BASE, "7 'ab' 2"], r"line 257.*id 7 is there twice"),
    "bytes twice": ([*BASE, "300 'ab' 2", "301 'ab' 2"], r"ids 300 and 301 have the same bytes"),
    "a wrong length": ([*BASE, "300 'ab' 3"], r"line 257.*has 2 bytes, not 3"),
    "no literal": ([*BASE, "300 ab 2"], r"line 257"),
    "an expression": ([*BASE, "300 __import__('os').getcwd() 2"], r"line 257"),
    "a number": ([*BASE, "300 12 2"], r"line 257.*literal of type int"),
    "a cut line": ([*BASE, "300"], r"line 257"),
    "an empty line": ([*BASE, "", "300 'ab' 2"], r"line 257"),
    "id 0": ([*BASE, "0 'ab' 2"], r"line 257.*the id is not in 1 \.\. 16777215"),
    "a negative id": ([*BASE, f"-{2**40} 'ab' 2"], r"line 257.*the id is not in 1"),
    "a huge id": ([*BASE, f"{2**40} 'ab' 2"], r"line 257.*the id is not in 1"),
    "two literals' sum": (
        [*BASE, "300 'a'+'b' 2"],
        r"line 257",
    ),
    "a raw zero byte": ([*BASE, "300 'a\0' 2"], r"line 257"),
    "an id beyond the embedding": ([*BASE, "1000 'ab' 2"], r"ids up to 1000.*0 \.\. 999"),
    "no bytes": ([*BASE, "300 '' 0"], r"id 300 has no bytes"),
    "nothing": ([], r"line 1"),
    "a deep nest": ([*BASE, "300 " + "-" * 50_000 + "1 2"], r"line 257"),
    "a key that no mapping takes": ([*BASE, "300 {[]:1} 2"], r"line 257.*no Python literal"),
    "half a surrogate": ([*BASE, r"300 '\ud800' 3"], r"line 257"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_vocabularies_are_refused(tmp_path: Path, case: str) -> None:
    text_lines, message = BAD[case]
    path = write(tmp_path / "v.txt", text_lines)
    with pytest.raises(CheckpointError, match=message):
        World(path, 1000)


def test_the_core_refuses_what_the_file_cannot_hold() -> None:
    """These stop earlier when they come from a file; ids and bytes may come from elsewhere."""
    singles = bytes(range(256))
    cases: tuple[tuple[list[int], bytes, str], ...] = (
        ([], b"", "the vocabulary is empty"),
        ([*range(256)], singles, "vocabulary id 0: expected 1"),
        ([*range(1, 256), 2**24], singles, "vocabulary id 16777216: expected 1"),
        ([*range(1, 256), 7], singles, "vocabulary id 7 is there twice"),
    )
    for ids, blob, message in cases:
        with pytest.raises(ValueError, match=message):
            _core.Tokenizer(np.array(ids, np.int32), blob, np.arange(len(ids) + 1))


def test_ids_may_have_gaps(tmp_path: Path) -> None:
    world = World(write(tmp_path / "v.txt", [*BASE, "900 'ab' 2"]), 1000)
    assert world.encode("cab") == [ord("c") + 1, 900]
    assert world.decode([900, 0]) == b"ab"
    with pytest.raises(ValueError, match=r"ids\[0\] = 899 is not in the vocabulary"):
        world.decode([899])


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(CheckpointError, match="expected UTF-8 text"):
        World(path, 1000)


@pytest.mark.parametrize("change", ["\ufeff{}", "{}\n\n", "{}"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_ends_of_lines_and_of_the_file_and_byte_order_marks(
    tmp_path: Path, change: str, end: str
) -> None:
    plain = write(tmp_path / "plain.txt", [*BASE, "900 'ab' 2"])
    (tmp_path / "v.txt").write_bytes(change.format(end.join([*BASE, "900 'ab' 2"])).encode())
    assert read_vocabulary(tmp_path / "v.txt") == read_vocabulary(plain)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_as_vocabulary_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.txt")
    with pytest.raises(CheckpointError, match="a regular file, found a pipe"):
        World(tmp_path / "v.txt", 1000)
    with pytest.raises(CheckpointError, match="a regular file"):
        World(Path("/dev/zero"), 1000)


def test_a_pickle_reads_the_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("v.txt"), [*BASE, "900 'ab' 2"])
    content = pickle.dumps(World(Path("v.txt"), 1000))
    monkeypatch.chdir(tmp_path.parent)
    assert pickle.loads(content).encode("cab") == [ord("c") + 1, 900]
    assert len(content) < 1000


def test_a_tokenizer_json_that_makes_its_library_panic_is_refused(tmp_path: Path) -> None:
    """A panic of a Rust library is no Exception in Python."""
    bpe = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "model": {**bpe, "merges": ["a bb"]}}))
    with pytest.raises(CheckpointError, match="no tokenizer.json of `tokenizers`"):
        GPT2Tokenizer(path, 0)
    with pytest.MonkeyPatch.context() as patch:
        module = pytest.importorskip("tokenizers")
        panic = type("PanicException", (BaseException,), {})

        class Panics:
            @staticmethod
            def from_file(_: str) -> None:
                raise panic("range end index 2 out of range")

        patch.setattr(module, "Tokenizer", Panics)
        with pytest.raises(CheckpointError, match="range end index 2"):
            GPT2Tokenizer(path, 0)


def test_a_missing_vocabulary_says_what_to_do() -> None:
    with pytest.raises(CheckpointError, match=r"m: .* rwkv_vocab_v20230424\.txt with vocabulary="):
        load("world", Source("m", ()), 1000, no_fetch)
    several = Source("m", (), vocabularies=("a_vocab.txt", "b_vocab.txt"))
    with pytest.raises(CheckpointError, match=r"2 files may be.* a_vocab.txt, b_vocab.txt: name"):
        load("world", several, 1000, no_fetch)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(write(tmp_path / "v.txt", lines(nested_entries(5))), 2**16)


def test_what_is_no_text_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="half a surrogate pair"):
        world.encode("a\ud800b")
    wrong: Any = ["a", 3]
    with pytest.raises(TypeError, match="a text is int: expected str or bytes"):
        world.encode_many(wrong)
    for token in (2**20, -1, 2**40):
        with pytest.raises(ValueError, match=rf"ids\[1\] = {token} is not in the vocabulary"):
            world.decode([1, token])
    assert world.encode("") == [] and world.decode([]) == b""


class Changing:
    """An int that is another each time it is read, and empties the list it is in."""

    def __init__(self, world: World) -> None:
        self.ids, self.reads = [self, 1, 2, 3], 0
        self.short, self.long = world.encode("a")[0], max(world.encode_many(["a" * 50])[0].tolist())

    def __index__(self) -> int:
        self.ids.clear()
        self.reads += 1
        return self.short if self.reads == 1 else self.long


def test_ids_are_read_once(world: World) -> None:
    changing = Changing(world)
    assert world.decode(changing.ids) == b"a" + world.decode([1, 2, 3])
    assert changing.reads == 1


def test_threads_may_share_a_tokenizer(world: World) -> None:
    texts = random_texts(6, 3000, list(nested_entries(5).values()))
    expected = world.encode_many(texts)[0].tobytes()
    found: list[bytes] = []
    work = [
        threading.Thread(target=lambda: found.append(world.encode_many(texts)[0].tobytes()))
        for _ in range(4)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert found == [expected] * 4


def test_bytes() -> None:
    tokenizer = load("bytes", None, 256, no_fetch)
    assert tokenizer is not None
    assert tokenizer.encode('"in') == [34, 105, 110]
    assert tokenizer.decode(tokenizer.encode("é")) == "é".encode()
    ids, start = tokenizer.encode_many(["ab", "", "c"])
    assert ids.tolist() == [97, 98, 99] and start.tolist() == [0, 2, 2, 3]
    with pytest.raises(CheckpointError, match=r"ids up to 255.*0 \.\. 99"):
        load("bytes", None, 100, no_fetch)
    assert load("bytes", None, 0, no_fetch)  # weights without an embedding: the core says so


def test_gpt2_is_fetched_and_adds_no_special_token(tmp_path: Path) -> None:
    """A small byte-pair model in GPT-2's format stands in for the real one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = {chr(i): i - 33 for i in range(33, 127)} | {"Ġ": 94, "th": 95, "Ġth": 96, "é": 97}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h"), ("Ġ", "th")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<|endoftext|>"])
    bpe.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 98)]
    )
    path = tmp_path / "tokenizer.json"
    bpe.save(str(path))
    asked = []

    def fetch(repo: str, file: str) -> Path:
        asked.append((repo, file))
        return path

    tokenizer = load("gpt2", None, 1000, fetch)
    assert tokenizer is not None and asked == [("openai-community/gpt2", "tokenizer.json")]
    assert tokenizer.encode("th th") == [95, 96]
    ids, start = tokenizer.encode_many(["th th", "a"])
    assert ids.tolist() == [95, 96, ord("a") - 33] and start.tolist() == [0, 2, 3]
    assert tokenizer.decode([95, 96]) == b"th th"
    with pytest.raises(CheckpointError, match="do not belong together"):
        load("gpt2", None, 50, fetch)
    path.write_text(json.dumps({"model": {}}))
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load("gpt2", None, 1000, fetch)


def test_an_unknown_kind_is_named() -> None:
    assert load(None, None, 5, no_fetch) is None
    with pytest.raises(ValueError, match="tokenizer='bert'"):
        load("bert", None, 5, no_fetch)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>\n<html></html>\n", "is a web page, not a text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        ("1 'a' 1\n".encode("utf-16"), "expected UTF-8 text, found UTF-16. Save"),
        (b"\x1f\x8b\x08\0\0", "compressed by gzip: unpack it"),
    ],
)
def test_a_vocabulary_of_another_kind_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"v.txt.*{words}"):
        read_vocabulary(tmp_path / "v.txt")
