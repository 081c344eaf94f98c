"""Rewrites a sentence so that it keeps, or changes, what it says: positives and hard negatives.

Assumes one English sentence, natural or with spaced punctuation. Promises edits that need nothing
but the sentence, a random generator, short closed word lists (function words, numerals, opposites)
and, for names, the names of the corpus. No synonym list and no outside data is used.
"""

from __future__ import annotations

import random
import re


def listed(*lines: str) -> list[str]:
    """The words of some lines."""
    return " ".join(lines).split()


FUNCTION = set(
    listed(
        "a an the of to in on at by for from with as and or but that which who whom this these",
        "those it its is are was were be been being am do does did have has had will would there",
        "then so also his her their our my your he she they we i you him them us me",
    )
)
NEGATIONS = set(listed("not no never none nor neither without n't nobody nothing nowhere cannot"))
NUMERALS = listed("zero one two three four five six seven eight nine ten eleven twelve")
MONTHS = listed(
    "January February March April May June July August September October November December"
)
DAYS = listed("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
SCALES = listed("hundred thousand million billion trillion")
OPPOSITES = [
    pair.split("/")
    for pair in listed(
        "rose/fell rise/fall rises/falls rising/falling up/down increase/decrease higher/lower",
        "increased/decreased increasing/decreasing more/less above/below gain/loss gained/lost",
        "gains/losses before/after buy/sell bought/sold buys/sells won/lost win/lose wins/loses",
        "first/last early/late earlier/later north/south east/west northern/southern open/closed",
        "eastern/western opened/closed start/end started/ended begin/end began/ended left/right",
        "accept/reject accepted/rejected approve/reject approved/rejected agreed/refused",
        "agree/refuse large/small larger/smaller big/small long/short longer/shorter old/new",
        "older/younger old/young strong/weak good/bad better/worse best/worst high/low most/least",
        "many/few major/minor man/woman men/women boy/girl boys/girls father/mother son/daughter",
        "brother/sister husband/wife king/queen male/female north-east/south-west inside/outside",
        "allow/ban allowed/banned support/oppose supported/opposed arrive/leave arrived/left",
        "to/from success/failure succeeded/failed guilty/innocent alive/dead born/died over/under",
        "love/hate positive/negative public/private love/hatred friend/enemy peace/war join/leave",
        "joined/left enter/leave entered/left add/remove added/removed day/night always/never",
        "hot/cold black/white win/defeat victory/defeat with/without include/exclude",
        "includes/excludes rich/poor",
    )
]
SWITCH = {a: b for a, b in OPPOSITES} | {b: a for a, b in reversed(OPPOSITES)}
TENSES = {
    "is": ["was", "will be"],
    "are": ["were", "will be"],
    "was": ["is", "will be"],
    "were": ["are", "will be"],
    "will": ["did", "would not"],
    "has": ["had", "will have"],
    "have": ["had", "will have"],
    "had": ["has", "will have"],
}
AUXILIARIES = set(
    listed("is are was were will would can could has had did does do should may might")
)
SPACED = re.compile(r"\w+(?:[-.,']\w+)*|[^\w\s]")
CONTRACTIONS = [
    (" do not ", " don't "), (" does not ", " doesn't "), (" did not ", " didn't "),
    (" is not ", " isn't "), (" was not ", " wasn't "), (" will not ", " won't "),
    (" it is ", " it's "), (" percent", "%"), (" per cent", "%"), ("United States", "U.S."),
    (" and ", " & "), (" dollars", "$"),
]  # fmt: skip


def words_of(text: str) -> list[str]:
    """Space-separated words."""
    return text.split(" ")


def core(word: str) -> str:
    """A word without the marks around it, lower-cased."""
    return word.strip(".,;:!?\"'()[]").lower()


def is_kept(word: str) -> bool:
    """Whether leaving out the word would turn the meaning round: a negation."""
    bare = core(word)
    return bare in NEGATIONS or bare.endswith("n't")


def drop_words(text: str, rng: random.Random, function: float, content: float) -> str:
    """Leave out each function word and each content word with the given probability."""
    kept = [
        word
        for word in words_of(text)
        if is_kept(word) or rng.random() >= (function if core(word) in FUNCTION else content)
    ]
    return " ".join(kept) if len(kept) >= 2 else text


def turn_clauses(text: str, rng: random.Random) -> str:
    """`A, b.` as `B, a.` where both parts have three words or more."""
    parts = re.split(r" ?, ", text.rstrip(" ."))
    cuts = list(range(1, len(parts)))
    rng.shuffle(cuts)
    for cut in cuts:
        head, tail = ", ".join(parts[:cut]), ", ".join(parts[cut:])
        if min(head.count(" "), tail.count(" ")) >= 2:
            return f"{tail[:1].upper()}{tail[1:]}, {head[:1].lower()}{head[1:]}."
    return text


def respell(text: str, rng: random.Random) -> str:
    """Contractions, numerals and signs the other way."""
    for long, short in CONTRACTIONS:
        if rng.random() < 0.5:
            text = text.replace(long, short) if long in text else text.replace(short, long)
    if rng.random() < 0.5:
        words = [
            NUMERALS[int(w)] if w.isdecimal() and int(w) < len(NUMERALS)
            else str(NUMERALS.index(w)) if w in NUMERALS[2:] else w
            for w in words_of(text)
        ]  # fmt: skip
        text = " ".join(words)
    return text


def inflect(text: str, rng: random.Random, known: set[str]) -> str:
    """Words of five letters or more in another form that the corpus knows, one in four of them."""
    words = words_of(text)
    for i, word in enumerate(words):
        if len(word) < 5 or not word.isalpha() or not word.islower() or rng.random() > 0.25:
            continue
        stem = re.sub(r"(?:s|es|ed|d|ing)$", "", word)
        forms = {stem + end for end in ("", "s", "es", "e", "ed", "ing")} & known - {word}
        if len(stem) >= 4 and forms:
            words[i] = rng.choice(sorted(forms))
    return " ".join(words)


def restyle(text: str, rng: random.Random) -> str:
    """Case, final stop, spaced or absent punctuation."""
    if rng.random() < 0.25:
        text = text.lower()
    style = rng.random()
    if style < 0.25:
        text = " ".join(SPACED.findall(text))
    elif style < 0.4:
        text = re.sub(r"\s+", " ", re.sub(r"[^\w\s$%'.-]", " ", text)).strip(" .")
    elif style < 0.55:
        text = text.rstrip(" .")
    return text


def same_meaning(text: str, rng: random.Random, known: set[str]) -> str:
    """A sentence that says the same: all content stays, its order and its dress may change."""
    if rng.random() < 0.35:
        text = turn_clauses(text, rng)
    if rng.random() < 0.5:
        text = respell(text, rng)
    if rng.random() < 0.4:
        text = inflect(text, rng, known)
    content = rng.choice((0.0, 0.0, 0.05, 0.1))
    text = drop_words(text, rng, rng.choice((0.0, 0.3, 0.6)), content)
    return restyle(text, rng)


def shared(one: str, other: str) -> float:
    """Share of what the fuller text says that the other says too: 0 to 1.

    Words count by their first five letters and once; a function word counts a quarter.
    """
    first, second = ({core(w)[:5] for w in words_of(text)} - {""} for text in (one, other))

    def weight(words: set[str]) -> float:
        return sum(0.25 if word in FUNCTION else 1.0 for word in words)

    return weight(first & second) / max(weight(first), weight(second), 0.25)


def partly_same(text: str, other: str, rng: random.Random) -> str:
    """A sentence that says a part of the same: details left out, added, or exchanged."""
    words, theirs = words_of(text), words_of(other)
    kinds = rng.sample(("leave", "add", "exchange"), rng.choice((1, 1, 2)))
    if "leave" in kinds and len(words) > 5:
        size = rng.randint(1, len(words) // 2)
        begin = rng.randrange(len(words) - size)
        words = words[:begin] + words[begin + size :]
    if "add" in kinds:
        size = rng.randint(1, min(len(theirs), max(1, len(words) // 2)))
        begin = rng.randrange(len(theirs) - size + 1)
        place = rng.choice((0, len(words)))
        words = words[:place] + theirs[begin : begin + size] + words[place:]
    if "exchange" in kinds:
        for i in rng.sample(range(len(words)), rng.randint(1, max(1, len(words) // 2))):
            words[i] = rng.choice(theirs)
    return " ".join(words)


def change_number(words: list[str], rng: random.Random, names: list[str]) -> bool:
    """Another number, numeral, month, weekday or scale in one place."""
    for i in rng.sample(range(len(words)), len(words)):
        digits = [j for j, c in enumerate(words[i]) if c.isdigit()]
        if digits:
            letters = list(words[i])
            for j in rng.sample(digits, max(1, len(digits) // 2)):
                letters[j] = rng.choice([c for c in "123456789" if c != letters[j]])
            words[i] = "".join(letters)
            return True
        for group in (NUMERALS[1:], MONTHS, DAYS, SCALES):
            if words[i] in group:
                words[i] = rng.choice([w for w in group if w != words[i]])
                return True
    return False


def is_name(words: list[str], i: int) -> bool:
    """A capitalised word that does not open the sentence and is no function word."""
    word = words[i]
    shaped = word[:1].isupper() and word.isalpha() and len(word) > 2
    return i > 0 and shaped and core(word) not in FUNCTION


def change_name(words: list[str], rng: random.Random, names: list[str]) -> bool:
    """Another name in one place, or two names exchanged."""
    places = [i for i in range(len(words)) if is_name(words, i)]
    if not places:
        return False
    if len(places) > 2 and rng.random() < 0.3:
        i, j = rng.sample(places, 2)
        words[i], words[j] = words[j], words[i]
        return True
    words[rng.choice(places)] = rng.choice(names)
    return True


def change_negation(words: list[str], rng: random.Random, names: list[str]) -> bool:
    """A negation taken out, or put in after an auxiliary."""
    for i, word in enumerate(words):
        if core(word) in ("not", "never"):
            del words[i]
            return True
        if core(word).endswith("n't"):
            words[i] = word.replace("n't", "")
            return True
    places = [i for i, word in enumerate(words) if word in AUXILIARIES]
    if not places:
        return False
    words.insert(rng.choice(places) + 1, "not" if rng.random() < 0.8 else "never")
    return True


def change_direction(words: list[str], rng: random.Random, names: list[str]) -> bool:
    """One word turned into its opposite."""
    places = [i for i, word in enumerate(words) if word in SWITCH]
    if not places:
        return False
    i = rng.choice(places)
    words[i] = SWITCH[words[i]]
    return True


def change_tense(words: list[str], rng: random.Random, names: list[str]) -> bool:
    """One auxiliary in another tense."""
    places = [i for i, word in enumerate(words) if word in TENSES]
    if not places:
        return False
    i = rng.choice(places)
    words[i] = rng.choice(TENSES[words[i]])
    return True


CHANGES = (change_number, change_number, change_name, change_name, change_negation,
           change_direction, change_direction, change_tense)  # fmt: skip


def other_meaning(text: str, other: str, rng: random.Random, names: list[str]) -> str:
    """A sentence with most of the same words that says something else.

    One or two changes of number, name, negation, direction or tense; in a third of the cases, and
    where none applies, one to three content words are taken from the sentence `other`.
    """
    words = words_of(text)
    changed = False
    if rng.random() > 0.33:
        wanted = 1 if rng.random() < 0.7 else 2
        for change in rng.sample(CHANGES, len(CHANGES)):
            if wanted and change(words, rng, names):
                changed, wanted = True, wanted - 1
    if not changed:
        theirs = [w for w in words_of(other) if core(w) not in FUNCTION] or ["other"]
        places = [i for i, w in enumerate(words) if core(w) not in FUNCTION] or [0]
        for i in rng.sample(places, min(len(places), rng.randint(1, 3))):
            words[i] = rng.choice(theirs)
    return " ".join(words)
