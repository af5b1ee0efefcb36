// The rows of the leaderboard, which all plots share: one per setting (seeds folded) or one per run, then filtered.
const FAILED = ['failed', 'unreadable'];
// between the names of one result
const SAME = ' ≡ ';
index.runs.forEach((run, place) => { run.place = place; });
index.groups.forEach((group, place) => { group.runs = index.runs.filter(run => run.group === place).sort((a, b) => compareValues(a.seed, b.seed)); });

function groupRow(group) {
  const states = {};
  for (const run of group.runs) states[run.state] = (states[run.state] || 0) + 1;
  const finished = group.runs.find(run => run.state === 'done');
  return {
    run: finished || group.runs[0], runs: group.runs, label: group.label, values: group.values, n: group.n,
    seed: group.runs.map(run => run.seed).join(' '), best: group.best, pareto: group.pareto,
    budget: group.budget, within: group.budget && group.within < group.n ? `${group.within} of ${plural(group.n, 'seed')}` : '',
    state: Object.entries(states).map(([name, count]) => group.runs.length > 1 ? `${count} ${name}` : name).join(', '),
    error: (group.runs.find(run => run.error) || {}).error || '',
    metrics: group.metrics.map(found => found ? found[0] : null), intervals: group.metrics,
  };
}

function runRow(run) {
  return {
    run, runs: [run], label: index.groups[run.group].label + (run.seed ? ` seed=${run.seed}` : ''), values: run.values, n: run.state === 'done' ? 1 : 0,
    seed: run.seed, best: [], pareto: false, budget: run.budget, within: '', state: run.state, error: run.error,
    metrics: run.metrics, intervals: run.metrics.map(value => value === null ? null : [value]),
  };
}

const folded = index.groups.map(groupRow);
const single = index.runs.map(runRow);
// only these are chosen: of the others no star, no place on a front
const eligible = row => !index.budget || row.budget === 'within';
// of these the ones that may be marked: a row of one seed says too little beside rows of more
function comparable(rows) {
  const known = rows.filter(eligible), several = known.filter(row => row.n > 1);
  return several.length ? several : known;
}
// single runs: the best value of each criterion, every run that reaches it; none where no two differ
for (const place of index.criteria) {
  const way = index.metrics[place].better;
  const known = single.filter(eligible).map(row => row.metrics[place]).filter(value => value !== null);
  const best = way < 0 ? Math.min(...known) : Math.max(...known);
  if (known.every(value => value === best)) continue;
  for (const row of single) if (eligible(row) && row.metrics[place] !== null && row.metrics[place] === best) row.best.push(place);
}

// columns: 'k:<key>', 'm:<metric>', or one of these words
const PLAIN_COLUMNS = {id: 'run', label: 'setting', seed: 'seed', n: 'n', state: 'state', budget: 'budget'};
function column(id) {
  if (id.startsWith('k:')) {
    const place = keyPlace(id.slice(2), -1);
    return place < 0 ? null : {id, title: index.keys[place].name, key: place, value: row => row.values[place]};
  }
  if (id.startsWith('m:')) {
    const place = metricPlace(id.slice(2), -1);
    return place < 0 ? null : {id, title: index.metrics[place].label, metric: place, value: row => row.metrics[place]};
  }
  if (!(id in PLAIN_COLUMNS)) return null;
  return {id, title: PLAIN_COLUMNS[id], value: row => id === 'id' ? row.run.id : row[id]};
}

const allColumns = () => ['label', 'seed', 'n', 'state', ...(index.budget ? ['budget'] : []), ...index.keys.map(key => 'k:' + key.name), ...index.metrics.map(metric => 'm:' + metric.name)];
function shownColumns() {
  if (state.cols !== undefined) return ['id', ...state.cols.split('~').filter(id => id !== 'id' && column(id))];
  const keys = index.keys.length && index.keys.length <= 6 ? index.keys.map(key => 'k:' + key.name) : ['label'];
  const every = index.runs.every(run => run.state === 'done');
  return ['id', ...keys, state.single ? 'seed' : 'n', ...(every ? [] : ['state']), ...(index.budget ? ['budget'] : []), ...index.shown.map(place => 'm:' + index.metrics[place].name)];
}

// a column's filter: '<0.5', '>=2', '0.1..0.5', '=word', or text that must occur
function matcher(text) {
  const wanted = text.trim();
  const range = wanted.match(/^(-?[\d.eE+-]+)\s*\.\.\s*(-?[\d.eE+-]+)$/);
  if (range) return value => value !== null && Number(value) >= Number(range[1]) && Number(value) <= Number(range[2]);
  const bound = wanted.match(/^(<=|>=|<|>)\s*(-?[\d.eE+-]+)\s*%?$/);
  if (bound) {
    const limit = Number(bound[2]);
    const tests = {'<': v => v < limit, '<=': v => v <= limit, '>': v => v > limit, '>=': v => v >= limit};
    return value => value !== null && value !== '' && tests[bound[1]](Number(value));
  }
  if (wanted.startsWith('=')) return value => value !== null && [String(value), ...String(value).split(SAME)].includes(wanted.slice(1).trim());
  return value => value !== null && String(value).toLowerCase().includes(wanted.toLowerCase());
}

function visibleRows() {
  const rows = state.single ? single : folded;
  const tests = [];
  for (const [name, text] of Object.entries(state)) {
    const found = name.startsWith('f.') && text.trim() ? column(name.slice(2)) : null;
    if (!found) continue;
    const test = matcher(text);
    const metric = found.metric === undefined ? null : index.metrics[found.metric];
    tests.push(row => {
      const value = found.value(row);
      return test(metric && value !== null ? Number(shownNumber(value, metric).toPrecision(6)) : value);
    });
  }
  const words = (state.q || '').toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length) {
    tests.push(row => {
      const text = `${row.label} ${row.runs.map(run => run.id).join(' ')} ${row.state} ${row.error}`.toLowerCase();
      return words.every(word => text.includes(word));
    });
  }
  return rows.filter(row => tests.every(test => test(row)));
}

function sorted(rows) {
  const by = column(state.sort || defaultSort());
  if (!by) return rows;
  const way = state.dir === 'desc' ? -1 : 1;
  const absent = value => value === null || value === undefined || value === '';
  return [...rows].sort((a, b) => {
    const x = by.value(a), y = by.value(b);
    if (absent(x) || absent(y)) return absent(x) - absent(y);
    return way * compareValues(x, y);
  });
}

const defaultSort = () => index.criteria.length ? 'm:' + index.metrics[index.criteria[0]].name : 'label';

// rows that the reader ticked, by the id of their first run
const selection = () => new Set((state.sel || '').split('~').filter(Boolean));
