// Small helpers. Everything of a run is put into the page as text (textContent), never as HTML.
const index = JSON.parse(document.getElementById('index').textContent);
const $ = id => document.getElementById(id);

// el('td', {className: 'n', onclick: f, 'aria-label': '...'}, child, 'text', ...): attributes with a dash are set as such
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name in element && !name.includes('-') && name !== 'list' && name !== 'for') element[name] = value;
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== ''));
  return element;
}

function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(child => child !== null && child !== undefined));
}

// the same for controls that a choice makes anew: what had the focus has it again, by its name
function refill(element, ...children) {
  const held = element.contains(document.activeElement) ? document.activeElement.name : '';
  fill(element, ...children);
  if (held) element.querySelector(`[name="${CSS.escape(held)}"]`)?.focus({preventScroll: true});
}

// one stop for the Tab key among many: the arrow keys move between them, Home and End to the ends
function roving(elements, current) {
  for (const element of elements) element.tabIndex = element === current ? 0 : -1;
}

// blocks of details: gzip in base64, unpacked once when first asked for
const unpacked = new Map();
function block(name) {
  if (!unpacked.has(name)) {
    const source = $('block-' + name);
    unpacked.set(name, source ? unzip(source.textContent).then(text => name === 'plotly' ? text : JSON.parse(text)) : Promise.resolve(null));
  }
  return unpacked.get(name);
}

async function unzip(base64) {
  const bytes = Uint8Array.from(atob(base64.trim()), character => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Response(stream).text();
}

const MINUS = '\u2212', DASH = '\u2013';

// three significant digits, plain from 0.001 to a million: the same rule as in the tables on the screen
function formatNumber(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return DASH;
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace(/-/g, MINUS);
  return value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(size)))).replace('-', MINUS);
}

function formatMetric(value, metric) {
  if (value === null || value === undefined) return DASH;
  if (metric.kind === 'share') return (100 * value).toFixed(1).replace('-', MINUS) + '\u00a0%';
  if (metric.kind === 'score') return value.toFixed(3).replace('-', MINUS);
  return formatNumber(value);
}

// the number as it is shown, so that filters read what the reader sees
const shownNumber = (value, metric) => metric.kind === 'share' ? 100 * value : value;

const plural = (count, word) => `${count} ${word}${count === 1 ? '' : 's'}`;

function compareValues(a, b) {
  const x = Number(a), y = Number(b);
  const numeric = a !== '' && b !== '' && !Number.isNaN(x) && !Number.isNaN(y);
  return numeric ? x - y : String(a).localeCompare(String(b), 'en', {numeric: true});
}

// a labelled <select>; options: [[value, text], ...] or groups {label, options}
function choice(label, name, options, value, onchange) {
  const option = ([key, text]) => el('option', {value: key, selected: String(key) === String(value)}, text);
  const select = el('select', {name, onchange: event => onchange(event.target.value)},
    options.map(one => Array.isArray(one) ? option(one) : el('optgroup', {label: one.label}, one.options.map(option))));
  return el('label', {className: 'choice'}, el('span', {}, label), select);
}

const metricOptions = () => {
  const main = index.shown.map(place => [place, index.metrics[place].label]);
  const rest = index.metrics.map((metric, place) => [place, metric.label]).filter(([place]) => !index.shown.includes(place));
  return rest.length ? [{label: 'main', options: main}, {label: 'all others', options: rest}] : main;
};
const keyOptions = () => index.keys.map((key, place) => [place, key.name]);
