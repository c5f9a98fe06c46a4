"""Core-seconds per km2 of the networks alone, ours and of the shapes that others have published, in one run.

Weights and images are random: only the shapes decide the time. Each network runs once over one of its own windows,
after a first run of a small part, in one thread. What overlapping windows, reading and writing add is not counted.

- LDSR-S2 (opensr-model 1.0): autoencoder and U-Net of latent diffusion, 100 steps; 4 bands, 10 to 2.5 m. One step is
  timed, and encoding and decoding.
- SEN2SRLite: three SPAN networks; 4 bands from 10 to 2.5 m, six from 20 to 10 and to 2.5 m.
- L1BSR (Nguyen et al., CVPRW 2023): RCAN with 10 groups of 20 blocks and 64 features; 4 bands, 10 to 5 m.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from pipeline.grid.grid import Window
    from pipeline.grid.native_rasters import NativeRasters

LDSR_STEPS = 100
_LR_PX = 128  # sides of windows of 10 m pixels, as these networks were trained
_OWN_PX = 120  # the same of our networks
_FIRST_PX = 32  # of the part that is run before


@dataclass(frozen=True)
class Peer:
    """A network and what it makes. `once(px)` runs it over a square of `px` 10 m pixels, a part of its work.

    `steps(px)` is the part that is repeated `repeats` times.
    """

    name: str
    bands: str
    once: Callable[[int], object]
    steps: Callable[[int], object] | None = None
    repeats: int = 0


def core_seconds_per_km2(peer: Peer, px: int = _LR_PX) -> float:
    """Time one window of `px` 10 m pixels: CPU seconds, so that what else the machine does hardly counts."""
    import torch

    with torch.inference_mode():
        parts = [(peer.once, 1)] + ([(peer.steps, peer.repeats)] if peer.steps else [])
        spent = 0.0
        for run, times in parts:
            run(_FIRST_PX)
            started = time.process_time()
            run(px)
            spent += times * (time.process_time() - started)
    return spent / (px * 10 / 1000) ** 2


def rows() -> list[tuple[str, str, str]]:
    """Return a row per network. LDSR-S2 needs diffusers, and is left out without."""
    import importlib.util

    from pipeline.process import one_thread, prepare_process

    prepare_process()
    ours, published = (lite, ldsr, partial(ldsr, drawn=True)), [sen2sr_lite, l1bsr]
    if importlib.util.find_spec("diffusers"):
        published.append(ldsr_s2)
    found = []
    with one_thread():
        for px, makers in ((_OWN_PX, ours), (_LR_PX, published)):
            for peer in (make() for make in makers):
                found.append((f"networks of {peer.name}", f"core-seconds per km2, {peer.bands}",
                              f"{core_seconds_per_km2(peer, px):.2f}"))  # fmt: skip
    return found


def lite() -> Peer:
    """The default system: both of its stages over a window, with what prepares their input."""
    import torch

    from pipeline.bands import BAND_NAMES
    from pipeline.superres import batches
    from pipeline.superres.passes import passes_of
    from pipeline.superres.system import load
    from pipeline.superres.weights import choose
    from pipeline.superres.windows import Draw, run_window, window_input

    system = load(choose("lite"), "cpu")
    of = passes_of(system.stages, BAND_NAMES)[0]
    group, drawn = of.groups[0], Draw(lambda _stage: None, None, "none")

    def once(px: int) -> object:
        del px  # its windows have one size
        window = group.lattice.window(0, 0)
        given = window_input(_rasters(of.read_window(window)), window, group, of, torch.device("cpu"))
        assert given is not None
        steps = partial(run_window, given, system, group, [drawn], lambda _draw: {})
        return batches.run([steps], system, 1)[0]

    return Peer("lite", "12 bands to 2.5 m", once)


def _rasters(window: Window) -> NativeRasters:
    """Return random DN over a window of 2.5 m px."""
    import numpy as np

    from pipeline.bands import GSDS_M, bands_at
    from pipeline.grid.native_rasters import NativeRasters, factor_at

    rng, names = np.random.default_rng(0), {gsd: bands_at(gsd) for gsd in GSDS_M}
    dn = {
        gsd: rng.integers(1500, 4000, (len(bands), *window.coarsen(factor_at(gsd)).shape), dtype=np.uint16)
        for gsd, bands in names.items()
    }
    return NativeRasters(window, dn, names)


def ldsr(drawn: bool = False) -> Peer:
    """Small latent diffusion with Fusion X2 and X4, as shipped: the mean, or one draw."""
    import torch

    from pipeline.models.bundle import load_bundle
    from pipeline.models.ldsr import LDSR
    from pipeline.models.span_fusion import SpanFusion, chained
    from pipeline.superres.weights import SHIPPED

    resolver = LDSR.from_bundle(load_bundle(SHIPPED / "ldsr.safetensors"))
    x2, x4 = (SpanFusion.from_bundle(load_bundle(SHIPPED / f"fusion-{name}.safetensors")) for name in ("x2", "x4"))

    def once(px: int) -> object:
        four, six = torch.rand(1, 4, px, px), torch.rand(1, 6, px // 2, px // 2)

        def noise(_number: int) -> Tensor:
            return torch.randn(1, resolver.latents, px, px)

        fine = resolver.sample(four, noise) if drawn else resolver.mean(four)
        return chained(x2, x4, six, four, fine)

    how = f"a draw of {resolver.sampling.steps} steps" if drawn else "the mean"
    return Peer("ldsr as shipped", f"10 bands to 2.5 m, {how}", once)


def ldsr_s2() -> Peer:
    """Latent diffusion with the published sizes."""
    import torch

    from pipeline.models.ldsr_published import ARCHITECTURE, untrained_network

    network = untrained_network().eval()
    latents = ARCHITECTURE["latents"]

    def code(px: int) -> Tensor:
        return network.decode(network.encode(torch.rand(1, 4, 4 * px, 4 * px)))

    def step(px: int) -> object:
        latent = torch.randn(1, latents, px, px)
        return network.unet(latent, latent, torch.tensor([500]))

    return Peer("LDSR-S2", f"4 bands to 2.5 m, {LDSR_STEPS} steps", code, step, LDSR_STEPS)


def sen2sr_lite() -> Peer:
    """The three networks of the light variant."""
    import torch

    from pipeline.models.span import Span

    four = Span(4, 4, shuffle=4, graph="published").eval()
    x2, x4 = (Span(10, 6, graph="published").eval() for _ in range(2))

    def once(px: int) -> object:
        return four(torch.rand(1, 4, px, px)), x2(torch.rand(1, 10, px, px)), x4(torch.rand(1, 10, 4 * px, 4 * px))

    return Peer("SEN2SRLite", "10 bands to 2.5 m", once)


def l1bsr() -> Peer:
    """RCAN in the size of L1BSR."""
    import torch

    network = rcan(bands=4, features=64, groups=10, blocks=20, reduction=16).eval()
    return Peer("L1BSR", "4 bands to 5 m", lambda px: network(torch.rand(1, 4, px, px)))


def rcan(bands: int, features: int, groups: int, blocks: int, reduction: int) -> nn.Module:
    """Return a residual channel attention network of x2 (Zhang et al., ECCV 2018): skips in blocks, groups, whole."""
    import torch
    from torch import nn

    conv = partial(nn.Conv2d, kernel_size=3, padding=1)

    class Skip(nn.Module):
        """x + body(x), with the channels of the body weighted by their means if it has attention."""

        def __init__(self, body: list[nn.Module], *, attention: bool = False) -> None:
            super().__init__()
            self.body = nn.Sequential(*body)
            squeezed = features // reduction
            layers = [nn.Conv2d(features, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, features, 1), nn.Sigmoid()]
            self.attention = nn.Sequential(*layers) if attention else None

        def forward(self, x: Tensor) -> Tensor:
            change: Tensor = self.body(x)
            if self.attention is not None:
                change = change * self.attention(change.mean((2, 3), keepdim=True))
            return torch.add(x, change)

    def block() -> nn.Module:
        return Skip([conv(features, features), nn.ReLU(), conv(features, features)], attention=True)

    def group() -> nn.Module:
        return Skip([*(block() for _ in range(blocks)), conv(features, features)])

    body = Skip([*(group() for _ in range(groups)), conv(features, features)])
    tail = [conv(features, 4 * features), nn.PixelShuffle(2), conv(features, bands)]
    return nn.Sequential(conv(bands, features), body, *tail)
