"""The study of real photos, trained for real: minutes of work, run with ``-m slow``."""

import pytest
import torch

from bench import methods, metrics, study
from bench.diffusion.queries import Query
from bench.experiments.selection import top_k
from bench.experiments.workspace import Workspace
from bench.foundation import seeds

pytestmark = pytest.mark.slow
RIGHT_CLASS_SHARE = 0.5


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return Workspace(study("fashion"), tmp_path_factory.mktemp("fashion"), metrics=[metrics.create("loss_change")])


def test_generated_images_look_like_their_prompts(workspace):
    dataset, model = workspace.study.dataset, workspace.original
    captions = sorted(set(dataset.captions))
    prompts = [captions[index % len(captions)] for index in range(50)]
    noise = torch.stack([seeds.normal(model.latent_shape, "test", index) for index in range(50)])
    made = model.autoencoder.decode(workspace.study.sampler.sample(model, noise, prompts)).flatten(1)
    both = torch.cat([dataset.pixels(flipped=flipped).flatten(1) for flipped in (False, True)])
    nearest = torch.cdist(made, both).argmin(1) % len(dataset)
    right = [dataset.captions[index] == prompt for index, prompt in zip(nearest.tolist(), prompts, strict=True)]
    assert sum(right) / 50 >= RIGHT_CLASS_SHARE


@pytest.mark.parametrize("index", [0, 1234, 5678])
def test_a_training_image_as_the_query_ranks_itself_in_the_top_percent(workspace, index):
    dataset, context = workspace.study.dataset, workspace.context()
    latent = context.data.latents[index, 0]
    query = Query("self", dataset.captions[index], 0, torch.zeros_like(latent), latent, workspace.study.sampler)
    scores = methods.create("ours", "fashion").scores(context, [query])[0]
    assert index in top_k(scores, dataset.ids, len(dataset) // 100)
