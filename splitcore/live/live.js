"use strict";
// Draws live.json once a second. Whatever comes from the node is put in as text, never as markup.
const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 190, TOP = 8, BOTTOM = 22, LEFT = 44, RIGHT = 8;
const place = (id) => document.getElementById(id);
let seen = null, pointer = null;

function make(name, attributes, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "rect", "circle", "title"].includes(name);
  const element = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) if (value !== "" && value != null) element.setAttribute(key, value);
  for (const child of children) if (child != null) element.append(child);
  return element;
}

function number(value) {
  if (value == null) return "–";
  if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(0);
  if (Math.abs(value) >= 10000) return new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value);
  if (Math.abs(value) >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((m) => m * power).find((m) => m >= value * 0.999);
}

function seconds(value) {
  const s = Math.round(-value);
  return s === 0 ? "now" : s % 60 === 0 ? `${s / 60} min ago` : `${s} s ago`;
}

function scales(chart, width) {
  const n = chart.kind === "bars" ? chart.labels.length : chart.x.length;
  let most = 0;
  for (let i = 0; i < n; i++) {
    const values = chart.series.map((s) => s.y[i] || 0);
    most = Math.max(most, chart.kind === "stack" ? values.reduce((a, b) => a + b, 0) : Math.max(...values, 0));
  }
  const top = chart.top || ceiling(most);
  // time runs over the same three minutes from the start, so that a young line does not fill the width
  const low = chart.x_unit === "s" ? Math.min(chart.x[0] ?? 0, -60) : 0;
  const high = chart.x_unit === "s" ? 0 : Math.max(...chart.x, 1);
  return {
    top, low, high,
    x: (value) => LEFT + ((value - low) / (high - low || 1)) * (width - LEFT - RIGHT),
    y: (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM),
  };
}

function path(points, step) {
  let text = "", open = false, before = null;
  for (const [x, y] of points) {
    if (y == null) { open = false; continue; }
    text += !open ? `M${x.toFixed(1)} ${y.toFixed(1)}` : step ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `L${x.toFixed(1)} ${y.toFixed(1)}`;
    open = true; before = y;
  }
  return text;
}

