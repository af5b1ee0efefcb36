// Training curves: the mean line of each value of one setting, or every run by itself.
const MAX_LINES = 40;

function curveChoice() {
  const names = index.curves.map(one => one.name);
  const objective = index.keys.findIndex(key => /objective$|^unlearning$/.test(key.name));
  return {name: names.includes(state.cq) ? state.cq : names[0], by: state.cb === 'runs' ? 'runs' : keyPlace(state.cb, objective >= 0 ? objective : index.keys.length ? 0 : 'runs')};
}

function curveControls() {
  const now = curveChoice(), stages = [...new Set(index.curves.map(one => one.stage))];
  const quantity = stages.map(stage => ({label: stage, options: index.curves.filter(one => one.stage === stage).map(one => [one.name, one.words === one.panel.toLowerCase() ? one.panel : `${one.panel}: ${one.words}`])}));
  const change = changes => { choose(changes); chartsChanged(); };
  refill($('curve-controls'),
    choice('number', 'cq', quantity, now.name, value => change({cq: value})),
    choice('a line for', 'cb', [...index.keys.map((key, place) => [place, `each ${key.name} (mean)`]), ['runs', 'each run']], now.by, value => change({cb: value === 'runs' ? 'runs' : index.keys[value].name})));
}

const lineOf = (curves, run, name) => {
  const number = (curves.runs[run.place] || {})[name];
  return number === undefined ? null : {x: curves.steps[curves.lines[number][0]], y: curves.lines[number][1]};
};

// mean over lines, at the steps that at least half of them have
function meanLine(lines) {
  const sums = new Map();
  for (const line of lines) line.x.forEach((step, place) => {
    const [sum, count] = sums.get(step) || [0, 0];
    sums.set(step, [sum + line.y[place], count + 1]);
  });
  const kept = [...sums].filter(([, [, count]]) => 2 * count >= lines.length).sort((a, b) => a[0] - b[0]);
  return {x: kept.map(([step]) => step), y: kept.map(([, [sum, count]]) => sum / count)};
}

async function drawCurves() {
  const now = curveChoice(), curves = await block('curves'), described = index.curves.find(one => one.name === now.name);
  const picked = selection(), rows = visibleRows().filter(row => !picked.size || picked.has(row.run.id));
  const runs = rows.flatMap(row => row.runs).filter(run => lineOf(curves, run, now.name));
  let drawn;
  if (now.by === 'runs') {
    drawn = runs.slice(0, MAX_LINES).map(run => ({name: runRow(run).label, count: 1, ...lineOf(curves, run, now.name)}));
  } else {
    const values = index.keys[now.by].values.filter(value => runs.some(run => run.values[now.by] === value));
    drawn = values.slice(0, MAX_LINES).map(value => {
      const own = runs.filter(run => run.values[now.by] === value);
      return {name: value, count: own.length, ...meanLine(own.map(run => lineOf(curves, run, now.name)))};
    });
  }
  const notes = [];
  if (!runs.length) notes.push('No shown run has logged this.');
  if (now.by === 'runs' && runs.length > MAX_LINES) notes.push(`The first ${MAX_LINES} of ${runs.length} runs are drawn; filter or pick rows to see others.`);
  if (picked.size) notes.push(`Of the ${plural(rows.length, 'picked row')} only.`);
  fill($('curves').querySelector('.message'), notes.join(' '));
  const colours = palette(), dashes = ['solid', 'dash', 'dot', 'dashdot', 'longdash'];
  await plot($('curve-plot'), drawn.map((line, number) => ({
    x: line.x, y: line.y, name: plain(line.name), mode: line.x.length < 12 ? 'lines+markers' : 'lines', type: 'scatter',
    hovertemplate: `${plain(line.name)}${line.count > 1 ? `, mean of ${line.count} runs` : ''}<br>step %{x}: %{y:.4g}<extra></extra>`,
    line: {color: colours[number % colours.length], width: 1.8, dash: dashes[Math.floor(number / colours.length) % dashes.length]},
  })), {height: 380, showlegend: drawn.length <= 16, legend: {orientation: 'h', y: 1.02, yanchor: 'bottom', x: 0},
    xaxis: {title: {text: 'optimiser step'}, ...rangeOf(drawn.flatMap(line => line.x), 1)}, yaxis: {title: {text: described ? described.panel : ''}, ...(described && described.log ? {type: 'log'} : rangeOf(drawn.flatMap(line => line.y))), ...(described && described.shares ? {tickformat: '.0%'} : {})}},
    `Training curves: ${described ? `${described.panel}, ${described.words}` : ''}; ${plural(drawn.length, 'line')}`);
}
