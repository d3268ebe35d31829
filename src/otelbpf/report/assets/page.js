// SPDX-License-Identifier: Apache-2.0
// The page as a whole: what is above and below the routes, and what the address shows.

const figure = (label, value, note, css) => el('div', {'data-figure': label},
  el('dt', {}, label), el('dd', {class: css}, value, note ? el('small', {}, note) : null));

const KIND_NAMES = {server: 'Requests', client: 'Requests to upstreams'};

function drawSummary() {
  const names = [...services].filter(Boolean).join(', ');
  $('facts').textContent = `${names ? `${names}. ` : ''}${data.first.slice(0, 19).replace('T', ' ')}`
    + ` to ${data.last.slice(0, 19).replace('T', ' ')} UTC (${duration(data.seconds * 1e9)}).`
    + ` From ${data.files.join(', ')}.`;
  const tiles = Object.entries(data.kinds).map(([kind, {failed, total}]) =>
    el('dl', {class: 'panel figures', 'data-kind': kind},
      figure(KIND_NAMES[kind], count(total.count),
        data.seconds ? `${perSecond(total.count / data.seconds)} per s` : null),
      figure('Errors', count(failed), percent(failed, total.count), failed ? 'bad' : null),
      figure('Median', duration(total.median_ns), `p90 ${duration(total.p90_ns)}`),
      figure('p99', duration(total.p99_ns), `most ${duration(total.most_ns)}`)));
  const sums = data.sums;
  const lost = sums ? total(sums.lost) : 0;
  tiles.push(el('dl', {class: 'panel figures alone'}, sums
    ? figure('Lost', count(lost), `of ${count(sums.seen)} seen`, lost ? 'bad' : null)
    : figure('Lost', '?', 'no sums were given')));
  $('summary').replaceChildren(...tiles);
}

const total = (counts) => Object.values(counts).reduce((sum, each) => sum + each, 0);

function drawLosses() {
  const heading = el('h2', {id: 'losses-title'}, 'What became of every request');
  const sums = data.sums;
  if (!sums) {
    $('losses').replaceChildren(heading, el('p', {class: 'note'},
      'The sums were not given, so what was sampled out or lost is not known here: ',
      el('code', {}, 'otelbpf run --sums-file SUMS'), ' writes them, ',
      el('code', {}, 'otelbpf report --sums SUMS'), ' shows them.'));
    return;
  }
  const lost = total(sums.lost);
  const parts = [[sums.exported, 'exported', 'exported'],
    [sums.sampled_out, 'sampled out', 'sampled'], [lost, 'lost', 'lost']];
  if (sums.in_flight) parts.push([sums.in_flight, 'in flight', 'flying']);
  const equation = el('p', {class: 'equation', id: 'equation'}, `seen ${count(sums.seen)}`,
    parts.map(([many, text, css], i) => [
      el('span', {class: 'sign'}, i ? '+' : '='),
      el('span', {}, el('span', {class: `swatch ${css}`}), `${text} ${count(many)}`)]).flat());
  const notes = Object.entries(sums.lost).filter(([, many]) => many).map(([reason, many]) =>
    el('li', {'data-lost': reason}, `${count(many)} lost, `, el('code', {}, reason), ': ',
      data.reasons[reason] ?? 'a reason that this version does not know'));
  if (total(Object.fromEntries(parts.map(([many, text]) => [text, many]))) !== sums.seen) {
    notes.push(el('li', {class: 'bad'}, 'These numbers do not add up: the file was changed.'));
  }
  for (const [hook, many] of Object.entries(sums.missed)) {
    if (many) {
      notes.push(el('li', {}, `${counted(many, 'call')} of `, el('code', {}, hook),
        ' missed, since another program ran there: what it would have stamped is absent.'));
    }
  }
  for (const sentence of data.unjoined) notes.push(el('li', {}, `${sentence}.`));
  if (sums.connections.not_http) {
    notes.push(el('li', {},
      `${counted(sums.connections.not_http, 'connection')} spoke something other than HTTP/1, be`
      + ' it from the start or after a 101 or CONNECT, and was left alone then.'));
  }
  if (sums.exported !== sums.seen) {
    notes.push(el('li', {}, 'Rates and distributions above are of what was exported.'));
  }
  if (data.requests_read !== sums.exported) {
    notes.push(el('li', {}, `${counted(data.requests_read, 'request')} were read here, and`
      + ` ${count(sums.exported)} exported: the spans and the sums are not of the same run, or not`
      + ' of all of it.'));
  }
  $('losses').replaceChildren(heading, equation,
    tiled(parts.map(([many, text, css]) => [css, many, text]), Math.max(1, sums.seen), 'sums'),
    notes.length ? el('ul', {class: 'plain note'}, notes) : null);
}

function drawAbout() {
  const shown = data.requests.length;
  const most = data.most;
  const notes = [
    'A percentile is the smallest duration that so many of 100 do not exceed: always one that was'
      + ' measured. Distributions are of all requests.',
    `Single requests are the ${most.slowest} slowest of each route, and what is below them:`
      + ` ${count(shown)} of ${counted(data.requests_read, 'request')}.`,
    data.failed_shown < data.failed_read
      ? `Of ${counted(data.failed_read, 'error')} the latest ${count(data.failed_shown)} are shown.`
      : data.failed_read && 'Every error is shown.',
    data.routes_merged && `${count(data.routes_merged)} routes with few requests share a place:`
      + ` ${most.routes} have one of their own.`,
    data.below_left_out && `${counted(data.below_left_out, 'span')} below requests are left out:`
      + ` up to ${most.below} are shown of each.`,
    data.untiled && `${counted(data.untiled, 'request')} of ${count(data.requests_read)} lack stages`
      + ' that were not in these files.',
    data.orphans && `${counted(data.orphans, 'stage')} had no request in these files, and are left`
      + ' out.',
    data.torn_lines && `${counted(data.torn_lines, 'line')} of these files were not whole, as a`
      + ' writer leaves that is killed or has no room, and are left out.',
    `Made by otelbpf ${data.version} from ${counted(data.spans_read, 'span')}.`
      + ' This page fetches nothing.',
  ].filter(Boolean);
  $('about').replaceChildren(el('h2', {id: 'about-title'}, 'What this page shows'),
    el('ul', {class: 'plain note'}, notes.map((text) => el('li', {}, text))));
}

let drawnRoute = null;

function showRoute(route) {
  if (route === drawnRoute) return;
  drawnRoute = route;
  drawRoutes(route);
  drawRoute(route);
}

function show(title) {
  // The section at the top of the window; the focus where reading goes on.
  title.closest('section').scrollIntoView();
  title.focus({preventScroll: true});
}

function follow() {
  const [, what, which] = /^#(route|request)-(.+)$/.exec(location.hash) ?? [];
  const request = what === 'request' ? bySpan.get(which) : undefined;
  const route = what === 'route' ? routeByNumber.get(Number(which)) : undefined;
  if (request) {
    showRoute(routeByNumber.get(request.route));
    drawRequest(request);
    show($('request-title'));
  } else {
    showRoute(route ?? drawnRoute ?? data.routes[0]);
    if (route) {
      $('request').hidden = true;
      show($('route-title'));
    }
  }
}

drawSummary();
drawLosses();
drawAbout();
window.addEventListener('hashchange', follow);
follow();
