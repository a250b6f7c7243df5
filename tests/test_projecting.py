"""Agreement of projections with none: it grows with the dimension, is kept, and stands beside a method's settings."""

from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from bench.attribution import dimensions
from bench.attribution.dimensions import Choice, choice, choice_key, feature_bytes
from bench.diffusion.selections import select_weights
from bench.errors import InvalidInput
from bench.experiments.leave_k_out import Run
from bench.experiments.projecting import ProjectionTest
from bench.records import tables
from bench.records.store import Store
from bench.registry import methods
from bench.report.projections import ProjectionReport, agreements
from cli import main

FEW = {"num_timesteps": 1, "num_query_draws": 4}


def test_more_dimensions_agree_better_and_the_board_can_say_so(tiny, tmp_path):
    method = methods.create("trak", projection_dim=4, num_timesteps=1, num_query_draws=2)
    test = ProjectionTest(
        study=tiny, methods=[method], dimensions=(2048,), images=40, num_queries=2, results=tmp_path
    )  # fmt: skip
    found = test.execute()
    means = found.frame.groupby("dimension")["spearman"].mean()
    assert list(means.index) == [4, 2048]
    assert means[4] < 0.6 < 0.9 < means[2048] <= 1
    assert set(found.frame["images"]) == {40}
    said = agreements(Store(tmp_path))
    assert (
        said[method.digest] == f"4 dimensions rank 40 images as no projection does to a Spearman's ρ of {means[4]:.2f}"
    )
    assert "2048 dimensions agree to 0.9 or more" in found.markdown()


def test_methods_without_gradients_to_project_are_refused(tiny, tmp_path):
    with pytest.raises(InvalidInput, match="pixel"):
        ProjectionTest(study=tiny, methods=[methods.create("pixel")], results=tmp_path)
    given = ["projection", "--study", "tiny", "--method", "pixel", "--results", str(tmp_path)]
    assert CliRunner().invoke(main, given).exit_code == 2


@pytest.mark.parametrize("name", ["trak", "journey_trak", "d_trak", "das", "concept_trak"])
def test_auto_takes_no_projection_where_the_gradients_fit(context, queries, name):
    own = {"inversion_steps": 2} if name == "concept_trak" else {}
    method = methods.create(name, projection="auto", **FEW, **own)
    exact = replace(method, projection="exact")
    assert torch.equal(method.scores(context, queries), exact.scores(context, queries))
    assert Choice.of(context.cached(choice_key(method), dict)) == (0, torch.ones(1), len(context.dataset))


def weights_of(context, method):
    return sum(weight.numel() for weight in select_weights(context.model.unet, method.weights).values())


def test_else_auto_takes_the_least_dimension_that_ranks_as_none_does(context, queries, tiny, monkeypatch):
    """No query has a say, and where no dimension is enough it is the largest that fits."""
    method = methods.create("trak:auto", **FEW)
    monkeypatch.setattr(dimensions, "LEAST", 20)
    monkeypatch.setattr(dimensions, "DIMENSIONS", (2, 1024, 4096))
    monkeypatch.setattr(dimensions, "EXACT_BYTES", feature_bytes(50, weights_of(context, method)))
    found = method.scores(context, queries[1:])
    chosen = choice(method, context, tiny.sampler)
    assert (chosen.dimension, chosen.images) == (1024, 50)
    assert 0.9 <= chosen.agreement.mean() < 1
    assert torch.equal(
        found, replace(method, projection="rademacher", projection_dim=1024).scores(context, queries[1:])
    )
    monkeypatch.setattr(dimensions, "ENOUGH", 1.1)
    again = choice(method, replace(context, cached=lambda key, build: build()), tiny.sampler)
    assert again.dimension == 4096
    assert again.agreement.mean() > chosen.agreement.mean()


def test_auto_says_what_it_lacks(context, queries, monkeypatch):
    method = methods.create("trak:auto", **FEW)
    monkeypatch.setattr(dimensions, "EXACT_BYTES", feature_bytes(30, weights_of(context, method)))
    with pytest.raises(InvalidInput, match=r"those of 30 images .* 100 are needed"):
        method.scores(context, queries)
    with pytest.raises(InvalidInput, match="regularization above 0"):
        methods.create("trak:auto", regularization=0.0)
    with pytest.raises(InvalidInput, match="traker projects gradients"):
        methods.create("trak:traker", projection="auto")


def test_a_run_tells_what_auto_chose_and_the_board_can(tiny, tmp_path):
    method = methods.create("trak:auto", tiny.name)
    found = Run(study=tiny, methods=[method], budgets=[8], num_queries=1, floors=["random"], results=tmp_path).execute()
    said = "nothing is projected: the gradients of all 80 images fit the memory"
    assert any(note.startswith("trak:auto: not tuned") and note.endswith(said) for note in found.notes())
    assert agreements(Store(tmp_path)) == {method.digest: said}
    assert ProjectionReport(frame=tables.PROJECTION.read(Store(tmp_path))).tables() == []  # it is of projections
    with pytest.raises(InvalidInput, match="trak:auto"):
        ProjectionTest(study=tiny, methods=[method], results=tmp_path)
