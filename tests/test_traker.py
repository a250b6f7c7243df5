"""``trak:traker``: the published package through the same contract (opt-in: extra ``trak``)."""

import pytest
import torch
from scipy.stats import spearmanr

from bench.attribution.traker import same_projection, traker_scores
from bench.diffusion.selections import select_weights
from bench.errors import InvalidInput
from bench.registry import methods, named
from methods.trak import Trak

SETTINGS = {"projection_dim": 512, "num_timesteps": 2, "num_query_draws": 10}


def test_the_variant_changes_nothing_of_the_method(tiny):
    """``trak`` keeps the digest that its published rows carry; the variant has its own, and its own name."""
    own, other = methods.create("trak", "fashion"), methods.create("trak:traker", "fashion")
    assert "package" not in own.settings()
    assert other.settings() == {**own.settings(), "package": "traker"}
    assert own.digest != other.digest
    assert (named(own, "fashion").label, named(other, "fashion").label) == ("trak", "trak:traker")
    assert methods.create("trak").digest == Trak(package="own").digest


@pytest.mark.parametrize("settings", [{"package": "other"}, {"package": "traker", "projection": "exact"}])
def test_settings_that_do_not_go_together_are_refused(settings):
    with pytest.raises(InvalidInput):
        Trak(**settings)


def test_where_the_package_is_missing_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("methods.trak.installed", lambda: "")
    assert "attribution-bench[trak]" in methods.create("trak:traker").unavailable()
    assert methods.create("trak").unavailable() == ""


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("weights", ["all", "cross-attn-kv"])
def test_with_equal_projections_it_ranks_images_as_trak_does(context, queries, weights):
    pytest.importorskip("trak")
    method = Trak(**SETTINGS, weights=weights)
    sizes = {name: weight.numel() for name, weight in select_weights(context.model.unet, weights).items()}
    before = {name: weight.clone() for name, weight in context.model.unet.state_dict().items()}
    projector = same_projection(sizes, SETTINGS["projection_dim"], context.seed, 0)
    theirs = traker_scores(method, context, context.model, queries, projector=projector).amax(-1)
    ours = method.scores(context, queries)
    for one, other in zip(ours, theirs, strict=True):
        assert spearmanr(one, other).statistic >= 0.99
    for name, weight in context.model.unet.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")
def test_with_its_own_projection_it_agrees_as_two_projections_do(context, queries):
    pytest.importorskip("trak")
    given = {"projection_dim": 4096, "num_timesteps": 4, "num_query_draws": 20}
    theirs = Trak(**given, package="traker").scores(context, queries)
    for one, other in zip(Trak(**given).scores(context, queries), theirs, strict=True):
        assert spearmanr(one, other).statistic >= 0.95
