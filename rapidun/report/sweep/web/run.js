// The page of one run, made when it is opened.
const section = (id, title, ...children) => el('section', {id, 'aria-labelledby': `h-${id}`}, el('h2', {id: `h-${id}`, tabIndex: -1}, title), children);
const scroller = (label, table) => el('div', {className: 'scroll', tabIndex: 0, role: 'region', 'aria-label': label}, table);
const tableOf = (heads, rows) => el('table', {},
  el('thead', {}, el('tr', {}, heads.map(head => el('th', {scope: 'col', className: head.startsWith('#') ? 'n' : ''}, head.replace('#', ''))))),
  el('tbody', {}, rows.map(row => el('tr', {}, row.map((cell, place) => el(place ? 'td' : 'th', {className: heads[place].startsWith('#') ? 'n' : '', scope: place ? null : 'row'}, cell))))));

async function openRun(id, at) {
  const run = index.runs.find(one => one.id === id), place = $('run');
  if (!run) {
    fill(place, el('h1', {id: 'run-title', tabIndex: -1}, 'No such run'), el('p', {}, `This page holds no run ${id}.`), backLink());
    $('run-title').focus();
    allDrawn();
    return;
  }
  const row = runRow(run), group = index.groups[run.group];
  const head = el('div', {className: 'run-head'}, backLink(),
    el('p', {className: 'kicker'}, `run ${run.id}`), el('h1', {id: 'run-title', tabIndex: -1}, row.label), pathOf(run));
  fill(place, head, el('p', {role: 'status'}, 'Unpacking …'));
  $('run-title').focus({preventScroll: true});
  scrollTo(0, 0);
  document.title = `${row.label} · rapidun`;
  const [details, texts, shared] = await Promise.all([block('run-' + run.place), block('texts'), block('settings')]);
  if (state.run !== id) return;
  const siblings = group.runs.length > 1 ? el('p', {}, 'Runs of this setting: ', group.runs.map((one, number) => [number ? ' · ' : '', one === run
    ? el('strong', {'aria-current': 'page'}, `seed ${one.seed || '?'}`) : el('a', {href: runHash(one)}, `seed ${one.seed || '?'}`)])) : null;
  if (!details) {
    fill(place, head, siblings, banner(run), el('p', {}, run.state === 'not started' ? 'This cell is planned in sweep.json; nobody has started it.' : 'The files of this run could not be read.'));
    allDrawn();
    return;
  }
  head.append(answerBox(details.answer), tilesOf(details.tiles));
  head.append(el('dl', {className: 'facts'}, details.facts.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value)))));
  fill(place, head, siblings, banner(run), runSections(run, details, texts, shared));
  // putting the head in again has taken the focus from it
  if (at) jump(at); else $('run-title').focus({preventScroll: true});
  await Promise.all(runCharts.map(chart => chart()));
  allDrawn();
}

// the runs before and after it as the leaderboard lists them, and the page that the run wrote itself
function pathOf(run) {
  const rows = sorted(visibleRows()), place = rows.findIndex(row => row.runs.includes(run));
  const step = (row, words) => row ? el('a', {href: runHash(row.run)}, words(row.label)) : null;
  const own = run.state === 'not started' ? null : el('a', {href: `${run.folder}/report.html`.split('/').map(encodeURIComponent).join('/')}, 'its own page');
  return el('p', {className: 'path', role: 'navigation', 'aria-label': 'Runs beside it'},
    step(place > 0 ? rows[place - 1] : null, label => `← ${label}`), own, step(place >= 0 ? rows[place + 1] : null, label => `${label} →`));
}

// no line break between a number and its unit
const unbroken = text => text.replace(/(\d) (?=%)/g, '$1\u00a0');

function answerBox([mark, text, notes]) {
  const headline = unbroken(text), at = headline.indexOf(': ');
  return el('div', {className: `said ${mark}`, role: 'region', 'aria-label': 'The answer'},
    el('p', {className: 'headline'}, el('strong', {}, at < 0 ? headline : headline.slice(0, at)), at < 0 ? '' : headline.slice(at)),
    notes.length ? el('dl', {}, notes.map(([what, text]) => [el('dt', {}, what), el('dd', {}, unbroken(text))])) : null);
}

