"use strict";
// From DN to colours: one or three bands on a canvas with the pixels of the finest band.

const NODATA_GREY = 96;

const GAMMA = 1.5; // lightens dark areas; most land is dark in visible light

// Black and white (DN) of each shown band: natural colours share one span, other combinations have one per band.
function limitsOf(names) {
  const each = names.map((name) => bandOf(name).stretch);
  const together = facts.composites.some((c) => c.together && c.bands.join() === names.join());
  const span = Math.max(...each.map(([low, high]) => high - low));
  return together ? each.map(([low]) => [low, low + span]) : each;
}

// Brightness (0..255) of every DN. The same table serves both sides of the map.
function stretchTable([low, high], contrast, brightness) {
  const table = new Uint8ClampedArray(65536);
  for (let dn = 0; dn < 65536; dn++) {
    const level = ((dn - low) / (high - low) - 0.5) * contrast + 0.5 + brightness;
    table[dn] = level <= 0 ? 0 : 255 * Math.min(1, level) ** (1 / GAMMA);
  }
  return table;
}

// The grid for a canvas of some bands: the finest among theirs.
const finest = (grids) => grids.reduce((best, grid) => (grid.gsd < best.gsd ? grid : best));

// For each column (or row) of a fine grid, the column (or row) of a coarser one over the same ground.
const coarser = (count, ratio) => Uint32Array.from({ length: count }, (_, i) => Math.floor(i / ratio));

async function paint(canvas, grids, names, look) {
  const grid = finest(grids);
  const planes = await Promise.all(names.map((name, k) => planeOf(grids[k], name)));
  const tables = limitsOf(names).map((limits) => stretchTable(limits, look.contrast, look.brightness));
  const shown = names.length === 1 ? [0, 0, 0] : [0, 1, 2];
  const columns = grids.map((other) => coarser(grid.nx, other.gsd / grid.gsd));
  canvas.width = grid.nx;
  canvas.height = grid.ny;
  const context = canvas.getContext("2d");
  const image = context.createImageData(grid.nx, grid.ny);
  const pixels = new Uint32Array(image.data.buffer); // A B G R, since browsers run on little-endian machines
  const nodata = (255 << 24) | (NODATA_GREY << 16) | (NODATA_GREY << 8) | NODATA_GREY;
  const [r, g, b] = shown;
  for (let y = 0, i = 0; y < grid.ny; y++) {
    const rows = grids.map((other) => Math.floor((y * grid.gsd) / other.gsd) * other.nx);
    for (let x = 0; x < grid.nx; x++, i++) {
      const red = planes[r][rows[r] + columns[r][x]];
      const green = planes[g][rows[g] + columns[g][x]];
      const blue = planes[b][rows[b] + columns[b][x]];
      pixels[i] = red && green && blue
        ? (255 << 24) | (tables[b][blue] << 16) | (tables[g][green] << 8) | tables[r][red]
        : nodata;
    }
  }
  context.putImageData(image, 0, 0);
  return grid;
}

// Overlays ---------------------------------------------------------------------------------------------------------

const QUALITY = [
  { colour: [120, 120, 120, 200], text: "nodata" },
  {
    colour: [230, 97, 1, 170],
    text: facts.bands.some((band) => band.generated)
      ? "no generated detail (cloud, saturated, brighter than the network knows)"
      : "no generated detail (this system generates none)",
  },
  { colour: [253, 200, 80, 150], text: "partly generated" },
  { colour: [0, 0, 0, 0], text: "generated detail (not coloured)" },
];

// Colours of the uncertainty, from none to the 98th percentile: dark violet to yellow, after matplotlib's "plasma".
const RAMP = [[13, 8, 135], [126, 3, 168], [204, 71, 120], [248, 149, 64], [240, 249, 33]];

function rampColour(level) {
  const at = Math.min(0.9999, Math.max(0, level)) * (RAMP.length - 1);
  const k = Math.floor(at);
  return RAMP[k].map((low, c) => Math.round(low + (RAMP[k + 1][c] - low) * (at - k)));
}

async function paintQuality(canvas) {
  const grid = facts.quality;
  const classes = await planeOf(grid, "quality");
  canvas.width = grid.nx;
  canvas.height = grid.ny;
  const context = canvas.getContext("2d");
  const image = context.createImageData(grid.nx, grid.ny);
  for (let i = 0; i < classes.length; i++) image.data.set(QUALITY[classes[i]]?.colour ?? [255, 0, 0, 255], 4 * i);
  context.putImageData(image, 0, 0);
  return classes;
}

// Root mean square of the shown bands' uncertainty (DN), and its 98th percentile.
async function paintUncertainty(canvas, names) {
  const grid = facts.uncertainty;
  const planes = await Promise.all(names.map((name) => planeOf(grid, name)));
  const spread = new Float32Array(grid.nx * grid.ny);
  for (const plane of planes) for (let i = 0; i < spread.length; i++) spread[i] += plane[i] ? (plane[i] - 1) ** 2 : NaN;
  const step = Math.max(1, Math.floor(spread.length / 50000));
  const sample = [];
  for (let i = 0; i < spread.length; i++) {
    spread[i] = Math.sqrt(spread[i] / planes.length);
    if (i % step === 0 && spread[i] >= 0) sample.push(spread[i]);
  }
  const top = Math.max(1, sample.sort((a, b) => a - b)[Math.floor(0.98 * (sample.length - 1))] || 0);
  canvas.width = grid.nx;
  canvas.height = grid.ny;
  const context = canvas.getContext("2d");
  const image = context.createImageData(grid.nx, grid.ny);
  const colours = Array.from({ length: 256 }, (_, i) => rampColour(i / 255));
  for (let i = 0; i < spread.length; i++) {
    if (!(spread[i] >= 0)) continue; // nodata in a shown band stays transparent
    const [r, g, b] = colours[Math.min(255, Math.round((255 * spread[i]) / top))];
    image.data[4 * i] = r;
    image.data[4 * i + 1] = g;
    image.data[4 * i + 2] = b;
    image.data[4 * i + 3] = 190;
  }
  context.putImageData(image, 0, 0);
  return top;
}
