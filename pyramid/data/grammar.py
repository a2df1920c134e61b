"""The language of the `shapes` world: captions with paraphrases, questions with answers, and the parser back.

One grammar serves all: `caption` writes the canonical sentence of a scene, `paraphrase` another wording of it,
`questions` the question-answer pairs, `parse` reads any of these sentences (and what a model writes) back into
attributes. Works on the dataclasses of `shapes.py` by attribute names only.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyramid.data.shapes import ObjectAttributes, SceneAttributes

# First wording = canonical. Every wording of a value must be unique over all values of all attributes.
SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop"),
}
SIZE_WORDS = {"small": ("small", "tiny", "little"), "medium": ("medium", "middling"), "large": ("large", "big", "huge")}
COLOUR_WORDS = {
    "red": ("red", "scarlet"),
    "green": ("green",),
    "blue": ("blue",),
    "yellow": ("yellow",),
    "orange": ("orange",),
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
    "white": ("white",),
}
MOTION_PHRASES = {
    "left": ("moves left", "drifts to the left", "goes left", "slides left"),
    "right": ("moves right", "drifts to the right", "goes right", "slides right"),
    "up": ("moves up", "drifts up", "goes up", "climbs up"),
    "down": ("moves down", "drifts down", "goes down", "sinks down"),
    "bounces": ("bounces", "is bouncing", "hops"),
    "sways": ("sways", "is swaying", "swings"),
    "orbits": ("orbits", "is orbiting", "revolves"),
    "rests": ("rests", "is resting", "stays still"),
}
BACKGROUND_WORDS = {
    "gradient": ("gradient", "shaded"),
    "striped": ("striped",),
    "checkered": ("checkered", "chequered"),
    "dotted": ("dotted", "spotted"),
}
CAMERA_PHRASES = {
    "static": (),
    "pan left": ("the camera pans left",),
    "pan right": ("the camera pans right",),
    "tilt up": ("the camera tilts up",),
    "tilt down": ("the camera tilts down",),
    "zoom in": ("the camera zooms in",),
    "zoom out": ("the camera zooms out",),
}
_MOTION_KEYS = {
    "left": "left leftward leftwards",
    "right": "right rightward rightwards",
    "up": "up upward upwards",
    "down": "down downward downwards",
    "bounces": "bounces bouncing bounce hops hopping",
    "sways": "sways swaying sway swings swinging",
    "orbits": "orbits orbiting orbit revolves revolving",
    "rests": "rests resting rest still",
}


def content_groups(scene: SceneAttributes) -> tuple[frozenset[str], ...]:
    """What a caption says of the objects - shape, colour, size, motion, each once - as the words that name it."""
    groups = dict.fromkeys(
        frozenset(words)
        for thing in scene.objects
        for words in (
            SIZE_WORDS[thing.size],
            COLOUR_WORDS[thing.colour],
            SHAPE_WORDS[thing.shape],
            _MOTION_KEYS[thing.motion].split(),
        )
    )
    return tuple(groups)


class _Choice:
    """A wording for each value: the canonical one, or one that a hash of the key picks."""

    def __init__(self, key: str | None) -> None:
        self.key, self.count = key, 0

    def __call__(self, wordings: tuple[str, ...]) -> str:
        return wordings[self.number(len(wordings))]

    def number(self, count: int) -> int:
        """One from 0 to `count` - 1; 0 without a key."""
        if self.key is None:
            return 0
        self.count += 1
        draw = zlib.crc32(f"{self.key}:{self.count}".encode())
        draw = (draw ^ draw >> 15) * 0x2C1B3C6D & 0xFFFFFFFF  # of keys that differ by one, a CRC's bits go together
        return (draw ^ draw >> 13) % count


def caption(scene: SceneAttributes) -> str:
    """The canonical sentence, e.g. "a small red star moves left on a striped background"."""
    return _sentence(scene, _Choice(None))


def paraphrase(scene: SceneAttributes, key: int | str) -> str:
    """Another wording of `caption`, chosen by `key`: synonyms, and details left out now and then."""
    return _sentence(scene, _Choice(str(key)))


def _noun(thing: ObjectAttributes, choose: _Choice) -> str:
    words = [choose(SIZE_WORDS[thing.size]), choose(COLOUR_WORDS[thing.colour])]
    if thing.texture != "plain":
        words.append(thing.texture)
    words.append(choose(SHAPE_WORDS[thing.shape]))
    return " ".join(words)


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _sentence(scene: SceneAttributes, choose: _Choice) -> str:
    clauses = [f"{_article(_noun(thing, choose))} {choose(MOTION_PHRASES[thing.motion])}" for thing in scene.objects]
    if scene.relation:
        second = scene.objects[1]
        clauses[1] = f"{_article(_noun(second, choose))} that {choose(MOTION_PHRASES[second.motion])}"
        clauses[0] += f" {scene.relation} " + clauses.pop(1)
    sentence = " and ".join(clauses)
    background = _article(choose(BACKGROUND_WORDS[scene.background]) + " background")
    if choose(("with", "with", "without")) == "with":
        sentence += f" on {background}"
    if CAMERA_PHRASES[scene.camera]:
        sentence += ", " + choose(CAMERA_PHRASES[scene.camera])
    return sentence


def questions(scene: SceneAttributes, key: int | str | None = None) -> list[tuple[str, str]]:
    """Question-answer pairs whose answers follow from the scene alone; answers are one canonical word. With a `key`
    they are asked in other words, which the key picks, and which of several it is, and whether it is so, besides."""
    choose = _Choice(None if key is None else str(key))
    pairs = [(choose(_QUESTIONS["number"]), ("one", "two", "three")[len(scene.objects) - 1])]
    alone = len(scene.objects) == 1
    for thing in scene.objects:
        shape, colour = choose(SHAPE_NAMES[thing.shape]), choose(COLOUR_WORDS[thing.colour])
        unique = [other.shape for other in scene.objects].count(thing.shape) == 1
        name = shape if alone else f"{colour} {shape}"
        if key is not None:  # whatever is of no other thing, as their colours always are
            others = _ANY_OBJECT if alone else (f"{colour} {choose(_ANY_OBJECT)}",)
            name = choose((name, *others, shape) if unique else (name, *others))
        pairs += [
            (choose(_QUESTIONS["size"]).format(name), thing.size),
            (choose(_QUESTIONS["motion"]).format(name), thing.motion),
            (choose(_QUESTIONS["shape"]).format(choose(COLOUR_WORDS[thing.colour])), thing.shape),
        ]
        if alone:
            pairs.append((choose(_QUESTIONS["colour"]).format(name), thing.colour))
        elif key is not None and unique:
            pairs.append((choose(_QUESTIONS["colour"]).format(shape), thing.colour))
        if thing.texture != "plain":
            pairs.append((choose(_QUESTIONS["texture"]).format(name), thing.texture))
    pairs.append((choose(_QUESTIONS["background"]), scene.background))
    if scene.relation:
        first, second = scene.objects[:2]
        question = f"where is the {first.colour} {first.shape} from the {second.colour} {second.shape}?"
        pairs.append((question, scene.relation.split()[0]))
    if scene.camera != "static":
        pairs.append((choose(_QUESTIONS["camera"]), scene.camera))
    return pairs if key is None else [*pairs, *_choices(scene, choose), *_whether(scene, choose)]


# "{}" is what the object is called; canonical first.
_QUESTIONS = {
    "number": ("how many objects are there?", "how many things can you see?", "how many shapes are in the clip?"),
    "size": ("how large is the {}?", "how big is the {}?", "what size is the {}?", "what is the size of the {}?"),
    "motion": ("how does the {} move?", "what does the {} do?", "what is the {} doing?", "where does the {} go?"),
    "shape": (
        "what shape is the {} object?",
        "what shape is the {} thing?",
        "what is the {} object?",
        "which shape is {}?",
        "what is {}?",
    ),
    "colour": (
        "what colour is the {}?",
        "what color is the {}?",
        "which colour does the {} have?",
        "what is the colour of the {}?",
        "which color is the {}?",
    ),
    "texture": ("what texture does the {} have?", "what pattern is on the {}?"),
    "background": (
        "what is the background?",
        "what is behind it?",
        "what kind of background is there?",
        "what does the background look like?",
    ),
    "camera": ("what does the camera do?", "how does the camera move?"),
}
SHAPE_NAMES = {shape: (*words, "ball") if shape == "circle" else words for shape, words in SHAPE_WORDS.items()}
_ANY_OBJECT = ("object", "thing", "shape")
_KINDS = {"shape": SHAPE_WORDS, "colour": COLOUR_WORDS, "size": SIZE_WORDS, "motion": MOTION_PHRASES}


def either(labels: Sequence[str]) -> str:
    """The question which of these it is.

    >>> either(["red", "green", "blue"])
    'red, green or blue?'
    """
    return f"{', '.join(labels[:-1])} or {labels[-1]}?"


def _choices(scene: SceneAttributes, choose: _Choice) -> list[tuple[str, str]]:
    """Which of several it is, one of them right: of the background, and of each kind of attribute."""
    pairs = []
    for kind, table in {**_KINDS, "background": BACKGROUND_WORDS}.items():
        there = [scene.background] if kind == "background" else [getattr(thing, kind) for thing in scene.objects]
        right = there[choose.number(len(there))]
        others = [value for value in table if value not in there]
        labels = [others.pop(choose.number(len(others))) for _ in range(1 + choose.number(len(others)))]
        labels.insert(choose.number(len(labels) + 1), right)
        pairs.append((either(labels), right))
    return pairs


def _whether(scene: SceneAttributes, choose: _Choice) -> list[tuple[str, str]]:
    """What is so, or is not, as often: "yes" or "no"."""
    thing = scene.objects[choose.number(len(scene.objects))]
    pairs = []
    for kind, asked in (
        ("colour", "is there a {} object?"),
        ("shape", "is there a {}?"),
        ("shape", "can you see a {}?"),
    ):
        there = [getattr(other, kind) for other in scene.objects]
        absent = [value for value in _KINDS[kind] if value not in there]
        yes = bool(choose.number(2))
        value = getattr(thing, kind) if yes else absent[choose.number(len(absent))]
        question = asked.format(choose(SHAPE_NAMES[value] if kind == "shape" else COLOUR_WORDS[value]))
        pairs.append((re.sub(r"\ba (?=[aeiou])", "an ", question), "yes" if yes else "no"))
    name = choose(SHAPE_NAMES[thing.shape])
    if [other.shape for other in scene.objects].count(thing.shape) == 1:
        yes = bool(choose.number(2))
        wrong = [value for value in COLOUR_WORDS if value != thing.colour]
        value = thing.colour if yes else wrong[choose.number(len(wrong))]
        pairs.append((f"is the {name} {choose(COLOUR_WORDS[value])}?", "yes" if yes else "no"))
    return pairs


def _index(table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {word: value for value, words in table.items() for word in words}


_WORD_TO_VALUE = {
    "shape": _index(SHAPE_WORDS),
    "colour": _index(COLOUR_WORDS),
    "size": _index(SIZE_WORDS),
    "motion": {word: value for value, words in _MOTION_KEYS.items() for word in words.split()},
    "background": _index(BACKGROUND_WORDS),
}


def parse(sentence: str) -> dict[str, str]:
    """Attributes of the first object (and the background) that a sentence of this grammar names.

    Returns a dict with some of the keys shape, colour, size, motion, background: the first word of each kind wins,
    unknown words are passed over. Never raises, so that it can read whatever a model writes.
    """
    found: dict[str, str] = {}
    before_shape = True
    for word in re.findall(r"[a-z]+", sentence.lower()):
        for kind, table in _WORD_TO_VALUE.items():
            if word not in table or kind in found:
                continue
            if kind == "motion" and before_shape:
                continue  # "left" before the noun is no motion
            if kind == "background" and before_shape:
                continue  # an object's own texture
            found[kind] = table[word]
            before_shape &= kind != "shape"
    return found
