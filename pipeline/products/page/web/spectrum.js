"use strict";
// The spectrum of one place: all bands of the 2.5 m pixel against the native pixels that hold it.

const SVG = "http://www.w3.org/2000/svg";
const SIZE = { width: 380, height: 196, left: 40, right: 10, top: 22, bottom: 34 };

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

function html(name, text, kind) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

// One entry per band: DN of output and input (null where nothing was measured) and the spread over members (DN).
async function spectrumAt(x, y) {
  const found = [];
  for (const band of facts.bands) {
    const value = async (grid, shift = 0) => {
      const at = grid ? pixelAt(grid, x, y) : -1;
      const dn = at < 0 ? 0 : (await planeOf(grid, band.name))[at];
      return dn ? dn - shift : null;
    };
    found.push({
      band,
      output: await value(facts.output),
      measured: await value(gridOfBand(band.name)),
      spread: facts.uncertainty ? await value(facts.uncertainty, 1) : null,
    });
  }
  return found;
}

async function overviewAt(x, y) {
  const grid = facts.context;
  const at = grid ? pixelAt(grid, x, y) : -1;
  const values = [];
  for (const band of facts.bands) {
    const dn = at < 0 ? 0 : (await planeOf(grid, band.name))[at];
    values.push({ band, output: dn || null, measured: null, spread: null });
  }
  return values;
}

function drawChart(place, values) {
  const shown = values.flatMap((v) => [v.output, v.measured].filter((dn) => dn !== null).map(reflectance));
  const top = Math.max(0.05, ...values.map((v) => (v.output === null ? 0 : reflectance(v.output) + (v.spread || 0) * 1e-4)), ...shown);
  const bottom = Math.min(0, ...shown);
  const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2].find((s) => (top - bottom) / s <= 6) || 5;
  const [low, high] = [Math.floor(bottom / step) * step, Math.ceil(top / step) * step];
  const [first, last] = [400, 2250];
  const px = (nm) => SIZE.left + ((nm - first) / (last - first)) * (SIZE.width - SIZE.left - SIZE.right);
  const py = (rho) => SIZE.height - SIZE.bottom - ((rho - low) / (high - low)) * (SIZE.height - SIZE.top - SIZE.bottom);
  const chart = svg("svg", { viewBox: `0 0 ${SIZE.width} ${SIZE.height}`, role: "img", "aria-label": "Reflectance by wavelength; the table below holds the numbers" });
  for (let rho = low; rho <= high + step / 2; rho += step) {
    chart.append(svg("line", { class: "axis", x1: SIZE.left, x2: SIZE.width - SIZE.right, y1: py(rho), y2: py(rho) }));
    chart.append(svg("text", { x: SIZE.left - 5, y: py(rho) + 4, "text-anchor": "end" }, rho.toFixed(step < 0.1 ? 2 : 1)));
  }
  for (let nm = 500; nm <= 2200; nm += 500) {
    chart.append(svg("line", { class: "axis", x1: px(nm), x2: px(nm), y1: py(low), y2: py(low) + 4 }));
    chart.append(svg("text", { x: px(nm), y: py(low) + 16, "text-anchor": "middle" }, String(nm)));
  }
  chart.append(svg("text", { x: SIZE.width - SIZE.right, y: SIZE.height - 3, "text-anchor": "end" }, "wavelength, nm"));
  chart.append(svg("text", { x: 4, y: 10 }, "reflectance"));
  for (const kind of ["measured", "output"]) drawSeries(chart, values, kind, px, py);
  place.replaceChildren(chart);
}

function drawSeries(chart, values, kind, px, py) {
  const points = values.filter((v) => v[kind] !== null).sort((a, b) => a.band.nm - b.band.nm);
  const path = points.map((v, i) => `${i ? "L" : "M"}${px(v.band.nm).toFixed(1)},${py(reflectance(v[kind])).toFixed(1)}`);
  chart.append(svg("path", { class: `line ${kind}`, d: path.join("") }));
  for (const v of points) {
    const [x, y] = [px(v.band.nm), py(reflectance(v[kind]))];
    if (kind === "output" && v.spread !== null) {
      const half = py(0) - py(v.spread * 1e-4);
      chart.append(svg("line", { class: "bar", x1: x, x2: x, y1: y - half, y2: y + half }));
    }
    const mark = kind === "output"
      ? svg("circle", { class: "output point", cx: x, cy: y, r: 3 })
      : svg("rect", { class: "measured point", x: x - 4, y: y - 4, width: 8, height: 8, "stroke-width": 1.5 });
    mark.dataset.band = v.band.name;
    mark.dataset.dn = String(v[kind]);
    mark.append(svg("title", {}, `${v.band.name} ${reflectance(v[kind]).toFixed(4)}`));
    chart.append(mark);
  }
}

function drawKey(place, names) {
  const items = [["output", names.output], ...(names.measured ? [["measured", names.measured]] : [])];
  place.replaceChildren(...items.map(([kind, text]) => {
    const item = html("span", undefined, "key");
    const sign = svg("svg", { width: 14, height: 14, viewBox: "0 0 14 14", "aria-hidden": "true" });
    sign.append(kind === "output"
      ? svg("circle", { class: "output", cx: 7, cy: 7, r: 4 })
      : svg("rect", { class: "measured", x: 3, y: 3, width: 8, height: 8, "stroke-width": 1.5 }));
    item.append(sign, html("span", text));
    return item;
  }));
}

function drawNumbers(place, values, names) {
  const spread = values.some((v) => v.spread !== null);
  const table = html("table");
  const head = ["Band", "nm", ...(names.measured ? ["GSD", names.short] : []), "Output", ...(spread ? ["Spread"] : []), ...(names.measured ? ["Diff."] : [])];
  const top = table.createTHead().insertRow();
  head.forEach((text, i) => {
    const cell = html("th", text, i === 1 ? "number wide" : i ? "number" : "");
    cell.scope = "col";
    top.append(cell);
  });
  const body = table.createTBody();
  const number = (dn, digits = 4) => (dn === null ? "–" : reflectance(dn).toFixed(digits));
  for (const { band, output, measured, spread: dn } of values) {
    const row = body.insertRow();
    row.append(html("td", band.name), html("td", band.nm.toFixed(0), "number wide"));
    if (names.measured) row.append(html("td", `${band.gsd} m`, "number"), html("td", number(measured), "number"));
    row.append(html("td", number(output), "number"));
    if (spread) row.append(html("td", dn === null ? "–" : (dn * 1e-4).toFixed(4), "number"));
    if (names.measured) {
      const both = output !== null && measured !== null;
      row.append(html("td", both ? ((output - measured) * 1e-4).toFixed(4) : "–", "number"));
    }
  }
  place.replaceChildren(table);
  const off = Math.max(...facts.bands.map((band) => facts.output.planes[band.name].error));
  const wide = facts.uncertainty && facts.uncertainty.gsd > facts.output.gsd;
  if (off) place.append(html("p", `Output as on this page: at most ${(off * 1e-4).toFixed(4)} off${wide ? `; spread: mean over ${facts.uncertainty.gsd} m` : ""}. See Precision.`, "fine"));
}
