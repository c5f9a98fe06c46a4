"""A super-resolver on held-out images beside the methods it has to beat: every score of every image.

In: loaded systems and `Pair`s. Out: `Record`s. What is judged is what a run stores (`product`); beside it stand methods
without a network, and the regression of the network alone. Imports metrics, OpenSR-test, baselines and products.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch

from pipeline.errors import UsageError
from pipeline.superres import masks
from pipeline.superres.registry import spec_of
from pipeline.superres.system import built
from training import placement
from training.degradation.degrade import degrade
from training.degradation.sensor import relative_widths
from training.quality import baselines, metrics, opensr, product
from training.quality.metrics import trimmed
from training.quality.pairs import BORDER_PX, Pair, members, score
from training.quality.product import DEFAULT, Way
from training.quality.sampler import bands_of, of_system, resolving_stage
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
DRAW, OF_MEMBERS = Way("sample"), Way(members=MEMBERS)
WAYS = (Way(consistency="none"), Way(consistency="box"), DEFAULT, DRAW)
PLAIN = (Way(consistency="box"), DEFAULT)  # of interpolation
DETAIL = "generated detail"  # table of shares
SHARES = {
    "generated": masks.QUALITY_GENERATED,
    "partly": masks.QUALITY_PARTIAL,
    "none": masks.QUALITY_MEASURED,
}
PAIR_METRICS: Mapping[str, Quick] = {
    "SSIM": metrics.ssim,
    "SAM": metrics.sam,
    "ERGAS": partial(metrics.ergas, scale=4),
    "ERGAS (Table IV)": partial(metrics.ergas_table_iv, scale=4),
    "SRE": metrics.sre_db,
    "CC": metrics.correlation,
    "cosine": metrics.cosine,
    "R2": metrics.r_squared,
    "gradient": metrics.gradient_ratio,
}


@dataclass(frozen=True)
class Candidate:
    """A system under test, under a short name. UsageError for one without a network."""

    name: str
    system: System
    seed: int = 0

    def __post_init__(self) -> None:
        resolving_stage(self.system)

    @cached_property
    def sampler(self) -> Sampler:
        """Its super-resolver on whole images."""
        return of_system(self.system)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.system.device

    @property
    def bundle(self) -> Bundle | None:
        """Metadata of its super-resolver's weights; None where it has none."""
        return self.system.bundles.get(resolving_stage(self.system).weights)

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands of the images that it is judged on."""
        return bands_of(self.system)

    @property
    def kind(self) -> str:
        """What its weights call themselves; the system's name where it has none."""
        return self.system.name if self.bundle is None else self.bundle.system

    @property
    def digest(self) -> str:
        """SHA-256 of its weights; empty where it has none."""
        return "" if self.bundle is None else self.bundle.digest

    @property
    def settings(self) -> str:
        """Digest, sampler and seed, in words."""
        sampler = {} if self.bundle is None else self.bundle.sampler
        steps = f"{sampler.get('steps')} steps of {sampler.get('name')}" if sampler else "no sampler"
        return f"{self.kind} sha256 {self.digest[:12]}, {steps}, seed {self.seed}"

    @property
    def draws(self) -> bool:
        """Whether its estimates differ from draw to draw."""
        return spec_of(self.system.name).stochastic

    @property
    def ways(self) -> tuple[Way, ...]:
        """The products of it that are judged."""
        return WAYS if self.draws else tuple(way for way in WAYS if way != DRAW)

    def label(self, way: Way) -> str:
        """What tables call a product of it."""
        return label(self.name, way)

    def with_steps(self, steps: int) -> Candidate:
        """The same networks sampled in another number of steps. UsageError for numbers that samplers cannot do."""
        bundle = self.bundle
        if bundle is None or "steps" not in bundle.sampler:
            raise UsageError(f"{self.kind} has no sampling steps", "weights with a sampler")
        changed = replace(bundle, sampler={**bundle.sampler, "steps": steps})
        bundles = {**self.system.bundles, resolving_stage(self.system).weights: changed}
        try:
            return replace(self, system=built(spec_of(self.system.name), bundles, self.device))
        except ValueError as error:
            raise UsageError(str(error), cure="other numbers in --steps") from error

    def regression(self, lr: Tensor) -> Tensor | None:
        """The network's estimate without draws (1, bands, 4h, 4w), of systems that have one."""
        mean = self.sampler.mean
        return None if mean is None else placement.run(self.device, mean, lr)

    def stored(self, pair: Pair, way: Way = DEFAULT) -> Stored:
        """What a run stores of one image."""
        return product.of_pair(pair, self.system, way, self.seed)

    def members(self, pair: Pair, count: int = MEMBERS) -> Tensor:
        """Samples (count, bands, H, W)."""
        return members(self.sampler, pair, count, self.seed, self.device)

    def window_seconds(self) -> float:
        """Core-seconds of one member of one window of 480 px, after one to warm up; of the CPU, whatever the device."""
        generator = torch.Generator().manual_seed(0)
        hr = torch.rand(1, len(self.bands), WINDOW_PX, WINDOW_PX, generator=generator)
        pair = Pair("", 0, hr, baselines.box(hr), bands=self.bands)
        self.members(pair, 1)
        started = time.process_time()
        self.members(pair, 1)
        return time.process_time() - started


