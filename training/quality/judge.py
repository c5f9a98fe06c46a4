"""Scores of a super-resolver and of baselines on held-out images, per image.

The super-resolver is scored on what a run stores (`product`). Baselines are methods without a network, and the
network's regression alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch

from pipeline.bands import SCALE_10M
from pipeline.errors import UsageError
from pipeline.superres import masks
from pipeline.superres.registry import spec_of
from pipeline.superres.spec import stochastic
from pipeline.superres.system import built
from training import placement
from training.degradation.degrade import degrade
from training.degradation.sensor import relative_widths
from training.quality import baselines, metrics, opensr, product
from training.quality.metrics import trimmed
from training.quality.pairs import BORDER_PX, Pair, members, score
from training.quality.product import DEFAULT, Way
from training.quality.sampler import bands_of, of_system, resolving_stages, scale_of
from training.quality.spreads import Pools, of_image
from training.quality.tables import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.superres.system import System
    from training.degradation.degrade import Degradation
    from training.quality.perceptual import Perceptual
    from training.quality.product import Stored
    from training.quality.sampler import Sampler

    Quick = Callable[[Tensor, Tensor], float]

MEMBERS = 8
WINDOW_PX = 480  # one window of the lattice, at 2.5 m
DRAW = Way("sample")
WAYS = (Way(consistency="none"), Way(consistency="box"), DEFAULT, DRAW)
PLAIN = (Way(consistency="box"), DEFAULT)  # ways for interpolation
DETAIL = "generated detail"  # name of the table of shares
SHARES = {
    "generated": masks.QUALITY_GENERATED,
    "partly": masks.QUALITY_PARTIAL,
    "none": masks.QUALITY_MEASURED,
}
OF_SCALE = {"ERGAS": metrics.ergas, "ERGAS (Table IV)": metrics.ergas_table_iv}
PAIR_METRICS: Mapping[str, Quick] = {
    "SSIM": metrics.ssim,
    "SAM": metrics.sam,
    "SRE": metrics.sre_db,
    "CC": metrics.correlation,
    "cosine": metrics.cosine,
    "R2": metrics.r_squared,
    "gradient": metrics.gradient_ratio,
}


@dataclass(frozen=True)
class Candidate:
    """A system under test with a short name. Raises UsageError for a system without a network."""

    name: str
    system: System
    seed: int = 0

    def __post_init__(self) -> None:
        resolving_stages(self.system)

    @cached_property
    def sampler(self) -> Sampler:
        """Super-resolver of the system, for whole images."""
        return of_system(self.system, self.scale)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.system.device

    @property
    def bundle(self) -> Bundle | None:
        """Metadata of the super-resolver's weights, or None without weights."""
        return self.system.bundles.get(resolving_stages(self.system)[0].weights)

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands of the evaluation images."""
        return bands_of(self.system)

    @property
    def scale(self) -> int:
        """Scale of the images, as `scale_of` the system."""
        return scale_of(self.system)

    @property
    def shape(self) -> str:
        """Scale and bands in words."""
        return f"x{self.scale} of {', '.join(self.bands)}"

    @property
    def kind(self) -> str:
        """Kind of the weights, or the system's name without weights."""
        return self.system.name if self.bundle is None else self.bundle.system

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, or an empty string without weights."""
        return "" if self.bundle is None else self.bundle.digest

    @property
    def settings(self) -> str:
        """Description of digest, sampler and seed."""
        sampler = {} if self.bundle is None else self.bundle.sampler
        of = f" of {sampler['name']}" if "name" in sampler else ""
        steps = f"{sampler.get('steps')} steps{of}" if sampler else "no sampler"
        return f"{self.shape}; {self.kind} sha256 {self.digest[:12]}, {steps}, seed {self.seed}"

    @property
    def draws(self) -> bool:
        """Whether the estimates are stochastic."""
        return stochastic(self.system.stages)

    @property
    def ways(self) -> tuple[Way, ...]:
        """Evaluated products of the system."""
        return WAYS if self.draws else tuple(way for way in WAYS if way != DRAW)

    def label(self, way: Way) -> str:
        """Return the name of a product in tables."""
        return label(self.name, way)

    def with_steps(self, steps: int) -> Candidate:
        """Return the candidate with another number of sampling steps. Raises UsageError if that is not possible."""
        bundle = self.bundle
        if bundle is None or "steps" not in bundle.sampler:
            raise UsageError(f"{self.kind} has no sampling steps", "weights with a sampler")
        changed = replace(bundle, sampler={**bundle.sampler, "steps": steps})
        bundles = {**self.system.bundles, resolving_stages(self.system)[0].weights: changed}
        try:
            return replace(self, system=built(spec_of(self.system.name), bundles, self.device, self.system.options))
        except ValueError as error:
            raise UsageError(str(error), cure="other numbers in --steps") from error

    def regression(self, lr: Tensor) -> Tensor | None:
        """Return the network's deterministic estimate (1, bands, scale*h, scale*w), or None if it has none."""
        mean = self.sampler.mean
        return None if mean is None else placement.run(self.device, mean, lr)

    def stored(self, pair: Pair, way: Way = DEFAULT) -> Stored:
        """Return what a run stores of one image."""
        return product.of_pair(pair, self.system, way, self.seed)

    def members(self, pair: Pair, count: int = MEMBERS) -> Tensor:
        """Return samples (count, bands, H, W)."""
        return members(self.sampler, pair, count, self.seed, self.device)

    def window_seconds(self) -> float:
        """Return the CPU seconds of one member of one 480 px window, after a warm-up. Does not count GPU time."""
        generator = torch.Generator().manual_seed(0)
        side = WINDOW_PX * self.scale // SCALE_10M
        hr = torch.rand(1, len(self.bands), side, side, generator=generator)
        pair = Pair("", 0, hr, baselines.box(hr, self.scale), bands=self.bands)
        self.members(pair, 1)
        started = time.process_time()
        self.members(pair, 1)
        return time.process_time() - started


