// A metric over two swept settings: each field is the mean of all shown rows with those two values.
function heatChoice() {
  const x = keyPlace(state.hx, 0), other = x === 1 ? 0 : Math.min(1, index.keys.length - 1);
  const y = keyPlace(state.hy, other);
  return {x, y, metric: metricPlace(state.hm, index.criteria[0] ?? 0)};
}

function heatControls() {
  const now = heatChoice(), change = changes => { choose(changes); heatControls(); chartsChanged(); };
  refill($('heat-controls'),
    choice('across', 'hx', keyOptions(), now.x, value => change({hx: index.keys[value].name})),
    choice('down', 'hy', keyOptions(), now.y, value => change({hy: index.keys[value].name})),
    choice('metric', 'hm', metricOptions(), now.metric, value => change({hm: index.metrics[value].name})));
}

async function drawHeat() {
  const now = heatChoice(), metric = index.metrics[now.metric], message = $('heat').querySelector('.message');
  const rows = visibleRows().filter(row => row.metrics[now.metric] !== null);
  const across = index.keys[now.x].values.filter(value => rows.some(row => row.values[now.x] === value));
  const down = index.keys[now.y].values.filter(value => rows.some(row => row.values[now.y] === value));
  fill(message, rows.length ? '' : 'No row with this metric is shown.');
  const field = (a, b) => {
    const found = rows.filter(row => row.values[now.x] === a && row.values[now.y] === b);
    // a row of n seeds counts n times, so that folding changes nothing
    const weight = found.reduce((sum, row) => sum + row.n, 0);
    return {count: weight, mean: weight ? found.reduce((sum, row) => sum + row.n * row.metrics[now.metric], 0) / weight : null};
  };
  const fields = down.map(b => across.map(a => field(a, b)));
  const means = fields.flat().map(one => one.mean).filter(value => value !== null), flat = aroundConstant(means);
  const few = across.length * down.length <= 150;
  await plot($('heat-plot'), [{
    type: 'heatmap', x: across.map((_, place) => place), y: down.map((_, place) => place), z: fields.map(line => line.map(one => one.mean)),
    text: fields.map(line => line.map(one => one.mean === null ? '' : formatMetric(one.mean, metric))), texttemplate: few ? '%{text}' : '',
    customdata: fields.map((line, b) => line.map((one, a) => `${plain(index.keys[now.x].name)}=${plain(across[a])}<br>${plain(index.keys[now.y].name)}=${plain(down[b])}<br>${plain(metric.label)}: ${formatMetric(one.mean, metric)}, mean of ${plural(one.count, 'run')}`)),
    hovertemplate: '%{customdata}<extra></extra>', hoverongaps: false, colorscale: scale(), ...(flat ? {zmin: flat[0], zmax: flat[1]} : {}), xgap: 2, ygap: 2, colorbar: {thickness: 12, outlinewidth: 0, ...(metric.kind === 'share' ? {tickformat: '.0%'} : {})},
  }], {
    height: Math.max(240, Math.min(640, 90 + 52 * down.length)), margin: {l: 60, r: 10, t: 10, b: 52},
    xaxis: {title: {text: plain(index.keys[now.x].name)}, tickvals: across.map((_, place) => place), ticktext: across.map(plain), showgrid: false, zeroline: false},
    yaxis: {title: {text: plain(index.keys[now.y].name), standoff: 14}, tickvals: down.map((_, place) => place), ticktext: down.map(plain), autorange: 'reversed', showgrid: false, zeroline: false},
  }, `Heat map of ${metric.label} over ${index.keys[now.x].name} and ${index.keys[now.y].name}; the same numbers stand in the table below`);
  fill($('heat-table'),
    el('thead', {}, el('tr', {}, el('th', {scope: 'col'}, `${index.keys[now.y].name} \\ ${index.keys[now.x].name}`), across.map(value => el('th', {scope: 'col', className: 'n'}, value)))),
    el('tbody', {}, down.map((value, b) => el('tr', {}, el('th', {scope: 'row'}, value), fields[b].map(one => el('td', {className: 'n'}, formatMetric(one.mean, metric)))))));
}
