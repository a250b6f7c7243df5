"""Agreement of projections with none: it grows with the dimension, is kept, and stands beside a method's settings."""

import pytest
from click.testing import CliRunner

from bench.errors import InvalidInput
from bench.experiments.projecting import ProjectionTest
from bench.records.store import Store
from bench.registry import methods
from bench.report.projections import agreements
from cli import main


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
