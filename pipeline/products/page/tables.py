"""Tables and text of the report page as HTML. External text (scene ids, names, notes, errors) is escaped."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from pipeline.bands import DN_SCALE
from pipeline.products.page.escaping import escape
from pipeline.products.page.residuals import LOCAL_PX, NOISE_DN, PROMISE_DN, near_limit
from pipeline.store.selection import labels, periods

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.products.page.facts import Facts
    from pipeline.products.page.images import Set
    from pipeline.products.page.residuals import Residual
    from pipeline.products.page.source import Part, Zone

_STAGES = {
    "start": "start", "load": "load weights", "read": "read scenes", "superres": "super-resolve and fuse",
    "blend": "blend windows", "project": "make consistent with the input", "write": "write", "overviews": "overviews",
}  # fmt: skip
_SHOWN_UNITS = 50


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return an HTML table of plain text. `numbers` are the indices of numeric columns."""

    def cell(tag: str, column: int, text: str) -> str:
        kind = ' class="number"' if column in numbers else ""
        more = ' scope="col"' if tag == "th" else f' data-label="{escape(head[column])}"'
        return f"<{tag}{more}{kind}>{escape(text)}</{tag}>"

    top = "".join(cell("th", i, text) for i, text in enumerate(head))
    body = "".join(f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>\n" for row in rows)
    name = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table><caption>{name}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Return an HTML list of names and values."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in rows if value)}</dl>"


def banner(facts: Facts, zone: Zone) -> str:
    """Return the notices at the top: incomplete store, quarantined units, other zones and times, absent bands."""
    notices = []
    if not facts.complete:
        done = len(facts.receipts)
        of = f" {done} of {facts.units} units are there." if facts.units else f" {done} units are there so far."
        notices.append(("bad", f"This store is not complete (status: {facts.status or 'none'}).{of} "
                               "What is missing shows as nodata."))  # fmt: skip
    if facts.quarantined:
        names = ", ".join(unit.unit for unit in facts.quarantined[:5])
        notices.append(("bad", f"{_counted(len(facts.quarantined), 'unit')} could not be computed and "
                               f"{'was' if len(facts.quarantined) == 1 else 'were'} set aside: {names}. "
                               "Reasons are below; the places show as nodata."))  # fmt: skip
    if len(zone.names) > 1:
        others = ", ".join(name for name in zone.names if name != zone.name)
        notices.append(("", f"This page shows the UTM zone {zone.name}. The store also holds {others}: "
                            "make their pages with --zone."))  # fmt: skip
    if len(zone.times) > 1:
        named = labels(zone.attributes, zone.times)
        rest = [label for i, label in enumerate(named) if i != zone.time]
        shown = ", ".join(rest[:12]) + (f" and {len(rest) - 12} more" if len(rest) > 12 else "")
        notices.append(("", f"This page shows {named[zone.time]}. The store also holds {shown}: "
                            "make their pages with --time."))  # fmt: skip
    absent = zone.attributes.get("bands_absent")
    if isinstance(absent, dict) and absent:
        reasons = {str(why): [band for band in absent if absent[band] == why] for why in absent.values()}
        said = "; ".join(f"{', '.join(bands)} ({why})" for why, bands in reasons.items())
        notices.append(("", f"Bands that this store does not hold: {said}."))
    return "".join(f'<p class="notice {kind}">{escape(text)}</p>' for kind, text in notices)


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def check_section(found: Sequence[Residual], part: Part, consistency: str) -> str:
    """Return the comparison of the output on the native grids with the measured pixels, by band."""
    if not part.measured_kept:
        return (
            "<p>This store does not keep its measured input, so there is nothing here to check the output against. "
            "The left side of the map shows block means of the output"
            + (", which equal the input by construction.</p>" if consistency == "box" else ".</p>")
        )
    words = f"<p>{escape(_PROMISES.get(consistency, _PROMISES['none']))}{_verdict(found, consistency)} "
    words += (
        "Computed from the stored numbers of the part shown above when this page was made; not from the page's images. "
        "1 DN is 0.0001 of reflectance. “Left out” counts measured pixels "
    )
    if consistency == "sensor":
        return words + "whose view reaches into nodata or beyond the part shown.</p>" + _table_as_seen(found)
    return words + "over which part of the output is nodata.</p>" + _table_of_means(found)


_PROMISES = {
    "sensor": "For every band, the output is looked at as the sensor would: blurred by its optics, whose MTF is given "
              "below under Settings, and averaged over native pixels. That should give back the measured values: over "
              "areas without bias, and pixel by pixel within the noise of the instrument, which is 5 to 15 DN over "
              "land and more where it is bright. Finer agreement would write that noise into the output.",
    "box": f"For every band and every native pixel, the mean of the output over that pixel should be the measured "
           f"value to within {PROMISE_DN:g} DN (half a rounding step).",
    "tent": "This store was made with consistency “tent”: the output agrees with the input under a wider kernel, "
            "and plain block means may differ.",
    "none": "This store was made with consistency “none”: nothing ties block means to the input.",
}  # fmt: skip


def _verdict(found: Sequence[Residual], consistency: str) -> str:
    """Return whether the consistency contract holds, as HTML, or "" if it cannot be checked."""
    compared = [one for one in found if one.compared]
    if consistency not in ("sensor", "box") or not compared:
        return ""
    if all(one.kept for one in compared):
        bias = max(abs(one.bias_dn or 0.0) for one in compared)
        more = f": largest bias {bias:.2f} DN (limit {PROMISE_DN:g}); {near_limit(compared)}"
        return f' <strong class="good">Holds in every band{more if consistency == "sensor" else ""}.</strong>'
    text = "Does NOT hold in every band: see the table."
    if consistency == "sensor":
        biased = [one.band for one in compared if not one.unbiased]
        noisy = [one.band for one in compared if not one.within_noise]
        text = (
            f"There is a bias of more than {PROMISE_DN:g} DN in {_joined(biased)}. "
            if biased
            else "No band is biased. "
        )
        text += f"More than 1 % of the pixels lie beyond {_noise(compared)} in {_joined(noisy)}." if noisy else ""
    return f' <strong class="bad">{escape(text.strip())}</strong>'


def _noise(compared: Sequence[Residual]) -> str:
    """Return the text for the noise tolerance."""
    most = max(compared, key=lambda one: one.noise_dn)
    more = f" (in {most.band}, which is bright, {most.noise_dn:.0f})" if most.noise_dn > NOISE_DN else ""
    return f"{NOISE_DN:g} DN{more}"


def _table_as_seen(found: Sequence[Residual]) -> str:
    rows = [
        (one.band, f"{one.gsd_m} m", f"{one.compared:,}", _number(one.median_dn, 2), _number(one.p99_dn, 2),
         _number(one.local_p99_dn, 2), _number(one.bias_dn, 2), f"{one.left_out:,}" if one.left_out else "–")
        for one in found
    ]  # fmt: skip
    head = ("Band", "GSD", "Pixels compared", "Median, DN", "99 % within, DN",
            f"{LOCAL_PX} × {LOCAL_PX} px: 99 % within, DN", "Mean (bias), DN", "Left out")  # fmt: skip
    caption = "Output seen by the sensor − measured pixel, by band: absolute values, and the mean with its sign"
    return table(caption, head, rows, range(1, len(head)))


def _table_of_means(found: Sequence[Residual]) -> str:
    rows = [
        (one.band, f"{one.gsd_m} m", f"{one.compared:,}", _number(one.largest_dn, 3), _number(one.mean_dn, 3),
         f"{one.left_out:,}" if one.left_out else "–")
        for one in found
    ]  # fmt: skip
    head = ("Band", "GSD", "Pixels compared", "Largest, DN", "Mean, DN", "Left out")
    return table("|Block mean of the output − measured pixel|, by band", head, rows, (1, 2, 3, 4, 5))


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def scenes_section(facts: Facts, zone: Zone) -> str:
    """Return the table of scenes of the shown time step."""
    rows = []
    for name, scene in facts.scenes:
        cloud = scene.get("cloud_pct")
        rows.append((
            str(scene.get("datetime", "")).replace("T", " ").removesuffix("Z"), name,
            f"{cloud:.1f} %" if isinstance(cloud, int | float) else "unknown", str(scene.get("baseline") or "unknown"),
            str(scene.get("offset_dn", "")), str(scene.get("offset_evidence", "")),
        ))  # fmt: skip
    steps = periods(zone.attributes)
    composite = str(steps[zone.time].get("composite", "")) if zone.time < len(steps) else ""
    how = {
        "mosaic": "At each place the first scene that is clear there is used, in this order.",
        "median": "At each place the median of the clear scenes is used.",
        "none": "One date is one time step.",
    }.get(composite, "")
    head = ("Acquired, UTC", "Scene", "Cloud", "Baseline", "Offset, DN", "Why this offset")
    return f"<p>{escape(how)}</p>" + table("Scenes of this time step", head, rows, (2, 3, 4))


def run_section(facts: Facts) -> str:
    """Return stage times, memory and units."""
    seconds, total = facts.stage_seconds, sum(facts.stage_seconds.values())
    known = [name for name in _STAGES if name in seconds] + sorted(set(seconds) - set(_STAGES))
    rows = [
        (_STAGES.get(name, name), f"{seconds[name]:,.1f}", f"{100 * seconds[name] / total:.1f} %" if total else "–")
        for name in known
    ]
    rows.append(("in all", f"{total:,.1f}", "100 %" if total else "–"))
    empty = sum(receipt.status == "empty" for receipt in facts.receipts)
    again = sum(receipt.attempts > 1 for receipt in facts.receipts)
    stored = [size for chunks in facts.chunks for size, _ in chunks.values()]
    of = f" of {facts.units:,}" if facts.units else ""
    about = [
        ("Units", f"{len(facts.receipts):,}{of} computed" + (f"; {empty:,} hold no measured pixel" if empty else "")),
        ("Tried more than once", _counted(again, "unit") if again else ""),
        ("Zeros where it is clear", _holes(facts)),
        ("Model windows", f"{sum(receipt.windows for receipt in facts.receipts):,}"),
        ("Largest worker", f"{facts.peak_mib:,.0f} MiB" if facts.peak_mib else ""),
        ("Stored", f"{sum(stored) / 2**20:,.1f} MiB in {len(stored):,} chunks"),
    ]
    return pairs(about) + table("Worker seconds by stage, all units", ("Stage", "Seconds", "Share"), rows, (1, 2))


def _holes(facts: Facts) -> str:
    """Return the number of native pixels, by band, that are 0 although the scene classification says clear."""
    total: dict[str, int] = {}
    for receipt in facts.receipts:
        for band, count in receipt.holes.items():
            total[band] = total.get(band, 0) + count
    if not total:
        return ""
    found = ", ".join(f"{band} {total[band]:,}" for band in sorted(total))
    return f"{found} native pixels; a product that clips dark pixels to 0, or damage to its files"


def quarantine_section(facts: Facts) -> str:
    """Return the quarantined units, with the reason and the command that reproduces the failure."""
    if not facts.quarantined:
        return "<p>No unit was set aside.</p>"
    items = "".join(
        f"<li><strong>{escape(unit.unit)}</strong>"
        + (f", tried {_counted(unit.attempts, 'time')}" if unit.attempts else "")
        + f": {escape(unit.error)}"
        + (f"<br>See it fail: <code>{escape(unit.reproduce)}</code>" if unit.reproduce else "")
        + "</li>\n"
        for unit in facts.quarantined[:_SHOWN_UNITS]
    )
    more = len(facts.quarantined) - _SHOWN_UNITS
    return f"<ul>{items}</ul>" + (f"<p>And {more:,} more.</p>" if more > 0 else "")


def settings_section(facts: Facts, zone: Zone) -> str:
    """Return the settings that determine the pixels."""
    said = zone.attributes
    generated = "all" if set(zone.generated) >= set(zone.bands) else ", ".join(zone.generated)
    rows = [
        ("System", str(said.get("super_resolution", ""))),
        ("Weights", _weights(said, "sr_weights")),
        ("Fusion weights", _weights(said, "fusion_weights")),
        ("Bands with generated detail", generated or "none"),
        ("Estimate", _estimate(zone)),
        ("Members", _members(zone)),
        ("Seed", str(said.get("seed", "")) if zone.drawn and zone.generated else ""),
        ("Consistency", zone.consistency),
        ("Precision", str(said.get("precision", ""))),
        ("MTF at Nyquist", _mtf(zone) if zone.consistency == "sensor" else ""),
        *_maps(said.get("conditions")),
        ("Catalogue", _catalogue(str(facts.config.get("catalog", "")))),
        ("Period", " to ".join(filter(None, (str(facts.config.get(k) or "") for k in ("start", "end"))))),
        ("Clipped to the polygon", "yes" if facts.config.get("clip") else ""),
        ("Plan", str(said.get("plan_digest", ""))),
        ("Planned", facts.created_utc.replace("T", " ").replace("Z", " UTC")),
        ("Software", str(said.get("software", ""))),
        ("Licence of the imagery", str(said.get("license", ""))),
        ("Licence of the weights", str(said.get("weights_license", ""))),
        ("Data of the weights", str(said.get("weights_credits", ""))),
        ("Credit", str(said.get("credit", ""))),
    ]
    notes = said.get("notes")
    listed = "".join(f"<li>{escape(str(note))}</li>" for note in notes) if isinstance(notes, list) else ""
    return pairs(rows) + (f"<h3>Notes of the run</h3><ul>{listed}</ul>" if listed else "")


def _estimate(zone: Zone) -> str:
    if not zone.generated:
        return ""
    return "mean, the best estimate" if zone.estimate == "mean" else "sample, one draw of many"


def _members(zone: Zone) -> str:
    if not zone.generated:
        return ""
    return str(zone.drawn) if zone.drawn else "0: a regression gives the mean, nothing is drawn"


def _mtf(zone: Zone) -> str:
    """Return the MTF by band, with bands of equal value together."""
    by_value: dict[str, list[str]] = {}
    for band in zone.bands:
        by_value.setdefault(f"{zone.mtf[band]:.3g}", []).append(band)
    return ", ".join(f"{value} ({', '.join(bands)})" for value, bands in by_value.items())


def _catalogue(name: str) -> str:
    """Return a name or URL unchanged, and a file by its name only, to not leak local paths."""
    return name if "://" in name else PurePath(name.replace("\\", "/")).name


def _maps(conditions: object) -> list[tuple[str, str]]:
    """Return the maps that conditioned the system, with the credit of each."""
    stated = conditions if isinstance(conditions, dict) else {}
    maps = [(str(name), one) for name, one in stated.items() if isinstance(one, dict)]
    return [
        (f"Map “{name}”", ", ".join(filter(None, (_weights(one, "file", "sha256"), str(one.get("credit", ""))))))
        for name, one in maps
    ]


def _weights(said: Mapping[str, object], name: str, digest_name: str = "") -> str:
    digest = str(said.get(digest_name or f"{name}_sha256") or "")
    return f"{said.get(name)} (sha256 {digest})" if said.get(name) and digest else str(said.get(name) or "")


def precision_section(kinds: Sequence[tuple[str, Set | None]], output: Set, spread: Set | None) -> str:
    """Return the precision of the page's numbers relative to the store's."""
    lossy = [name for name, planes in kinds if planes and not planes.exact]
    exact = [name for name, planes in kinds if planes and planes.exact]
    if not lossy:
        return "<p>All numbers on this page are the store's own, without loss.</p>"
    head = ["Band", "Output at most off, DN", "typically (RMS), DN", "at most, reflectance"]
    rows = [
        [name, str(plane.max_error_dn), f"{plane.rms_error_dn:g}", f"{plane.max_error_dn * DN_SCALE:.4f}"]
        for name, plane in output.planes.items()
    ]
    if spread:
        head += ["Uncertainty at most off, DN", "typically (RMS), DN"]
        for row in rows:
            plane = spread.planes[row[0]]
            row += [str(plane.max_error_dn), f"{plane.rms_error_dn:g}"]
    kept = f" The {_joined(exact)} {_are(exact)} exact." if exact else ""
    averaged = " Where it is not exact, the uncertainty is kept as its mean over 5 m." if spread else ""
    words = (
        f"To keep this file small, the {_joined(lossy)} {_are(lossy)} kept as 8-bit images."
        f"{kept}{averaged} Numbers on this page may therefore differ from the store's by what the table says, measured "
        "when the page was made. The store itself holds 16-bit numbers: open it for analysis."
    )
    return f"<p>{escape(words)}</p>" + table("Precision of this page's numbers", head, rows, range(1, len(head)))


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 and not names[0].endswith("s") else "are"


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
