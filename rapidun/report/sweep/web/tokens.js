// Influence token by token: one pair of rows at a time, each token with its shade and its number.
function tokensPart(found) {
  const tokens = found.tokens;
  if (!tokens) return null;
  const place = el('div', {id: 'tokens'});
  const show = value => {
    const [query, train, score, by, querySide, trainSide] = tokens.pairs[value];
    fill(place, el('p', {className: 'note'}, `Training on ${train} makes the answer to ${query} ${score.startsWith(MINUS) ? 'less likely' : 'likelier'}: score ${score}. A token's score: ${by}.`),
      el('h4', {}, `Answer asked about: ${query}`), tokenText(querySide), el('h4', {}, `Training row: ${train}`), tokenText(trainSide));
  };
  show(0);
  return [el('h3', {}, 'Token by token'),
    el('p', {className: 'note'}, 'The tokens of either side sum to the pair’s score. ', el('span', {className: 'helps-4'}, 'Orange'), ': helpful; ', el('span', {className: 'harms-4'}, 'blue and underlined'),
      `: harmful; full colour is the pair’s largest token. Dots are spaces at a token’s ends. Point at a token for its number. ${tokens.pairs.length} of ${plural(tokens.total, 'pair')} are in this page; all stand in influence/tokens.json.`),
    el('div', {className: 'controls'}, choice('rows', 'pair', tokens.pairs.map(([query, train, score], value) => [value, `${query}, trained on ${train}: ${score}`]), 0, show)), place];
}

function tokenText([tokens, strongest]) {
  const line = tokens.map(([text, score, shade]) => typeof text === 'number'
    ? el('span', {className: 'note'}, ` … ${text} tokens, together ${score} … `)
    : el('span', {className: shade ? `${shade > 0 ? 'helps' : 'harms'}-${Math.abs(shade)}` : null, title: score}, text ? tokenPieces(text) : '(no text)'));
  const named = strongest.map((number, place) => [place ? ', ' : '', '“', tokenPieces(tokens[number][0]), `” ${tokens[number][1]}`]);
  return [el('p', {className: 'tokens'}, line), named.length ? el('p', {className: 'note'}, 'Strongest: ', named, '.') : null];
}

// spaces at a token's ends are dots, line ends and tabs have signs, other unseen characters are spelt out
function tokenPieces(text) {
  return text.split(/(^ +| +$|[\n\t])/).filter(Boolean).map(piece => piece === '\n' ? '↵\n' : piece === '\t' ? '⇥\t'
    : /^ +$/.test(piece) ? [...piece].map(() => ['·', el('wbr')]) : visible(piece));
}
