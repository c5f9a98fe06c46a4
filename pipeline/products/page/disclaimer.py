"""The report page's section "What is measured, what is invented"."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

from pipeline.bands import GSDS_M, RADIOMETRY, STYLED, SYNTHETIC, SYNTHETIC_COMMENT, bands_at

if TYPE_CHECKING:
    from pipeline.products.page.source import Part, Zone


def honesty_section(zone: Zone, part: Part) -> str:
    """Return a plain-language statement of what is measured and what is generated in this store."""
    system = str(zone.attributes.get("super_resolution", "the system"))
    paragraphs = [_measured(part, zone), _detail(zone, system), _guarantee(zone, part), _quality(zone)]
    if part.uncertainty is not None:
        paragraphs.append(_spread(zone))
    paragraphs.append(
        ("Do not", "use detail finer than a native pixel to find, count or measure objects: cars, boats, single trees, "
                   "the exact line of a field's edge. Use the output where a value per 2.5 m pixel is handy and only "
                   "sums or means over several native pixels matter, and to see what the place may look like.")
    )  # fmt: skip
    return "".join(f"<p><strong>{escape(head)}</strong> {escape(_together(text))}</p>" for head, text in paragraphs)


def _together(text: str) -> str:
    """Join numbers and units by non-breaking spaces."""
    return re.sub(r"(?<=\d) (?=m\b)", "\N{NO-BREAK SPACE}", text)


def _measured(part: Part, zone: Zone) -> tuple[str, str]:
    inside = "T" if part.window == zone.whole else "Inside the frame, t"
    shown = f"{inside}he left side of the map shows these numbers, or these interpolated."
    if not part.measured_kept:
        shown = "This store does not keep them: the left side of the map shows block means of the output instead."
    return (
        "Measured",
        f"is what the satellite recorded: one number per band and native pixel, {_native(zone)}. " + shown,
    )


def _native(zone: Zone) -> str:
    """List the bands of the store by pixel width, such as "10 m wide for B02 and B03, 20 m for B11"."""
    parts = [(gsd, bands_at(gsd, zone.bands)) for gsd in GSDS_M]
    held = [(gsd, names) for gsd, names in parts if names]
    said = [f"{gsd} m for {' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}" for gsd, names in held]
    return ", ".join([said[0].replace(" m for", " m wide for", 1), *said[1:]])


def _detail(zone: Zone, system: str) -> tuple[str, str]:
    if not zone.generated:
        return (
            "Nothing is invented here.",
            f"This store was made by {system}: the output is interpolated between measured pixels. It looks smoother, "
            "and it knows nothing that the input does not.",
        )
    if SYNTHETIC in zone.attributes:
        return (
            "Imagined",
            f"is all detail finer than those pixels. A network ({system}) drew it: "
            f"{zone.attributes[SYNTHETIC_COMMENT]}. Nothing in it may be taken for what is there.",
        )
    some = "" if set(zone.generated) >= set(zone.bands) else f" ({', '.join(zone.generated)})"
    if zone.estimate != "mean":
        return (
            "Invented",
            f"is all detail finer than those pixels{some}. A network ({system}) drew it, having learned what land "
            "usually looks like from above: one of many pictures that fit the measurement as well, texture included. "
            "It is plausible, and it differs from the truth: edges may lie a few metres off, small objects may be "
            "missing, and some may never have been there.",
        )
    of = f", the mean of {zone.drawn} draws" if zone.drawn > 1 else ""
    return (
        "Estimated, not measured,",
        f"is all detail finer than those pixels{some}. A network ({system}), having learned what land usually looks "
        f"like from above, gives its best estimate{of}: what is there on average over all that fits the measurement. "
        "It is smoother than the truth, and no texture is invented: where the network cannot tell, it stays blurred. "
        "Edges may still lie a few metres off, and small objects may be missing or be guessed wrongly.",
    )


def _guarantee(zone: Zone, part: Part) -> tuple[str, str]:
    shown = " The table “Radiometric check” below shows whether this holds." if part.measured_kept else ""
    by = "The network" if zone.generated else "Interpolation"
    if zone.consistency == "sensor":
        return (
            "What is guaranteed",
            "is what the satellite would measure of the output: blurred as its optics blur and averaged over native "
            "pixels, it gives back the measured numbers of every band. Over areas it does so without bias, in each "
            "native pixel to within the noise of the instrument. The plain mean over one native pixel may differ from "
            f"the measured number by more, since the instrument sees light from beyond the pixel’s edges.{shown}",
        )
    if zone.consistency == "box":
        return (
            "What is guaranteed",
            "is the total: over each native pixel, the mean of the output is the measured number, for every band. "
            f"{by} may only share that number out among the small pixels, never change it.{shown}",
        )
    if zone.consistency == "tent":
        return (
            "What is guaranteed",
            "is the total under a kernel wider than a pixel (consistency “tent”): plain means over native pixels come "
            "close to the measured numbers but are not equal to them.",
        )
    if zone.attributes.get(RADIOMETRY) == STYLED:
        return (
            "Nothing is guaranteed:",
            "the colours of this store follow a style and not the measurement. They are no reflectance, and no index "
            "can be computed from them.",
        )
    return (
        "Nothing is guaranteed:",
        "this store was made with consistency “none”, so that means over native pixels may differ from what was "
        "measured.",
    )


def _quality(zone: Zone) -> tuple[str, str]:
    if not zone.generated:
        return "The quality overlay", "says where anything was measured; no detail is generated anywhere in this store."
    clouds = "clouds of the scene classification"
    if "scl" not in zone.group:
        clouds = "what looks like cloud (there is no scene classification here: white, bright, and wider than 300 m)"
    return (
        "The quality overlay",
        f"says what a pixel's red, green and blue rest on. No detail is generated in {clouds}, in saturated pixels and "
        "in those brighter than the network was trained on, nor within 20 m around them, from where it fades in over "
        "another 40 m: the output there is the measurement, interpolated. Bright roofs, sand and snow keep their "
        "detail, and so do the surroundings of nodata, but for the 5 m next to it, over which it fades.",
    )


def _spread(zone: Zone) -> tuple[str, str]:
    same = {"sensor": "are the same to the sensor", "box": "have the same block means"}.get(zone.consistency)
    return (
        "The uncertainty",
        f"is the standard deviation over {zone.drawn} draws of the generated detail. "
        + (f"All draws {same} by construction, so it" if same else "It")
        + " says nothing about errors of the measurement (haze, the atmosphere, misplacement). It says how freely the "
        "network could choose what is finer than a native pixel: large along edges and in towns, small in even fields. "
        "A small value means that the draws agree, not that they are right.",
    )
