// The leaderboard: sorted by a click on a heading, filtered by the row of fields below it, opened by Enter or a click.
// The Tab key stops at one heading, one field and one row; the arrow keys lead to the others.
const MANY = 200;
let showAll = false;
// the column and the row at which the Tab key stops
let stopColumn = '', stopRow = '';

function stopAtColumn(id) {
  stopColumn = id;
  for (const kind of ['button.sort', 'input.filter']) {
    const all = [...$('board-head').querySelectorAll(kind)];
    roving(all, all.find(one => one.dataset.column === id) || all[0]);
  }
}

const currentRow = () => [...$('board-body').rows].find(row => row.dataset.run === stopRow) || $('board-body').rows[0];
const currentLink = () => currentRow()?.querySelector('a.open');
function stopAtRow(id) {
  stopRow = id;
  const current = currentRow();
  for (const row of $('board-body').rows) for (const one of row.querySelectorAll('a.open, input')) one.tabIndex = row === current ? 0 : -1;
}

// arrows between headings, the fields below them, and the rows
function headKeys(event) {
  const at = event.target.closest('button.sort, input.filter');
  if (!at) return;
  const isField = at.matches('input'), all = [...$('board-head').querySelectorAll(isField ? 'input.filter' : 'button.sort')];
  const place = all.indexOf(at), of = kind => $('board-head').querySelector(`${kind}[data-column="${CSS.escape(at.dataset.column)}"]`);
  const next = {ArrowDown: isField ? currentLink() : of('input.filter'), ArrowUp: isField ? of('button.sort') : null,
    ...(isField ? {} : {ArrowRight: all[place + 1], ArrowLeft: all[place - 1], Home: all[0], End: all[all.length - 1]})}[event.key];
  if (!next) return;
  event.preventDefault();
  next.focus();
}

function drawLeaderboard() {
  const ids = shownColumns(), columns = ids.map(column);
  const sort = state.sort || defaultSort(), descending = state.dir === 'desc';
  const heading = one => {
    const active = one.id === sort;
    const button = el('button', {type: 'button', className: 'sort', title: one.title, 'data-column': one.id, onclick: () => {
      choose({sort: one.id, dir: active && !descending ? 'desc' : ''});
      drawLeaderboard();
      document.querySelector(`button.sort[data-column="${CSS.escape(one.id)}"]`).focus();
    }}, shortTitle(one), el('span', {className: 'arrow', 'aria-hidden': 'true'}, active ? (descending ? ' ▼' : ' ▲') : ''));
    return el('th', {scope: 'col', className: numeric(one) ? 'n' : '', 'aria-sort': active ? (descending ? 'descending' : 'ascending') : null}, button);
  };
  const filter = one => el('td', {}, el('input', {
    type: 'text', className: 'filter', 'data-column': one.id, value: state['f.' + one.id] || '', 'aria-label': `filter ${one.title}`,
    placeholder: one.metric !== undefined ? '<' : '', spellcheck: false,
    oninput: event => { choose({['f.' + one.id]: event.target.value}); rowsChanged(); },
  }));
  fill($('board-head'),
    el('tr', {}, el('td', {}, el('span', {className: 'hidden'}, 'pick for plots')), columns.map(heading)),
    el('tr', {className: 'filters'}, el('td', {}), columns.map(filter)));
  stopAtColumn(ids.includes(stopColumn) ? stopColumn : sort);
  drawRows();
}

const numeric = one => one.metric !== undefined || one.id === 'n';
// 'unlearning.learning_rate' under its last word where that is unique; the full name is the tooltip
function shortTitle(one) {
  if (one.key === undefined) return one.title;
  const last = name => name.split('.').pop();
  const same = index.keys.filter(key => last(key.name) === last(one.title)).length > 1;
  return same ? one.title : last(one.title);
}

function drawRows() {
  const columns = shownColumns().map(column);
  const rows = sorted(visibleRows()), picked = selection();
  const shown = showAll ? rows : rows.slice(0, MANY);
  fill($('board-body'), shown.map(row => rowElement(row, columns, picked)));
  stopAtRow(stopRow);
  const all = state.single ? single : folded, what = state.single ? 'run' : 'setting';
  fill($('board-count'), rows.length === all.length ? plural(rows.length, what) : `${rows.length} of ${plural(all.length, what)}`);
  $('board-more').hidden = shown.length === rows.length;
  fill($('board-more'), `Show all ${rows.length} rows`);
}

function rowElement(row, columns, picked) {
  const failed = row.runs.some(run => FAILED.includes(run.state));
  const tick = el('input', {type: 'checkbox', checked: picked.has(row.run.id), 'aria-label': `pick ${row.label}`, onchange: event => {
    const now = selection();
    if (event.target.checked) now.add(row.run.id); else now.delete(row.run.id);
    choose({sel: [...now].join('~')});
    chartsChanged();
  }});
  return el('tr', {'data-run': row.run.id, className: row.n ? (eligible(row) ? '' : 'outside') : failed ? 'failed' : 'waiting', onclick: event => {
    if (!event.target.closest('a, input, button') && !String(getSelection())) location.hash = runHash(row.run);
  }}, el('td', {}, tick), columns.map(one => cellElement(row, one)));
}

