// Parallel coordinates: one line per row over the swept settings and chosen metrics, coloured by a metric.
// The library's own kind of this plot needs WebGL and code made at run time, which the page's policy forbids;
// lines over axes scaled to 0..1 need neither.
const NUM_SHADES = 7;

function parallelAxes() {
  if (state.pa !== undefined) return state.pa.split('~').filter(id => /^[km]:/.test(id) && column(id));
  return [...index.keys.slice(0, 6).map(key => 'k:' + key.name), ...index.shown.slice(0, 4).map(place => 'm:' + index.metrics[place].name)];
}

function parallelControls() {
  const chosen = new Set(parallelAxes());
  const box = id => el('label', {}, el('input', {type: 'checkbox', checked: chosen.has(id), onchange: event => {
    const now = new Set(parallelAxes());
    if (event.target.checked) now.add(id); else now.delete(id);
    choose({pa: allColumns().filter(one => now.has(one)).join('~')});
    chartsChanged();
  }}), ' ' + column(id).title);
  const metric = metricPlace(state.pcol, index.criteria[0] ?? 0);
  refill($('parallel-controls'),
    choice('colour by', 'pcol', metricOptions(), metric, value => { choose({pcol: index.metrics[value].name}); chartsChanged(); }),
    el('details', {className: 'menu'}, el('summary', {}, 'Axes'), el('div', {className: 'boxes'}, allColumns().filter(id => /^[km]:/.test(id)).map(box))));
}

// values of one axis -> places in 0..1, and ticks as [place, text]
function parallelAxis(id, rows) {
  const found = column(id), values = rows.map(found.value);
  const numbers = values.filter(value => value !== null).map(Number);
  const metric = found.metric === undefined ? null : index.metrics[found.metric];
  const kinds = [...new Set(values.filter(value => value !== null).map(String))].sort(compareValues);
  // settings stand evenly spaced in their order: a grid is rarely evenly spaced in value
  if (!metric) {
    const spot = value => kinds.length > 1 ? kinds.indexOf(String(value)) / (kinds.length - 1) : 0.5;
    return {title: shortTitle(found), places: values.map(spot), ticks: kinds.length <= 16 ? kinds.map(value => [spot(value), value]) : [[0, kinds[0]], [1, kinds[kinds.length - 1]]]};
  }
  const low = Math.min(...numbers), high = Math.max(...numbers), span = high - low || 1;
  const spot = value => value === null ? null : high > low ? (value - low) / span : 0.5;
  const marks = high > low ? [0, 0.25, 0.5, 0.75, 1].map(part => [part, formatMetric(low + part * span, metric)]) : [[0.5, formatMetric(low, metric)]];
  return {title: metric.label, places: values.map(spot), ticks: marks};
}

async function drawParallel() {
  const rows = visibleRows().filter(row => row.n), ids = parallelAxes();
  const by = metricPlace(state.pcol, index.criteria[0] ?? 0), metric = index.metrics[by];
  if (!rows.length || ids.length < 2) {
    fill($('parallel').querySelector('.message'), rows.length ? 'Choose at least two axes.' : 'No finished row is shown.');
    return;
  }
  fill($('parallel').querySelector('.message'));
  const axes = ids.map(id => parallelAxis(id, rows));
  const known = rows.map(row => row.metrics[by]).filter(value => value !== null);
  const low = Math.min(...known), high = Math.max(...known), picked = selection();
  const shadeOf = row => row.metrics[by] === null || high === low ? 0 : Math.min(NUM_SHADES - 1, Math.floor(NUM_SHADES * (row.metrics[by] - low) / (high - low)));
  const traces = [];
  // one trace per shade, the rows in it parted by gaps: a thousand traces would be slow
  const add = (own, style) => {
    const x = [], y = [], text = [];
    for (const number of own) {
      axes.forEach((axis, place) => { x.push(place); y.push(axis.places[number]); text.push(`${plain(rows[number].label)}<br>${plain(metric.label)}: ${formatMetric(rows[number].metrics[by], metric)}`); });
      x.push(null); y.push(null); text.push('');
    }
    if (own.length) traces.push({x, y, text, mode: 'lines+markers', type: 'scatter', hovertemplate: '%{text}<extra></extra>', ...style});
  };
  const numbers = rows.map((_, number) => number), shades = shadesOf(NUM_SHADES);
  for (let shade = 0; shade < NUM_SHADES; shade++) {
    add(numbers.filter(number => shadeOf(rows[number]) === shade), {line: {color: shades[shade], width: 1.4}, marker: {size: 4}, opacity: rows.length > 150 ? 0.35 : 0.75});
  }
  add(numbers.filter(number => picked.has(rows[number].run.id)), {line: {color: colour('ink'), width: 3}, marker: {size: 6}});
  const annotations = axes.flatMap((axis, place) => axis.ticks.map(([spot, text]) => ({
    x: place, y: spot, text: plain(text), showarrow: false, xanchor: place === axes.length - 1 ? 'right' : 'left', xshift: place === axes.length - 1 ? -7 : 7, font: {size: 11, color: colour('ink')}, bgcolor: colour('card'), opacity: 0.9, borderpad: 1})));
  annotations.push(...axes.map((axis, place) => ({x: place, y: 1.06, text: plain(axis.title), showarrow: false, textangle: axes.length > 5 ? -18 : 0, xanchor: axes.length > 5 ? 'left' : place === 0 ? 'left' : place === axes.length - 1 ? 'right' : 'center', yanchor: 'bottom', font: {size: 12, color: colour('ink')}})));
  const narrow = !document.documentElement.classList.contains('printing') && $('parallel-plot').clientWidth < 110 * axes.length;
  $('parallel-plot').style.minWidth = narrow ? `${110 * axes.length}px` : '';
  await plot($('parallel-plot'), traces, {
    height: 460, annotations, margin: {l: 24, r: axes.length > 5 ? 120 : 40, t: axes.length > 5 ? 84 : 44, b: 16},
    shapes: axes.map((_, place) => ({type: 'line', x0: place, x1: place, y0: 0, y1: 1, line: {color: colour('muted'), width: 1}})),
    xaxis: {visible: false, range: [-0.06, axes.length - 0.94 + 0.04], fixedrange: true}, yaxis: {visible: false, range: [-0.04, 1.06], fixedrange: true},
  }, `Parallel coordinates of ${plural(rows.length, 'row')} over ${axes.map(axis => axis.title).join(', ')}, coloured by ${metric.label}`);
  fill($('parallel-key'), el('span', {}, `${metric.label}: ${formatMetric(low, metric)} `), shades.map(shade => {
    const swatch = el('span', {className: 'swatch'});
    swatch.style.background = shade;
    return swatch;
  }), el('span', {}, ` ${formatMetric(high, metric)}`));
}

// `count` colours along the scale of the heat map, its palest end left out
function shadesOf(count) {
  const stops = scale(), channel = (hex, place) => parseInt(hex.slice(1 + 2 * place, 3 + 2 * place), 16);
  return Array.from({length: count}, (_, number) => {
    const part = isDark() ? 0.35 + 0.65 * number / (count - 1) : 0.25 + 0.75 * number / (count - 1);
    const upper = part <= 0.5 ? 1 : 2, [start, from] = stops[upper - 1], [end, to] = stops[upper];
    const mix = place => Math.round(channel(from, place) + (channel(to, place) - channel(from, place)) * (part - start) / (end - start));
    return `rgb(${mix(0)},${mix(1)},${mix(2)})`;
  });
}
