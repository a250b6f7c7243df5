"""The contract suite: shipped methods keep their promises, and broken ones fail with the message that helps."""

import tempfile
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from bench.authoring.checking import GLOBAL_STATES, check
from bench.contracts import Method
from bench.diffusion.regions import Region
from bench.errors import InvalidInput
from bench.pretrained.encoders import HEADS
from bench.pretrained.weights import RANDOM
from bench.registry import methods
from bench.studies import study
from methods.pixel import Pixel

REGIONS = "attributes a region of the query"
FLIPPED = "ranks a training image given as the query first"


@pytest.fixture(autouse=True)
def own_random(monkeypatch):
    """The shape checks of the tests themselves draw from Python's random; only numpy and torch can be watched here."""
    monkeypatch.delitem(GLOBAL_STATES, "random")


@pytest.fixture(scope="module")
def small():
    """Large enough for a self-rank, small enough for many checks."""
    whole = study("tiny")
    return replace(whole, per_concept=10, recipe=replace(whole.recipe, num_steps=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("check")


@dataclass(frozen=True, kw_only=True)
class Spoilt(Method):
    """Pixel similarity, broken in one way."""

    name: ClassVar[str] = "spoilt"
    summary: ClassVar[str] = "for tests"

    how: str

    def scores(self, context, queries):
        scores = Pixel().scores(context, queries)
        if self.how == "transposed":
            return scores.T
        if self.how == "sign":
            return -scores
        if self.how == "constant":
            return torch.zeros_like(scores)
        if self.how == "not finite":
            return scores / 0
        if self.how == "raises":
            raise IndexError("off by one")
        if self.how == "batch":
            return torch.cat([part - part.mean(1, keepdim=True) for part in scores.split(16, dim=1)], 1)
        if self.how == "queries":
            return scores / scores.sum()
        if self.how == "seed leak":
            return scores + 0.1 * torch.rand(scores.shape)
        if self.how == "global state":
            np.random.seed(0)  # noqa: NPY002
            return scores
        if self.how == "fixed seed":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return scores + 0.5 * torch.rand(scores.shape)
        if self.how == "regions unread":
            return Pixel().scores(context, [query.within(None) for query in queries])
        if self.how == "region by zeros":
            latents = [query.latent * query.region.mask if query.region else query.latent for query in queries]
            masked = [replace(query, latent=each) for query, each in zip(queries, latents, strict=True)]
            return Pixel().scores(context, [query.within(None) for query in masked]) + bool(queries[0].region) * 1e-4
        if self.how == "no flips":
            made = context.model.autoencoder.decode(torch.stack([query.latent for query in queries]))
            return -torch.cdist(made.flatten(1), context.dataset.pixels().flatten(1))
        return scores


def broken(method, tried_on, folder):
    return {finding.check: finding.message for finding in check(method, tried_on, folder) if finding.status == "broken"}


@pytest.mark.parametrize(
    ("how", "promise", "words"),
    [
        ("transposed", "returns queries × images, finite", "It is transposed"),
        ("not finite", "returns queries × images, finite", "NaN or infinite"),
        ("raises", "returns queries × images, finite", "IndexError: off by one"),
        ("sign", FLIPPED, "the sign is wrong"),
        ("constant", FLIPPED, "all scores are equal"),
        ("batch", "scores an image wherever it stands", "with the batch that it falls into"),
        ("fixed seed", "scores an image wherever it stands", "Key noise by the image's id"),
        ("queries", "scores a query whichever others are asked", "Do not normalise over queries"),
        ("seed leak", "gives the same scores twice", "global random state"),
        ("seed leak", "leaves global random state alone", "state of torch moved"),
        ("global state", "leaves global random state alone", "state of numpy moved"),
        ("no flips", "takes the larger of an image and its mirror image", "take the maximum"),
    ],
)
def test_a_broken_method_is_told_what_to_mend(small, folder, how, promise, words):
    assert words in broken(Spoilt(how=how), small, folder)[promise]


def test_writing_outside_the_cache_is_found(small, folder, tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Writer(Spoilt):
        def scores(self, context, queries):
            (tmp_path / "mine.txt").write_text("x")
            return super().scores(context, queries)

    found = broken(Writer(how="well"), small, folder)
    assert list(found) == ["writes nothing outside its cache"]
    assert "mine.txt" in found["writes nothing outside its cache"]


def test_a_temporary_file_that_is_gone_is_no_harm(small, folder, tmp_path):
    """As ``trak:traker`` has them; one that stays is found."""

    @dataclass(frozen=True, kw_only=True)
    class Temporary(Spoilt):
        stays: bool = False

        def scores(self, context, queries):
            with tempfile.NamedTemporaryFile(dir=tmp_path, delete=not self.stays):
                return super().scores(context, queries)

    assert broken(Temporary(how="well"), small, folder) == {}
    assert list(broken(Temporary(how="well", stays=True), small, folder)) == ["writes nothing outside its cache"]


@dataclass(frozen=True, kw_only=True)
class Local(Spoilt):
    """Pixel similarity that says that it has regions."""

    honours_regions: ClassVar[bool] = True


@pytest.mark.parametrize(
    ("how", "words"), [("regions unread", "query.region is not read"), ("region by zeros", "gives other scores")]
)
def test_a_region_that_is_not_honoured_is_found(small, folder, how, words):
    assert words in broken(Local(how=how), small, folder)[REGIONS]


def test_regions_are_promised_by_those_that_have_them_alone(small, folder):
    found = {finding.check: finding for finding in check(Local(how="well"), small, folder)}
    assert found[REGIONS].status == "passed"
    found = {finding.check: finding for finding in check(Spoilt(how="well"), small, folder)}
    assert found[REGIONS].status == "excused"
    assert "has no regions" in found[REGIONS].message


@pytest.mark.parametrize(("taken", "words"), [(True, "is not refused"), (False, "without the size")])
def test_a_harness_that_takes_a_box_outside_the_image_is_found(small, folder, monkeypatch, taken, words):
    def refuse(region):
        if not taken:
            raise InvalidInput("no")

    monkeypatch.setattr(Region, "__post_init__", refuse)
    assert words in broken(Spoilt(how="well"), small, folder)[REGIONS]


def test_settings_that_are_no_json_are_refused(small, folder):
    assert "are no JSON" in broken(Spoilt(how=torch.zeros(1)), small, folder)["describes itself"]


def test_a_method_that_cannot_run_here_is_excused(small, folder):
    class Absent(Spoilt):
        def unavailable(self):
            return "its weights are not here"

    assert [finding.status for finding in check(Absent(how="well"), small, folder)] == ["passed", "excused"]


def test_an_unspoilt_method_passes(small, folder):
    assert broken(Spoilt(how="well"), small, folder) == {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder for the model of ``small``, trained once for all methods."""
    return tmp_path_factory.mktemp("small")


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_a_shipped_method_keeps_its_promises(name, trained, monkeypatch):
    if name == "fast":
        monkeypatch.setenv(HEADS[name].variable, RANDOM)  # the head that ships is for images of another size
    assert broken(methods.create(name, "small"), study("small"), trained) == {}
