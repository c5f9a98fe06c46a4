"use strict";
// The map, on top of Leaflet: layers in metres, the swipe between them, scale and coordinates.

const MAX_SCREEN_PX = 16; // screen pixels per 2.5 m pixel at the deepest zoom
const FIRST_SCREEN_PX = 7; // screen pixels per 10 m pixel when the page opens
const [FRAME_LEFT, FRAME_BOTTOM, FRAME_RIGHT, FRAME_TOP] = facts.frame;

// Leaflet's plain plane with the zone's metres: latitude is northing, longitude easting, both from the frame's corner.
const toLatLng = (x, y) => L.latLng(y - FRAME_BOTTOM, x - FRAME_LEFT);
const toMetres = (latlng) => [latlng.lng + FRAME_LEFT, latlng.lat + FRAME_BOTTOM];
const toBounds = ([left, bottom, right, top]) => L.latLngBounds(toLatLng(left, bottom), toLatLng(right, top));

function makeMap() {
  const map = L.map("map", {
    crs: L.CRS.Simple, attributionControl: false, zoomSnap: 0.25, zoomDelta: 0.5, wheelPxPerZoomLevel: 90,
    maxZoom: Math.log2(MAX_SCREEN_PX / facts.output.gsd), minZoom: -12, zoomControl: true, keyboard: true,
    maxBoundsViscosity: 0.8,
  });
  const part = toBounds(facts.part);
  // Opens at the focus, close enough to distinguish 10 m pixels, and filled to its edges.
  map.setView(toLatLng(...facts.focus), Math.max(Math.log2(FIRST_SCREEN_PX / 10), map.getBoundsZoom(part, true)));
  map.panInsideBounds(part, { animate: false });
  const whole = toBounds(facts.frame);
  map.setMinZoom(map.getBoundsZoom(whole) - 0.5);
  map.setMaxBounds(whole.pad(0.5));
  L.control.scale({ imperial: false, maxWidth: 140 }).addTo(map);
  ["context", "output", "measured", "overlay", "marks"].forEach((name, i) => {
    map.createPane(name).style.zIndex = String(210 + 10 * i);
  });
  map.getPane("marks").style.pointerEvents = "none";
  return map;
}

// A canvas over a georeferenced area. Despite its name, SVGOverlay accepts any element.
function addCanvas(map, pane, bounds, gsd) {
  const canvas = document.createElement("canvas");
  const layer = L.svgOverlay(canvas, toBounds(bounds), { pane, interactive: false }).addTo(map);
  const crispen = () => {
    const ratio = (canvas.dataset.gsd || gsd) * 2 ** map.getZoom();
    canvas.classList.toggle("crisp", ratio >= 0.999); // enlarged: sharp pixels; reduced: averaged by the browser
  };
  map.on("zoomend", crispen);
  return { canvas, layer, crispen };
}

// Shows `left` on one side of a bar and `right` on the other, by clipping their panes.
function makeSwipe(map, bar, left, right) {
  let share = 0.5;
  function clip() {
    const size = map.getSize();
    const corner = map.containerPointToLayerPoint([0, 0]);
    const across = corner.x + share * size.x;
    const [top, bottom] = [corner.y - size.y, corner.y + 2 * size.y];
    const box = (x0, x1) => `polygon(${x0}px ${top}px, ${x1}px ${top}px, ${x1}px ${bottom}px, ${x0}px ${bottom}px)`;
    map.getPane(left).style.clipPath = box(corner.x - size.x, across);
    map.getPane(right).style.clipPath = box(across, corner.x + 2 * size.x);
    bar.style.left = `${share * 100}%`;
    bar.setAttribute("aria-valuenow", String(Math.round(share * 100)));
  }
  function to(value) {
    share = Math.min(1, Math.max(0, value));
    clip();
  }
  const follow = (event) => {
    const box = map.getContainer().getBoundingClientRect();
    to((event.clientX - box.left) / box.width);
  };
  bar.addEventListener("pointerdown", (event) => {
    bar.setPointerCapture(event.pointerId);
    bar.addEventListener("pointermove", follow);
    event.preventDefault();
    bar.focus();
  });
  const release = () => bar.removeEventListener("pointermove", follow);
  bar.addEventListener("pointerup", release);
  bar.addEventListener("pointercancel", release);
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 }[event.key];
    if (step === undefined) return;
    to(share + step);
    event.preventDefault();
  });
  map.on("move zoom viewreset resize zoomend moveend", clip);
  clip();
  return { to, get share() { return share; } };
}

// Longitude and latitude of a place, interpolated between the nodes of the page's mesh.
function lonLat(x, y) {
  const { nodes, lon, lat } = facts.lonlat;
  const across = ((x - FRAME_LEFT) / (FRAME_RIGHT - FRAME_LEFT)) * (nodes - 1);
  const down = ((FRAME_TOP - y) / (FRAME_TOP - FRAME_BOTTOM)) * (nodes - 1);
  const col = Math.min(nodes - 2, Math.max(0, Math.floor(across)));
  const row = Math.min(nodes - 2, Math.max(0, Math.floor(down)));
  const [u, v] = [across - col, down - row];
  const between = (mesh) =>
    (1 - v) * ((1 - u) * mesh[row][col] + u * mesh[row][col + 1]) + v * ((1 - u) * mesh[row + 1][col] + u * mesh[row + 1][col + 1]);
  return [between(lon), between(lat)];
}

function inWords(x, y) {
  const [lon, lat] = lonLat(x, y);
  const degrees = `${Math.abs(lat).toFixed(5)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(5)}° ${lon < 0 ? "W" : "E"}`;
  return `E ${x.toFixed(0)} m, N ${y.toFixed(0)} m · ${degrees}`;
}
