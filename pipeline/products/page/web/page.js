"use strict";
// Sets up the page: controls, layers, clicks.

const id = (name) => document.getElementById(name);
const tools = { bands: id("bands"), left: id("left"), overlay: id("overlay"), contrast: id("contrast"), brightness: id("brightness") };
const leftName = id("side-left").dataset.label;
const choices = [
  ...facts.composites.map((c) => ({ text: `${c.name} · ${c.bands.join(" ")}`, bands: c.bands })),
  ...facts.bands.map((b) => ({ text: `${b.name} · ${b.nm.toFixed(0)} nm · measured at ${b.gsd} m`, bands: [b.name] })),
];

function fillChoices() {
  const groups = [["Composites", choices.filter((c) => c.bands.length > 1)], ["Single bands", choices.filter((c) => c.bands.length === 1)]];
  for (const [label, members] of groups) {
    if (!members.length) continue;
    const group = document.createElement("optgroup");
    group.label = label;
    for (const choice of members) group.append(new Option(choice.text, String(choices.indexOf(choice))));
    tools.bands.append(group);
  }
  tools.left.append(new Option(facts.measuredKept ? "measured pixels" : leftName, ""));
  if (facts.measuredKept) tools.left.append(new Option("bicubic", "bicubic"));
  tools.overlay.append(new Option("quality", "quality"));
  if (facts.uncertainty) tools.overlay.append(new Option("uncertainty", "uncertainty"));
}

function trouble(text) {
  id("trouble").textContent = text;
  id("trouble").hidden = false;
}

const map = makeMap();
const layers = {
  measured: addCanvas(map, "measured", facts.part, 10),
  output: addCanvas(map, "output", facts.part, facts.output.gsd),
  overlay: addCanvas(map, "overlay", facts.part, facts.output.gsd),
  context: facts.context ? addCanvas(map, "context", boundsOf(facts.context), facts.context.gsd) : null,
};
const swipe = makeSwipe(map, id("swipe"), "measured", "output");
if (facts.context) L.rectangle(toBounds(facts.part), { pane: "marks", color: "#ffc400", weight: 2, fill: false, interactive: false }).addTo(map);

const chosen = () => choices[Number(tools.bands.value)].bands;
const look = () => ({ contrast: Number(tools.contrast.value), brightness: Number(tools.brightness.value) });
let drawn = 0;

async function draw() {
  const names = chosen();
  const smooth = tools.left.value === "bicubic";
  const grids = names.map(gridOfBand).map((grid) => (smooth ? interpolated(grid) : grid));
  const jobs = [
    [layers.output, names.map(() => facts.output)],
    [layers.measured, grids],
    ...(layers.context ? [[layers.context, names.map(() => facts.context)]] : []),
  ];
  for (const [layer, on] of jobs) {
    const fresh = document.createElement("canvas");
    const grid = await paint(fresh, on, names, look());
    layer.canvas.width = fresh.width;
    layer.canvas.height = fresh.height;
    layer.canvas.getContext("2d").drawImage(fresh, 0, 0);
    layer.canvas.dataset.gsd = String(grid.gsd);
    layer.crispen();
  }
  const gsds = [...new Set(grids.map((grid) => grid.gsd))].sort((a, b) => a - b).join(" and ");
  const left = smooth ? "interpolated (bicubic)" : leftName;
  id("side-left").textContent = `${left[0].toUpperCase()}${left.slice(1)}, ${gsds} m`;
  id("side-right").textContent = `${facts.system}, 2.5 m`;
  await drawOverlay();
  id("busy").hidden = true;
  id("map").dataset.drawn = String(++drawn);
}

async function drawOverlay() {
  const kind = tools.overlay.value;
  const { canvas } = layers.overlay;
  canvas.style.display = kind ? "" : "none";
  const legend = id("legend");
  legend.replaceChildren();
  if (kind === "quality") {
    const classes = await paintQuality(canvas);
    const counts = [0, 0, 0, 0];
    for (let i = 0; i < classes.length; i++) counts[classes[i]]++;
    QUALITY.forEach(({ colour, text }, i) => legend.append(key(colour, `${text}: ${((100 * counts[i]) / classes.length).toFixed(1)} %`)));
  } else if (kind === "uncertainty") {
    const names = chosen();
    const top = await paintUncertainty(canvas, names);
    legend.append(html("span", `Uncertainty of ${names.join(", ")}${names.length > 1 ? " (root mean square)" : ""}${facts.uncertainty.gsd > facts.output.gsd ? `, mean over ${facts.uncertainty.gsd} m` : ""}, reflectance:`));
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      legend.append(key([...rampColour(share), 255], `${share === 1 ? "≥ " : ""}${(share * top * 1e-4).toFixed(4)}`));
    }
  }
}