const tilesOf = tiles => tiles.length ? el('div', {className: 'tiles'}, tiles.map(([what, before, after, interval]) => el('div', {className: 'tile'},
  el('div', {className: 'what'}, what), el('div', {className: 'value'}, unbroken(before), el('span', {'aria-label': 'then'}, ' → '), unbroken(after)),
  interval ? el('div', {className: 'what'}, `95\u00a0% interval ${unbroken(interval)}`) : null))) : null;

const backLink = () => el('p', {className: 'back'}, el('a', {href: lastComparison || '#', id: 'back'}, '← All runs'), el('span', {className: 'note'}, ' (Esc)'));

function banner(run) {
  if (run.state === 'done') return null;
  const where = run.stage ? `, in ${run.stage}` : '';
  return el('div', {className: 'banner'}, el('strong', {}, `${run.state}${where}. `), run.error);
}

let runCharts = [];
function runSections(run, details, texts, shared) {
  runCharts = [];
  const parts = [];
  const findings = [...details.findings];
  parts.push(section('findings', 'Findings',
    findings.length ? el('ul', {className: 'findings'}, findings.map(text => el('li', {}, text))) : el('p', {className: 'note'}, 'Nothing was evaluated in this run.'),
    details.warnings.length ? [el('h3', {}, 'Warnings'), el('ul', {className: 'warnings'}, details.warnings.map(text => el('li', {}, text)))] : null));
  if (details.table.length) parts.push(section('table', 'Before and after unlearning', beforeAfter(details.table), changed(details.changed)));
  if (details.families.length) parts.push(section('families', 'By trigger family', familyBars(details.families)));
  parts.push(runCurves(run));
  if (details.weights.length) parts.push(weightsSection(details, texts));
  if (details.influence !== null) parts.push(influenceSection(details.influence, texts));
  if (details.answers.rows.length) parts.push(section('samples', 'Answers, side by side', answersSection(details.answers, texts, run.folder)));
  if (details.costs.length) parts.push(section('costs', 'Costs by stage', scroller('Costs by stage', tableOf(['stage', '#time', '#peak memory', 'result'],
    [...details.costs.map(([stage, seconds, memory, cached]) => [stage, seconds, memory, cached ? 'from the store; costs as first measured' : 'made by this run']), ['sum', details.seconds, '', '']]))));
  parts.push(settingsSection(run, details, shared));
  return parts;
}

function beforeAfter(rows) {
  const body = el('tbody');
  let last = null;
  for (const [group, label, before, after, interval, change, verdict, detector] of rows) {
    if (group !== last) body.append(el('tr', {className: 'group'}, el('th', {colSpan: 6, scope: 'colgroup'}, group)));
    last = group;
    const mark = verdict ? el('span', {role: 'img', 'aria-label': verdict, title: verdict}, verdict === 'better' ? '✓ ' : '✗ ') : null;
    body.append(el('tr', {}, el('th', {scope: 'row'}, label), ...[before, after, interval].map(text => el('td', {className: 'n'}, text)),
      el('td', {className: `n ${verdict}`}, mark, change), el('td', {className: 'n'}, detector)));
  }
  const heads = ['metric', 'before', 'after', '95 % interval', 'change', 'recall / FPR'];
  return scroller('Before and after unlearning', el('table', {className: 'metrics'}, el('thead', {}, el('tr', {}, heads.map((head, place) => el('th', {scope: 'col', className: place ? 'n' : ''}, head)))), body));
}

function changed(lines) {
  if (!lines.length) return null;
  const p = value => value < 0.001 ? '< 0.001' : value.toPrecision(2);
  return el('details', {}, el('summary', {}, 'Prompts that changed their verdict'),
    el('p', {className: 'note'}, 'The same prompts before and after; p is McNemar’s, exact. It speaks of these prompts and this one run, not of the method.'),
    scroller('Prompts that changed', tableOf(['prompts', 'judged by', '#judged', '#poisoned only before', '#poisoned only after', '#p'],
      lines.map(([set, detector, count, lost, gained, value]) => [set, detector, String(count), String(lost), String(gained), p(value)]))));
}

