"use strict";
// Decodes the images of this page from blocks of text to arrays of DN (16 bits, 0 = nodata).

const facts = JSON.parse(document.getElementById("facts").textContent);

function bytesOf(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Decodes zigzag-coded differences of neighbours. All sums are modulo 2^16.
function undoDifferences(bytes, ny, nx) {
  const count = ny * nx;
  const dn = new Uint16Array(count);
  for (let y = 0, i = 0; y < ny; y++) {
    let along = 0;
    for (let x = 0; x < nx; x++, i++) {
      const folded = (bytes[i] << 8) | bytes[count + i];
      along += (folded >> 1) ^ -(folded & 1);
      dn[i] = (y > 0 ? dn[i - nx] : 0) + along;
    }
  }
  return dn;
}

async function jpegCodes(bytes, ny, nx) {
  const image = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }), { colorSpaceConversion: "none" });
  const canvas = document.createElement("canvas");
  canvas.width = nx;
  canvas.height = ny;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  image.close();
  return context.getImageData(0, 0, nx, ny).data;
}

async function jpegPlane(plane, ny, nx) {
  const pixels = await jpegCodes(bytesOf(plane.content), ny, nx);
  const dn = new Uint16Array(ny * nx);
  for (let i = 0; i < dn.length; i++) dn[i] = plane.table[pixels[4 * i]];
  if (plane.fixes) {
    const bytes = await inflated(bytesOf(plane.fixes));
    const n = plane.fixed;
    for (let k = 0, at = 0; k < n; k++) {
      at += bytes[k] + (bytes[n + k] << 8) + (bytes[2 * n + k] << 16) + bytes[3 * n + k] * 16777216;
      const steps = ((bytes[4 * n + k] | (bytes[5 * n + k] << 8)) << 16) >> 16;
      dn[at] += steps * plane.bound;
    }
  }
  if (plane.mask) {
    const bits = await inflated(bytesOf(plane.mask));
    for (let i = 0; i < dn.length; i++) if (!((bits[i >> 3] >> (i & 7)) & 1)) dn[i] = 0;
  }
  return dn;
}

const decoded = new Map();

// DN of one image of a grid, decoded once.
function planeOf(grid, name) {
  const plane = grid.planes[name];
  if (!decoded.has(plane)) decoded.set(plane, decode(plane, grid.ny, grid.nx));
  return decoded.get(plane);
}

async function decode(plane, ny, nx) {
  if (plane.codec === "bicubic") return bicubic(await planeOf(plane.of, plane.name), plane.of, ny, nx);
  if (plane.codec === "jpeg") return jpegPlane(plane, ny, nx);
  const bytes = await inflated(bytesOf(plane.content));
  return plane.codec === "exact" ? undoDifferences(bytes, ny, nx) : bytes;
}

// Weights of four neighbours for each of `k` places inside a pixel: Keys' cubic convolution, a = -0.5 (Keys 1981).
function cubicWeights(k) {
  const near = (d) => 1.5 * d ** 3 - 2.5 * d ** 2 + 1;
  const far = (d) => -0.5 * d ** 3 + 2.5 * d ** 2 - 4 * d + 2;
  return Array.from({ length: k }, (_, phase) => {
    const u = (phase + 0.5) / k - 0.5;
    const first = Math.floor(u) - 1;
    const t = u - Math.floor(u);
    return { first, weights: [far(1 + t), near(t), near(1 - t), far(2 - t)] };
  });
}

// DN of a coarser grid interpolated to ny x nx. Nodata stays nodata; nodata neighbours take the pixel's own value.
function bicubic(dn, grid, ny, nx) {
  const k = Math.round(ny / grid.ny);
  const phases = cubicWeights(k);
  const out = new Uint16Array(ny * nx);
  const clamp = (i, count) => Math.min(count - 1, Math.max(0, i));
  const columns = Int32Array.from({ length: 4 * nx }, (_, i) => clamp(Math.floor((i >> 2) / k) + phases[(i >> 2) % k].first + (i & 3), grid.nx));
  for (let y = 0; y < ny; y++) {
    const row = Math.floor(y / k);
    const down = phases[y % k];
    const rows = [0, 1, 2, 3].map((i) => clamp(row + down.first + i, grid.ny) * grid.nx);
    for (let x = 0; x < nx; x++) {
      const own = dn[row * grid.nx + Math.floor(x / k)];
      if (!own) continue;
      const across = phases[x % k].weights;
      let total = 0;
      for (let i = 0; i < 4; i++) {
        let line = 0;
        for (let j = 0; j < 4; j++) line += across[j] * (dn[rows[i] + columns[4 * x + j]] || own);
        total += down.weights[i] * line;
      }
      out[y * nx + x] = Math.min(65535, Math.max(1, Math.round(total)));
    }
  }
  return out;
}

const interpolations = new Map();

// A grid of measured bands on the grid of the output, by bicubic interpolation.
function interpolated(grid) {
  if (!interpolations.has(grid)) {
    const planes = Object.fromEntries(Object.keys(grid.planes).map((name) => [name, { codec: "bicubic", of: grid, name }]));
    interpolations.set(grid, { ...facts.output, planes });
  }
  return interpolations.get(grid);
}

const bandOf = (name) => facts.bands.find((band) => band.name === name);
const gridOfBand = (name) => facts.measured.find((grid) => name in grid.planes);

// Index of the pixel of a grid that holds a place (metres), or -1 outside.
function pixelAt(grid, x, y) {
  const col = Math.floor((x - grid.left) / grid.gsd);
  const row = Math.floor((grid.top - y) / grid.gsd);
  return col >= 0 && row >= 0 && col < grid.nx && row < grid.ny ? row * grid.nx + col : -1;
}

const boundsOf = (grid) => [grid.left, grid.top - grid.ny * grid.gsd, grid.left + grid.nx * grid.gsd, grid.top];
const reflectance = (dn) => (dn - 1000) * 1e-4;
