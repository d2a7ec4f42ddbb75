"""The calls of the clients: a Client of a server, a Client of an open bundle, and an AsyncClient give the same results.

The expected values are those of the open bundle. Errors are in test_refused_calls.py.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from glowserve_service.server import Server
from PIL import Image

import glowserve
from glowserve.images import UInt8Array, encode_png, prepare
from glowserve.runtime.repository import Bundle
from tests.client.blocking import Connect
from tests.client.forms import FORMS, Five, save_five
from tests.client.serving import wait_until_idle
from tests.service.stubs import address

# At temperature 1, a model that was trained for seconds draws a sample that is not finite now and then.
COOL = 0.7


@pytest.fixture(scope="module")
def five(digits: UInt8Array, tmp_path_factory: pytest.TempPathFactory) -> Five:
    return save_five(digits[:5], tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("form", FORMS)
def test_images_in_every_form_are_scored(
    answering: glowserve.Client, embedded: glowserve.Client, five: Five, form: str
) -> None:
    make, n = FORMS[form]
    expected = embedded.score(five.images, seed=4)
    scores = answering.score(make(five), seed=4)
    parts = list(answering.iter_scores(make(five), seed=4))
    rows = np.arange(n) % 5
    for name in ("log_likelihood", "bits_per_dim", "finite"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(getattr(scores, name), getattr(expected, name)[rows], rtol=1e-6)
        np.testing.assert_allclose(joined, getattr(expected, name)[rows], rtol=1e-6)
    for part in (scores, *parts):
        assert (part.model, part.version, part.seed) == ("digits", 1, 4)


@pytest.mark.parametrize("form", FORMS)
def test_images_in_every_form_are_encoded(
    answering: glowserve.Client, embedded: glowserve.Client, five: Five, form: str
) -> None:
    make, n = FORMS[form]
    expected, rows = embedded.encode(five.images), np.arange(n) % 5
    encodings = answering.encode(make(five))
    np.testing.assert_allclose(encodings.latents, expected.latents[rows], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(encodings.mismatched_values, expected.mismatched_values[rows])
    assert (encodings.latents.shape, encodings.model, encodings.version) == ((n, 64), "digits", 1)


def test_a_percentile_is_the_same_from_every_client(
    answering: glowserve.Client, embedded: glowserve.Client, digits: UInt8Array
) -> None:
    # Half a percent: a likelihood may differ in its last bit between batches, and pass one calibration image.
    expected = embedded.score(digits).percentile
    np.testing.assert_allclose(answering.score(digits).percentile, expected, atol=0.5)


def test_a_picture_of_any_size_is_prepared_for_the_model(answering: glowserve.Client, bundle: Bundle) -> None:
    picture = Image.effect_noise((50, 30), 80).convert("RGB")
    prepared = prepare(picture, *bundle.shape, bundle.preparation)
    scores, expected = answering.score(picture), answering.score(prepared)
    np.testing.assert_allclose(scores.log_likelihood, expected.log_likelihood, rtol=1e-6)


def test_large_pictures_are_sent_in_several_calls(answering: glowserve.Client) -> None:
    """Six pictures of 16 megapixels each: one call may have 32."""
    buffer = io.BytesIO()
    Image.new("1", (4000, 4000)).save(buffer, "PNG")
    black = answering.score(np.zeros((8, 8), np.uint8)).log_likelihood[0]
    np.testing.assert_allclose(answering.score([buffer.getvalue()] * 6).log_likelihood, [black] * 6)


def test_samples_depend_on_seed_and_temperature_alone(
    answering: glowserve.Client, embedded: glowserve.Client
) -> None:
    drawn = answering.sample(70, seed=3, temperature=COOL)
    assert (drawn.images.shape, drawn.images.dtype) == ((70, 8, 8, 1), np.uint8)
    assert (len(drawn), drawn.model, drawn.version, drawn.seed) == (70, "digits", 1, 3)
    np.testing.assert_array_equal(drawn.images, embedded.sample(70, seed=3, temperature=COOL).images)


def test_samples_arrive_some_at_a_time(answering: glowserve.Client) -> None:
    parts = list(answering.iter_samples(70, seed=5, temperature=COOL))
    assert len(parts) > 1
    assert {(part.model, part.version, part.seed) for part in parts} == {("digits", 1, 5)}
    joined = np.concatenate([part.images for part in parts])
    np.testing.assert_array_equal(joined, answering.sample(70, seed=5, temperature=COOL).images)


def test_the_seed_of_scores_is_0_by_default(answering: glowserve.Client, digits: UInt8Array) -> None:
    scores, expected = answering.score(digits[:3]), answering.score(digits[:3], seed=0)
    assert (scores.seed, expected.seed) == (0, 0)
    np.testing.assert_allclose(scores.log_likelihood, expected.log_likelihood, rtol=1e-6)


def test_the_seed_of_samples_is_random_by_default(answering: glowserve.Client) -> None:
    one, other = answering.sample(4, temperature=COOL), answering.sample(4, temperature=COOL)
    assert one.seed != other.seed
    again = answering.sample(4, seed=one.seed, temperature=COOL)
    np.testing.assert_array_equal(again.images, one.images)
    assert len(answering.sample(temperature=0)) == 1


def test_a_latent_decodes_to_the_image_that_it_encodes(
    answering: glowserve.Client, digits: UInt8Array
) -> None:
    images = digits[:70]
    encodings = answering.encode(images)
    exact = encodings.mismatched_values == 0
    assert exact.any()
    np.testing.assert_array_equal(answering.decode(encodings.latents)[exact] >> 4, images[exact] >> 4)


def test_more_latents_than_fit_one_call_are_decoded_in_order(
    answering: glowserve.Client, embedded: glowserve.Client, digits: UInt8Array
) -> None:
    latents = embedded.encode(digits).latents
    np.testing.assert_array_equal(answering.decode(latents), embedded.decode(latents))


def test_interpolation_goes_from_the_first_image_to_the_last(
    answering: glowserve.Client, embedded: glowserve.Client, digits: UInt8Array
) -> None:
    images = answering.interpolate(digits[0], encode_png(digits[1]), steps=40)
    np.testing.assert_array_equal(images, embedded.interpolate(digits[0], digits[1], steps=40))
    assert images.shape == (40, 8, 8, 1)
    assert answering.interpolate(digits[0], digits[1]).shape == (8, 8, 8, 1)


def test_models_and_manifest_describe_the_bundle(answering: glowserve.Client, bundle: Bundle) -> None:
    assert answering.models() == [
        glowserve.ModelInfo("digits", 1, height=8, width=8, channels=1, n_bits=4, state="SERVING")
    ]
    assert answering.manifest() == bundle.manifest
    assert answering.manifest(model="digits", version=1) == bundle.manifest


@pytest.mark.parametrize("answering", ["server", "embedded"], indirect=True)
def test_threads_may_share_a_client(answering: glowserve.Client, digits: UInt8Array) -> None:
    expected = answering.score(digits).log_likelihood
    with ThreadPoolExecutor(16) as pool:
        parts = pool.map(lambda first: answering.score(digits[first : first + 5]), range(0, 175, 5))
        found = np.concatenate([part.log_likelihood for part in parts])
    np.testing.assert_allclose(found, expected[:175], rtol=1e-5)


def test_closing_an_iterator_of_samples_cancels_the_call(connect: Connect, server: Server) -> None:
    with connect(address(server)) as client:
        drawn = client.iter_samples(100_000, temperature=0)
        next(drawn)
        drawn.close()
        wait_until_idle(server)


def test_a_closed_client_cannot_call(server: Server) -> None:
    with glowserve.Client(address(server)) as client:
        client.models()
    with pytest.raises(ValueError, match="closed"):
        client.models()
