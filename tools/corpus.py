"""Reads the open corpora of the demo model and cuts them into training and held-out documents.

Assumes a folder with the files of LICENCES: one archive of novels, and xz-packed text files, one
passage a line. Promises documents in a fixed order, the same on every machine, and that no held-out
document (whole novels, whole blocks of the other files) is ever among the training ones.
"""

from __future__ import annotations

import lzma
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

DOCUMENT_BYTES = 3000
WIKISPLIT = "wikisplit_sentences.txt.xz"
NOVELS = 2  # the model reads one novel in two: other text is nearer to what it is for
HELD_OUT_NOVEL = 50  # one novel in 50 is held out whole, so that no character's name is known
HELD_OUT_BLOCK = 60  # one block in 60 of each other file
BLOCK_LINES = 90

LICENCES = {
    "100_english_novels.tar.gz": "public domain",
    "cia_factbook_text.txt.xz": "public domain",
    "sgd_utterances.txt.xz": "CC BY-SA 4.0",
    "taskmaster_utterances.txt.xz": "CC BY 4.0",
    "turkcorpus_lines.txt.xz": "CC BY-SA (Wikipedia)",
    "ud_english_ewt_sentences.txt.xz": "CC BY-SA 4.0",
    WIKISPLIT: "CC BY-SA (Wikipedia)",
}
# Small files of present-day sentences are read several times for each reading of the novels.
REPEATS = {
    "novels": 1,
    "cia": 2,
    "sgd": 1,
    "taskmaster": 2,
    "turkcorpus": 3,
    "ud": 3,
    "wikisplit": 3,
}


@dataclass(frozen=True)
class Document:
    """One training or held-out text: where it is from, what it says."""

    source: str
    text: str
    held_out: bool


def read_lines(path: Path) -> list[str]:
    """Lines of an xz-packed UTF-8 text file, stripped, empty ones left out."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def read_novels(path: Path) -> list[tuple[str, list[str]]]:
    """(name, paragraphs) of every novel in the archive, by name.

    Three layouts are among them: a line a paragraph, blank lines between paragraphs, and lines of
    one width with nothing between; the last are cut every ten lines.
    """
    novels = []
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            file = archive.extractfile(member) if member.name.endswith(".txt") else None
            if file is None:
                continue
            text = file.read().decode("utf-8-sig", "replace").replace("\r\n", "\n")
            novels.append((Path(member.name).stem, paragraphs_of(text.replace("\r", "\n"))))
    return novels


def paragraphs_of(text: str) -> list[str]:
    """Paragraphs of one novel, inner line breaks turned into spaces."""
    lines = [line for line in text.split("\n") if line.strip()]
    mean = sum(map(len, lines)) / max(len(lines), 1)
    if mean > 100:
        pieces = lines
    elif text.count("\n\n") > len(lines) // 20:
        pieces = re.split(r"\n\s*\n", text)
    else:
        pieces = ["\n".join(lines[i : i + 10]) for i in range(0, len(lines), 10)]
    joined = (re.sub(r"\s+", " ", piece).strip() for piece in pieces)
    return [piece for piece in joined if piece]


def detokenize(text: str) -> str:
    """Undo the spaced-out punctuation of WikiSplit and TurkCorpus: `end , he 's` -> `end, he's`."""
    text = text.replace("-lrb-", "(").replace("-rrb-", ")").replace("''", '"')
    text = re.sub(r'"\s+"\s+', '"', text) if text.count('" "') else text
    text = re.sub(r" ([,.;:!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[$£€]) ", r"\1", text)
    text = re.sub(r" (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1", text)
    text = re.sub(r"(\w) - (\w)", r"\1-\2", text)
    text = re.sub(r'" ([^"]*?) "', r'"\1"', text)
    return re.sub(r"\s+", " ", text).strip()


def wiki_triples(folder: Path) -> list[tuple[int, tuple[str, str, str]]]:
    """(line number, (complex sentence, first half, second half)) of WikiSplit, spaced as they come.

    Sentences are missing here and there, so that a triple may begin at any line: it is one where
    the two halves together hold more than half of the words that either side holds.
    """
    lines = read_lines(folder / WIKISPLIT)
    bags = [set(re.findall(r"\w{2,}", line.lower())) for line in lines]
    found = []
    at = 0
    while at + 2 < len(lines):
        whole, halves = bags[at], bags[at + 1] | bags[at + 2]
        if len(whole & halves) > 0.5 * len(whole | halves):
            found.append((at, (lines[at], lines[at + 1], lines[at + 2])))
            at += 2
        at += 1
    return found


def pack(passages: list[str], joint: str) -> list[str]:
    """Neighbouring passages joined to documents of about DOCUMENT_BYTES bytes."""
    documents: list[str] = []
    current: list[str] = []
    size = 0
    for passage in passages:
        current.append(passage)
        size += len(passage)
        if size >= DOCUMENT_BYTES:
            documents.append(joint.join(current))
            current, size = [], 0
    if current:
        documents.append(joint.join(current))
    return documents


def block_is_held_out(index: int) -> bool:
    """Whether block `index` of a line file is held out."""
    return index % HELD_OUT_BLOCK == HELD_OUT_BLOCK // 2


def line_documents(source: str, lines: list[str]) -> list[Document]:
    """Blocks of lines as documents; TurkCorpus is never held out, its variants lie far apart."""
    documents = []
    for index, begin in enumerate(range(0, len(lines), BLOCK_LINES)):
        held_out = source != "turkcorpus" and block_is_held_out(index)
        block = lines[begin : begin + BLOCK_LINES]
        documents += [Document(source, text, held_out) for text in pack(block, "\n")]
    return documents


def load(folder: Path, novels: int = 1) -> list[Document]:
    """All documents of the corpora in `folder`, in a fixed order.

    Of the novels that are not held out, one in `novels` is read.
    """
    documents = []
    for index, (_, paragraphs) in enumerate(read_novels(folder / "100_english_novels.tar.gz")):
        held_out = index % HELD_OUT_NOVEL == HELD_OUT_NOVEL // 2
        if held_out or index % novels == 0:
            documents += [Document("novels", text, held_out) for text in pack(paragraphs, "\n\n")]
    for name in sorted(LICENCES):
        source = name.split("_")[0]
        if source == "100":
            continue
        lines = read_lines(folder / name)
        if source in ("wikisplit", "turkcorpus"):  # come with spaced-out punctuation
            lines = [detokenize(line) if i % 2 else line for i, line in enumerate(lines)]
        documents += line_documents(source, lines)
    return documents
