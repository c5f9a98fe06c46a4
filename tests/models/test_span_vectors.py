"""Every reference vector of Fusion X2 and X4 and of the light RGBN network of the same release."""

from dataclasses import replace

import pytest
import torch

from pipeline.models import low_pass
from pipeline.models.bundle import BundleError, load_bundle
from pipeline.models.span_fusion import SpanFusion, bilinear
from tests.models import span_vectors
from tests.models.span_vectors import GUIDE, RELATIVE_PLAIN, RGBN, SIX
from training import convert

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def vectors(shared_data):
    return span_vectors.read(shared_data)


@pytest.fixture(scope="module")
def released(vectors, tmp_path_factory):
    """The fusions of the release, through the command that converts them and a bundle."""
    folder, found = tmp_path_factory.mktemp("released"), {}
    for kind, name in (("fusion-x2", "f2_model"), ("fusion-x4", "f4_model")):
        source, out = folder / f"{name}.ckpt", folder / f"{kind}.safetensors"
        torch.save(vectors.tensors(name), source)
        assert convert.main(["--from", f"sen2sr-{kind}", str(source), "--out", str(out)]) == 0
        found[kind] = SpanFusion.from_bundle(load_bundle(out))
    return found


def at_20m(images):
    """Return the six bands of an array on their own grid; it holds them replicated on the grid of the others."""
    return images[:, SIX][..., ::2, ::2]


def test_one_kernel_computes_three_convolutions_and_their_skip(vectors):
    kernel, bias = vectors.network("f2_model").conv_1.folded()
    vectors.reproduced("fold_conv_1_weight", kernel, RELATIVE_PLAIN)
    vectors.reproduced("fold_conv_1_bias", bias, RELATIVE_PLAIN)


def test_fusion_x2_as_published(vectors):
    images, span = vectors("x2_in"), vectors.network("f2_model")
    up = bilinear(at_20m(images), 2)
    stack = torch.cat([up, images[:, GUIDE]], 1)
    vectors.reproduced("x2_resampled", stack)
    vectors.reproduced("x2_net", span(stack))
    mask = low_pass.ideal_mask(16, 24, 2)
    vectors.reproduced("x2_mask", mask, RELATIVE_PLAIN)


def test_fusion_x2_through_a_bundle(vectors, released):
    images = vectors("x2_in")
    vectors.reproduced("x2_out", filled(images, released["fusion-x2"].predict(at_20m(images), images[:, RGBN])))


def filled(images, six):
    out = images.clone()
    out[:, SIX] = six
    return out


def test_light_rgbn_network(vectors):
    rgbn, span = vectors("x4_in")[:, RGBN], vectors.network("sr_model", channels_in=4, channels_out=4, shuffle=4)
    found = span(rgbn)
    vectors.reproduced("x4_rgbn_net", found)
    mask = low_pass.ideal_mask(48, 64, 4)
    vectors.reproduced("x4_mask", mask, RELATIVE_PLAIN)
    smooth = low_pass.published_upsample(rgbn, (48, 64))
    vectors.reproduced("x4_rgbn", low_pass.by_mask(found.clamp_min(0), smooth, mask))


def test_fusion_x4_through_a_bundle_after_x2(vectors, released):
    images, guide, x4 = vectors("x4_in"), vectors("x4_rgbn"), released["fusion-x4"]
    six = released["fusion-x2"].predict(at_20m(images), images[:, RGBN])
    up = bilinear(six, 4)
    vectors.reproduced("x4_rswir_up", up)
    vectors.reproduced("x4_net", x4.network(torch.cat([up, guide[:, [2, 1, 0, 3]]], 1)))
    vectors.reproduced("x4_out_rswir", x4.predict(six, guide))


@pytest.mark.parametrize("name", ["ideal", "butterworth"])
def test_constraint_alone(vectors, name):
    mask = getattr(low_pass, f"{name}_mask")(24, 32, 4)
    vectors.reproduced(f"hc_mask_{name}", mask, RELATIVE_PLAIN)
    smooth = low_pass.published_upsample(vectors("hc_lr"), (24, 32))
    vectors.reproduced(f"hc_out_{name}", low_pass.by_mask(vectors("hc_sr"), smooth, mask))


def test_blocks_between_first_and_last_have_no_influence_as_published(vectors):
    span = vectors.network("f2_model")
    stack = vectors("x2_resampled")
    before = span(stack)
    for parameter in span.blocks[1:-1].parameters():
        parameter.zero_()
    assert torch.equal(span(stack), before)
    span.blocks[-1].c1_r.sk.weight.zero_()
    assert not torch.equal(span(stack), before)


def test_released_tensors_of_another_network_are_refused_by_name(vectors, tmp_path, capsys):
    tensors = vectors.tensors("f2_model")
    del tensors["blocks.3.c2_r.sk.bias"]
    torch.save({**tensors, "blocks.1.norm.weight": torch.ones(24)}, tmp_path / "a.ckpt")
    torch.save(vectors.tensors("sr_model"), tmp_path / "b.ckpt")
    torch.save({"head.weight": torch.ones(2, 2)}, tmp_path / "c.ckpt")
    for name, said in (
        ("a", ("missing blocks.3.c2_r.sk.bias", "unknown blocks.1.norm.weight")),
        ("b", ("wrong conv_1.sk.weight (float32 [24, 4, 1, 1] instead of float32 [24, 10, 1, 1])",)),
        ("c", ("it holds no network of the SPAN family", "conv_1.sk.weight")),
    ):
        out = tmp_path / "out.safetensors"
        words = ["--from", "sen2sr-fusion-x2", str(tmp_path / f"{name}.ckpt"), "--out", str(out)]
        assert convert.main(words) == 2
        complaint = capsys.readouterr().err
        assert all(text in complaint for text in said), complaint
        assert not out.exists()


def test_the_command_says_which_role_the_weights_have(vectors, tmp_path, capsys):
    torch.save(vectors.tensors("f4_model"), tmp_path / "a.ckpt")
    out = tmp_path / "a.safetensors"
    assert convert.main(["--from", "sen2sr-fusion-x4", str(tmp_path / "a.ckpt"), "--out", str(out)]) == 0
    assert f"--weights x4={out}\n" in capsys.readouterr().out


def test_a_bundle_of_another_kind_or_shape_is_refused(released):
    bundle = released["fusion-x2"].bundle
    for changed, said in (
        (replace(bundle, system="lite-sr"), "hold lite-sr"),
        (replace(bundle, scale=4), "another scale"),
        (replace(bundle, in_bands=(*bundle.in_bands[:-1], "B01")), "another in_bands"),
        (replace(bundle, out_bands=bundle.out_bands[:-1]), "another out_bands"),
        (replace(bundle, normalisation={**bundle.normalisation, "constraint": "none"}), "another constraint"),
        (replace(bundle, architecture={**bundle.architecture, "graph": "star"}), "describe no network"),
        (replace(bundle, architecture={**bundle.architecture, "blocks": 5}), "do not fit"),
    ):
        with pytest.raises(BundleError, match=said):
            SpanFusion.from_bundle(changed)
