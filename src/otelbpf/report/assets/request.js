// SPDX-License-Identifier: Apache-2.0
// One request: its waterfall with what is below it, its ledger, its attributes.

const bySpan = new Map(data.requests.map((request) => [request.span, request]));
const routeByNumber = new Map(data.routes.map((route) => [route.number, route]));
/** Requests below another one are open when there are no more than these. */
const OPEN = 4;

function waterfallRow(label, depth, chart, ns, options = {}) {
  return el('tr', options,
    el('th', {scope: 'row', class: depth ? `in-${Math.min(depth, 6)}` : null}, label),
    el('td', {class: 'chart'}, chart),
    el('td', {class: 'num', title: exact(ns)}, duration(ns)));
}

function stageRows(request, axis, offset, depth, options = {}) {
  const rows = request.stages.map(([stage, at, long]) => waterfallRow(
    stageLabel(stage, request.kind), depth,
    track(axis, markOf(stage, request.kind), offset + at, long), long,
    {'data-stage': data.stages[stage].name, ...options}));
  if (request.acked_ns !== null) {
    rows.push(waterfallRow(ackedLabel(), depth,
      track(axis, 'after', offset + request.total_ns, request.acked_ns), request.acked_ns,
      {'data-after': 'acked', ...options}));
  }
  return rows;
}

function tiledTrack(request, axis, offset) {
  return el('div', {class: 'track', 'aria-hidden': 'true'},
    place(tiledRequest(request), axis.at(offset), axis.long(request.total_ns)));
}

/** A request below: one bar with its stages, which a button spreads out. */
function belowRequest(each, axis, open) {
  const request = data.requests[each.request];
  const stages = stageRows(request, axis, each.offset_ns, each.depth + 1, {hidden: !open});
  const toggle = el('button', {
    type: 'button', class: 'button', 'aria-expanded': String(open),
    on: () => {
      const wasOpen = toggle.getAttribute('aria-expanded') === 'true';
      toggle.setAttribute('aria-expanded', String(!wasOpen));
      for (const row of stages) row.hidden = wasOpen;
    },
  }, 'stages');
  const label = el('span', {class: 'label'},
    el('a', {href: requestHref(request)}, `${request.method} ${request.path || '(no path)'}`),
    el('span', {class: 'tag'}, request.kind === 'client' ? 'to an upstream' : 'answered'),
    failureTag(request), toggle);
  return [waterfallRow(label, each.depth, tiledTrack(request, axis, each.offset_ns),
    request.total_ns, {class: 'group', 'data-below': request.span}), ...stages];
}

function belowForeign(each, axis) {
  // Which library made it; of OpenTelemetry's own the last part says that.
  const scope = each.scope.replace(/^opentelemetry\.instrumentation\./, '') || 'no scope';
  const label = el('span', {class: 'label'}, each.name,
    el('span', {class: 'tag', title: `${each.service} ${each.scope}`}, scope));
  return waterfallRow(label, each.depth, track(axis, 'foreign', each.offset_ns, each.total_ns),
    each.total_ns, {class: 'group', 'data-below': each.name});
}

function waterfall(request) {
  const axis = linearAxis(request);
  const open = request.below.filter((each) => each.request !== undefined).length <= OPEN;
  const rows = [
    waterfallRow('whole request', 0, tiledTrack(request, axis, 0), request.total_ns, {class: 'top'}),
    ...stageRows(request, axis, 0, 0),
    ...request.below.flatMap((each) => (each.request === undefined
      ? [belowForeign(each, axis)] : belowRequest(each, axis, open))),
  ];
  const heads = [el('th', {scope: 'col'}, 'Stage'),
    el('th', {scope: 'col', class: 'chart'}, el('span', {class: 'unseen'}, 'When'),
      linearLabels(axis)),
    el('th', {scope: 'col', class: 'num'}, 'Took')];
  return table('waterfall', 'When each stage was', heads, rows);
}

function ledger(request) {
  const css = (stamp, ns) => (ns === null ? 'absent' : stamp === 'ended' ? 'bad' : null);
  const rows = request.ledger.map(([stamp, ns]) => el('tr',
    {class: css(stamp, ns), 'data-stamp': stamp},
    el('th', {scope: 'row', class: 'label'}, stamp),
    el('td', {class: 'num'}, ns === null ? 'absent' : count(ns)),
    el('td', {class: 'meaning'}, data.meanings[stamp] ?? '')));
  const heads = [el('th', {scope: 'col'}, 'Stamp'),
    el('th', {scope: 'col', class: 'num'}, 'ns since the first'),
    el('th', {scope: 'col'}, 'When')];
  return table('ledger', 'Every stamp of the request', heads, rows);
}

function pairs(name, held) {
  const rows = held.map(([key, value]) => el('tr', {'data-attribute': key},
    el('th', {scope: 'row', class: 'mono'}, key), el('td', {}, value)));
  const heads = [el('th', {scope: 'col', class: 'unseen'}, 'Name'),
    el('th', {scope: 'col', class: 'unseen'}, 'Value')];
  return table('facts-table', name, heads, rows);
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Browsers that do not trust a file: by way of a selection.
    const field = el('textarea', {class: 'unseen'}, text);
    document.body.append(field);
    field.select();
    document.execCommand('copy');
    field.remove();
  }
  say(`${what} copied`);
}

function id(what, text, target) {
  const shown = target ? el('a', {href: requestHref(target), class: 'mono'}, text)
    : el('span', {class: 'mono'}, text);
  const button = el('button', {
    type: 'button', class: 'button', 'aria-label': `Copy the ${what}`,
    on: async () => {
      await copy(text, what);
      button.textContent = 'copied';
    },
  }, 'copy');
  return el('div', {'data-id': what}, el('dt', {}, what), el('dd', {}, shown, button));
}

function parentId(request) {
  if (!request.parent) {
    return el('div', {'data-id': 'parent id'}, el('dt', {}, 'parent id'),
      el('dd', {}, 'none: the request starts its trace'));
  }
  const target = bySpan.get(request.parent);
  const known = target && target.trace === request.trace ? target : null;
  const made = id('parent id', request.parent, known);
  if (!known) made.querySelector('dd').append(el('span', {class: 'tag'}, 'not on this page'));
  return made;
}

function drawRequest(request) {
  const route = routeByNumber.get(request.route);
  const covered = request.stages.reduce((sum, [, , long]) => sum + long, 0);
  const missing = request.total_ns - covered;
  const title = `${request.method} ${request.path || '(no path)'}`;
  $('request').hidden = false;
  $('request').replaceChildren(
    el('h2', {id: 'request-title', tabindex: '-1'}, title, ' ',
      el('span', {class: 'mono'}, duration(request.total_ns)), failureTag(request)),
    el('p', {class: 'note'},
      `${request.at}, status ${request.status ?? 'unknown'}, of `,
      el('a', {href: routeHref(route)}, routeName(route)), '. ',
      missing ? `${exact(missing)} are in no stage that was recorded here.`
        : `Its stages add up to it: ${exact(request.total_ns)}.`,
      request.acked_ns === null ? null
        : ` Its client acknowledged all of it ${duration(request.acked_ns)} after its end.`),
    el('dl', {class: 'ids'}, id('trace id', request.trace), id('span id', request.span),
      parentId(request)),
    waterfall(request),
    el('div', {class: 'columns'},
      el('div', {}, el('h3', {}, 'Ledger'), ledger(request)),
      el('div', {}, el('h3', {}, 'Attributes'), pairs('Attributes', request.attributes),
        el('h3', {}, 'Whose it was'), pairs('Resource', data.resources[request.resource]))));
}