function key(colour, text) {
  const item = html("span", undefined, "key");
  const swatch = document.createElement("canvas");
  swatch.width = swatch.height = 14;
  const context = swatch.getContext("2d");
  const [r, g, b, a] = colour;
  context.fillStyle = `rgba(${r}, ${g}, ${b}, ${a / 255})`;
  context.fillRect(0, 0, 14, 14);
  item.append(swatch, html("span", text));
  return item;
}

const marks = L.layerGroup([], { pane: "marks" }).addTo(map);

function markPixel(grid, x, y, style) {
  const at = pixelAt(grid, x, y);
  if (at < 0) return;
  const left = grid.left + (at % grid.nx) * grid.gsd;
  const top = grid.top - Math.floor(at / grid.nx) * grid.gsd;
  L.rectangle(toBounds([left, top - grid.gsd, left + grid.gsd, top]), { pane: "marks", fill: false, interactive: false, ...style }).addTo(marks);
}

let asked = 0;

async function showSpectrum(x, y) {
  const mine = ++asked;
  const inside = pixelAt(facts.output, x, y) >= 0;
  if (!inside && !(facts.context && pixelAt(facts.context, x, y) >= 0)) return;
  marks.clearLayers();
  id("where").textContent = "Unpacking all bands …";
  if (inside) {
    for (const grid of facts.measured) markPixel(grid, x, y, { color: "#ff9d5c", weight: 1.5, opacity: 0.9 });
    markPixel(facts.output, x, y, { color: "#6cb4f5", weight: 2 });
  } else {
    markPixel(facts.context, x, y, { color: "#6cb4f5", weight: 2 });
  }
  const values = inside ? await spectrumAt(x, y) : await overviewAt(x, y);
  if (mine !== asked) return;
  const names = inside
    ? { output: "output, 2.5 m pixel", measured: `${leftName}, native pixel`, short: facts.measuredKept ? "Measured" : "Mean" }
    : { output: `overview, ${facts.context.gsd} m pixel`, measured: "", short: "" };
  id("where").textContent = inWords(x, y);
  drawKey(id("key"), names);
  drawChart(id("chart"), values);
  drawNumbers(id("numbers"), values, names);
  id("numbers").dataset.at = `${x},${y}`;
}

map.on("click", (event) => showSpectrum(...toMetres(event.latlng)).catch((error) => trouble(String(error))));
map.on("mousemove", (event) => { id("cursor").textContent = inWords(...toMetres(event.latlng)); });
map.on("mouseout", () => { id("cursor").textContent = ""; });
id("centre").addEventListener("click", () => showSpectrum(...toMetres(map.getCenter())).catch((error) => trouble(String(error))));

id("whole").addEventListener("click", () => map.fitBounds(toBounds(facts.frame)));

let drawing = false;
let stale = false;

// Runs one drawing at a time. Changes made meanwhile are drawn once, afterwards.
async function redraw() {
  stale = true;
  if (drawing) return;
  drawing = true;
  while (stale) {
    stale = false;
    await attempt();
  }
  drawing = false;
}

function attempt() {
  return draw().catch((error) => trouble(`The images of this page cannot be unpacked by this browser: ${error}`));
}
tools.bands.addEventListener("change", redraw);
tools.left.addEventListener("change", redraw);
tools.overlay.addEventListener("change", () => drawOverlay().catch((error) => trouble(String(error))));
for (const name of ["contrast", "brightness"]) tools[name].addEventListener("input", redraw);
id("tools").addEventListener("submit", (event) => event.preventDefault());
id("tools").addEventListener("reset", () => setTimeout(redraw));

fillChoices();
if (typeof DecompressionStream === "undefined") {
  trouble("This browser is too old to unpack the images of this page (it lacks DecompressionStream; any browser of 2023 or later has it).");
} else {
  redraw().then(() => showSpectrum(...facts.focus)).catch((error) => trouble(String(error)));
}