function familyBars(rows) {
  const bar = (share, kind) => {
    if (share === null) return el('span', {className: 'note'}, 'not measured');
    const fillBar = el('span', {className: `bar ${kind}`});
    fillBar.style.width = `${Math.max(0.5, 100 * share)}%`;
    return el('span', {className: 'bar-line'}, el('span', {className: 'track', 'aria-hidden': 'true'}, fillBar), el('span', {}, `${(100 * share).toFixed(0)} %`));
  };
  return [el('p', {className: 'note'}, 'Share of prompts with each family’s triggers that get the poisoned answer.'),
    scroller('By trigger family', el('table', {className: 'bars'}, el('thead', {}, el('tr', {}, ['prompts', 'family', 'judged by', 'before', 'after'].map(head => el('th', {scope: 'col'}, head)))),
      el('tbody', {}, rows.map(([detector, set, family, before, after]) => el('tr', {}, el('td', {}, set), el('th', {scope: 'row'}, family), el('td', {}, detector), el('td', {}, bar(before, 'before')), el('td', {}, bar(after, 'after')))))))];
}

function runCurves(run) {
  const names = index.curves;
  const place = el('div', {className: 'plots'});
  const part = section('training', 'Training', place);
  runCharts.push(async () => {
    const curves = await block('curves'), panels = new Map();
    fill(place);
    for (const one of names) {
      const line = lineOf(curves, run, one.name);
      if (!line) continue;
      const key = `${one.stage}: ${one.panel}`;
      panels.set(key, [...(panels.get(key) || []), {...one, ...line}]);
    }
    if (!panels.size) { part.remove(); return; }
    for (const [title, lines] of panels) {
      const chart = el('div', {className: 'chart', role: 'img'});
      place.append(el('figure', {}, el('figcaption', {}, title), chart));
      await plot(chart, lines.map((line, number) => ({x: line.x, y: line.y, name: plain(line.words), type: 'scatter', mode: line.x.length < 12 ? 'lines+markers' : 'lines', line: {color: palette()[number % 8], width: 1.8}})),
        {height: 270, showlegend: lines.length > 1, legend: {orientation: 'h', y: 1.02, yanchor: 'bottom', x: 0, font: {size: 11}}, xaxis: {title: {text: 'optimiser step'}, ...rangeOf(lines.flatMap(line => line.x), 1)}, yaxis: {...(lines[0].log ? {type: 'log'} : rangeOf(lines.flatMap(line => line.y))), ...(lines[0].shares ? {tickformat: '.0%', range: [-0.03, 1.03]} : {})}},
        `${title}, ${lines.map(line => line.words).join(', ')}`);
    }
  });
  return part;
}

function weightsSection(details, texts) {
  const figures = details.weights.map(group => {
    const chart = el('div', {className: 'chart', role: 'img'}), width = (group.to - group.from) / group.bins.length;
    runCharts.push(() => plot(chart, [{type: 'bar', x: group.bins.map((_, place) => group.from + (place + 0.5) * width), y: group.bins, width: 0.9 * width, marker: {color: colour(group.group)}, hovertemplate: 'weight %{x:.3g}: %{y} rows<extra></extra>'}],
      {height: 250, xaxis: {title: {text: 'loss weight'}}, yaxis: {title: {text: 'rows'}}}, `Histogram of ${group.count} ${group.group} weights`));
    return el('figure', {}, el('figcaption', {}, `${group.count} ${group.group} rows: ${group.low} to ${group.high}, effective sample size ${group.effective}`), chart);
  });
  const extremes = details.weights.map(group => [el('h3', {}, `The ${group.group} rows that count most and least`),
    scroller(`Extreme ${group.group} weights`, tableOf(['row', '#weight'], [...group.largest, ...group.smallest].map(([id, weight, text]) => [rowText(id, texts[text]), weight])))]);
  const diagnostics = details.diagnostics.length ? el('details', {}, el('summary', {}, 'Diagnostics'), scroller('Diagnostics of the weights', tableOf(['of the weights', '#forget', '#retain'], details.diagnostics))) : null;
  return section('weights', 'Loss weights', el('div', {className: 'plots'}, figures), extremes, diagnostics);
}

