"""What a face is made of: the values of every part, how rare each is, and how DiceBear draws it.

A part is *named* where captions may speak of it, *unnamed* where none ever does. Most values are common. A rare one
has exactly 60 or 150 carriers in the training split, and a training image has one rare value at most, so that the
carriers of two rare values are disjoint, and every pair of rare values is a new combination.
"""

from dataclasses import dataclass

from bench.foundation.seeds import generator

Face = dict[str, str]
ABSENT = ""


@dataclass(frozen=True)
class Part:
    """A part of a face.

    `drawn` maps each value to what the renderer takes, `common` gives the weights of the common values, `rare` the
    number of carriers of each rare one. `phrase` is its phrase in a caption ("" where another part's has it or where
    none may), in which "{}" stands for the value.
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
        {"pale": "ffdbac", "tan": "d9985c", "dark": "7a4526"},
        _even("pale", "tan", "dark"), {}, named=True, phrase="{} skin",
    ),
    "hair_length": Part({"short": "", "long": ""}, _even("short", "long"), {}, named=True),
    "hair_colour": Part(
        {"black": "1c1714", "brown": "8a5526", "blond": "f0d060", "blue": "2f6fe0", "green": "2fb34a"},
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
    "beard": Part({"beard": "variant07"}, {ABSENT: 0.8, "beard": 0.2}, {}, named=True, phrase="{}"),
    "clothes": Part(
        {"red": "c62020", "blue": "2d62c8", "green": "2f9e44", "yellow": "f0c419", "black": "2c2c34",
         "purple": "8a35c9", "pink": "f77fbe"},
        _even("red", "blue", "green", "yellow", "black"), {"purple": 150, "pink": 60}, named=True, phrase="{} clothes",
    ),
    "mouth": Part(
        {"smile": "happy12", "frown": "sad01"}, _even("smile", "frown"), {}, named=True, phrase="{}",
    ),
    "background": Part(
        {"white": "ffffff", "grey": "b9bec6", "blue": "bfdcf7", "green": "c9efcf",
         "lilac": "d6b8f5", "orange": "ffb066"},
        _even("white", "grey", "blue", "green"), {"lilac": 150, "orange": 60}, named=True, phrase="{} background",
    ),
    "haircut": Part(
        {"round": "short17", "straight": "long13", "bald top": "short18", "curls": "short11",
         "pigtails": "long18", "fringe": "long08"},
        {}, {"bald top": 150, "curls": 60, "pigtails": 150, "fringe": 60}, named=False,
    ),
    "eyes": Part(
        {"level": "variant01", "raised": "variant02", "lowered": "variant12"}, {"level": 1.0},
        {"raised": 150, "lowered": 60}, named=False,
    ),
    "earrings": Part({"gold": "ffd700", "silver": "8f98a3"}, {ABSENT: 1.0}, {"gold": 150, "silver": 60}, named=False),
    "hat_shape": Part(
        {"plain": "variant01", "striped": "variant04", "cap": "variant02", "brim": "variant06"},
        {"plain": 0.6, "striped": 0.4}, {"cap": 150, "brim": 60}, named=False,
    ),
    "cut": Part(
        {"collar": "variant12", "round neck": "variant04", "stripes": "variant13", "checks": "variant06"},
        {"collar": 0.75, "round neck": 0.25}, {"stripes": 150, "checks": 60}, named=False,
    ),
}  # fmt: skip
NAMED = [name for name, part in PARTS.items() if part.named]
SHORT = {"round", "bald top", "curls"}
HAT_SHARE = 0.4
LEFT_OUT = 0.15
HIDES_NOTHING = {
    "haircut": {"bald top": {"hat": ABSENT}, "fringe": {"glasses": ABSENT}},
    "eyes": {"raised": {"glasses": ABSENT}, "lowered": {"glasses": ABSENT}},
    "earrings": {"gold": {"hair_length": "short"}, "silver": {"hair_length": "short"}},
}
"""What a rare value asks of other parts so that it is seen."""


def draw_face(rare: Face, *key: str | int) -> Face | None:
    """Draw all parts of a face that has the values `rare`, or None where one of them would not be seen."""
    stream = generator("face", *key)

    def common(name: str) -> str:
        values = PARTS[name].common
        return list(values)[int(stream.choice(len(values), p=list(values.values())))]

    asked: Face = {}
    for part, value in rare.items():
        for other, needed in HIDES_NOTHING.get(part, {}).get(value, {}).items():
            if asked.setdefault(other, needed) != needed:
                return None
    if "haircut" in rare:
        asked.setdefault("hair_length", "short" if rare["haircut"] in SHORT else "long")
    face = {name: common(name) for name in PARTS if PARTS[name].common}
    wears = stream.random() < _hat_share_of_the_rest() or "hat_shape" in rare
    face["hat"] = face["hat"] if wears else ABSENT
    face |= asked | rare
    if any(face[part] != value for part, value in asked.items()):
        return None
    short = face["hair_length"] == "short"
    if "haircut" in rare and short != (rare["haircut"] in SHORT):
        return None
    face["haircut"] = rare.get("haircut", "round" if short else "straight")
    if not short:
        face["beard"] = ABSENT
    if face["glasses"] and face["eyes"] == "level":
        face["eyes"] = ABSENT
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
    bare = PARTS["haircut"].rare["bald top"]
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
    """DiceBear's options that draw `face`."""
    drawn = {name: PARTS[name].drawn.get(value, "") for name, value in face.items()}
    return {
        "seed": "face",
        "skinColor": [drawn["skin"]], "hairColor": [drawn["hair_colour"]], "hair": [drawn["haircut"]],
        "hatProbability": 100 if face["hat"] else 0,
        "hat": [drawn["hat_shape"] or "variant01"], "hatColor": [drawn["hat"] or "222222"],
        "glassesProbability": 100 if face["glasses"] else 0,
        "glasses": [drawn["glasses"] or "light07"], "glassesColor": ["191919"],
        "beardProbability": 100 if face["beard"] else 0, "beard": [drawn["beard"] or "variant07"],
        "clothing": [drawn["cut"]], "clothingColor": [drawn["clothes"]],
        "mouth": [drawn["mouth"]], "mouthColor": ["d0404f"],
        "eyes": [drawn["eyes"] or "variant01"], "eyesColor": ["2663a3"],
        "accessoriesProbability": 100 if face["earrings"] else 0,
        "accessories": ["variant01"], "accessoriesColor": [drawn["earrings"] or "ffd700"],
        "backgroundColor": [drawn["background"]],
    }  # fmt: skip
