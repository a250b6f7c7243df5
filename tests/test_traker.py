"""The traker package 0.3.2 gives the same scores from the same checkpoint (opt-in: extra ``trak``, pytest -m slow)."""

import pytest
import torch
from scipy.stats import spearmanr

from bench.attribution.influence import keyed_rows
from methods.trak import Trak

trak = pytest.importorskip("trak")
DIMENSION, DRAWS, QUERY_DRAWS, SHARE = 4096, 4, 20, 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")
def test_trak_agrees_with_the_traker_package(context, queries, tmp_path):
    from benchmarks.featurizing import traker

    model, data, ids = context.model, context.data, context.dataset.ids
    method = Trak(
        projection_dim=DIMENSION, num_timesteps=DRAWS, num_query_draws=QUERY_DRAWS, regularization=SHARE, flips="max"
    )
    ours = method.scores(context, queries)

    peer = traker(model, 2 * len(ids), DIMENSION, str(tmp_path))
    sides = [
        keyed_rows(
            model, data.latents[i, side], data.states_of(torch.tensor([i]))[0], DRAWS, 0, "image", ids[i], bool(side)
        )
        for i in range(len(ids))
        for side in (0, 1)
    ]
    for start in range(0, len(sides), 40):
        columns = zip(*sides[start : start + 40], strict=True)
        peer.featurize(batch=[torch.stack(column) for column in columns], num_samples=len(sides[start : start + 40]))
    features = torch.from_numpy(peer.saver.current_store["grads"].copy()).double()
    peer.score_computer.lambda_reg = SHARE * float(features.square().sum()) / len(features)  # theirs is absolute
    peer.finalize_features()
    peer.start_scoring_checkpoint("queries", model.unet.state_dict(), model_id=0, num_targets=len(queries))
    asked = [torch.stack(column) for column in zip(*(method.query_rows(context, q) for q in queries), strict=True)]
    peer.score(batch=asked, num_samples=len(queries))
    theirs = torch.from_numpy(peer.finalize_scores(exp_name="queries").copy())

    theirs = theirs.view(len(ids), 2, len(queries)).amax(1).T
    for one, other in zip(ours, theirs, strict=True):
        assert spearmanr(one, other).statistic >= 0.95
