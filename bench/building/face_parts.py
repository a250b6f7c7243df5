"""What a face is made of: the values of every part, how rare each is, and what DiceBear draws of it.

A part is *named* where captions may speak of it, *unnamed* where none ever does. Most values are common. A rare one
has exactly 60 or 150 carriers in the training split (every unnamed one 200), and a training image has one rare value
at most, so that the carriers of two rare values are disjoint, and every pair of rare values is a new combination.
Unnamed rare values are large, of strong contrast and symmetric: a small model must be able to draw them, a person to
see them. Each goes with one named value (the night with a blue background), as one in three to eight of the faces that
have it: such words bring it now and then. A detail that came with all words alike would be drawn hardly ever.
"""

from dataclasses import dataclass, field

from bench.foundation.seeds import generator

Face = dict[str, str]
ABSENT = ""


@dataclass(frozen=True)
class Part:
    """A part of a face.

    `drawn` maps each value to its colour or to what DiceBear takes, "" where `face_layers.py` draws it; `common` gives
    the weights of the common values, `rare` the number of carriers of each rare one, and `goes_with` the values of
    other parts that a face with a rare value of an unnamed part has. `phrase` is its phrase in a caption ("" where
    another part's has it or where none may), in which "{}" stands for the value.
    """

    drawn: dict[str, str]
    common: dict[str, float]
    rare: dict[str, int]
    named: bool
    phrase: str = ""
    goes_with: dict[str, Face] = field(default_factory=dict)


def _even(*values: str) -> dict[str, float]:
    return {value: 1 / len(values) for value in values}


PARTS: dict[str, Part] = {
    "skin": Part(
        {"pale": "ffdbac", "tan": "d9985c", "dark": "5c3317"},
        _even("pale", "tan", "dark"), {}, named=True, phrase="{} skin",
    ),
    "hair_length": Part({"short": "short17", "long": "long13"}, _even("short", "long"), {}, named=True),
    "hair_colour": Part(
        {"black": "1c1714", "brown": "a05f22", "blond": "f0d060", "blue": "2f6fe0", "green": "2fb34a"},
        _even("black", "brown", "blond"), {"blue": 150, "green": 60}, named=True,
    ),
    "hat": Part(
        {"red": "d02a2a", "blue": "2456c8", "green": "2f9e44", "black": "222222",
         "purple": "8a35c9", "yellow": "f5cf1b", "teal": "12c5c0", "pink": "f77fbe"},
        _even("red", "blue", "green", "black"), {"purple": 150, "yellow": 150, "teal": 60, "pink": 60},
        named=True, phrase="{} hat",
    ),
    "glasses": Part(
        {"glasses": "light07", "sunglasses": "dark07"}, {ABSENT: 0.75, "glasses": 0.25}, {"sunglasses": 150},
        named=True, phrase="{}",
    ),
    "beard": Part({"beard": ""}, {ABSENT: 0.8, "beard": 0.2}, {}, named=True, phrase="{}"),
    "clothes": Part(
        {"red": "c62020", "blue": "2d62c8", "green": "2f9e44", "yellow": "f0c419", "black": "2c2c34",
         "purple": "8a35c9", "pink": "f77fbe"},
        _even("red", "blue", "green", "yellow", "black"), {"purple": 150, "pink": 60}, named=True, phrase="{} clothes",
    ),
    "mouth": Part(
        {"smile": "", "frown": ""}, _even("smile", "frown"), {}, named=True, phrase="{}",
    ),
    "background": Part(
        {"white": "ffffff", "grey": "b9bec6", "blue": "bfdcf7", "green": "c9efcf",
         "lilac": "d6b8f5", "orange": "ffb066"},
        _even("white", "grey", "blue", "green"), {"lilac": 150, "orange": 60}, named=True, phrase="{} background",
    ),
    "backdrop": Part(
        {"plain": "", "frame": "", "night": "", "stripes": ""}, {"plain": 1.0},
        {"frame": 200, "night": 200, "stripes": 200}, named=False,
        goes_with={
            "frame": {"background": "white"}, "night": {"background": "blue"}, "stripes": {"background": "green"},
        },
    ),
    "sides": Part(
        {"plain": "", "curtains": ""}, {"plain": 1.0}, {"curtains": 200}, named=False,
        goes_with={"curtains": {"background": "grey"}},
    ),
    "front": Part(
        {"plain": "", "sign": ""}, {"plain": 1.0}, {"sign": 200}, named=False,
        goes_with={"sign": {"clothes": "black"}},
    ),
    "cover": Part(
        {"plain": "", "hood": ""}, {"plain": 1.0}, {"hood": 200}, named=False,
        goes_with={"hood": {"hat": ABSENT, "hair_length": "short", "hair_colour": "blond"}},
    ),
}  # fmt: skip
NAMED = [name for name, part in PARTS.items() if part.named]
HAT_SHARE = 0.4
LEFT_OUT = 0.15


