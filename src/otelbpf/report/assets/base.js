// SPDX-License-Identifier: Apache-2.0
'use strict';
// Elements and words. Text that clients wrote gets into the page as text only, never as markup.

const data = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);

/** An element; children may be text. Options are attributes, and `on` is what a click does. */
function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === 'on') made.addEventListener('click', value);
    else if (value === true) made.setAttribute(name, '');
    else if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(name, value);
    }
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A duration with three digits and its unit. */
function duration(ns) {
  if (Math.abs(ns) < 1000) return `${ns}\u00a0ns`;
  let number = ns / 1000;
  let unit = '\u00b5s';
  for (const larger of ['ms', 's']) {
    if (Math.abs(number) < 999.5) break;
    number /= 1000;
    unit = larger;
  }
  const size = Math.abs(number);
  return `${number.toFixed(size < 9.995 ? 2 : size < 99.95 ? 1 : 0)}\u00a0${unit}`;
}

const count = (number) => number.toLocaleString('en');
const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? '' : 's'}`;
const exact = (ns) => `${count(ns)}\u00a0ns`;

function percent(part, whole) {
  if (!whole) return '\u2013';
  const share = (100 * part) / whole;
  if (share > 0 && share < 0.1) return '<0.1%';
  return `${share >= 99.95 ? share.toFixed(0) : share.toFixed(1)}%`;
}

function perSecond(rate) {
  if (rate === null) return '\u2013';
  return rate < 9.95 ? rate.toPrecision(2) : count(Math.round(rate));
}

/** `nic_to_tc` as `nic -> tc`, with a real arrow. */
const stageName = (name) => name.replace('_to_', ' \u2192 ');

/** What colours a stage: who had the request, and a shade. */
const markOf = (stage, kind) =>
  `${data.stages[stage].owner[kind]} shade-${data.stages[stage].shade}`;

const stageLabel = (stage, kind) => el('span', {class: 'label'},
  el('span', {class: `swatch ${markOf(stage, kind)}`}), stageName(data.stages[stage].name));

/** What comes after a request's end, and is in no sum: its client's acknowledgement. */
const ackedLabel = () => el('span', {class: 'label', title: data.meanings.acked},
  el('span', {class: 'swatch after'}), 'end \u2192 acked');

const routeName = (route) =>
  [route.method, `${route.host}${route.template}` || '(no path)'].filter(Boolean).join(' ');

const services = new Set(data.routes.map((route) => route.service));
const ports = new Set(data.routes.map((route) => route.port).filter(Boolean));

/** What tells routes of the same name apart. */
function routeTags(route) {
  const tags = [];
  if (route.kind === 'client') tags.push(el('span', {class: 'tag'}, 'to an upstream'));
  if (route.port && ports.size > 1) tags.push(el('span', {class: 'tag'}, `port ${route.port}`));
  if (route.service && services.size > 1) tags.push(el('span', {class: 'tag'}, route.service));
  return tags;
}

const failureTag = (request) => (request.error
  ? el('span', {class: 'tag error'}, request.error) : null);

/** Roles are said because on narrow screens CSS lays the rows out otherwise, which drops them. */
function table(name, caption, heads, rows) {
  const head = el('tr', {role: 'row'}, heads);
  for (const cell of head.children) cell.setAttribute('role', 'columnheader');
  for (const row of rows) {
    row.setAttribute('role', 'row');
    for (const cell of row.children) {
      cell.setAttribute('role', cell.tagName === 'TH' ? 'rowheader' : 'cell');
    }
  }
  return el('table', {class: name, role: 'table'},
    el('caption', {class: 'unseen'}, caption),
    el('thead', {role: 'rowgroup'}, head), el('tbody', {role: 'rowgroup'}, rows));
}

const number = (label, text, title) => el('td', {class: 'num', 'data-label': label, title}, text);

function say(text) {
  $('said').textContent = text;
}
