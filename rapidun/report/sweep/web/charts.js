// What all plots share: the drawing library (unpacked once the page can be used), colours, when to draw again.
let library = null;
function plotly() {
  library ||= block('plotly').then(source => {
    // the page's policy names this script's hash; nothing else could be run this way
    document.head.append(el('script', {textContent: source}));
    return window.Plotly;
  });
  return library;
}

// told apart with any colour vision; the same order everywhere
const PALETTE = {light: ['#0a7562', '#c4610c', '#2671b0', '#a8327d', '#7a6a00', '#555555', '#5b3fa8', '#b93a32'],
                 dark: ['#3dc0a8', '#ef934d', '#68b0e8', '#e58bc4', '#d5c04a', '#b0b0b0', '#ab96f0', '#f0807a']};
const isDark = () => getComputedStyle(document.documentElement).colorScheme === 'dark' || (getComputedStyle(document.documentElement).colorScheme !== 'light' && matchMedia('(prefers-color-scheme: dark)').matches);
const palette = () => PALETTE[isDark() ? 'dark' : 'light'];
const colour = name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
const scale = () => isDark() ? [[0, '#23344a'], [0.5, '#2f8f8a'], [1, '#f5e27a']] : [[0, '#f3e9c8'], [0.5, '#4fa095'], [1, '#1d3f66']];

function layout(more) {
  const axis = {gridcolor: colour('line'), zerolinecolor: colour('line'), linecolor: colour('muted'), automargin: true};
  const {xaxis = {}, yaxis = {}, ...rest} = more;
  return {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: {family: 'system-ui, "Liberation Sans", sans-serif', size: 13, color: colour('ink')},
    margin: {l: 56, r: 16, t: 16, b: 48}, hovermode: 'closest', showlegend: false, hoverlabel: {align: 'left', bgcolor: colour('card'), font: {color: colour('ink')}},
    xaxis: {...axis, ...xaxis}, yaxis: {...axis, ...yaxis}, ...rest,
  };
}

async function plot(place, traces, more, description) {
  const Plotly = await plotly();
  place.setAttribute('aria-label', description);
  const onPaper = document.documentElement.classList.contains('printing');
  await Plotly.react(place, traces, {...layout(more), ...(onPaper ? {width: place.clientWidth} : {})}, {displayModeBar: false, responsive: true, doubleClick: 'reset'});
  if (place.dataset.paper && !onPaper) Plotly.Plots.resize(place);
  if (onPaper) place.dataset.paper = 'true'; else delete place.dataset.paper;
  return place;
}

const axisOf = metric => ({title: {text: metric.label}, ...(metric.kind === 'share' ? {tickformat: '.0%', rangemode: 'nonnegative'} : {})});
// a text in a hover label may not be read as markup, which the library allows for bold and breaks
const plain = text => String(text).replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');

// Limits of an axis whose numbers are one: a tenth of it on either side, a half around 0; null where they differ.
function aroundConstant(values, least = 0) {
  const known = values.filter(value => Number.isFinite(value));
  if (!known.length) return null;
  const low = Math.min(...known), high = Math.max(...known), size = Math.max(Math.abs(low), Math.abs(high));
  if (high - low > 1e-6 * size) return null;
  const half = Math.max(0.1 * size || 0.5, least);
  return [(low + high) / 2 - half, (low + high) / 2 + half];
}
const rangeOf = (values, least) => { const range = aroundConstant(values, least); return range ? {range} : {}; };

// Sections with a plot. All are drawn, one after the other while nothing else is to do, those in view first: a plot that
// waits until somebody looks at it is a blank in print and in a picture of the whole page. Again when rows or colours change.
const charts = new Map();
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) {
    const chart = charts.get(entry.target.id);
    chart.inView = entry.isIntersecting;
    if (chart.inView && chart.stale) drawChart(chart);
  }
}, {rootMargin: '250px'});
const idle = window.requestIdleCallback ? work => requestIdleCallback(work, {timeout: 500}) : work => setTimeout(work, 30);
let drawing = false;
function drawRest() {
  if (drawing) return;
  drawing = true;
  const step = async () => {
    const chart = $('compare').hidden ? null : [...charts.values()].find(one => one.stale);
    if (chart) { await drawChart(chart); idle(step); return; }
    drawing = false;
    // a run's page says so itself
    if (!$('compare').hidden) allDrawn();
  };
  idle(step);
}

// The page counts as loaded when its first plots are there: a document that stays open in a hidden frame holds it so long,
// and whoever takes a picture of a loaded page has them in it.
let hold = el('iframe', {hidden: true, title: 'plots are being drawn'});
document.body.append(hold);
hold.contentDocument.open();
function allDrawn() {
  document.documentElement.dataset.charts = 'drawn';
  if (!hold) return;
  hold.contentDocument.close();
  hold.remove();
  hold = null;
}

// Paper is white and narrow: plots are drawn for it, and for the screen again behind it.
let themeOnScreen = '';
const redrawAll = () => [...($('compare').hidden ? runCharts : [...charts.values()].map(chart => () => drawChart(chart)))].map(draw => draw());
addEventListener('beforeprint', () => {
  const root = document.documentElement;
  themeOnScreen = root.dataset.theme;
  root.dataset.theme = 'light';
  root.classList.add('printing');
  redrawAll();
});
addEventListener('afterprint', () => {
  const root = document.documentElement;
  root.classList.remove('printing');
  if (themeOnScreen) root.dataset.theme = themeOnScreen; else delete root.dataset.theme;
  redrawAll();
});

function addChart(id, draw) {
  charts.set(id, {draw, stale: true, inView: false, id});
  watcher.observe($(id));
}

async function drawChart(chart) {
  chart.stale = false;
  try {
    await chart.draw();
    $(chart.id).dataset.drawn = 'true';
  } catch (error) {
    fill($(chart.id).querySelector('.message'), `This plot could not be drawn: ${error.message}`);
  }
}

let waiting = 0;
function chartsChanged() {
  clearTimeout(waiting);
  delete document.documentElement.dataset.charts;
  waiting = setTimeout(() => {
    for (const chart of charts.values()) {
      chart.stale = true;
      delete $(chart.id).dataset.drawn;
      if (chart.inView && !$('compare').hidden) drawChart(chart);
    }
    drawRest();
  }, 120);
}

function rowsChanged() {
  drawRows();
  chartsChanged();
}
