// SPDX-License-Identifier: Apache-2.0
// Bars tiled by stages, distributions on a logarithmic axis, and linear waterfalls.

const HEIGHT = 34;
const share = (part) => `${(100 * part).toFixed(3)}%`;

function place(element, from, long) {
  element.style.left = share(from);
  element.style.width = share(long);
  return element;
}

/** Parts of a whole side by side: [[class, size, title], ...]. */
function tiled(parts, whole, name = '') {
  let at = 0;
  const marks = parts.filter(([, size]) => size > 0).map(([mark, size, title]) => {
    const made = place(el('i', {class: mark, title}), at / whole, size / whole);
    at += size;
    return made;
  });
  return el('div', {class: `tiled ${name}`, 'aria-hidden': 'true'}, marks);
}

/** A request's stages where they were, in a bar as long as it. */
function tiledRequest(request) {
  const bar = el('div', {class: 'tiled', 'aria-hidden': 'true'});
  for (const [stage, offset, long] of request.stages) {
    const title = `${stageName(data.stages[stage].name)} ${duration(long)}`;
    bar.append(place(el('i', {class: markOf(stage, request.kind), title}),
      request.total_ns ? offset / request.total_ns : 0,
      request.total_ns ? long / request.total_ns : 1));
  }
  return bar;
}

/** From a power of ten to another, around all these distributions. */
function logAxis(distributions) {
  const least = Math.min(...distributions.map((each) => Math.max(1, each.least_ns)));
  const most = Math.max(...distributions.map((each) => Math.max(1, each.most_ns)));
  const first = Math.floor(Math.log10(least));
  const last = Math.max(first + 1, Math.ceil(Math.log10(most)));
  const decades = Array.from({length: last - first + 1}, (_, i) => first + i);
  return {
    first, last, decades,
    at: (ns) => (Math.log10(Math.max(1, ns)) - first) / (last - first),
  };
}

function tickLabels(ticks) {
  return el('div', {class: 'axis', 'aria-hidden': 'true'}, ticks.map(([at, text], i) => {
    const edge = i === 0 ? 'first' : i === ticks.length - 1 ? 'last' : '';
    const label = el('span', {class: edge}, text);
    label.style.left = share(at);
    return label;
  }));
}

/** Powers of ten have no decimals. */
const round = (ns) => duration(ns).replace(/\.0+(?=\u00a0)/, '');

const logLabels = (axis) => {
  const step = Math.ceil((axis.decades.length - 1) / 6);
  const shown = axis.decades.filter((decade, i) => i % step === 0);
  return tickLabels(shown.map((decade) => [axis.at(10 ** decade), round(10 ** decade)]));
};

/** A distribution: how many in each bin, as the square root so that rare ones are seen. */
function strip(found, axis, mark) {
  const most = Math.sqrt(Math.max(...found.bins));
  const chart = svg('svg', {class: `strip ${mark}`, 'aria-hidden': 'true'});
  for (const decade of axis.decades) {
    const x = share(axis.at(10 ** decade));
    chart.append(svg('line', {class: 'grid', x1: x, x2: x, y1: 0, y2: HEIGHT}));
  }
  found.bins.forEach((many, i) => {
    if (!many) return;
    const from = axis.at(10 ** ((found.first_bin + i) / data.bins_per_decade));
    const to = axis.at(10 ** ((found.first_bin + i + 1) / data.bins_per_decade));
    const high = Math.max(1.5, (Math.sqrt(many) / most) * (HEIGHT - 8));
    chart.append(svg('rect', {class: 'bin', x: share(from), width: share((to - from) * 0.94),
      y: HEIGHT - high, height: high}));
  });
  chart.append(svg('line', {class: 'base', x1: '0%', x2: '100%', y1: HEIGHT, y2: HEIGHT}));
  for (const [name, ns] of [['p99', found.p99_ns], ['p90', found.p90_ns],
    ['median', found.median_ns]]) {
    const x = share(axis.at(ns));
    chart.append(svg('line', {class: `at ${name}`, x1: x, x2: x, y1: 2, y2: HEIGHT}));
  }
  return chart;
}

function stripLegend() {
  const mark = (name) => svg('svg', {'aria-hidden': 'true'},
    svg('line', {class: `at ${name}`, x1: 6, x2: 6, y1: 0, y2: 13}));
  return el('ul', {class: 'legend'},
    el('li', {}, mark('median'), 'median'), el('li', {}, mark('p90'), 'p90'),
    el('li', {}, mark('p99'), 'p99'),
    el('li', {}, 'Logarithmic time; a bar\u2019s height is the square root of how many.'));
}

const ownerLegend = () => el('ul', {class: 'legend'}, data.owners.map(({name, label, about}) =>
  el('li', {}, el('span', {class: `swatch ${name} shade-0`}), `${label}: ${about}`)));

/** From a request's first stamp to its last, the acknowledgement after its end included. */
const lengthWithAck = (request) => request.total_ns + (request.acked_ns ?? 0);

/** From the first to the last moment of a request and of what is below it. */
function linearAxis(request) {
  let first = 0;
  let last = lengthWithAck(request);
  for (const each of request.below) {
    const long = each.request === undefined ? each.total_ns
      : lengthWithAck(data.requests[each.request]);
    first = Math.min(first, each.offset_ns);
    last = Math.max(last, each.offset_ns + long);
  }
  const size = Math.max(1, last - first);
  return {first, last, size, at: (ns) => (ns - first) / size, long: (ns) => Math.max(0, ns) / size};
}

const linearLabels = (axis) => tickLabels([0, 0.25, 0.5, 0.75, 1].map((part) =>
  [part, duration(Math.round(axis.first + part * axis.size))]));

function track(axis, mark, offset, long) {
  return el('div', {class: 'track', 'aria-hidden': 'true'},
    place(el('i', {class: mark}), axis.at(offset), axis.long(long)));
}
