const D = JSON.parse(document.getElementById("data").textContent);
const INKS = ["#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25"];
const OVERFLOW = 33;
const $ = id => document.getElementById(id);
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name);

function el(tag, props, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (key in node) node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children.filter(child => child !== null));
  return node;
}

// Grids. One in D.grids is [task, number of the pair, width, colours, rows, codes by row]; a pair lies side by side.

const parsed = new Map();
function grid(place) {
  if (!parsed.has(place)) {
    const [task, pair, width, colours, rows, codes] = D.grids[place];
    const height = colours.length / width;
    parsed.set(place, {task: D.tasks[task], pair, width, height, colours, rows: Array.from(rows, c => parseInt(c, 36)), codes});
  }
  return parsed.get(place);
}

// Every cell is a whole number of device pixels. `row` null dims nothing.
function paint(canvas, place, row, crop, side, largest) {
  const g = grid(place), ratio = window.devicePixelRatio || 1;
  const px = Math.max(1, Math.min(Math.floor(side * ratio / Math.max(crop.height, crop.width)), Math.round(largest * ratio)));
  const width = crop.width * px, height = crop.height * px;
  canvas.width = width; canvas.height = height;
  canvas.style.width = width / ratio + "px"; canvas.style.height = height / ratio + "px";
  const pen = canvas.getContext("2d"), dim = Number(style("--dim"));
  const own = (y, x) => y >= 0 && x >= 0 && y < g.height && x < g.width && (row === 0 || row === null || g.rows[y * g.width + x] === row);
  for (let y = 0; y < crop.height; y++) for (let x = 0; x < crop.width; x++) {
    const Y = y + crop.top, X = x + crop.left;
    pen.globalAlpha = own(Y, X) ? 1 : dim;
    pen.fillStyle = INKS[+g.colours[Y * g.width + X]];
    pen.fillRect(x * px, y * px, px, px);
  }
  pen.globalAlpha = 1;
  if (px >= 5 * ratio) {
    pen.fillStyle = "rgba(128, 128, 128, .45)";
    for (let y = 1; y < crop.height; y++) pen.fillRect(0, y * px, width, 1);
    for (let x = 1; x < crop.width; x++) pen.fillRect(x * px, 0, 1, height);
  }
  if (row === 0 || row === null) return;
  pen.fillStyle = style("--outline");
  const line = Math.max(1, Math.round(px / 8));
  for (let y = 0; y < crop.height; y++) for (let x = 0; x < crop.width; x++) {
    const Y = y + crop.top, X = x + crop.left;
    if (!own(Y, X)) continue;
    if (!own(Y - 1, X)) pen.fillRect(x * px, y * px, px, line);
    if (!own(Y + 1, X)) pen.fillRect(x * px, (y + 1) * px - line, px, line);
    if (!own(Y, X - 1)) pen.fillRect(x * px, y * px, line, px);
    if (!own(Y, X + 1)) pen.fillRect((x + 1) * px - line, y * px, line, px);
  }
}

const painters = new WeakMap();
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) if (entry.isIntersecting) {
    painters.get(entry.target)();
    watcher.unobserve(entry.target);
  }
}, {rootMargin: "500px"});
function drawing(paintInto) {
  const canvas = el("canvas", {width: 1, height: 1, "aria-hidden": "true"});
  painters.set(canvas, () => paintInto(canvas));
  watcher.observe(canvas);
  return canvas;
}
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const canvas of document.querySelectorAll("canvas")) if (painters.has(canvas)) painters.get(canvas)();
});
