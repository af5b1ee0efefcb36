// Which view is open, the way back, light and dark.
let openedFrom = '';

function jump(id) {
  const target = $(id);
  if (!target) return;
  target.scrollIntoView();
  const heading = target.querySelector('h2') || target;
  heading.focus({preventScroll: true});
}

// colours once chosen stay, also where an address says nothing of them
let theme = '';
function applyTheme() {
  if (state.theme !== undefined) theme = ['light', 'dark'].includes(state.theme) ? state.theme : '';
  if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
  $('theme').value = theme;
}

// How many entries of the history lie between this run and the table that it was opened from: Esc goes back over them and
// leaves none behind. A run that was opened by its address has no table before it: null.
let lastDepth = null;
function depthOf() {
  if (!state.run) return 0;
  if (history.state && history.state.depth !== undefined) return history.state.depth;
  const depth = lastDepth === null ? null : lastDepth + 1;
  history.replaceState({depth}, '');
  return depth;
}

function toTable() {
  if (!state.run) return;
  if (lastDepth) { history.go(-lastDepth); return; }
  history.replaceState(null, '', lastComparison || '#');
  show();
}

function show() {
  const before = openedFrom;
  readHash();
  lastDepth = depthOf();
  applyTheme();
  openedFrom = state.run || '';
  $('compare').hidden = Boolean(state.run);
  $('run').hidden = !state.run;
  if (state.run) {
    openRun(state.run, state.at);
    return;
  }
  document.title = index.title;
  fill($('run'));
  lastComparison = hashOf({...state, at: ''});
  $('search').value = state.q || '';
  $('fold').checked = Boolean(state.single);
  drawLeaderboard();
  drawColumnChoice();
  if (index.metrics.length) { paretoControls(); parallelControls(); }
  if (index.keys.length > 1 && index.metrics.length) heatControls();
  if (index.curves.length) curveControls();
  chartsChanged();
  if (before) {
    // back where one came from: the run itself, or its setting's row
    const group = (index.runs.find(run => run.id === before) || {}).group;
    const link = document.querySelector(`a.open[data-run="${CSS.escape(before)}"]`)
      || (group === undefined ? null : document.querySelector(`a.open[data-run="${CSS.escape(folded[group].run.id)}"]`));
    if (link) { link.focus(); link.scrollIntoView({block: 'center'}); return; }
  }
  if (state.at) jump(state.at);
}

// the colours of plots are drawn, not styled; nothing else changes, least of all what has the focus
function redraw() {
  applyTheme();
  if (state.run) for (const chart of runCharts) chart(); else chartsChanged();
}

$('theme').addEventListener('change', event => { theme = event.target.value; choose({theme}); redraw(); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
addEventListener('hashchange', show);
document.addEventListener('keydown', event => {
  if (!state.run || event.target.matches('select, input')) return;
  const back = event.altKey && event.key === 'ArrowLeft';
  if (event.key !== 'Escape' && !back) return;
  event.preventDefault();
  if (back) history.back(); else toTable();
});
// contents and other links within the page keep the reader's choices
document.addEventListener('click', event => {
  const skip = event.target.closest('a.skip');
  if (skip) {
    event.preventDefault();
    const wanted = state.run ? $(skip.dataset.run) || $('run-title') : skip.dataset.skip === 'rows' ? currentLink() || $('h-leaderboard') : $(skip.dataset.skip);
    wanted.focus();
    wanted.scrollIntoView({block: 'nearest'});
    return;
  }
  if (event.target.closest('#back')) {
    event.preventDefault();
    toTable();
    return;
  }
  const link = event.target.closest('a[data-at]');
  if (!link) return;
  event.preventDefault();
  choose({at: link.dataset.at});
  jump(link.dataset.at);
});

startLeaderboard();
// a sweep without a finished run has no numbers, one without swept settings no axes
if (index.metrics.length) { addChart('pareto', drawPareto); addChart('parallel', drawParallel); }
if (index.keys.length > 1 && index.metrics.length) addChart('heat', drawHeat);
if (index.curves.length) addChart('curves', drawCurves);
show();
document.documentElement.dataset.ready = 'true';
performance.mark('rapidun-interactive');
