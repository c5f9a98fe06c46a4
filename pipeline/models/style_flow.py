"""Distributions of style vectors: a RealNVP flow (Dinh et al., ICLR 2017) and a normal distribution.

A style is the mean and the standard deviation of each channel of an image's style features (SGDM, section 3.3.2); each
of the two has a distribution of its own. The paper's flow has 8 couplings, its code 16. Vectors are modelled as given;
whether those of standard deviations are logarithms is for the caller to decide.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor, nn

DIM = 32  # of a style vector
COUPLINGS = 8  # of the paper
COUPLINGS_OF_CODE = 16
HIDDEN = (64, 64)  # of the code; the paper has (32, 32)
# scale = sigmoid(s + 2): close to 1 at s = 0, so that an untrained flow changes little.
_SCALE_OFFSET = 2.0


class StyleDistribution(nn.Module, ABC):
    """Distribution of vectors (B, D), in which samples are a function of standard normal noise."""

    @abstractmethod
    def draw(self, noise: Tensor) -> Tensor:
        """Return one vector (B, D) for each of standard normal noise (B, D)."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density at x (B, D), (B,)."""


class Coupling(nn.Module):
    """Affine coupling of the second half of a vector to the first, y2 = x2 / scale + shift, and a fixed permutation.

    Scale and shift are functions of the first half, which stays. The density runs it backwards.
    """

    def __init__(self, dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.kept = dim // 2
        sizes = (self.kept, *hidden, 2 * (dim - self.kept))
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        last = layers[-2]
        nn.init.zeros_(last.get_parameter("weight"))
        nn.init.zeros_(last.get_parameter("bias"))
        self.register_buffer("order", torch.randperm(dim))

    def draw(self, x: Tensor) -> Tensor:
        """Return y (B, D) in the direction of samples."""
        kept, moved = x.tensor_split([self.kept], 1)
        shift, scale = self._affine(kept)
        return torch.cat([kept, moved / scale + shift], 1)[:, self.get_buffer("order")]

    def undone(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (B, D) and the logarithm of the determinant of its Jacobian, (B,)."""
        kept, moved = y[:, self.get_buffer("order").argsort()].tensor_split([self.kept], 1)
        shift, scale = self._affine(kept)
        return torch.cat([kept, (moved - shift) * scale], 1), scale.log().sum(1)

    def _affine(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift and scale, which are the even and the odd outputs of the network."""
        out: Tensor = self.net(kept)
        return out[:, ::2], (out[:, 1::2] + _SCALE_OFFSET).sigmoid()


class StyleFlow(StyleDistribution):
    """RealNVP flow from a normal distribution with independent components, whose location and spread are learned.

    The paper's base is the standard normal distribution (eq. 13), with which this starts.
    """

    def __init__(self, couplings: int = COUPLINGS, dim: int = DIM, hidden: tuple[int, ...] = HIDDEN) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.couplings = nn.ModuleList(Coupling(dim, hidden) for _ in range(couplings))

    def draw(self, noise: Tensor) -> Tensor:
        """Return one vector (B, D) for each of standard normal noise (B, D)."""
        x = self.loc + self.log_scale.exp() * noise
        for coupling in self.couplings:
            assert isinstance(coupling, Coupling)
            x = coupling.draw(x)
        return x

    def base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vector of the base distribution (B, D) of which x is made, and the log-determinant (B,)."""
        found = torch.zeros_like(x[:, 0])
        for coupling in reversed(self.couplings):
            assert isinstance(coupling, Coupling)
            x, change = coupling.undone(x)
            found = found + change
        return x, found

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density at x (B, D), (B,). Its negative mean is the loss of eq. 13."""
        z, change = self.base(x)
        return _log_normal((z - self.loc) / self.log_scale.exp()) - self.log_scale.sum() + change


class GaussianStyle(StyleDistribution):
    """Normal distribution with full covariance, lower @ lower.T."""

    def __init__(self, dim: int = DIM) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(dim))
        self.lower = nn.Parameter(torch.eye(dim))

    @torch.no_grad()
    def fit(self, x: Tensor, least: float = 1e-4) -> None:
        """Take mean and covariance of x (N, D). `least`: smallest variance, in shares of the mean variance.

        Components that do not vary in x would make the covariance singular.
        """
        self.loc.copy_(x.mean(0))
        covariance = torch.cov(x.double().T)
        floor = least * covariance.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        self.lower.copy_(torch.linalg.cholesky(covariance + floor * torch.eye(len(covariance), dtype=torch.float64)))

    def draw(self, noise: Tensor) -> Tensor:
        """Return one vector (B, D) for each of standard normal noise (B, D)."""
        return self.loc + noise @ self.lower.tril().T

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithm of the density at x (B, D), (B,)."""
        lower = self.lower.tril()
        z = torch.linalg.solve_triangular(lower, (x - self.loc).T, upper=False).T
        return _log_normal(z) - lower.diagonal().abs().log().sum()


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))
