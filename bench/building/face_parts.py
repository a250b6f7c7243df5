"""What a face is made of: the values of every part, how rare each is, and what DiceBear draws of it.

A part is *named* where captions may speak of it, *unnamed* where none ever does. Most values are common. A rare one
has exactly 60 or 150 carriers in the training split (every unnamed one 150), and a training image has one rare value
at most, so that the carriers of two rare values are disjoint, and every pair of rare values is a new combination.
Unnamed rare values are large or of strong contrast: a small model must be able to draw them, a person to see them.
"""

from dataclasses import dataclass

from bench.foundation.seeds import generator

Face = dict[str, str]
ABSENT = ""


@dataclass(frozen=True)
class Part:
    """A part of a face.

    `drawn` maps each value to its colour or to what DiceBear takes, "" where `face_layers.py` draws it; `common` gives
    the weights of the common values, `rare` the number of carriers of each rare one. `phrase` is its phrase in a
    caption ("" where another part's has it or where none may), in which "{}" stands for the value.
    """

    drawn: dict[str, str]
    common: dict[str, float]
    rare: dict[str, int]
    named: bool
    phrase: str = ""


def _even(*values: str) -> dict[str, float]:
    return {value: 1 / len(values) for value in values}


PARTS: dict[str, Part] = {
    "skin": Part(
        {"pale": "ffdbac", "tan": "d9985c", "dark": "5c3317"},
        _even("pale", "tan", "dark"), {}, named=True, phrase="{} skin",
    ),
    "hair_length": Part({"short": "", "long": ""}, _even("short", "long"), {}, named=True),
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
    "haircut": Part(
        {"round": "short17", "straight": "long13", "bald top": "short18", "afro": "short17", "flat top": "long13"},
        {}, {"bald top": 150, "afro": 150, "flat top": 150}, named=False,
    ),
    "hat_shape": Part(
        {"plain": "", "wide brim": "", "ear flaps": ""}, {"plain": 1.0},
        {"wide brim": 150, "ear flaps": 150}, named=False,
    ),
    "cut": Part(
        {"plain": "", "scarf": "", "halves": ""}, {"plain": 1.0}, {"scarf": 150, "halves": 150}, named=False,
    ),
    "backdrop": Part(
        {"plain": "", "sun": "", "frame": ""}, {"plain": 1.0}, {"sun": 150, "frame": 150}, named=False,
    ),
}  # fmt: skip
NAMED = [name for name, part in PARTS.items() if part.named]
SHORT = {"round", "bald top", "afro"}
HAT_SHARE = 0.4
LEFT_OUT = 0.15


def draw_face(rare: Face, *key: str | int) -> Face | None:
    """Draw all parts of a face that has the values `rare`, or None where one of them would not be seen.

    Rare haircuts go with bare heads, rare shapes of hats with hats.
    """
    stream = generator("face", *key)

    def common(name: str) -> str:
        values = PARTS[name].common
        return list(values)[int(stream.choice(len(values), p=list(values.values())))]

    face = {name: common(name) for name in PARTS if PARTS[name].common}
    wears = stream.random() < _hat_share_of_the_rest() or "hat_shape" in rare
    face["hat"] = face["hat"] if wears else ABSENT
    if "haircut" in rare:
        face |= {"hat": ABSENT, "hair_length": "short" if rare["haircut"] in SHORT else "long"}
    face |= rare
    if face["hat"] and "haircut" in rare:
        return None
    short = face["hair_length"] == "short"
    face["haircut"] = rare.get("haircut", "round" if short else "straight")
    if not short:
        face["beard"] = ABSENT
    if not face["hat"]:
        if "hat_shape" in rare:
            return None
        face["hat_shape"] = ABSENT
    return {name: face[name] for name in PARTS}


def _hat_share_of_the_rest() -> float:
    """Share of hats among faces that may have one or not, so that HAT_SHARE of all would have one.

    More have one in the end: a face that is there already is drawn again, and bare heads are fewer.
    """
    rare_hats = sum(PARTS["hat"].rare.values()) + sum(PARTS["hat_shape"].rare.values())
    bare = sum(PARTS["haircut"].rare.values())
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
        "skinColor": [drawn["skin"]], "hairColor": [drawn["hair_colour"]], "hair": [drawn["haircut"]],
        "glassesProbability": 100 if face["glasses"] else 0,
        "glasses": [drawn["glasses"] or "light07"], "glassesColor": ["191919"],
        "hatProbability": 0, "beardProbability": 0, "accessoriesProbability": 0,
        "clothing": ["variant12"], "clothingColor": [drawn["clothes"]],
        "mouth": ["happy02"], "mouthColor": ["transparent"], "eyes": ["variant01"], "eyesColor": ["2663a3"],
    }  # fmt: skip
