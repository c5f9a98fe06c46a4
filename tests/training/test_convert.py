"""Released checkpoints become bundles: the right tensors, all of them, checked; and nothing from what does not fit."""

import argparse
import hashlib
import json
import os
import pickle
from collections import OrderedDict
from dataclasses import asdict
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.models import difffusr, difffusr_fusion
from pipeline.models.bundle import load_bundle, load_tensors, save_bundle
from pipeline.models.difffusr import difffusr_bundle, to_reflectance
from pipeline.models.difffusr_fusion import difffusr_fusion_bundle
from pipeline.superres.system import _loaded, load
from pipeline.superres.weights import choose
from tests.models.test_difffusr import SMALL, SMALL_FUSION, Noise, assert_reproduced, ruled, run, shapes_of
from training import convert

GROUPS = ("--groups", SMALL["groups"])


def small_weights(kind="difffusr", **changes):
    if kind == "difffusr-fusion":
        bundle = difffusr_fusion_bundle({**SMALL_FUSION, **changes})
        return ruled(shapes_of(difffusr_fusion.FusionNetworks(**bundle.architecture)))
    return ruled(shapes_of(difffusr.Networks(**{**difffusr.ARCHITECTURE, **SMALL, **changes})))


def released(weights, **extra):
    """The weights as a Lightning checkpoint holds them, with what a released one holds besides."""
    state = OrderedDict(weights)
    if any(name.startswith("ema.") for name in weights):
        # one stored number stands for each unaveraged tensor: taking any of them would show
        for name, tensor in weights.items():
            if name.startswith("ema."):
                state["model." + name[4:]] = torch.tensor(torch.nan).expand(tensor.shape)
            if name.startswith("E.encoder_q."):
                state["E.encoder_k." + name[12:]] = tensor + 1
        state |= {"E.queue": torch.randn(16, 64), "E.queue_ptr": torch.zeros(1, dtype=torch.long)}
        state |= {"diffusion.betas": torch.linspace(0, 1, 1000), "diffusion.alphas_cumprod": torch.ones(1000)}
    momenta = {0: {"step": torch.tensor(32000.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}}
    return {
        "epoch": 999,
        "global_step": 32000,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val/psnr'}": {"best_model_score": torch.tensor(30.1)}},
        "optimizer_states": [{"state": momenta, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}]}],
        "lr_schedulers": [{"milestones": {200: 1}, "gamma": 0.5}],
        "hparams_name": "opt",
        "hyper_parameters": {"scale": 4, "mults": [1, 2], "name": "difffusr"},
        **extra,
    }


@pytest.fixture
def command(tmp_path, capsys):
    """Convert what is saved as a checkpoint: (exit code, stdout, stderr, path of the bundle)."""

    def call(content=None, kind="difffusr", *words, source=None, save=torch.save):
        source, out = source or tmp_path / "last.ckpt", tmp_path / "new" / "weights.safetensors"
        if content is not None:
            save(content, source)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        capsys.readouterr()
        code = convert.main(["--from", kind, str(source), "--out", str(out), *(str(word) for word in words)])
        said, complaint = capsys.readouterr()
        if code:
            assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "something was written"
        return code, said, complaint, out

    return call


def refused(outcome, *texts, code=2):
    """The one line of a refusal, after which nothing is written."""
    found, said, complaint, _ = outcome
    assert found == code, complaint
    assert said == ""
    assert len(complaint.splitlines()) == 1, complaint
    assert complaint.startswith("error: ")
    for text in texts:
        assert text in complaint
    return complaint


