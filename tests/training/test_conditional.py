"""Class-conditional models: the densities of the classes, the labels of the images, and what a run keeps of both."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.data import HeldOutImages, read_held_out, write_held_out
from glowserve_training.errors import DataError
from glowserve_training.layers.classes import ClassPriors, mixture
from glowserve_training.model import Glow
from glowserve_training.presets import changed_config, run_config
from glowserve_training.stored import run_config as read_config
from glowserve_training.stored import stored_run
from PIL import Image
from torch.distributions import Normal

from tests.training.models import initialized, tiny
from tests.training.runs import PLAIN, run

SIZES = [5, 3]


def random_priors(classes: int = 4) -> ClassPriors:
    torch.manual_seed(0)
    priors = ClassPriors(classes, sum(SIZES)).double()
    with torch.no_grad():
        priors.mean.normal_(0, 0.3)
        priors.log_scale.normal_(0, 0.5)
    priors.set_shares(torch.tensor([0, 0, 1, 3]))
    return priors


def fresh_glow() -> Glow:
    return initialized(tiny(class_count=3), torch.Generator().manual_seed(0), torch.float64).requires_grad_(
        False
    )


def conditional_glow() -> Glow:
    model = fresh_glow()
    assert model.class_priors is not None
    model.class_priors.mean.normal_(0, 0.2)
    model.class_priors.log_scale.normal_(0, 0.2)
    return model


def images_for(model: Glow, n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, *model.config.image_shape), dtype=np.uint8)
    return torch.from_numpy(images), torch.from_numpy(rng.random(images.shape))


def test_a_ratio_is_that_of_the_class_density_to_the_standard_normal_one() -> None:
    priors, latent = random_priors(), torch.randn(6, sum(SIZES), dtype=torch.float64)
    ratios = priors.log_ratios(latent.split(SIZES, dim=1))
    own = Normal(priors.means(), priors.log_scales().exp()).log_prob(latent[:, None])
    terms = own - Normal(0.0, 1.0).log_prob(latent)[:, None]
    expected = torch.stack([part.sum(2) for part in terms.split(SIZES, dim=2)], dim=1)
    torch.testing.assert_close(ratios, expected)


def test_the_mixture_is_the_sum_over_classes_and_its_levels_add_up_to_it() -> None:
    priors, latent = random_priors(), torch.randn(6, sum(SIZES), dtype=torch.float64)
    ratios = priors.log_ratios(latent.split(SIZES, dim=1))
    found = mixture(ratios, priors.log_share)
    joint = ratios.sum(1) + priors.log_share
    torch.testing.assert_close(found.log_ratio.sum(1), joint.logsumexp(1))
    torch.testing.assert_close(found.log_posterior, joint.log_softmax(1))


def test_shares_are_those_of_the_labels_with_one_more_image_of_each_class() -> None:
    assert random_priors().log_share.exp().tolist() == pytest.approx([3 / 8, 2 / 8, 1 / 8, 2 / 8])


def test_a_class_makes_no_difference_when_training_begins() -> None:
    model = fresh_glow()
    images, noise = images_for(model)
    given = [model.log_prob(images, noise, torch.full((4,), c)) for c in range(3)]
    for nats in given:
        torch.testing.assert_close(nats, model.log_prob(images, noise))


def test_the_likelihood_is_the_sum_over_classes_given_or_not() -> None:
    model = conditional_glow()
    images, noise = images_for(model)
    given = torch.stack([model.log_prob(images, noise, torch.full((4,), c)) for c in range(3)], dim=1)
    torch.testing.assert_close(model.log_prob(images, noise), given.logsumexp(1) - math.log(3))
    torch.testing.assert_close(model.log_posterior(images, noise), given.log_softmax(1))
    torch.testing.assert_close(model.terms(images, noise).total(), model.log_prob(images, noise))


def test_latents_of_a_class_have_its_mean_and_scale() -> None:
    priors, latent = random_priors(), torch.randn(4, sum(SIZES), dtype=torch.float64)
    classes = torch.tensor([3, 0, 1, 1])
    expected = priors.means()[classes] + latent * priors.log_scales()[classes].exp()
    torch.testing.assert_close(priors.place(latent, classes), expected)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional model of digits, trained for some steps."""
    config = run_config(
        "digits", conditional=True, steps=8, steps_per_level=1, width=4, batch_size=32, **PLAIN
    )
    return run(config, tmp_path_factory.mktemp("conditional"))


def test_a_run_learns_classes_and_keeps_the_labels_of_its_held_out_images(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    assert loaded.data.classes == tuple("0123456789")
    assert loaded.data.label_column == "digit"
    assert loaded.model.config.class_count == 10
    assert loaded.model.class_priors is not None
    assert float(loaded.model.class_priors.mean.detach().abs().max()) > 0
    assert 0 < loaded.training.metrics["test_accuracy"] <= 1
    kept = read_held_out(checkpoint.parent / "held_out.npz")
    assert kept is not None
    assert kept.test_labels is not None
    assert loaded.held_out is not None
    assert [image.label for image in loaded.held_out.test] == kept.test_labels.tolist()


def test_a_run_without_classes_stores_what_older_versions_read() -> None:
    stored = stored_run(run_config("digits", steps=8, **PLAIN))
    assert "class_count" not in stored["model"]
    assert not {"classes", "label_column"} & stored["data"].keys()


def test_a_conditional_configuration_is_read_as_it_was_stored() -> None:
    config = run_config("digits", conditional=True, steps=8, **PLAIN)
    assert read_config(stored_run(config)) == config
    assert changed_config(config, conditional=True) == config


def test_labels_that_do_not_fit_the_held_out_images_are_not_read(tmp_path: Path) -> None:
    images = np.zeros((3, 2, 2, 1), np.uint8)
    wrong = HeldOutImages(images, images, validation_labels=np.zeros(2, np.int64))
    write_held_out(wrong, tmp_path / "held_out.npz")
    assert read_held_out(tmp_path / "held_out.npz") is None


def test_a_column_for_a_model_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="label_column is 'digit', and only a conditional model has classes"):
        run_config("digits", label_column="digit")


def test_a_column_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(DataError, match="no column of labels 'species'; its columns are 'digit'"):
        run_config("digits", conditional=True, label_column="species")


def test_a_run_that_began_without_classes_gets_none() -> None:
    with pytest.raises(ValueError, match="the run has begun without classes"):
        changed_config(run_config("digits", steps=8, **PLAIN), conditional=True)


def test_an_image_without_a_label_is_named_with_the_classes_there_are(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(60):
        Image.fromarray(np.full((8, 8), 4 * i, np.uint8)).save(data / f"{i:02}.png")
    rows = [f"{i:02}.png,{'dark' if i < 30 else 'bright'}" for i in range(60) if i != 7]
    (data / "labels.csv").write_text("\n".join(["file,tone", *rows]) + "\n")
    config = run_config(str(data), conditional=True, steps=2, steps_per_level=1, width=4, **PLAIN)
    message = "07.png has no label in column 'tone'; it must be one of the classes 'bright', 'dark'"
    with pytest.raises(DataError, match=message):
        run(config, tmp_path / "run")
