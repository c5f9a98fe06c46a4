"""A cascade on whole images, for validation and evaluation: of x2 levels, or of another system's steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.bands import RGB
from pipeline.models.reference import fitted_bands
from pipeline.models.wavediffur import MOST_SCALE, WaveDiffUR, levels_of
from pipeline.models.wavelet import consistent, not_below_zero, padded_to_multiple
from pipeline.superres.spec import StageInput
from pipeline.superres.system import load
from pipeline.superres.systems.guided_fusion import NAME as FUSION
from pipeline.superres.systems.wavediffur import BACKBONE, REFERENCE, SCALE, SYSTEM
from pipeline.superres.weights import choose
from training import placement
from training.quality.cascade import Cascades
from training.quality.pairs import noise_of, state_windows
from training.quality.sampler import further_noise, keyed_noise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pipeline.models.bundle import Bundle
    from pipeline.models.wavediffur import Noise
    from pipeline.superres.declared import Value
    from pipeline.superres.spec import SceneState, Stage
    from pipeline.superres.system import System
    from training.quality.cascade import Finer
    from training.quality.pairs import Pair

_EVEN = 2


@dataclass(frozen=True)
class WaveletCascade:
    """The levels of a bundle, as `training.quality.cascade.Cascade`."""

    levels: WaveDiffUR

    @classmethod
    def load(cls, bundle: Bundle, device: torch.device) -> WaveletCascade:
        """Load the network of a bundle on a device. Raises BundleError if the tensors do not fit."""
        return cls(WaveDiffUR.from_bundle(bundle).to(device))

    def every_level(
        self, pair: Pair, *, measured: bool, member: int | None = None, seed: int = 0, finer: Finer | None = None
    ) -> list[Tensor]:
        """Return the images after each level, as the function of this name."""
        return every_level(self.levels, pair, measured=measured, member=member, seed=seed, finer=finer)


@dataclass(frozen=True)
class SteppedCascade:
    """The levels of a run whose backbone is another system, as `training.quality.cascade.Cascade`.

    The sensor's contract, which a run applies to the measured level, is left out.
    """

    system: System

    @classmethod
    def load(cls, name: str, files: tuple[str, ...], scale: int, device: torch.device) -> SteppedCascade:
        """Load the networks. Raises UsageError for no system's name, and for a scale that its steps do not make up."""
        options: dict[str, Value] = {SCALE.name: scale, BACKBONE.name: name}
        return cls(load(choose(SYSTEM.name, files, options), str(device)))

    @torch.inference_mode()
    def every_level(
        self, pair: Pair, *, measured: bool, member: int | None = None, seed: int = 0, finer: Finer | None = None
    ) -> list[Tensor]:
        """Return the image (1, C, H, W) after each step, by a draw where there is no mean. It takes no `finer` image.

        Unless `measured`, the first step is made consistent as all others are.
        """
        del finer
        image, found, predictor = pair.lr, [], self.system.predictor
        assert predictor is not None  # it has stages
        stages = [stage for stage in self.system.stages if stage.name != FUSION]
        windows = state_windows(pair.lr).to(self.system.device)
        state: SceneState = {}
        for stage in (stage for stage in stages if stage.scene_state):
            state |= predictor.scene_state(stage, windows)
        for number, stage in enumerate(stages):
            wanted = member if member is not None or stage.regresses or not stage.stochastic else 0
            first = None if wanted is None else noise_of(pair, wanted, seed)
            fine = self._step(stage, number, image, first, state)
            image = not_below_zero(consistent(fine, image), image) if number == 0 and not measured else fine
            found.append(image)
        return found

    def _step(self, stage: Stage, number: int, image: Tensor, noise: Tensor | None, state: SceneState) -> Tensor:
        read, device = stage.reads[0], self.system.device
        factor, (height, width) = round(read.gsd_m / stage.gsd_m), image.shape[-2:]
        padded = padded_to_multiple(image, -(-stage.multiple_px // factor)).to(device)
        drawn = None if noise is None else keyed_noise(noise.to(device), number, padded, factor)
        valid = torch.ones_like(padded[:, :1], dtype=torch.bool)
        given = StageInput({read.name: padded}, frozenset(read.bands), valid, drawn, state, self.system.options)
        assert self.system.predictor is not None
        fine = self.system.predictor.predict(stage, given).cpu()
        return fine[..., : factor * height, : factor * width]


CASCADES = Cascades(
    WaveletCascade.load, tuple(2**level for level in range(1, MOST_SCALE.bit_length())), SteppedCascade.load
)


def every_level(
    levels: WaveDiffUR,
    pair: Pair,
    *,
    measured: bool,
    member: int | None = None,
    seed: int = 0,
    finer: Finer | None = None,
) -> list[Tensor]:
    """Return the image (1, C, H, W) after each of the levels from a pair's input to its truth, coarsest first.

    `measured` says that the input is a sensor's, whose blur the first level may undo; else all levels keep means of
    2 x 2 px. Without a `member` they are mean estimates, else its draws. `finer` is a reference of RGB, which counts
    at levels whose output has pixels of more than half of its. Everything is returned on the CPU.
    """
    image, found = pair.lr, []
    rows = [pair.bands.index(band) for band in RGB] if finer is not None else []
    for number in range(levels_of(pair.scale)):
        noise = None if member is None else noise_of_level(pair, number, member, seed)
        pixel_px, reference = pair.scale / 2 ** (number + 1), None
        if finer is not None and finer.pixel_px < REFERENCE.coarsest_px * pixel_px:
            reference = finer.at(pixel_px, *(2 * side for side in image.shape[-2:]))[:, rows]
        image = one_level(levels, image, noise, reference, rows, measured=measured and number == 0)
        found.append(image)
    return found


def one_level(
    levels: WaveDiffUR,
    image: Tensor,
    noise: Noise | None = None,
    reference: Tensor | None = None,
    rows: Sequence[int] = (),
    *,
    measured: bool,
) -> Tensor:
    """Return one level (1, C, 2H, 2W) of an image (1, C, H, W) of any size.

    `reference` (1, len(rows), 2H, 2W) is that of the bands at `rows`, in any unit.
    """
    padded, (height, width) = padded_to_multiple(image, _EVEN), image.shape[-2:]
    device = placement.device_of(levels.network)
    drawn = None if noise is None else lambda *request: noise(*request).to(device)
    fit = None if reference is None else fitted_bands(padded_to_multiple(reference, 2 * _EVEN), padded, rows)
    fine = levels.level(padded.to(device), drawn, None if fit is None else fit.to(device), measured=measured)
    return fine.cpu()[..., : 2 * height, : 2 * width]


def noise_of_level(pair: Pair, number: int, member: int, seed: int = 0) -> Noise:
    """Return the noise of one member of a pair at one level; members come in antithetic pairs."""
    first = noise_of(pair, member, seed)
    left = levels_of(pair.scale) - 1 - number  # levels behind this one
    height, width = (-(-(side >> left) // (2 * _EVEN)) * 2 * _EVEN for side in pair.hr.shape[-2:])

    def noise(draw: int, channels: int, coarser: int) -> Tensor:
        return further_noise(first, 1000 * number + draw, (1, channels, height // coarser, width // coarser))

    return noise
