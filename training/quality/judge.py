"""A super-resolver on held-out images beside the methods it has to beat: every score of every image.

In: a loaded system and `Pair`s. Out: `Record`s. Each image is super-resolved once and all metrics look at the same
members. Imports metrics, OpenSR-test, baselines and the pipeline's systems.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from pipeline.errors import UsageError
from pipeline.models.difffusr import DiffFuSR
from pipeline.models.lite import SCALE, LiteSuperResolver
from pipeline.superres.consistency import approach
from training import placement
from training.degradation.degrade import degrade
from training.quality import baselines, metrics, opensr
from training.quality.metrics import trimmed
from training.quality.pairs import BORDER_PX, CPU, Pair, members, score
from training.quality.spreads import Pools, of_image
from training.quality.tables import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.superres.systems import SuperResolver
    from training.degradation.degrade import Degradation
    from training.quality.perceptual import Perceptual

    Quick = Callable[[Tensor, Tensor], float]

MEMBERS = 8
WINDOW_PX = 480  # one window of the lattice, at 2.5 m
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
    """A super-resolver under test, under a short name."""

    name: str
    resolver: SuperResolver
    seed: int = 0
    device: torch.device = CPU  # where the weights are

    @property
    def bundle(self) -> Bundle:
        """What its weights say of themselves."""
        return self.resolver.bundle

    @property
    def settings(self) -> str:
        """Digest, sampler and seed, in words."""
        sampler = self.bundle.sampler
        return (
            f"{self.bundle.system} sha256 {self.bundle.digest[:12]}, {sampler.get('steps')} steps of "
            f"{sampler.get('name')}, seed {self.seed}"
        )

    def with_steps(self, steps: int) -> Candidate:
        """The same networks sampled in another number of steps. UsageError for numbers that samplers cannot do."""
        bundle = replace(self.bundle, sampler={**self.bundle.sampler, "steps": steps})
        resolver = self.resolver
        try:
            if isinstance(resolver, LiteSuperResolver):
                return replace(self, resolver=LiteSuperResolver(resolver.network, bundle))
            if isinstance(resolver, DiffFuSR):
                return replace(self, resolver=DiffFuSR(resolver.networks, bundle))
        except ValueError as error:
            raise UsageError(str(error), cure="other numbers in --steps") from error
        raise UsageError(f"{bundle.system} has no steps", "lite-sr or difffusr-sr")

    def regression(self, lr: Tensor) -> Tensor | None:
        """The estimate without diffusion (1, 3, 4h, 4w), of systems that have one."""
        if not isinstance(self.resolver, LiteSuperResolver):
            return None
        return placement.run(self.device, self.resolver.mean, lr)

    def members(self, pair: Pair, count: int = MEMBERS) -> Tensor:
        """Samples (count, 3, H, W)."""
        return members(self.resolver, pair, count, self.seed, self.device)

    def window_seconds(self) -> float:
        """Core-seconds of one member of one window of 480 px, after one to warm up; of the CPU, whatever the device."""
        generator = torch.Generator().manual_seed(0)
        hr = torch.rand(1, 3, WINDOW_PX, WINDOW_PX, generator=generator)
        pair = Pair("", 0, hr, baselines.box(hr))
        self.members(pair, 1)
        started = time.process_time()
        self.members(pair, 1)
        return time.process_time() - started


def without_network(pair: Pair, how: Degradation) -> dict[str, Tensor]:
    """Estimates (1, 3, H, W) of the methods that learned nothing."""
    return {
        "nearest": baselines.nearest(pair.lr),
        "bicubic": baselines.bicubic(pair.lr),
        "IBP": baselines.ibp(pair.lr),
        "IBP, true kernel": baselines.ibp(pair.lr, down=partial(degrade, how=how)),
    }


def with_network(candidate: Candidate, pair: Pair, samples: Tensor) -> dict[str, Tensor]:
    """Estimates (1, 3, H, W) that rest on the candidate, from its members (N, 3, H, W), and as a run stores them."""
    name, regression = candidate.name, candidate.regression(pair.lr)
    first = {} if regression is None else {f"{name}, regression": regression}
    one, mean = f"{name}, one member", f"{name}, mean of {len(samples)}"
    drawn = {one: samples[:1], mean: samples.mean(0, keepdim=True)}
    return {**first, **drawn, **{f"{key}, stored": stored(image, pair.lr) for key, image in drawn.items()}}


def stored(image: Tensor, lr: Tensor) -> Tensor:
    """An estimate (1, 3, 4h, 4w) with the block means of its input lr (1, 3, h, w), as the pipeline makes it.

    That a sensor sees block means is not quite true; the promise to keep them costs what the tables show.
    """
    smooth = approach(image, lr, SCALE, "box", "network")
    return smooth + baselines.nearest(lr - baselines.box(smooth))


def scores(
    estimate: Tensor, pair: Pair, perceptual: Mapping[str, Perceptual]
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Every metric of an estimate (1, 3, H, W), and why those that are None are."""
    x, truth = (trimmed(image, BORDER_PX)[0] for image in (estimate, pair.hr))
    values: dict[str, float | None] = {"PSNR": score(estimate, pair)}
    values |= {name: metric(x, truth) for name, metric in PAIR_METRICS.items()}
    values["block R2"] = metrics.block_mean_r2(estimate[0], pair.lr[0])
    values |= opensr.opensr(pair.lr[0], estimate[0], pair.hr[0])
    values, why = opensr.explained(values)
    for name, found in perceptual.items():
        values[name] = found.distance(x, truth) if found.distance else None
        why |= {} if found.distance else {name: found.reason}
    return values, why


@torch.inference_mode()
def judge(
    candidate: Candidate, pairs: Sequence[Pair], how: Degradation, perceptual: Mapping[str, Perceptual]
) -> list[Record]:
    """All methods on all pairs: table "quality"; tables "spread" and "spread, pooled": what members know of errors."""
    records, pools = [], Pools()
    for pair in pairs:
        samples = candidate.members(pair)
        estimates = without_network(pair, how) | with_network(candidate, pair, samples)
        for method, estimate in estimates.items():
            values, why = scores(estimate, pair, perceptual)
            records.append(Record("quality", pair.source, pair.place, pair.index, method, values, why))
        name = f"{candidate.name}, {len(samples)} members"
        records.append(of_image(name, pair, samples))
        kept = torch.cat([stored(sample[None], pair.lr) for sample in samples])
        pools.add(name, pair, samples)
        pools.add(f"{name}, stored", pair, kept)
    return [*records, *pools.records()]


@torch.inference_mode()
def judge_quickly(candidate: Candidate, pairs: Sequence[Pair], how: Degradation, table: str) -> list[Record]:
    """PSNR and gradient of all methods on all pairs, for other degradations."""
    records = []
    for pair in pairs:
        estimates = without_network(pair, how) | with_network(candidate, pair, candidate.members(pair))
        for method, estimate in estimates.items():
            x, truth = (trimmed(image, BORDER_PX)[0] for image in (estimate, pair.hr))
            values = {"PSNR": score(estimate, pair), "gradient": metrics.gradient_ratio(x, truth)}
            records.append(Record(table, pair.source, pair.place, pair.index, method, values))
    return records