def without_network(pair: Pair, how: Degradation) -> dict[str, Tensor]:
    """Return the estimates (1, bands, H, W) of the methods without a network."""
    lr, scale, down = pair.lr, pair.scale, partial(degrade, how=how, widths=relative_widths(pair.bands))
    return {
        "nearest": baselines.nearest(lr, scale),
        "bicubic": baselines.bicubic(lr, scale),
        "IBP": baselines.ibp(lr, scale),
        "IBP, true kernel": baselines.ibp(lr, scale, down),
    }


def label(name: str, way: Way) -> str:
    """Return the name of a system's product in tables."""
    return f"stored {name}: {way}"


def others(candidate: Candidate, plain: System, pair: Pair, how: Degradation) -> dict[str, Tensor]:
    """Return the estimates (1, bands, H, W) of `without_network`, stored `plain`, and the candidate's regression."""
    found = without_network(pair, how)
    found |= {label(plain.name, way): product.of_pair(pair, plain, way).rho[None] for way in PLAIN}
    regression = candidate.regression(pair.lr)
    return found if regression is None else {**found, f"{candidate.name}, network alone": regression}


def scores(
    estimate: Tensor, pair: Pair, perceptual: Mapping[str, Perceptual]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Return every metric of an estimate (1, bands, H, W), and the reasons for those that are None."""
    x, truth = (trimmed(image, BORDER_PX)[0] for image in (estimate, pair.hr))
    values: dict[str, float | None] = {"PSNR": score(estimate, pair)}
    values |= {name: metric(x, truth) for name, metric in PAIR_METRICS.items()}
    values |= {name: metric(x, truth, pair.scale) for name, metric in OF_SCALE.items()}
    values["block R2"] = metrics.block_mean_r2(estimate[0], pair.lr[0])
    values |= opensr.opensr(pair.lr[0], estimate[0], pair.hr[0])
    values, why = opensr.explained(values)
    for name, found in perceptual.items():
        values[name] = found.distance(x[pair.shown], truth[pair.shown]) if found.distance else None
        why |= {} if found.distance else {name: found.reason}
    return values, why


@torch.inference_mode()
def judge(
    candidate: Candidate,
    plain: System,
    pairs: Sequence[Pair],
    how: Degradation,
    perceptual: Mapping[str, Perceptual],
) -> list[Record]:
    """Score all methods on all pairs, for tables "quality" and `DETAIL`. `plain`: interpolation."""
    records = []
    for pair in pairs:
        estimates = others(candidate, plain, pair, how)
        products = {way: candidate.stored(pair, way) for way in candidate.ways}
        estimates |= {candidate.label(way): found.rho[None] for way, found in products.items()}
        for method, estimate in estimates.items():
            values, why = scores(estimate, pair, perceptual)
            records.append(Record("quality", pair.source, pair.place, pair.index, method, values, why))
        records.append(_detail(candidate, pair, products[DEFAULT]))
    return records


@torch.inference_mode()
def judge_members(candidate: Candidate, pairs: Sequence[Pair], count: int = MEMBERS) -> list[Record]:
    """Score the spread of `count` members against errors, and their mean: tables "spread" and "spread, pooled"."""
    of_members = Way(members=count)
    records, pools, name = [], Pools(), candidate.label(of_members)
    for pair in pairs:
        products = {way: candidate.stored(pair, way) for way in (DEFAULT, DRAW, of_members)}
        record = of_image(name, pair, products[of_members], products[DRAW])
        psnr = {f"PSNR, {way}": score(products[way].rho[None], pair) for way in (DEFAULT, of_members)}
        records.append(replace(record, values={**psnr, **record.values}))
        pools.add(name, pair, products[of_members])
    return [*records, *pools.records()]


def _detail(candidate: Candidate, pair: Pair, found: Stored) -> Record:
    """Return the shares of pixels with generated, partly generated and no generated detail in one image."""
    values = shares(found.quality)
    return Record(DETAIL, pair.source, pair.place, pair.index, candidate.label(DEFAULT), values)


def shares(quality: NDArray[np.uint8]) -> dict[str, float | None]:
    """Return the shares of measured pixels per `quality` class, or None values if no pixel is measured."""
    measured = int((quality != masks.QUALITY_NODATA).sum())
    return {name: float((quality == value).sum() / measured) if measured else None for name, value in SHARES.items()}


@torch.inference_mode()
def judge_quickly(
    candidate: Candidate, plain: System, pairs: Sequence[Pair], how: Degradation, table: str
) -> list[Record]:
    """Score PSNR and gradient of all methods on all pairs, for other degradations."""
    records = []
    for pair in pairs:
        estimates = others(candidate, plain, pair, how)
        estimates |= {candidate.label(way): candidate.stored(pair, way).rho[None] for way in candidate.ways}
        for method, estimate in estimates.items():
            x, truth = (trimmed(image, BORDER_PX)[0] for image in (estimate, pair.hr))
            values = {"PSNR": score(estimate, pair), "gradient": metrics.gradient_ratio(x, truth)}
            records.append(Record(table, pair.source, pair.place, pair.index, method, values))
    return records
