"""Whether images that judge show ground that the weights were trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from training.data import learned

if TYPE_CHECKING:
    from pipeline.models.bundle import Bundle
    from training.data.sources import TrainingData

PLACES_SHOWN = 10


class Judged(Protocol):
    """Weights under test: their description, or None without weights, and the bands of the images."""

    @property
    def bundle(self) -> Bundle | None:
        """Description of the weights."""
        ...

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands of the images."""
        ...


def leaks_text(candidate: Judged, data: TrainingData) -> str:
    """A sentence on held-out images of places that the weights learned from; "" where provenance excludes any."""
    provenance = {} if candidate.bundle is None else candidate.bundle.provenance
    if "learned" not in provenance:  # weights of before, among them those that ship
        known = data.is_shipped or provenance.get("data_digest") == data.file.digest
        return "" if known or not provenance else UNKNOWN
    images = [image for image in data.of_bands(candidate.bands) if image.share("held-out") > 0]
    again = learned.shown_again(images, provenance["learned"])
    if not again:
        return ""
    named = [f"{source} {place.rpartition('/')[2]}" for source, place in again]
    more = f" and {len(named) - PLACES_SHOWN} more" if len(named) > PLACES_SHOWN else ""
    return (
        f"**Not held out: {sum(again.values())} of these {len(images)} images show places that the weights were "
        f"trained on** ({', '.join(named[:PLACES_SHOWN])}{more})."
    )


UNKNOWN = "Whether the weights were trained on some of these places, their provenance does not tell."
