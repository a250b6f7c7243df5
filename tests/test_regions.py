"""Regions: boxes and cells, the loss inside, and that the whole image as region changes no bit."""

from dataclasses import replace

import pytest
import torch
from matplotlib.colors import to_rgb

from bench.attribution.unlearning import query_loss
from bench.diffusion.regions import Region, parsed_corners
from bench.errors import InvalidInput, MethodFailed, Unavailable
from bench.experiments.scoring import checked_scores
from bench.registry import methods
from bench.report import figures
from bench.studies import study

SETTINGS = {
    "ours": {"num_fisher_draws": 64, "num_gradient_draws": 64, "timestep_stride": 500, "step_size": 0.1},
    "ours_ekfac": {"num_fisher_draws": 64, "num_gradient_draws": 64, "timestep_stride": 500, "query_rise": 0.02},
    "das": {"timestep_stride": 500},
}
FEW = {"projection_dim": 64, "num_timesteps": 2, "num_query_draws": 4, "regularization": 0.1}
WITH_REGIONS = [
    "d_trak", "das", "datainf", "ekfac_influence", "journey_trak", "mucs", "nda", "ours", "ours_ekfac", "pixel", "trak",
]  # fmt: skip


def quick(name):
    few = FEW if name in ("trak", "d_trak", "das", "journey_trak") else {}
    return methods.create(name, **few, **SETTINGS.get(name, {}))


def whole(query):
    rows, columns = query.latent.shape[1:]
    return Region((0, 0, columns, rows), (columns, rows), (columns, rows))


def box(query, *corners):
    return query.within(replace(whole(query), box=corners))


@pytest.fixture(scope="module")
def faces_images():
    return list(study("faces").dataset.pixels([0, 1, 2, 3]))


@pytest.mark.parametrize(
    ("corners", "cells"),
    [
        ((0, 0, 32, 32), (0, 0, 8, 8)),
        ((4, 8, 8, 12), (1, 2, 2, 3)),
        ((3, 9, 5, 10), (0, 2, 2, 3)),
        ((31, 31, 32, 32), (7, 7, 8, 8)),
    ],
)
def test_a_box_covers_every_cell_that_it_touches(corners, cells):
    region = Region(corners, (32, 32), (8, 8))
    assert region.cells == cells
    x0, y0, x1, y1 = cells
    assert int(region.mask.sum()) == (x1 - x0) * (y1 - y0)
    assert bool(region.mask[y0:y1, x0:x1].all())


@pytest.mark.parametrize("corners", [(3, 3, 3, 8), (5, 3, 2, 8), (0, 0, 17, 4), (-1, 0, 4, 4), (16, 0, 20, 4)])
def test_a_box_that_holds_nothing_or_leaves_the_image_is_refused_with_its_size(corners):
    with pytest.raises(InvalidInput, match="16 × 16 pixels"):
        Region(corners, (16, 16), (16, 16))


def test_corners_are_four_whole_numbers():
    assert parsed_corners("2,0,14,4") == (2, 0, 14, 4)
    assert [parsed_corners(text) for text in ("hat", "1,2,3", "1,2,3,4,5", "1,2,3,x", "1.5,2,3,4", "")] == [None] * 6


def test_a_region_gives_another_digest_and_the_same_noise(queries):
    query = queries[0]
    local = box(query, 1, 2, 5, 6)
    assert len({query.digest, local.digest, box(query, 1, 2, 5, 7).digest}) == 3
    assert local.noise_key == query.noise_key
    assert local.observed_as("x") == query.observed_as("x") == f"{query.digest}.x"
    assert local.within(None).digest == query.digest


def test_the_loss_inside_is_the_mean_under_the_mask(model, queries):
    query, times = queries[0], torch.tensor([100, 600])
    region = box(query, 2, 3, 9, 7).region
    noise = torch.randn(2, *query.noise.shape, generator=torch.Generator().manual_seed(0))
    state = model.text_encoder.encode([query.prompt]).expand(2, -1, -1)
    inputs = (query.latent.expand_as(noise), state, times, noise)
    with torch.no_grad():
        errors = model.errors(*inputs)
        expected = (errors * region.mask).sum((1, 2, 3)) / (region.mask.sum() * errors.shape[1])
        torch.testing.assert_close(model.losses(*inputs, region=region), expected)
        assert torch.equal(model.losses(*inputs, region=whole(query)), model.losses(*inputs))


def test_these_methods_have_regions_and_no_others():
    assert [method.name for method in methods if method.honours_regions] == sorted(
        [*WITH_REGIONS, "carriers", "magic", "retrac"]
    )


def test_the_ceiling_names_carriers_of_what_lies_in_the_box(context, queries):
    faces = study("faces")
    dataset = faces.dataset
    context = replace(context, dataset=dataset)
    query = replace(queries[0], prompt="red hat, blue clothes")
    for part, value in (("hat", "red"), ("clothes", "blue")):
        [scores] = methods.create("carriers").scores(context, [query.within(faces.region(part))])
        assert (scores >= 1).nonzero().flatten().tolist() == dataset.carriers(part, value)
    [both] = methods.create("carriers").scores(context, [query.within(faces.region("0,0,16,16"))])
    assert (both >= 2).nonzero().flatten().tolist() == sorted(
        set(dataset.carriers("hat", "red")) & set(dataset.carriers("clothes", "blue"))
    )
    [none] = methods.create("carriers").scores(context, [query.within(faces.region("2,0,13,4"))])
    assert float(none.max()) < 1