# --- the full size, against the authors' numbers ---------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.slow
def test_a_released_checkpoint_runs_as_the_authors_did(shared_data, tmp_path):
    folder = shared_data / "reference_vectors"
    shapes = json.loads((folder / "difffusr_state_dict_shapes.json").read_text())
    arrays = np.load(folder / "difffusr_reference_vectors.npz")
    made = {}
    for kind, part in (("difffusr", "sr"), ("difffusr-fusion", "fusion")):
        source, made[part] = tmp_path / f"{part}.ckpt", tmp_path / f"{part}.safetensors"
        torch.save(released(ruled(shapes[part])), source)
        assert convert.main(["--from", kind, str(source), "--out", str(made[part])]) == 0
        source.unlink()

    networks = load(choose("difffusr", (str(made["sr"]), f"fusion={made['fusion']}")), "cpu").predictor
    _loaded.cache_clear()  # 600 MB
    for path in made.values():
        path.unlink()
    noise = Noise(torch.from_numpy(arrays["x_T"]))
    lr = to_reflectance(torch.from_numpy(arrays["lr"]))
    assert_reproduced(2 * run(networks.resolver, lr, noise) - 1, "ddim20_x0", arrays)
    for gsd in (10, 20, 60):
        network = networks.fuser.networks.get_submodule(difffusr_fusion.name_of(gsd))
        with torch.inference_mode():
            fused = network(torch.from_numpy(arrays["fusion_rgb"]), torch.from_numpy(arrays[f"fusion_ms_{gsd}"]))
        assert_reproduced(fused, f"fusion_out_{gsd}", arrays)


# --- what is written -------------------------------------------------------------------------------------------------


def test_the_bundle_holds_averaged_weights_with_provenance(command, tmp_path):
    weights = small_weights()
    words = (*GROUPS, "--licence", "CC-BY-4.0", "--name", "DiffFuSR NAIP")
    code, said, complaint, out = command(released(weights), "difffusr", *words)
    assert (code, complaint) == (0, "")
    bundle = load_bundle(out)
    tensors = load_tensors(bundle)
    assert tensors.keys() == weights.keys()
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)
    assert bundle.digest in said
    assert (bundle.licence, bundle.provenance["name"]) == ("CC-BY-4.0", "DiffFuSR NAIP")
    assert bundle.provenance["converted_from"] == "last.ckpt"
    assert bundle.provenance["source_sha256"] == hashlib.sha256((tmp_path / "last.ckpt").read_bytes()).hexdigest()
    assert bundle.provenance["source_says"]["global_step"] == 32000
    assert "sen2fine" in bundle.provenance["converter"]
    known = {**asdict(bundle), "provenance": {}, "licence": "", "digest": "", "path": ""}
    assert known == asdict(difffusr_bundle(SMALL))


def test_the_published_sizes_are_read_off_the_tensors():
    from training.tasks.difffusr_shapes import difffusr_architecture, fusion_architecture

    with torch.device("meta"):
        sr = difffusr.Networks(**difffusr.ARCHITECTURE).state_dict()
        fusion = difffusr_fusion.FusionNetworks(**difffusr_fusion.ARCHITECTURE).state_dict()
    unseen = {"groups": 32, "block2_norm": False}
    assert difffusr_architecture({n: tuple(t.shape) for n, t in sr.items()}) | unseen == difffusr.ARCHITECTURE
    assert fusion_architecture({n: tuple(t.shape) for n, t in fusion.items()}) == difffusr_fusion.ARCHITECTURE


OTHERS = [
    {"mults": [1, 1, 3], "attention_strides": [1, 4]},
    {"res_blocks": 2, "attention_strides": []},
    {"base": 16, "features": 12, "growth": 6},
    {"encoder_blocks": 3, "degradation_base": 6, "fold": 4},
]


@pytest.mark.parametrize("changes", OTHERS)
def test_other_trainings_convert_too(command, changes):
    code, _, complaint, out = command(released(small_weights(**changes)), "difffusr", *GROUPS)
    assert code == 0, complaint
    bundle = load_bundle(out)
    assert bundle.architecture == {**difffusr.ARCHITECTURE, **SMALL, **changes}
    difffusr.DiffFuSR.from_bundle(bundle)


@pytest.mark.parametrize("changes", [{}, {"blocks": 2, "growth": 6}, {"channels": 16, "reduction": 8}])
def test_fusion_converts(command, changes):
    weights = small_weights("difffusr-fusion", **changes)
    code, said, _, out = command(released(weights), "difffusr-fusion")
    assert code == 0
    assert "--fusion-weights" in said
    bundle = load_bundle(out)
    assert bundle.architecture == {**difffusr_fusion.ARCHITECTURE, **SMALL_FUSION, **changes}
    assert bundle.normalisation == difffusr_fusion_bundle().normalisation
    tensors = load_tensors(bundle)
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)
    difffusr_fusion.DiffFuSRFusion.from_bundle(bundle)