function cellElement(row, one) {
  if (one.id === 'id') {
    return el('th', {scope: 'row', className: 'id'},
      // the hash that names its folder says nothing to a reader
      el('a', {href: runHash(row.run), className: 'open', 'data-run': row.run.id, title: row.run.id, 'aria-label': `open ${row.label}`}, 'open'),
      row.pareto ? el('span', {className: 'pareto', role: 'img', title: 'in the Pareto set', 'aria-label': 'in the Pareto set'}, ' ◆') : null,
      row.error ? el('span', {className: 'sub error', title: row.error}, row.error) : null);
  }
  if (one.metric === undefined) {
    const state_ = one.id === 'state' && row.run.state !== 'done' && row.run.stage ? `${row.state}, in ${row.run.stage}` : one.value(row);
    return el('td', {className: numeric(one) ? 'n' : ['state', 'budget'].includes(one.id) ? 'state' : 'mono'}, String(state_ ?? ''),
      one.id === 'budget' && row.within ? el('span', {className: 'sub'}, row.within) : null);
  }
  const metric = index.metrics[one.metric], found = row.intervals[one.metric];
  const best = row.best.includes(one.metric);
  return el('td', {className: 'n' + (best ? ' best' : '')}, found ? formatMetric(found[0], metric) : DASH,
    best ? el('span', {role: 'img', 'aria-label': 'best', title: 'best'}, ' ★') : null,
    found && found.length === 3 ? el('span', {className: 'sub'}, `[${plainMetric(found[1], metric)}, ${plainMetric(found[2], metric)}]`) : null);
}

const plainMetric = (value, metric) => formatMetric(value, metric).replace('\u00a0%', '');

function drawColumnChoice() {
  const chosen = new Set(shownColumns());
  const box = id => el('label', {}, el('input', {type: 'checkbox', checked: chosen.has(id), onchange: event => {
    const now = new Set(shownColumns());
    if (event.target.checked) now.add(id); else now.delete(id);
    now.delete('id');
    choose({cols: allColumns().filter(one => now.has(one)).join('~')});
    drawLeaderboard();
  }}), ' ' + column(id).title);
  const group = (title, ids) => ids.length ? el('fieldset', {}, el('legend', {}, title), ids.map(box)) : null;
  const all = allColumns(), main = index.shown.map(place => 'm:' + index.metrics[place].name);
  fill($('columns'), el('button', {type: 'button', onclick: () => { choose({cols: ''}); delete state.cols; drawLeaderboard(); drawColumnChoice(); $('columns').querySelector('button').focus(); }}, 'As at first'),
    group('Run', all.filter(id => !/^[km]:/.test(id))), group('Swept settings', all.filter(id => id.startsWith('k:'))),
    group('Main metrics', main), group('All other numbers', all.filter(id => id.startsWith('m:') && !main.includes(id))));
}

function startLeaderboard() {
  $('search').addEventListener('input', event => { choose({q: event.target.value}); rowsChanged(); });
  $('fold').addEventListener('change', event => { choose({single: event.target.checked ? '1' : ''}); drawLeaderboard(); chartsChanged(); });
  $('board-more').addEventListener('click', () => {
    showAll = true;
    drawRows();
    // the button is gone: on to the first row that it has brought
    $('board-body').rows[MANY]?.querySelector('a.open').focus();
  });
  $('board-head').addEventListener('keydown', headKeys);
  $('board-head').addEventListener('focusin', event => { if (event.target.dataset.column) stopAtColumn(event.target.dataset.column); });
  $('board-body').addEventListener('focusin', event => stopAtRow(event.target.closest('tr').dataset.run));
  $('clear').addEventListener('click', () => {
    choose(Object.fromEntries(['q', 'sel', ...Object.keys(state).filter(name => name.startsWith('f.'))].map(name => [name, ''])));
    $('search').value = '';
    drawLeaderboard();
    chartsChanged();
  });
  // up and down move between rows; Enter opens, since what has the focus is a link
  $('board-body').addEventListener('keydown', event => {
    const row = event.target.closest('tr');
    const rows = $('board-body').rows;
    const next = {ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling, Home: rows[0], End: rows[rows.length - 1]}[event.key];
    if (event.key === 'ArrowUp' && !next) {
      event.preventDefault();
      $('board-head').querySelector('input.filter[tabindex="0"]').focus();
    }
    if (!next) return;
    event.preventDefault();
    next.querySelector(event.target.matches('input') ? 'input' : 'a.open').focus();
  });
}
