"""The closed world of the tiny corpus: its questions, instructions, sentences and wordings, as text.

Everything is plain lower-case English without digits, so that the written form is also the spoken form (`spoken`
turns numbers into words). All of it is a pure function of its arguments: the same seed gives the same text on every
machine. A question has one right answer; an instruction has an answer that its rule computes, and its test
arguments never occur in training.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_UNITS = (
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|"
    "seventeen|eighteen|nineteen"
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

_CAPITALS = (
    "france paris|italy rome|spain madrid|germany berlin|japan tokyo|china beijing|egypt cairo|greece athens|"
    "norway oslo|sweden stockholm|poland warsaw|austria vienna|russia moscow|portugal lisbon|ireland dublin|"
    "england london|cuba havana|peru lima|kenya nairobi|canada ottawa|turkey ankara|finland helsinki|"
    "hungary budapest|india new delhi"
)
_COLORS = (
    "the sky:blue|grass:green|snow:white|blood:red|a banana:yellow|coal:black|a carrot:orange|chocolate:brown|"
    "an elephant:gray|a flamingo:pink|an emerald:green|the sun:yellow|a tomato:red|milk:white|a plum:purple|"
    "the sea:blue"
)
_SOUNDS = (
    "dog woof|cat meow|cow moo|sheep baa|duck quack|lion roar|pig oink|horse neigh|owl hoot|bee buzz|snake hiss|"
    "mouse squeak|wolf howl|crow caw|frog croak"
)
_OPPOSITES = (
    "hot cold|big small|up down|day night|happy sad|fast slow|open closed|wet dry|rich poor|young old|hard soft|"
    "full empty"
)
_BABIES = (
    "dog puppy|cat kitten|cow calf|sheep lamb|horse foal|duck duckling|lion cub|goat kid|frog tadpole|pig piglet|"
    "hen chick"
)
_COUNTS = (
    "how many legs does a spider have:eight:a spider has eight legs|"
    "how many legs does a bee have:six:a bee has six legs|"
    "how many wings does a bird have:two:a bird has two wings|"
    "how many horns does a unicorn have:one:a unicorn has one horn|"
    "how many days are in a week:seven:there are seven days in a week|"
    "how many months are in a year:twelve:there are twelve months in a year|"
    "how many wheels are on a car:four:there are four wheels on a car|"
    "how many fingers are on a hand:five:there are five fingers on a hand|"
    "how many sides are in a triangle:three:there are three sides in a triangle|"
    "how many players are on a football team:eleven:there are eleven players on a football team"
)
_SUMS = (
    (1, 1), (2, 1), (1, 3), (2, 2), (3, 2), (2, 4), (3, 3), (5, 2), (4, 3), (4, 4), (3, 5), (6, 3), (4, 5), (5, 5),
    (7, 3), (8, 2), (6, 5), (9, 2), (6, 6), (8, 4),
)  # fmt: skip

ASR_WORDINGS = (
    "write down what you hear",
    "type out this recording",
    "turn this speech into text",
    "what words are spoken here",
    "note down the spoken words",
    "give the text of this audio",
    "listen and write the sentence",
    "put this voice into writing",
    "which sentence is being said",
    "make a transcript of this clip",
)
TTS_WORDINGS = (
    "read this text aloud",
    "say this sentence out loud",
    "turn this text into speech",
    "speak these words clearly",
    "give this sentence a voice",
    "pronounce the following text",
    "let me hear this sentence",
    "voice the words written here",
    "make an audio clip of this",
    "recite this line for me",
)

_ARGUMENTS = (
    "red|blue|green|white|black|dog|cat|cow|bee|owl|hot|cold|big|small|fast|slow|happy|sad|wet|dry|young|old|snow|"
    "milk|grass|sun|sky|paris|rome|tokyo|london|madrid"
)


@dataclass(frozen=True)
class Question:
    """A question of the world. `text` is asked, `answer` is right, `sentence` says the answer in full."""

    text: str
    answer: str
    sentence: str
    topic: str


@dataclass(frozen=True)
class Instruction:
    """A task whose right `answer` follows from `rule` and `args`; `split` is "train" or "test".

    `args` is {"words": "red dog"}, for the rule "repeat" also {"times": 2}; `expected(rule, **args) == answer`.
    """

    text: str
    answer: str
    rule: str
    split: str
    args: dict[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sentence:
    """A text to be spoken. `kind` is "question", "statement", "answer" (bare) or "random" (words at random)."""

    text: str
    kind: str


def number_words(value: int) -> str:
    """The English words of a whole number from 0 to 99, e.g. 42 -> "forty two".

    Raises:
        ValueError: the number is out of that range.
    """
    if not 0 <= value <= 99:
        raise ValueError(f"{value} is not between 0 and 99")
    ones_words = _UNITS.split("|")
    if value < 20:
        return ones_words[value]
    tens, ones = divmod(value, 10)
    return _TENS[tens] + (f" {ones_words[ones]}" if ones else "")


def spoken(text: str) -> str:
    """The spoken form of a text: lower case, numbers below 100 as words, "+" as "plus", no punctuation."""
    text = re.sub(r"\d+", lambda match: number_words(int(match.group())), text.lower()).replace("+", " plus ")
    return " ".join(re.sub(r"[^a-z' ]+", " ", text).split())


def questions() -> list[Question]:
    """All questions of the world, topic by topic, in a fixed order; no text occurs twice."""
    found: list[Question] = []

    def add(topic: str, text: str, answer: str, sentence: str) -> None:
        found.append(Question(text, answer, sentence, topic))

    for country, capital in (pair.split(" ", 1) for pair in _CAPITALS.split("|")):
        add("capitals", f"what is the capital of {country}", capital, f"the capital of {country} is {capital}")
    for thing, color in (pair.split(":") for pair in _COLORS.split("|")):
        add("colors", f"what color is {thing}", color, f"{thing} is {color}")
    for animal, sound in (pair.split() for pair in _SOUNDS.split("|")):
        add("sounds", f"what does the {animal} say", sound, f"the {animal} says {sound}")
    for one, other in (pair.split() for pair in _OPPOSITES.split("|")):
        for a, b in ((one, other), (other, one)):
            add("opposites", f"what is the opposite of {a}", b, f"the opposite of {a} is {b}")
    for left, right in _SUMS:
        total = number_words(left + right)
        add("sums", spoken(f"what is {left} + {right}"), total, spoken(f"{left} + {right} is {total}"))
    for animal, baby in (pair.split() for pair in _BABIES.split("|")):
        add("babies", f"what is a baby {animal} called", baby, f"a baby {animal} is called a {baby}")
    for text, answer, sentence in (entry.split(":") for entry in _COUNTS.split("|")):
        add("counts", text, answer, sentence)
    return found


def words() -> list[str]:
    """Every word that is spoken in the world, sorted."""
    return sorted({word for q in questions() for part in (q.text, q.answer, q.sentence) for word in part.split()})


def _repeat(words: str, times: int = 2) -> str:
    return " ".join([words] * times)


_RULES: dict[str, Callable[..., str]] = {
    "repeat": _repeat,
    "backwards": lambda words: " ".join(reversed(words.split())),
    "first": lambda words: words.split()[0],
    "last": lambda words: words.split()[-1],
    "count": lambda words: number_words(len(words.split())),
}
_PROMPTS = {
    ("repeat", 2): "repeat twice",
    ("repeat", 3): "repeat three times",
    ("backwards", 0): "say backwards",
    ("first", 0): "first word of",
    ("last", 0): "last word of",
    ("count", 0): "how many words",
}


def expected(rule: str, **args: str | int) -> str:
    """The right answer to an instruction: "repeat" (words, times), "backwards", "first", "last", "count" (words).

    Raises:
        KeyError: there is no such rule.
    """
    return _RULES[rule](**args)


def instructions(seed: int = 0, *, train: int = 960, test: int = 60) -> list[Instruction]:
    """Verifiable instructions: `train` of the training split, then `test` of the test split.

    The kinds take turns. Arguments are strings of one to four words ("one" only where the task is then not void); a
    string of words that is a test argument of any kind is no training argument of any kind.

    Args:
        seed: chooses the arguments; other seeds give other ones.
        train: how many training instructions.
        test: how many test instructions.
    """
    chance = random.Random(f"instructions {seed}")
    kinds = sorted(_PROMPTS)
    reserved: set[str] = set()
    seen: set[str] = set()

    def make(split: str, index: int) -> Instruction:
        rule, times = kinds[index % len(kinds)]
        low, high = {"repeat": (1, 2), "count": (1, 4)}.get(rule, (2, 3))
        while True:
            argument = " ".join(chance.sample(_ARGUMENTS.split("|"), chance.randint(low, high)))
            prompt = f"{_PROMPTS[rule, times]}: {argument}"
            # Single words and their count are too few to be kept apart by their argument alone.
            single = " " not in argument
            if split == "test" and single:
                continue
            if (prompt not in seen and argument not in reserved) or (split == "train" and single):
                break
        seen.add(prompt)
        if split == "test":
            reserved.add(argument)
        args: dict[str, str | int] = {"words": argument, **({"times": times} if times else {})}
        return Instruction(prompt, expected(rule, **args), rule, split, args)

    testing = [make("test", index) for index in range(test)]
    return [make("train", index) for index in range(train)] + testing


def random_strings(count: int, seed: int, *, low: int = 3, high: int = 6, exclude: Iterable[str] = ()) -> list[str]:
    """`count` different strings of `low` to `high` words of the world at random, none of them in `exclude`."""
    chance, pool, barred = random.Random(f"random strings {seed}"), words(), set(exclude)
    found: list[str] = []
    while len(found) < count:
        text = " ".join(chance.choice(pool) for _ in range(chance.randint(low, high)))
        if text not in barred:
            barred.add(text)
            found.append(text)
    return found


def sentences(
    count: int,
    *,
    seed: int,
    questions_share: float = 0.5,
    statements_share: float = 0.35,
    answers_share: float = 0.0,
    exclude: Iterable[str] = (),
) -> list[Sentence]:
    """What is to be spoken for ASR and TTS, `count` texts in a shuffled order; the same text may occur several times.

    The world's own sentences take turns, so that each occurs equally often (give or take one); what the three shares
    leave is strings of words at random, all different.

    Args:
        count: how many texts.
        seed: chooses the random strings and the order.
        questions_share: share of whole questions.
        statements_share: share of whole answer sentences ("the capital of france is paris").
        answers_share: share of bare answers ("paris").
        exclude: random strings that must not occur (those of another split).

    Raises:
        ValueError: a share is negative or they sum to more than one.
    """
    shares = (questions_share, statements_share, answers_share)
    if min(shares) < 0 or sum(shares) > 1 + 1e-9:
        raise ValueError(f"shares {shares} are not parts of one whole")
    chance = random.Random(f"sentences {seed}")
    asked = questions()
    own = {
        "question": [q.text for q in asked],
        "statement": [q.sentence for q in asked],
        "answer": sorted({q.answer for q in asked}),
    }
    found: list[Sentence] = []
    for (kind, texts), share in zip(own.items(), shares, strict=True):
        wanted = round(share * count)
        while wanted > 0:
            turn = chance.sample(texts, min(wanted, len(texts)))
            found += [Sentence(text, kind) for text in turn]
            wanted -= len(turn)
    left = max(count - len(found), 0)
    found = found[:count] + [Sentence(text, "random") for text in random_strings(left, seed, exclude=exclude)]
    chance.shuffle(found)
    return found


def corpus_text(seed: int = 0) -> list[str]:
    """All written text of the world, line by line: what a tokenizer is trained on."""
    lines = [part for q in questions() for part in (q.text, q.answer, q.sentence)]
    lines += [part for i in instructions(seed) if i.split == "train" for part in (i.text, i.answer)]
    return lines + list(ASR_WORDINGS) + list(TTS_WORDINGS)