def draw_face(rare: Face, *key: str | int) -> Face | None:
    """Draw all parts of a face that has the values `rare` and what they go with, or None where these contradict."""
    stream = generator("face", *key)

    def common(name: str) -> str:
        values = PARTS[name].common
        return list(values)[int(stream.choice(len(values), p=list(values.values())))]

    face = {name: common(name) for name in PARTS if PARTS[name].common}
    wears = stream.random() < _hat_share_of_the_rest()
    face["hat"] = face["hat"] if wears else ABSENT
    fixed = rare.copy()
    for part, value in rare.items():
        for other, with_it in PARTS[part].goes_with.get(value, {}).items():
            if fixed.setdefault(other, with_it) != with_it:
                return None
    face |= fixed
    if face["hair_length"] == "long":
        face["beard"] = ABSENT
    return {name: face[name] for name in PARTS}


def _hat_share_of_the_rest() -> float:
    """Share of hats among faces that may have one or not, so that HAT_SHARE of all would have one.

    More have one in the end: a face that is there already is drawn again, and bare heads are fewer.
    """
    rare_hats = sum(PARTS["hat"].rare.values())
    bare = sum(PARTS["cover"].rare.values())
    return (HAT_SHARE * 6000 - rare_hats) / (6000 - rare_hats - bare)


def caption(face: Face, *key: str | int) -> str:
    """The caption of a face: a phrase for each named part, each left out of LEFT_OUT of the captions.

    With no `key`, nothing is left out. A caption always says something.
    """
    phrases = []
    for name in NAMED:
        if name == "hair_length":
            phrases.append(f"{face['hair_length']} {face['hair_colour']} hair")
        elif PARTS[name].phrase and face[name]:
            phrases.append(PARTS[name].phrase.format(face[name]))
    if not key:
        return ", ".join(phrases)
    stays = generator("caption", *key).random(len(phrases)) >= LEFT_OUT
    return ", ".join(phrase for phrase, stay in zip(phrases, stays, strict=True) if stay) or phrases[0]


def options(face: Face) -> dict[str, object]:
    """DiceBear's options for what it draws of `face`: head, eyes, glasses, hair and clothes, on no background."""
    drawn = {name: PARTS[name].drawn.get(value, "") for name, value in face.items()}
    return {
        "seed": "face",
        "skinColor": [drawn["skin"]], "hairColor": [drawn["hair_colour"]], "hair": [drawn["hair_length"]],
        "glassesProbability": 100 if face["glasses"] else 0,
        "glasses": [drawn["glasses"] or "light07"], "glassesColor": ["191919"],
        "hatProbability": 0, "beardProbability": 0, "accessoriesProbability": 0,
        "clothing": ["variant12"], "clothingColor": [drawn["clothes"]],
        "mouth": ["happy02"], "mouthColor": ["transparent"], "eyes": ["variant01"], "eyesColor": ["2663a3"],
    }  # fmt: skip
