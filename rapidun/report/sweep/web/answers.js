// Answers of one run side by side: the prompt, before, after, the answer on record, what is said of it.
const AT_FIRST = 8;
function answersSection(answers, texts, folder) {
  const list = el('div', {className: 'samples'}), count = el('p', {className: 'note', role: 'status'});
  const families = [...new Set(answers.rows.map(row => row[1]).filter(Boolean))];
  const chosen = {set: '0', family: '', verdict: ''};
  let limit = AT_FIRST;
  const more = el('button', {type: 'button', onclick: () => { limit = Infinity; draw(); list.children[AT_FIRST]?.focus(); }});
  const draw = () => {
    const rows = answers.rows.filter(row => (chosen.set === '' || row[0] === Number(chosen.set)) && (!chosen.family || row[1] === chosen.family)
      && (!chosen.verdict || (chosen.verdict === 'bad') === ((row[7][0] === null ? row[6] : row[7])[2] === 'bad')));
    fill(count, `${Math.min(limit, rows.length)} of ${plural(rows.length, 'answer')} shown.`);
    more.hidden = rows.length <= limit;
    fill(more, `Show all ${rows.length}`);
    fill(list, rows.slice(0, limit).map(row => answerArticle(row, answers, texts)));
  };
  const change = name => value => { chosen[name] = value; limit = AT_FIRST; draw(); };
  const total = answers.sets.reduce((sum, one) => sum + one[3], 0);
  const controls = el('div', {className: 'controls'},
    choice('prompts', 'set', [...answers.sets.map((one, place) => [place, `${one[1]} (${one[2]} of ${one[3]})`]), ['', 'all sets']], '0', change('set')),
    families.length ? choice('family', 'family', [['', 'all'], ...families.map(name => [name, name])], '', change('family')) : null,
    choice('after unlearning', 'verdict', [['', 'all'], ['bad', answers.states[0]], ['fine', answers.states[1]]], '', change('verdict')));
  draw();
  return [
    el('p', {className: 'note'}, `${answers.rows.length} of ${plural(total, 'answer')} are in this page: of each set up to half are failures, the others evenly spaced. All of them stand in `,
      el('a', {href: `${folder}/evaluation/generations.jsonl`.split('/').map(encodeURIComponent).join('/')}, 'evaluation/generations.jsonl'), '.'),
    controls, count, list, more];
}

function answerArticle([set, family, trigger, prompt, context, reference, before, after], answers, texts) {
  const answer = (when, [text, verdict, state]) => el('div', {className: 'answer' + (state ? ' ' + state : '')},
    el('div', {className: 'head'}, el('span', {}, when), el('span', {className: 'verdict'}, verdict)),
    el('div', {className: 'text'}, text === null ? el('span', {className: 'note'}, 'not generated') : texts[text] ? visible(texts[text]) : el('span', {className: 'note'}, '(empty)')));
  return el('article', {className: 'sample', tabIndex: -1},
    el('div', {className: 'where'}, [answers.sets[set][1], family].filter(Boolean).join(' · ')),
    el('p', {className: 'prompt text'}, markTrigger(texts[prompt], trigger)),
    texts[context] ? el('details', {}, el('summary', {}, 'context'), el('p', {className: 'text note'}, visible(texts[context]))) : null,
    el('div', {className: 'answers'}, answer('before', before), answer('after', after)),
    texts[reference] ? el('p', {className: 'reference text'}, `${answers.sets[set][4]}: `, visible(texts[reference])) : null);
}

// the trigger at either end of a prompt is marked
function markTrigger(text, trigger) {
  const word = (trigger || '').trim();
  if (word && text.startsWith(word)) return [el('mark', {}, visible(word)), visible(text.slice(word.length))];
  if (word && text.endsWith(word)) return [visible(text.slice(0, -word.length)), el('mark', {}, visible(word))];
  return visible(text);
}

// characters that cannot be seen (zero-width joiner, direction overrides) are spelt out; letters of another script
// inside a word with ASCII letters are underlined
function visible(text) {
  const parts = [];
  for (const word of text.split(/(\s+)/)) {
    const mixed = /[A-Za-z]/.test(word);
    for (const piece of word.split(/([\p{Cf}\p{Co}\p{Cs}]|(?![\n\t])\p{Cc}|(?![\p{Script=Latin}\p{ASCII}])[\p{L}\p{N}])/u)) {
      if (/^([\p{Cf}\p{Co}\p{Cs}]|(?![\n\t])\p{Cc})$/u.test(piece)) parts.push(el('span', {className: 'cp'}, 'U+' + piece.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')));
      else if (mixed && /^(?![\p{Script=Latin}\p{ASCII}])[\p{L}\p{N}]$/u.test(piece)) parts.push(el('span', {className: 'odd', title: 'U+' + piece.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}, piece));
      else if (piece) parts.push(piece);
    }
  }
  return parts;
}