def without_network(pair: Pair, how: Degradation) -> dict[str, Tensor]:
    """Estimates (1, bands, H, W) of the methods that learned nothing."""
    return {
        "nearest": baselines.nearest(pair.lr),
        "bicubic": baselines.bicubic(pair.lr),
        "IBP": baselines.ibp(pair.lr),
        "IBP, true kernel": baselines.ibp(pair.lr, down=partial(degrade, how=how, widths=relative_widths(pair.bands))),
    }


def label(name: str, way: Way) -> str:
    """What tables call a product of a system."""
    return f"stored {name}: {way}"


def others(candidate: Candidate, plain: System, pair: Pair, how: Degradation) -> dict[str, Tensor]:
    """Estimates (1, bands, H, W) beside the candidate's products: `without_network`, `plain` stored, its regression."""
    found = without_network(pair, how)
    found |= {label(plain.name, way): product.of_pair(pair, plain, way).rho[None] for way in PLAIN}
    regression = candidate.regression(pair.lr)
    return found if regression is None else {**found, f"{candidate.name}, network alone": regression}


def scores(
    estimate: Tensor, pair: Pair, perceptual: Mapping[str, Perceptual]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Every metric of an estimate (1, bands, H, W), and why those that are None are."""
    x, truth = (trimmed(image, BORDER_PX)[0] for image in (estimate, pair.hr))
    values: dict[str, float | None] = {"PSNR": score(estimate, pair)}
    values |= {name: metric(x, truth) for name, metric in PAIR_METRICS.items()}
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
    """All methods on all pairs: tables "quality" and `DETAIL`. `plain`: interpolation."""
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
def judge_members(candidate: Candidate, pairs: Sequence[Pair]) -> list[Record]:
    """Tables "spread" and "spread, pooled": what members know of errors, and their mean's PSNR."""
    records, pools, name = [], Pools(), candidate.label(OF_MEMBERS)
    for pair in pairs:
        products = {way: candidate.stored(pair, way) for way in (DEFAULT, DRAW, OF_MEMBERS)}
        record = of_image(name, pair, products[OF_MEMBERS], products[DRAW])
        psnr = {f"PSNR, {way}": score(products[way].rho[None], pair) for way in (DEFAULT, OF_MEMBERS)}
        records.append(replace(record, values={**psnr, **record.values}))
        pools.add(name, pair, products[OF_MEMBERS])
    return [*records, *pools.records()]


def _detail(candidate: Candidate, pair: Pair, found: Stored) -> Record:
    """Shares of the pixels of an image with generated detail, partly so, and without."""
    values = shares(found.quality)
    return Record(DETAIL, pair.source, pair.place, pair.index, candidate.label(DEFAULT), values)


def shares(quality: NDArray[np.uint8]) -> dict[str, float | None]:
    """Shares of measured pixels by class of `quality`; None where nothing is measured."""
    measured = int((quality != masks.QUALITY_NODATA).sum())
    return {name: float((quality == value).sum() / measured) if measured else None for name, value in SHARES.items()}


@torch.inference_mode()
def judge_quickly(
    candidate: Candidate, plain: System, pairs: Sequence[Pair], how: Degradation, table: str
) -> list[Record]:
    """PSNR and gradient of all methods on all pairs, for other degradations."""
    records = []
    for pair in pairs:
        estimates = others(candidate, plain, pair, how)
        estimates |= {candidate.label(way): candidate.stored(pair, way).rho[None] for way in candidate.ways}
        for method, estimate in estimates.items():
            x, truth = (trimmed(image, BORDER_PX)[0] for image in (estimate, pair.hr))
            values = {"PSNR": score(estimate, pair), "gradient": metrics.gradient_ratio(x, truth)}
            records.append(Record(table, pair.source, pair.place, pair.index, method, values))
    return records
