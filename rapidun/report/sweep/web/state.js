// What the reader chose stands in the address after '#', so that any view can be linked: #sort=m:asr_seen&px=ppl_clean
const state = {};
let lastComparison = '';

function readHash() {
  for (const name of Object.keys(state)) delete state[name];
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) state[name] = value;
}

const hashOf = values => '#' + new URLSearchParams(Object.entries(values).filter(([, value]) => value !== '' && value !== null && value !== undefined));

// a choice changes the address in place: Back leads to the page before, not through every choice
function choose(changes) {
  Object.assign(state, changes);
  for (const [name, value] of Object.entries(changes)) if (value === '' || value === null || value === undefined) delete state[name];
  history.replaceState(history.state, '', hashOf(state));
  if (!state.run) lastComparison = hashOf({...state, at: ''});
}

// metrics and keys stand in the address by name: a place in a list would mean something else in the next report
const metricPlace = (name, otherwise) => {
  const place = index.metrics.findIndex(metric => metric.name === name);
  return place >= 0 ? place : otherwise;
};
const keyPlace = (name, otherwise) => {
  const place = index.keys.findIndex(key => key.name === name);
  return place >= 0 ? place : otherwise;
};
const runHash = (run, at) => hashOf({run: run.id, at: at || ''});
