"""Floors and ceiling: what a reader of captions finds, what the parts say, and whether a portrait lost them."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from bench.authoring.checking import Broken, Trial, _does_not_read_the_parts
from bench.contracts import CEILING, FLOOR
from bench.data.dataset import load_embedded
from bench.data.face_queries import face_queries
from bench.diffusion.queries import Query
from bench.diffusion.sampling import Sampler
from bench.errors import InvalidInput, Unavailable
from bench.registry import methods, metrics
from methods.same_caption import SameCaption, features
from metrics.part_change import PartChange


@pytest.fixture(scope="module")
def faces():
    return load_embedded("faces")


@pytest.fixture
def seen(context):
    """What they see of a data set; model and latents, which they do not look at, are those of ``tiny``."""
    return lambda dataset: replace(context, dataset=dataset)


def asking(prompt: str, seed: int = 0) -> Query:
    nothing = torch.zeros(3, 16, 16)
    return Query("q", prompt, seed, nothing, nothing, Sampler(num_steps=1))


def test_features_pair_each_word_with_the_last_of_its_phrase():
    assert features("pale skin, long green hair, smile") == {
        ("pale", "skin"), ("long", "hair"), ("green", "hair"), ("smile",),
    }  # fmt: skip
    assert features("a photo of a bag") == {("a",), ("photo",), ("of",), ("bag",)}


def test_same_caption_names_every_caption_with_the_rare_word_before_any_other(faces, seen):
    query = asking("pale skin, short black hair, pink hat, blue clothes, smile, grey background")
    [row] = SameCaption().scores(seen(faces), [query])
    with_word = {index for index, caption in enumerate(faces.captions) if "pink hat" in caption}
    first = row.argsort(descending=True).tolist()
    assert 40 < len(with_word) <= 60
    assert set(first[: len(with_word)]) == with_word
    best = faces.captions[first[0]]
    assert len(features(best) & features(query.prompt)) >= 4  # among equals in the rare word, the more alike is first


def test_same_caption_orders_equals_by_the_query_and_the_id_alone(faces, seen):
    query = asking("pink hat")
    order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(0)).tolist()
    columns = {
        name: tuple(getattr(faces, name)[i] for i in order) for name in ("ids", "captions", "concepts", "styles")
    }
    other = replace(faces, images=faces.images[order], parts={}, boxes={}, **columns)
    [row], [moved] = (SameCaption().scores(seen(dataset), [query]) for dataset in (faces, other))
    assert torch.equal(row[order], moved)
    assert len(row.unique()) > 5500  # equals are told apart
    [another] = SameCaption().scores(seen(faces), [replace(query, id="other")])
    assert not torch.equal(row, another)


def test_carriers_are_first_whoever_the_captions_name(faces, seen):
    for fixed in face_queries()[:4]:
        [row] = methods.create("carriers").scores(seen(faces), [asking(fixed.prompt, fixed.seed)])
        known = fixed.known_set(faces)
        assert set(row.argsort(descending=True)[: len(known)].tolist()) == set(known)


def test_carriers_of_another_prompt_are_those_of_the_rarest_part_that_it_asks_for(faces, seen):
    [row] = methods.create("carriers").scores(seen(faces), [asking("dark skin, pink hat, smile", seed=123456789)])
    assert set(row.argsort(descending=True)[:60].tolist()) == set(faces.carriers("hat", "pink"))


def test_carriers_need_known_parts(tiny, seen):
    with pytest.raises(Unavailable, match="does not know the parts"):
        methods.create("carriers").scores(seen(tiny.dataset), [asking("a photo of a bag")])


def test_floors_and_ceiling_declare_their_role():
    roles = {name: methods.get(name).role for name in ("random", "same_caption", "carriers", "ours")}
    assert roles == {"random": FLOOR, "same_caption": FLOOR, "carriers": CEILING, "ours": "method"}


def test_a_lost_hat_is_a_changed_part_and_the_rest_is_kept(faces):
    held_out = load_embedded("faces", split="held-out")
    hats = [index for index in range(len(held_out)) if held_out.parts["hat"][index] == "pink"]
    lost = metrics.create("part_change")
    kept = metrics.create("other_change")
    image = held_out.pixels([hats[0]])[0]
    query = asking("pink hat")
    assert lost.value(query, image, image) == 0.0
    assert kept.value(query, image, image) == 0.0
    bare = image.clone()
    x0, y0, x1, y1 = held_out.boxes["hat"]
    bare[:, y0:y1, x0:x1] = faces.pixels([faces.carriers("hat", "")[0]])[0][:, y0:y1, x0:x1]
    assert lost.value(query, image, bare) == 1.0
    assert kept.value(query, image, bare) < 0.5
    assert "probe" in lost.sources()


def test_part_change_says_what_it_cannot_read():
    with pytest.raises(InvalidInput, match="16 × 16"):
        PartChange().value(asking("pink hat"), torch.zeros(1, 14, 14), torch.zeros(1, 14, 14))


class Reads(SameCaption):
    """Captions and, wrongly, the columns of parts."""

    name: ClassVar[str] = "reads"

    def scores(self, context, queries):
        pink = torch.tensor([value == "pink" for value in context.dataset.parts["hat"]])
        return super().scores(context, queries) + pink


@pytest.mark.parametrize("method", [SameCaption(), Reads(), methods.create("carriers")])
def test_the_check_finds_who_reads_the_parts(faces, seen, method):
    trial = Trial(method, seen(faces), (asking("pink hat"),))
    if isinstance(method, Reads):
        with pytest.raises(Broken, match="columns of parts are exchanged"):
            _does_not_read_the_parts(trial)
    else:
        assert bool(_does_not_read_the_parts(trial)) == (method.role == CEILING)
