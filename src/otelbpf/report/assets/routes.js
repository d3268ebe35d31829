// SPDX-License-Identifier: Apache-2.0
// The table of routes, and one route: its stages' distributions and its requests.

const COLUMNS = [
  {key: 'route', label: 'Route', value: (route) => routeName(route), first: 'ascending'},
  {key: 'time', label: 'Where the time goes'},
  {key: 'count', label: 'Requests', value: (route) => route.total.count},
  {key: 'rate', label: 'Per s', value: (route) => route.rate ?? 0},
  {key: 'errors', label: 'Errors', value: (route) => route.failed / route.total.count},
  {key: 'median', label: 'Median', value: (route) => route.total.median_ns},
  {key: 'p90', label: 'p90', value: (route) => route.total.p90_ns},
  {key: 'p99', label: 'p99', value: (route) => route.total.p99_ns},
];
const order = {key: 'p99', direction: 'descending'};

const routeHref = (route) => `#route-${route.number}`;
const requestHref = (request) => `#request-${request.span}`;

function sortedRoutes() {
  const value = COLUMNS.find((column) => column.key === order.key).value;
  const sign = order.direction === 'ascending' ? 1 : -1;
  return [...data.routes].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    return a === b ? 0 : sign * (a < b ? -1 : 1);
  });
}

function sortBy(column, shown) {
  const first = column.first ?? 'descending';
  const other = first === 'descending' ? 'ascending' : 'descending';
  order.direction = order.key === column.key && order.direction === first ? other : first;
  order.key = column.key;
  drawRoutes(shown);
  $('routes-body').querySelector(`[data-key="${column.key}"]`).focus();
}

function headOf(column, shown) {
  const numeric = column.key !== 'route' && column.key !== 'time';
  const options = {scope: 'col', class: numeric ? 'num' : column.key === 'time' ? 'wide' : 'name'};
  if (order.key === column.key) options['aria-sort'] = order.direction;
  if (!column.value) return el('th', options, column.label);
  return el('th', options, el('button', {
    type: 'button', 'data-key': column.key, on: () => sortBy(column, shown),
  }, column.label));
}

/** The share of each stage in the time of all requests of the route. */
function routeBar(route) {
  return tiled(route.stages.map((stage) => [
    markOf(stage.stage, route.kind), stage.sum_ns,
    `${stageName(data.stages[stage.stage].name)} ${percent(stage.sum_ns, route.total.sum_ns)}`,
  ]), Math.max(1, route.total.sum_ns));
}

function drawRoutes(shown) {
  const rows = sortedRoutes().map((route) => {
    const here = route === shown;
    const total = route.total;
    return el('tr', {class: here ? 'here' : null, 'data-route': route.number},
      el('th', {scope: 'row', class: 'name'},
        el('a', {href: routeHref(route), 'aria-current': here ? 'true' : null}, routeName(route)),
        routeTags(route)),
      el('td', {class: 'wide'}, routeBar(route)),
      number('requests', count(total.count)),
      number('per s', perSecond(route.rate)),
      number('errors', route.failed
        ? el('span', {class: 'bad'}, `${count(route.failed)} (${percent(route.failed, total.count)})`)
        : '0'),
      number('median', duration(total.median_ns), exact(total.median_ns)),
      number('p90', duration(total.p90_ns), exact(total.p90_ns)),
      number('p99', duration(total.p99_ns), exact(total.p99_ns)));
  });
  $('routes-body').replaceChildren(ownerLegend(), table('rows cards',
    'Routes: requests, rate, errors and duration', COLUMNS.map((each) => headOf(each, shown)),
    rows));
}

/** `whole` is what it is a part of; null: of nothing. */
function distributionRow(label, found, axis, mark, whole, options = {}) {
  return el('tr', options,
    el('th', {scope: 'row'}, label),
    el('td', {class: 'chart'}, strip(found, axis, mark)),
    number('median', duration(found.median_ns), exact(found.median_ns)),
    number('p90', duration(found.p90_ns), exact(found.p90_ns)),
    number('p99', duration(found.p99_ns), exact(found.p99_ns)),
    number('of the time', whole ? percent(found.sum_ns, whole.sum_ns) : '\u2013'),
    number('requests', count(found.count)));
}

function distributions(route) {
  const acked = route.acked === null ? [] : [route.acked];
  const axis = logAxis([route.total, ...route.stages, ...acked]);
  const rows = [
    distributionRow('whole request', route.total, axis, 'whole shade-0', route.total,
      {'data-stage': 'whole'}),
    ...route.stages.map((stage) => distributionRow(stageLabel(stage.stage, route.kind), stage, axis,
      markOf(stage.stage, route.kind), route.total,
      {'data-stage': data.stages[stage.stage].name})),
    ...acked.map((found) => distributionRow(ackedLabel(), found, axis, 'peer shade-2', null,
      {class: 'outside', 'data-after': 'acked'})),
  ];
  const heads = [
    el('th', {scope: 'col'}, 'Stage'),
    el('th', {scope: 'col', class: 'chart'}, el('span', {class: 'unseen'}, 'Distribution'),
      logLabels(axis)),
    ...['Median', 'p90', 'p99', 'Time', 'Requests'].map((text) =>
      el('th', {scope: 'col', class: 'num'}, text)),
  ];
  return table('distributions', 'Distribution of each stage\u2019s duration', heads, rows);
}

function requestRow(request, longest) {
  const bar = tiledRequest(request);
  bar.style.width = `max(3px, ${share(longest ? request.total_ns / longest : 1)})`;
  return el('tr', {'data-request': request.span},
    el('th', {scope: 'row', class: 'name'},
      el('a', {href: requestHref(request)}, `${request.method} ${request.path || '(no path)'}`),
      failureTag(request)),
    el('td', {class: 'wide'}, bar),
    number('status', request.status === null ? '\u2013' : String(request.status)),
    number('at', request.at.slice(11, 23), request.at),
    number('took', duration(request.total_ns), exact(request.total_ns)));
}

function requestTable(name, numbers) {
  const requests = numbers.map((each) => data.requests[each]);
  const longest = Math.max(...requests.map((each) => each.total_ns));
  const heads = [['Request', 'name'], ['Stages', 'wide'], ['Status', 'num'], ['At (UTC)', 'num'],
    ['Took', 'num']].map(([text, css]) => el('th', {scope: 'col', class: css}, text));
  return table('rows cards', name, heads, requests.map((each) => requestRow(each, longest)));
}

function drawRoute(route) {
  const many = route.total.count;
  const parts = [
    el('h2', {id: 'route-title', tabindex: '-1'}, routeName(route), routeTags(route)),
    el('p', {class: 'note'}, `${counted(many, 'request')}, ${counted(route.failed, 'error')}.`),
    stripLegend(), distributions(route),
    el('h3', {}, route.slowest.length < many
      ? `The ${route.slowest.length} slowest of ${count(many)}` : 'All, the slowest first'),
    requestTable('The slowest requests of this route', route.slowest),
  ];
  if (route.failures.length) {
    parts.push(el('h3', {}, route.failures.length < route.failed
      ? `The latest ${route.failures.length} of ${counted(route.failed, 'error')}`
      : counted(route.failed, 'error')),
    requestTable('The requests of this route that failed', route.failures));
  }
  $('route').replaceChildren(...parts);
}