@pytest.mark.parametrize("denoise_last", [False, True])
def test_the_sampler_is_as_published_unless_asked(command, denoise_last):
    *_, out = command(released(small_weights()), "difffusr", *GROUPS, *["--denoise-last"] * denoise_last)
    assert load_bundle(out).sampler == {**difffusr.SAMPLER, "denoise_last": denoise_last}


def test_without_second_norms_the_result_is_that_of_unused_ones(command):
    weights = small_weights()
    bare = {name: tensor for name, tensor in weights.items() if ".block2.block.0." not in name}
    assert len(bare) < len(weights)
    outputs = []
    for content in (weights, bare):
        *_, out = command(released(content), "difffusr", *GROUPS, "--overwrite")
        resolver = difffusr.DiffFuSR.from_bundle(load_bundle(out))
        lr = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        outputs.append(run(resolver, lr, Noise(torch.ones(1, 3, 32, 32))))
    assert torch.equal(*outputs)
    assert "ones and zeros" in load_bundle(out).provenance["second_norms"]
    filled = {n: t for n, t in load_tensors(load_bundle(out)).items() if ".block2.block.0." in n}
    assert all(bool((tensor == name.endswith("weight")).all()) for name, tensor in filled.items())


def test_second_norms_in_use_must_be_said_and_be_there(command):
    weights = small_weights()
    *_, out = command(released(weights), "difffusr", *GROUPS, "--block2-norm")
    assert load_bundle(out).architecture["block2_norm"] is True
    bare = {name: tensor for name, tensor in weights.items() if ".block2.block.0." not in name}
    refused(command(released(bare), "difffusr", *GROUPS, "--block2-norm", "--overwrite"), "no second norms")


def old_format(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [torch.save, old_format, save_file], ids=["zip", "before 1.6", "safetensors"])
def test_a_plain_state_dict_converts(command, save):
    weights = small_weights()
    code, _, complaint, out = command(weights, "difffusr", *GROUPS, save=save)
    assert code == 0, complaint
    tensors = load_tensors(load_bundle(out))
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_become_float32(command, dtype):
    weights = {n: t.to(dtype) if t.is_floating_point() else t for n, t in small_weights().items()}
    *_, out = command(released(weights), "difffusr", *GROUPS)
    tensors = load_tensors(load_bundle(out))
    assert all(torch.equal(tensors[name], weights[name].to(tensors[name].dtype)) for name in weights)
    assert tensors["ema.first_conv_x.bias"].dtype == torch.float32
    assert tensors["E.encoder_q.E.1.num_batches_tracked"].dtype == torch.int64


def test_tensors_that_share_memory_convert(command):
    weights = small_weights()
    weights["ema.first_conv_x.bias"] = weights["ema.first_conv_ctx.bias"]
    *_, out = command(released(weights), "difffusr", *GROUPS)
    tensors = load_tensors(load_bundle(out))
    assert torch.equal(tensors["ema.first_conv_x.bias"], tensors["ema.first_conv_ctx.bias"])


def test_what_inference_does_not_need_can_be_left_out(command):
    weights = {**small_weights(), "lpips.weight": torch.ones(3)}
    refused(command(released(weights), "difffusr", *GROUPS), "unknown lpips.weight", "--ignore PREFIX")
    code, _, _, out = command(released(weights), "difffusr", *GROUPS, "--ignore", "lpips.")
    assert code == 0
    assert "lpips." in load_bundle(out).provenance["left_out"]


# --- what is refused -------------------------------------------------------------------------------------------------