function axes(svg, chart, s, width) {
  for (const share of [0, 0.5, 1]) {
    const y = s.y(s.top * share);
    svg.append(make("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
      make("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, number(s.top * share)));
  }
  const ends = chart.x_unit === "s" ? [[s.low, seconds(s.low)], [s.high, "now"]] : [[0, "0"], [s.high, `${number(s.high)} ${chart.x_unit}`]];
  if (chart.kind !== "bars") for (const [at, text] of ends)
    svg.append(make("text", { x: s.x(at), y: HEIGHT - 5, "text-anchor": at === s.low ? "start" : "end" }, text));
}

function bars(svg, chart, s, width) {
  const n = chart.labels.length, each = (width - LEFT - RIGHT) / Math.max(n, 1);
  const every = Math.ceil(n / Math.floor((width - LEFT) / 42));
  chart.labels.forEach((label, i) => {
    const value = chart.series[0].y[i] || 0, y = s.y(Math.min(value, s.top)), x = LEFT + i * each;
    svg.append(make("rect", { class: `bar ${chart.series[0].ink}`, x: x + each * 0.12, width: each * 0.76, y, height: Math.max(0, s.y(0) - y) },
      make("title", {}, `${label}: ${number(value)}`)));
    if (i % every === 0) svg.append(make("text", { x: x + each / 2, y: HEIGHT - 5, "text-anchor": "middle" }, label));
  });
}

function lines(svg, chart, s) {
  const below = chart.x.map(() => 0);
  for (const series of chart.series) {
    if (chart.kind === "stack") {
      const upper = [], lower = [];
      chart.x.forEach((x, i) => {
        const base = below[i];
        below[i] += series.y[i] || 0;
        upper.push([s.x(x), s.y(below[i])]);
        lower.unshift([s.x(x), s.y(base)]);
      });
      if (upper.length) svg.append(make("path", { class: `area ${series.ink}`, d: `${path(upper)}L${path(lower).slice(1)}Z` }));
      continue;
    }
    const points = chart.x.map((x, i) => [s.x(x), series.y[i] == null ? null : s.y(Math.min(series.y[i], s.top))]);
    svg.append(make("path", { class: `line ${series.ink}`, d: path(points, chart.kind === "steps") }));
    const last = points.filter(([, y]) => y != null).pop();
    if (last && chart.kind === "lines") svg.append(make("circle", { class: `dot ${series.ink}`, cx: last[0], cy: last[1], r: 2.6 }));
  }
}

function nearest(chart, s, at) {
  let best = -1;
  chart.x.forEach((x, i) => { if (best < 0 || Math.abs(s.x(x) - at) < Math.abs(s.x(chart.x[best]) - at)) best = i; });
  return best;
}

function draw(figure, chart, index) {
  const width = Math.max(240, figure.clientWidth), s = scales(chart, width);
  const svg = make("svg", { role: "img", "aria-label": `${chart.title}, ${chart.unit}`, viewBox: `0 0 ${width} ${HEIGHT}`, preserveAspectRatio: "none" });
  axes(svg, chart, s, width);
  if (chart.kind === "bars") bars(svg, chart, s, width); else lines(svg, chart, s);
  const pointed = pointer && pointer.index === index && chart.kind !== "bars" && chart.x.length ? nearest(chart, s, pointer.x) : -1;
  if (pointed >= 0) {
    const x = s.x(chart.x[pointed]);
    svg.append(make("line", { class: "cross", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
  }
  const head = make("header", {}, make("h2", {}, chart.title), make("span", { class: "unit" },
    pointed < 0 ? chart.unit : `${chart.unit}, ${chart.x_unit === "s" ? seconds(chart.x[pointed]) : `${number(chart.x[pointed])} ${chart.x_unit}`}`));
  const legend = make("ul", { class: "legend" });
  if (chart.kind !== "bars") for (const series of chart.series) {
    const value = pointed >= 0 ? series.y[pointed] : [...series.y].reverse().find((y) => y != null);
    legend.append(make("li", {}, make("span", { class: `key ${series.ink}${chart.kind === "stack" ? " block" : ""}` }), series.name, make("b", {}, number(value))));
  }
  figure.replaceChildren(head, svg, legend, ...(chart.note ? [make("figcaption", {}, chart.note)] : []));
}

function table(one) {
  const box = make("div", {}, make("h2", {}, one.title));
  if (!one.rows.length) { box.append(make("div", { class: "empty" }, one.empty)); return box; }
  const shown = (cell) => (typeof cell === "number" ? (Number.isInteger(cell) ? cell.toLocaleString("en") : number(cell)) : cell ?? "–");
  box.append(make("table", {},
    make("thead", {}, make("tr", {}, ...one.columns.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...one.rows.map((row) => make("tr", {}, ...row.map((cell, i) => make("td", { "data-label": one.columns[i] }, shown(cell))))))));
  return box;
}

function show(view) {
  document.title = `${view.title} · latentbed`;
  place("node").textContent = `latentbed · ${view.node}`;
  place("title").textContent = view.title;
  place("subtitle").textContent = view.subtitle;
  place("state").textContent = view.state;
  place("state").className = `badge ${view.well ? "good" : "bad"}`;
  place("tiles").replaceChildren(...view.tiles.map((tile) => make("div", { class: "tile" },
    make("span", { class: "what" }, tile.what), make("b", { class: tile.tone }, tile.value), make("span", {}, tile.note))));
  const charts = place("charts");
  while (charts.children.length > view.charts.length) charts.lastChild.remove();
  while (charts.children.length < view.charts.length) charts.append(pointed(make("figure"), charts.children.length));
  view.charts.forEach((chart, index) => draw(charts.children[index], chart, index));
  place("tables").replaceChildren(...view.tables.map(table));
}

function pointed(figure, index) {
  const at = (x) => { pointer = x == null ? null : { index, x }; if (seen && seen.charts[index]) draw(figure, seen.charts[index], index); };
  figure.addEventListener("pointermove", (event) => at(event.clientX - figure.getBoundingClientRect().left));
  figure.addEventListener("pointerleave", () => at(null));
  return figure;
}

async function look() {
  try {
    const answer = await fetch("live.json", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`${answer.status}`);
    seen = await answer.json();
    document.querySelector("main").classList.remove("stale");
    show(seen);
  } catch (error) {
    document.querySelector("main").classList.add("stale");
    place("state").textContent = `no answer from the node (${error.message}): what you see is the last of it`;
    place("state").className = "badge bad";
  }
  setTimeout(look, 1000);
}

new ResizeObserver(() => seen && show(seen)).observe(document.body);
look();
