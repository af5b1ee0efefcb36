// Two metrics against each other, and the rows that no other row beats on both.
function paretoChoice() {
  const [first = 0, second = Math.min(1, index.metrics.length - 1)] = index.pareto.length ? index.pareto : [];
  const x = metricPlace(state.px, first), y = metricPlace(state.py, second);
  const way = (name, place) => Number(state[name]) || index.metrics[place].better || -1;
  return {x, y, wayX: way('pdx', x), wayY: way('pdy', y), by: keyPlace(state.pc, keyPlace('mapping', index.keys.length ? 0 : -1))};
}

// rows of the front in the order of x; way: -1 smaller is better, 1 larger
function front(rows, {x, y, wayX, wayY}) {
  const known = comparable(rows.filter(row => row.metrics[x] !== null && row.metrics[y] !== null));
  const cost = row => [-wayX * row.metrics[x], -wayY * row.metrics[y]];
  const kept = [];
  let lowest = Infinity, last = null;
  for (const row of [...known].sort((a, b) => cost(a)[0] - cost(b)[0] || cost(a)[1] - cost(b)[1])) {
    const [first, second] = cost(row);
    const tie = last && last[0] === first && last[1] === second;
    if (second < lowest || tie) { kept.push(row); lowest = second; last = [first, second]; }
  }
  return kept.sort((a, b) => a.metrics[x] - b.metrics[x]);
}

function paretoControls() {
  const now = paretoChoice(), change = changes => { choose(changes); paretoControls(); chartsChanged(); };
  const ways = [[-1, 'smaller is better'], [1, 'larger is better']];
  refill($('pareto-controls'),
    choice('across', 'px', metricOptions(), now.x, value => change({px: index.metrics[value].name, pdx: ''})),
    choice('direction across', 'pdx', ways, now.wayX, value => change({pdx: value})),
    choice('up', 'py', metricOptions(), now.y, value => change({py: index.metrics[value].name, pdy: ''})),
    choice('direction up', 'pdy', ways, now.wayY, value => change({pdy: value})),
    index.keys.length ? choice('colour by', 'pc', keyOptions(), now.by, value => change({pc: index.keys[value].name})) : null);
}

async function drawPareto() {
  const now = paretoChoice(), rows = visibleRows().filter(row => row.metrics[now.x] !== null && row.metrics[now.y] !== null);
  const best = front(rows, now), metrics = [index.metrics[now.x], index.metrics[now.y]];
  const values = now.by < 0 ? [''] : index.keys[now.by].values.filter(value => rows.some(row => row.values[now.by] === value));
  const colours = palette(), picked = selection();
  const text = row => `${plain(row.label)}<br>${plain(metrics[0].label)}: ${formatMetric(row.metrics[now.x], metrics[0])}<br>${plain(metrics[1].label)}: ${formatMetric(row.metrics[now.y], metrics[1])}${eligible(row) ? '' : `<br>budget: ${row.budget}`}`;
  const traces = [{
    x: best.map(row => row.metrics[now.x]), y: best.map(row => row.metrics[now.y]), mode: 'lines', name: 'front', hoverinfo: 'skip',
    // a step: between two rows of the front nothing better than both was seen
    line: {color: colour('muted'), width: 1.5, dash: 'dot', shape: now.wayX < 0 ? 'hv' : 'vh'},
  }];
  const places = new Map();
  values.forEach((value, number) => {
    const own = rows.filter(row => now.by < 0 || row.values[now.by] === value);
    own.forEach((row, point) => places.set(row, {curveNumber: traces.length, pointNumber: point}));
    traces.push({
      x: own.map(row => row.metrics[now.x]), y: own.map(row => row.metrics[now.y]), text: own.map(text), customdata: own.map(row => row.run.id),
      mode: 'markers', type: 'scatter', name: plain(value), hovertemplate: '%{text}<extra></extra>',
      marker: {color: colours[number % colours.length], symbol: number >= colours.length ? 'square' : 'circle', size: own.map(row => picked.has(row.run.id) ? 15 : best.includes(row) ? 11 : 8),
               opacity: own.map(row => eligible(row) ? 0.9 : 0.25), line: {width: own.map(row => picked.has(row.run.id) ? 3 : best.includes(row) ? 1.5 : 0), color: colour('ink')}},
    });
  });
  const place = await plot($('pareto-plot'), traces,
    {xaxis: {...axisOf(metrics[0]), ...rangeOf(rows.map(row => row.metrics[now.x]))}, yaxis: {...axisOf(metrics[1]), ...rangeOf(rows.map(row => row.metrics[now.y]))}, height: 420, showlegend: values.length > 1 && values.length <= 12,
     legend: {orientation: 'h', y: 1.02, yanchor: 'bottom', x: 0, title: {text: now.by < 0 ? '' : plain(index.keys[now.by].name) + '  '}}},
    `Scatter plot of ${plural(rows.length, 'row')}: ${metrics[1].label} over ${metrics[0].label}; ${best.length} on the Pareto front, listed below`);
  if (!place.dataset.bound) {
    place.dataset.bound = 'true';
    place.on('plotly_click', event => {
      const run = index.runs.find(one => one.id === event.points[0].customdata);
      if (run) location.hash = runHash(run);
    });
  }
  const show = row => Plotly.Fx.hover(place, [places.get(row)]);
  $('pareto-front').parentElement.open ||= best.length <= 12;
  fill($('pareto-front'), best.slice(0, 40).map(row => el('li', {},
    el('a', {href: runHash(row.run), onfocus: () => show(row), onmouseenter: () => show(row), onblur: () => Plotly.Fx.unhover(place)}, row.label),
    ` ${metrics[0].label} ${formatMetric(row.metrics[now.x], metrics[0])}, ${metrics[1].label} ${formatMetric(row.metrics[now.y], metrics[1])}`)));
}