NAME = "ema.downs.1.res_block.block1.block.3.weight"
FAULTS = {
    "missing": (lambda w: w.pop(NAME), f"missing {NAME}"),
    "unknown": (lambda w: w.update({"ema.extra": torch.ones(2)}), "unknown ema.extra"),
    "misshapen": (lambda w: w.update({NAME: w[NAME][:, :-1]}), f"wrong {NAME} (float32 [8, 7, 3, 3] instead of"),
    "integers": (lambda w: w.update({NAME: w[NAME].int()}), f"wrong {NAME} (int32 [8, 8, 3, 3] instead of float32"),
    "sparse": (lambda w: w.update({NAME: w[NAME].to_sparse()}), f"wrong {NAME}"),
    "not a number": (lambda w: w[NAME][0].fill_(torch.nan), f"NaN or infinity in {NAME}"),
    "no entry": (lambda w: w.pop("ema.first_conv_x.weight"), "it holds no tensor ema.first_conv_x.weight"),
    "flat entry": (
        lambda w: w.update({"ema.first_conv_x.weight": torch.ones(8)}),
        "ema.first_conv_x.weight has shape [8]",
    ),
    "two bands": (lambda w: w.update({"ema.first_conv_x.weight": torch.ones(8, 8, 3, 3)}), "takes 8 channels"),
    "other base": (
        lambda w: w.update({"ema.first_conv_x.weight": torch.ones(12, 12, 3, 3)}),
        "channels, level by level",
    ),
    "no attention": (
        lambda w: [w.pop(n) for n in list(w) if n.startswith("ema.mid.0.attn.")],
        "missing ema.mid.0.attn",
    ),
    "gap": (lambda w: [w.pop(n) for n in list(w) if n.startswith("ema.downs.1.")], "no tensor ema.downs.1.*"),
    "no block": (lambda w: [w.pop(n) for n in list(w) if n.startswith("ema.downs.3.")], "without residual blocks"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_that_do_not_fit_are_named(command, fault):
    change, text = FAULTS[fault]
    weights = small_weights()
    change(weights)
    assert "last.ckpt" in refused(command(released(weights), "difffusr", *GROUPS), text)


def test_many_faults_are_counted(command):
    weights = {
        name: t for name, t in small_weights().items() if "E.encoder_q.mlp" not in name and "conv_up" not in name
    }
    complaint = refused(command(released(weights), "difffusr", *GROUPS), "and 5 more")
    assert len(complaint) < 500


def test_the_number_of_groups_is_asked_for_where_32_cannot_be(command):
    refused(command(released(small_weights())), "8 channels do not divide into 32 groups", "--groups")


def test_a_network_too_deep_for_the_windows_is_refused(command):
    content = released(small_weights(mults=[1] * 6, attention_strides=[]))
    refused(command(content, "difffusr", *GROUPS), "multiples of 64 px", "480")


def test_the_other_kind_of_networks_is_recognised(command):
    refused(command(released(small_weights("difffusr-fusion"))), "the fusion networks", "--from difffusr-fusion")
    refused(command(released(small_weights()), "difffusr-fusion"), "no fusion networks", "--from difffusr")
    plain = {"model." + n.removeprefix("ema."): t for n, t in small_weights().items() if n.startswith("ema.")}
    refused(command(released(plain)), "no averaged U-Net", "ema.*")


class Trap:
    """Unpickling this makes a folder."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("save", [torch.save, old_format], ids=["zip", "before 1.6"])
def test_code_in_a_checkpoint_is_named_and_never_run(command, tmp_path, save):
    mark = tmp_path.parent / f"{tmp_path.name}-mark"
    content = released(small_weights(), hyper_parameters=Trap(mark))
    content = {"hyper_parameters": content.pop("hyper_parameters"), **content}  # met first
    refused(command(content, "difffusr", *GROUPS, save=save), "posix.mkdir", "if you trust the file", "plain.ckpt")
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_torch_did_not_write_is_never_run(command, tmp_path, protocol):
    mark = tmp_path.parent / f"{tmp_path.name}-mark"
    complaint = refused(
        command({"a": Trap(mark)}, save=lambda content, path: path.write_bytes(pickle.dumps(content, protocol)))
    )
    assert "weights_only" not in complaint.split("cure")[0]
    assert not mark.exists()


def test_the_hyper_parameter_class_is_named_and_the_cure_works(command, tmp_path):
    settings = {"hyper_parameters": argparse.Namespace(scale=4), "datamodule": PurePosixPath("data")}
    content = released(small_weights(), **settings)
    complaint = refused(command(content, "difffusr", *GROUPS), "argparse.Namespace, pathlib.PurePosixPath,")
    cure = complaint.split("installed: ")[1].split(", then convert")[0]
    scope = {"torch": torch, "FILE": tmp_path / "last.ckpt"}
    exec(cure.replace("'plain.ckpt'", "PLAIN"), scope | {"PLAIN": tmp_path / "plain.ckpt"})
    assert command(None, "difffusr", *GROUPS, source=tmp_path / "plain.ckpt")[0] == 0


@pytest.mark.parametrize("save", [torch.save, old_format, save_file], ids=["zip", "before 1.6", "safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(command, tmp_path, save, part):
    source = tmp_path / "last.ckpt"
    save(small_weights(), source)
    content = source.read_bytes()
    source.write_bytes(content[: int(part * len(content))])
    refused(command(source=source), "last.ckpt", "download or copy it again")


def test_flipped_bits_are_found(command, tmp_path):
    source = tmp_path / "last.ckpt"
    torch.save(released(small_weights()), source)
    content = bytearray(source.read_bytes())
    for at in (len(content) // 3, len(content) // 2, 2 * len(content) // 3):
        damaged = bytearray(content)
        damaged[at] ^= 8
        source.write_bytes(damaged)
        refused(command(None, "difffusr", *GROUPS, source=source), "cannot be read", "download or copy it again")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], "holds a list"),
        (torch.ones(3), "holds a Tensor"),
        ({}, "holds nothing"),
        ({"params_ema": {"a": torch.ones(1)}, "iter": 3}, "holds iter, params_ema"),
        ({"state_dict": [torch.ones(1)]}, "holds state_dict"),
    ],
)
def test_other_contents_are_described(command, content, text):
    refused(command(content), text, "a Lightning checkpoint")


@pytest.mark.parametrize("text", ["version https://git-lfs.github.com/spec/v1\noid", "<html>not found</html>"])
def test_text_is_no_checkpoint(command, tmp_path, text):
    source = tmp_path / "last.ckpt"
    source.write_text(text)
    refused(command(source=source), "is text", "pointer")


def test_a_missing_file_and_a_folder(command, tmp_path):
    refused(command(source=tmp_path / "absent.ckpt"), "no file at")
    refused(command(source=tmp_path), "no file at")


def test_a_bundle_needs_no_conversion(command, tmp_path):
    source = tmp_path / "bundle.safetensors"
    save_bundle(source, difffusr_bundle(SMALL), small_weights())
    refused(command(source=source), "is a bundle already", "--weights")


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--out", "weights.pt"], ["ending in .safetensors"]),
        (["--groups", "-1"], ["--groups -1"]),
        (["--from", "difffusr-fusion", "--denoise-last"], ["--denoise-last says nothing about fusion"]),
        (["--from", "difffusr-fusion", "--block2-norm"], ["--block2-norm says nothing about fusion"]),
    ],
)
def test_wrong_arguments_are_said_before_reading(command, words, texts):
    refused(command(None, "difffusr", *words), *texts)


def test_an_existing_file_is_kept_unless_told(command):
    content = released(small_weights())
    *_, out = command(content, "difffusr", *GROUPS)
    first = out.read_bytes()
    refused(command(content, "difffusr", *GROUPS), "exists", "--overwrite")
    assert out.read_bytes() == first
    assert command(content, "difffusr", *GROUPS, "--overwrite", "--name", "again")[0] == 0
    assert load_bundle(out).provenance["name"] == "again"
    refused(command(None, "difffusr", "--overwrite", source=out), "is the checkpoint itself")


def test_a_place_that_cannot_be_written_is_a_storage_error(command, tmp_path):
    (tmp_path / "new").write_text("a file where the folder should be")
    refused(command(released(small_weights()), "difffusr", *GROUPS), "cannot write", code=6)


def test_the_bundle_is_as_readable_as_other_files(command, tmp_path):
    *_, out = command(released(small_weights()), "difffusr", *GROUPS)
    assert out.stat().st_mode == (tmp_path / "last.ckpt").stat().st_mode


def test_a_missing_licence_is_said(command):
    code, _, complaint, _ = command(released(small_weights()), "difffusr", *GROUPS)
    assert code == 0
    assert "--licence" in complaint


def test_the_help_says_why_one_would_denoise_last(capsys):
    with pytest.raises(SystemExit):
        convert.main(["--help"])
    assert "32 DN" in capsys.readouterr().out