@pytest.mark.parametrize("name", WITH_REGIONS)
def test_the_whole_image_as_region_changes_no_bit_and_a_box_changes_scores(context, queries, name):
    method = quick(name)
    scores = method.scores(context, queries)
    assert torch.equal(method.scores(context, [query.within(whole(query)) for query in queries]), scores)
    local = method.scores(context, [box(queries[0], 1, 1, 6, 5)])[0]
    assert (local - scores[0]).abs().max() > 0.01 * scores[0].std()


def test_a_method_without_regions_says_so(context, queries):
    with pytest.raises(Unavailable, match=r"random has no regions.*ours"):
        checked_scores(quick("random"), context, [queries[0], box(queries[1], 1, 1, 6, 5)])


def test_pixel_compares_inside_the_box_alone(context, queries):
    query, dataset = queries[0], context.dataset
    local = box(query, 3, 0, 9, 4)
    changed = dataset.images.clone()
    changed[:, 4:] = 255 - changed[:, 4:]  # below the box, as it is and mirrored
    elsewhere = replace(context, dataset=replace(dataset, images=changed))
    assert torch.equal(quick("pixel").scores(context, [local]), quick("pixel").scores(elsewhere, [local]))
    assert not torch.equal(quick("pixel").scores(context, [query]), quick("pixel").scores(elsewhere, [query]))


def test_unlearning_a_region_raises_the_loss_inside_it_by_the_share_that_was_asked_for(context, queries):
    local = box(queries[0], 0, 0, 14, 5)
    method = methods.create("ours", query_rise=0.1, num_fisher_draws=64, num_gradient_draws=128)
    unlearned = method.unlearn(context, local, method.ascent(context))
    rise = query_loss(context, unlearned, local) / query_loss(context, context.model.unet, local) - 1
    assert rise == pytest.approx(0.1, abs=0.01)
    everywhere = query_loss(context, unlearned, queries[0]) / query_loss(context, context.model.unet, queries[0]) - 1
    assert everywhere != pytest.approx(0.1, abs=0.01)


def test_a_part_whose_box_is_known_names_a_region():
    faces = study("faces")
    hat = faces.region("hat")
    assert (hat.box, hat.label) == (faces.dataset.boxes["hat"], "hat")
    assert faces.region(hat.corners).cells == hat.cells
    assert faces.region(hat.corners).label == "2,0,14,4"
    emoji = study("emoji").region("5,4,16,17")
    assert emoji.cells == (1, 1, 4, 5)  # eight cells for 32 pixels
    with pytest.raises(InvalidInput, match="parts of the images of 'emoji' are not known"):
        study("emoji").region("hat")


def test_the_sheet_draws_the_box_on_the_query():
    faces = study("faces")
    region, images = faces.region("hat"), list(faces.dataset.pixels([0, 1, 2]))
    figure = figures.contact_sheet(images[0], "a prompt", "ours", images[1:], ["1.", "2."], region=region)
    [query, *others] = figure.axes
    frames = [patch for patch in query.patches if patch.get_edgecolor()[:3] == to_rgb(figures.BOX)]
    assert [(*frame.get_xy(), frame.get_width(), frame.get_height()) for frame in frames] == [(1.5, -0.5, 12, 4)]
    assert not any(axes.patches for axes in others)
    assert "for the hat" in figure.get_suptitle()


@pytest.mark.parametrize("flips", ["max", "mean"])
def test_the_mean_of_a_map_is_the_score(context, queries, flips):
    method = replace(quick("ours"), flips=flips)
    for query in (queries[0], box(queries[0], 0, 0, 7, 7)):
        scores = method.scores(context, [query])[0]
        images = scores.argsort(descending=True)[:6].tolist()
        maps = method.maps(context, query, images)
        assert maps.shape == (6, 14, 14)
        torch.testing.assert_close(maps.mean((1, 2)), scores[images], rtol=1e-3, atol=1e-7)


def test_the_map_of_a_mirrored_image_is_turned_back(context, queries, monkeypatch):
    rises = torch.zeros(1, 2, 14, 14)
    rises[0, 1, 3, 0] = 1.0  # the mirrored side has it at the left, so the image at the right
    losses = iter([torch.zeros_like(rises), rises])
    monkeypatch.setattr("bench.attribution.unlearning.image_loss_maps", lambda *_, **__: next(losses))
    [found] = quick("ours").maps(context, queries[0], [0])
    assert found.nonzero().tolist() == [[3, 13]]


def test_maps_of_another_shape_are_refused(context, queries):
    class Odd(type(quick("ours"))):
        def maps(self, context, query, images):
            return torch.zeros(2, 3)

    with pytest.raises(MethodFailed, match=r"expected maps, images × rows × columns = \(1, 14, 14\)"):
        Odd().maps(context, queries[0], [0])


def test_the_sheet_has_a_map_below_each_image(faces_images):
    maps = torch.zeros(3, 16, 16)
    maps[1, :4] = -2.0
    maps[0, 0, 0] = 50.0  # one cell does not pale the others
    figure = figures.contact_sheet(faces_images[0], "a prompt", "ours", faces_images[1:], ["1", "2", "3"], maps=maps)
    drawn = [axes.images[-1] for axes in figure.axes if len(axes.images) == 2]
    assert [image.get_clim() for image in drawn] == [(-2.0, 2.0)] * 3
    assert [float(image.get_array().sum()) for image in drawn] == [50.0, -128.0, 0.0]