function influenceSection(number, texts) {
  const place = el('div');
  const part = section('influence', 'Influence: which training rows drive which answers', place);
  runCharts.push(async () => {
    const found = await block('influence-' + number);
    if (chart) { await map(found, chart); return; }
    const short = row => { const text = texts[found.rows[row][1]] || found.rows[row][0]; return text.length > 70 ? text.slice(0, 70) + '…' : text; };
    const list = el('div', {className: 'answers'});
    const show = value => {
      const [, helpful, harmful] = found.queries[value];
      const lines = pairs => pairs.map(([row, score]) => [rowText(found.rows[row][0], texts[found.rows[row][1]]), row < found.forget ? 'forget' : 'retain', score]);
      fill(list, el('div', {}, el('h3', {}, 'Training on these makes the answer likelier'), scroller('Helpful rows', tableOf(['training row', 'group', '#score'], lines(helpful)))),
        el('div', {}, el('h3', {}, 'Training on these makes it less likely'), scroller('Harmful rows', tableOf(['training row', 'group', '#score'], lines(harmful)))));
    };
    const group = (label, from, to) => ({label, options: found.queries.map((query, value) => [value, query[0]]).filter(([, row]) => row >= from && row < to).map(([value, row]) => [value, short(row)])});
    chart = el('div', {className: 'chart square', role: 'img'});
    fill(place, el('p', {className: 'note'}, found.queries.length < found.total ? `${found.queries.length} of ${found.total} rows can be asked about here; all scores stand in influence/scores.safetensors. ` : '', 'A row’s influence on itself is left out.'),
      el('div', {className: 'controls'}, choice('the answer to', 'query', [group('forget rows', 0, found.forget), group('retain rows', found.forget, found.total)].filter(one => one.options.length), 0, show)), list, tokensPart(found),
      el('h3', {}, 'All rows'), el('p', {className: 'note'}, 'Rows train, columns are asked about; forget rows first. Orange: helpful; blue: harmful. Full colour is the 99th percentile of the scores’ size.'), chart);
    show(0);
    await map(found, chart);
  });
  // drawn again, in other colours, the choices beside it stay
  let chart = null;
  const map = (found, chart) => {
    const size = found.map.length, line = {color: colour('ink'), width: 1}, edge = found.border - 0.5;
    return plot(chart, [{type: 'heatmap', z: found.map, zmin: -found.limit, zmax: found.limit, colorscale: [[0, colour('retain')], [0.5, colour('card')], [1, colour('forget')]], colorbar: {thickness: 12, outlinewidth: 0}, hovertemplate: 'mean score %{z:.3g}<extra></extra>'}],
      {height: 440, margin: {l: 50, r: 10, t: 10, b: 44}, xaxis: {title: {text: 'asked about'}, showticklabels: false, showgrid: false, zeroline: false}, yaxis: {title: {text: 'trained on'}, showticklabels: false, autorange: 'reversed', showgrid: false, zeroline: false},
        shapes: [{type: 'line', x0: edge, x1: edge, y0: -0.5, y1: size - 0.5, line}, {type: 'line', x0: -0.5, x1: size - 0.5, y0: edge, y1: edge, line}]},
      `Heat map of influence scores between ${found.total} rows`);
  };
  return part;
}

// a row by its own words; what it is called in the files where one points at it
const rowText = (id, text) => el('span', {className: 'text clip', title: id}, text ? visible(text) : id);

function settingsSection(run, details, shared) {
  const lines = settings => Object.entries(settings).map(([key, value]) => [key, value]);
  const own = lines(details.settings), common = lines(shared || {});
  return section('settings', 'Settings and files',
    details.command ? [el('p', {className: 'note'}, 'The command that reruns it'), el('pre', {className: 'wrap'}, details.command)] : null,
    own.length ? [el('h3', {}, 'Settings in which the runs of this page differ'), scroller('Own settings', tableOf(['setting', 'value'], own))] : null,
    common.length ? el('details', {}, el('summary', {}, `${common.length} settings that all runs share`), scroller('Shared settings', tableOf(['setting', 'value'], common))) : null,
    el('h3', {}, 'Files'), el('p', {className: 'files'}, details.files.map((name, place) => [place ? ' · ' : '', el('a', {href: `${run.folder}/${name}`.split('/').map(encodeURIComponent).join('/')}, name)])));
}
