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

function show() {
  const before = openedFrom;
  readHash();
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
  if (index.keys.length && index.metrics.length) heatControls();
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

function redraw() {
  applyTheme();
  if (state.run) openRun(state.run); else chartsChanged();
}

$('theme').addEventListener('change', event => { theme = event.target.value; choose({theme}); redraw(); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
addEventListener('hashchange', show);
document.addEventListener('keydown', event => {
  if (!state.run || event.target.matches('select, input')) return;
  const back = event.altKey && event.key === 'ArrowLeft';
  if (event.key !== 'Escape' && !back) return;
  event.preventDefault();
  if (back) history.back(); else $('back').click();
});
// contents and other links within the page keep the reader's choices
document.addEventListener('click', event => {
  if (event.target.closest('a.skip')) {
    event.preventDefault();
    (state.run ? $('run-title') : $('h-leaderboard')).focus();
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
if (index.keys.length && index.metrics.length) addChart('heat', drawHeat);
if (index.curves.length) addChart('curves', drawCurves);
show();
document.documentElement.dataset.ready = 'true';
performance.mark('rapidun-interactive');
