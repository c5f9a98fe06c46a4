"""Names of map guidance's tensors: ours in bundles, those of the released code (SGDM) in checkpoints."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.models.guidance import REAL

if TYPE_CHECKING:
    from collections.abc import Callable

ADAPTER = "adapter."
ENCODER = f"{ADAPTER}merge_encoder."
CONTENT_OF_REAL = f"{ENCODER}SR_Ref_Encoder."
STYLE_OF_REAL = f"{ENCODER}HR_Style_Encoder."
_SPADE = {"norm": "param_free_norm", "shared": "mlp_shared.0", "gamma": "mlp_gamma", "beta": "mlp_beta"}
_BLOCK = {"down": "down_opt.op", "entry": "in_conv", "first": "block1", "second": "block2"}
_Rule = tuple[str, "Callable[[re.Match[str]], str]"]


def _next(match: re.Match[str], group: int = 1) -> int:
    return int(match[group]) + 1


# Patterns of our module names, and theirs within the part of the encoder.
_CONTENT: tuple[_Rule, ...] = (
    (r"image_stem", lambda m: "first_layer_sr.conv_in"),
    (r"map_stem", lambda m: "first_layer_ref.conv_in"),
    (r"image_stages\.(\d+)\.entry", lambda m: f"layer{_next(m)}_sr.0.conv_in"),
    (r"image_stages\.(\d+)\.residual\.(\d)", lambda m: f"layer{_next(m)}_sr.1.res_block.{2 * int(m[2])}"),
    (r"image_stages\.(\d+)\.fold", lambda m: f"layer{_next(m)}_sr.2.downsample.1"),
    (r"map_stages\.(\d+)\.entry", lambda m: f"layer{_next(m)}_ref.0"),
    (r"map_stages\.(\d+)\.fold", lambda m: f"layer{_next(m)}_ref.2.downsample.1"),
    (r"spades\.(\d+)\.(\w+)", lambda m: f"spade{_next(m)}.{_SPADE[m[2]]}"),
)
_STRIDED: tuple[_Rule, ...] = (
    (r"stem", lambda m: "first_layer_sr"),
    (r"stages\.(\d+)\.(\d)", lambda m: f"layer{_next(m)}_sr.{2 * int(m[2])}"),
)
_ADAPTER: tuple[_Rule, ...] = (
    (r"entry", lambda m: "conv_in"),
    (r"blocks\.(\d+)\.(\w+)", lambda m: f"body.{m[1]}.{_BLOCK[m[2]]}"),
)


def guidance_source(name: str, variant: str) -> str:
    """Return the checkpoint's name of a tensor of `Guidance` of this variant."""
    part, _, rest = name.partition(".")
    module, _, leaf = rest.rpartition(".")
    content = CONTENT_OF_REAL if variant == REAL else ENCODER
    if part == "adapter":
        return f"{ADAPTER}{_renamed(module, _ADAPTER)}.{leaf}"
    if part == "merge":
        return f"{content}last_linear.{leaf}"
    if part == "style":
        module = module.removeprefix("body.")
        return f"{STYLE_OF_REAL}{'last_layer.0' if module == 'last' else _renamed(module, _STRIDED)}.{leaf}"
    return f"{content}{_renamed(module, _CONTENT + _STRIDED)}.{leaf}"


def flow_source(name: str) -> str:
    """Return the name in a file of a flow (normflows) of a tensor of `StyleFlow`."""
    parts = name.split(".")
    if parts[0] != "couplings":
        return f"q0.{name}"
    coupling, rest = int(parts[1]), ".".join(parts[2:])
    if rest == "order":
        return f"flows.{2 * coupling + 1}.perm"
    return f"flows.{2 * coupling}.flows.1.param_map.{rest}"


def _renamed(module: str, rules: tuple[_Rule, ...]) -> str:
    for pattern, theirs in rules:
        if match := re.fullmatch(pattern, module):
            return theirs(match)
    msg = f"no name of the released code for {module}"
    raise KeyError(msg)
