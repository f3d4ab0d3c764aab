// The page of a trace.  Parts, from top to bottom: the trace; the rules of speculative decoding; the check of the recording;
// the place that is shown; drawing; the views; the controls.  Nothing is fetched, and text reaches the page by textContent alone.

// -- the trace --------------------------------------------------------------------------------------------------------

const trace = JSON.parse(document.getElementById("trace-data").textContent);
const rounds = trace.rounds;
const acceptance = trace.settings.acceptance;
const isBlock = acceptance === "block";
const isGreedy = acceptance === "greedy";
const STAGES = ["share", "draft", "verify", "accept", "emit", "roll back"];
const [DRAFT, VERIFY, ACCEPT, EMIT, ROLL_BACK] = [1, 2, 3, 4, 5];

// Columns of a place's tokens.
const [ID, P, Q, RESIDUAL, RESIDUAL_BEFORE, P_BEFORE] = [0, 1, 2, 3, 4, 5];

// How many tokens of the text came before each round: the first one, then what rounds emitted.
const emittedBefore = [1];
for (const round of rounds) emittedBefore.push(emittedBefore.at(-1) + round.num_emitted);

function textOf(id) {
  return trace.vocabulary[id] ?? `#${id}`;
}

// Control characters, and those that change the direction or hide, as <U+202E>; spaces at the ends and line ends as signs.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;
function shown(text, most = 40) {
  const short = text.length > most ? `${text.slice(0, most)}…(${text.length} characters)` : text;
  return short
    .replace(/\n/g, "↵")
    .replace(/\t/g, "⇥")
    .replace(/^ | $/g, "␣")
    .replace(UNSEEN, (c) => `<U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}>`);
}

// For sentences, which a screen reader reads: signs as words.
function quoted(id) {
  const text = textOf(id);
  if (text === "\n") return "a line end";
  if (text === " ") return "a space";
  return `'${shown(text).replace(/^␣|␣$/g, " ").replaceAll("↵", " line end ").replaceAll("⇥", " tab ")}'`;
}

function number(x) {
  if (x === null) return "none";
  return x !== 0 && x < 0.0005 ? x.toExponential(1) : x.toFixed(3);
}

const percent = (x) => `${(100 * x).toFixed(x < 0.0995 ? 1 : 0)} %`;
const count = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;
const sum = (values) => values.reduce((total, value) => total + value, 0);

// -- the rules --------------------------------------------------------------------------------------------------------
// The engine computes in float32.  Math.fround rounds to it, so every comparison here is the engine's own.

const f = Math.fround;

// Rejection sampling, draft by draft: accept if u < p / q, without the division.  Greedy: p is 1 or 0, and any u will do.
function acceptsDraft(draft, u) {
  return f(f(u ?? 0) * f(draft.q)) < f(draft.p);
}

// Block verification: the run that ends with this draft is accepted if u (s + 1 - w) < s.
function acceptsRun(draft, u) {
  const { weight: w, surplus: s } = draft;
  return f(f(u) * f(f(s) + f(1 - f(w)))) < f(s);
}

const ratio = (draft) => (draft.q > 0 ? draft.p / draft.q : draft.p > 0 ? Infinity : 0);
const chance = (draft) => Math.min(1, ratio(draft));
function threshold(draft) {
  if (!isBlock) return chance(draft);
  const all = draft.surplus + 1 - draft.weight;
  return all > 0 ? draft.surplus / all : 0;
}

const leading = (flags) => (flags.includes(false) ? flags.indexOf(false) : flags.length);
const longest = (flags) => flags.lastIndexOf(true) + 1;

// The token at which the running sum of a column passes u times the total.  null: one of the tokens that are not listed.
function drawn(place, u, column, before, total) {
  if (u === null) return place.tokens.reduce((best, row) => (row[column] > best[column] ? row : best))[ID];
  const mark = u * total;
  const row = place.tokens.find((row) => row[column] > 0 && row[before] <= mark && mark < row[before] + row[column]);
  return row ? row[ID] : null;
}

const drawnFromResidual = (place, u) => drawn(place, u, RESIDUAL, RESIDUAL_BEFORE, place.residual_sum);
const drawnFromTarget = (place, u) => drawn(place, u, P, P_BEFORE, 1);

// softmax(max(p - q, 0)): every token of the vocabulary gets about the same, also one that p excludes.
function drawnBySoftmax(place, u) {
  const row = place.tokens.find((row, index) => {
    const start = softmaxBefore(place, index);
    return start <= u && u < start + Math.exp(row[RESIDUAL]) / softmaxSum(place);
  });
  return row ? row[ID] : null;
}
function softmaxSum(place) {
  const others = trace.model.vocab_size - place.tokens.length;
  return sum(place.tokens.map((row) => Math.exp(row[RESIDUAL]))) + others + place.rest.residual;
}
function softmaxBefore(place, index) {
  // exp(r) = 1 + r + ...: of tokens that are not listed, the residual is so small that two terms will do.
  const listed = sum(place.tokens.slice(0, index).map((row) => Math.exp(row[RESIDUAL]) - 1 - row[RESIDUAL]));
  const row = place.tokens[index];
  return (row[ID] + row[RESIDUAL_BEFORE] + listed) / softmaxSum(place);
}

const targetsBest = (place) => place.tokens.reduce((best, row) => (row[P] > best[P] ? row : best))[ID];

// Each rule: which drafts it would accept, how many it keeps, and where it draws the next token.
const RIGHT = {
  id: "right",
  accepts: (round, i, u) => (isBlock ? acceptsRun(round.drafts[i], u[i]) : acceptsDraft(round.drafts[i], u[i])),
  keeps: isBlock ? longest : leading,
  next: drawnFromResidual,
};
const WRONG_RULES = [
  {
    id: "ratio-upside-down",
    name: "the ratio upside down",
    what: "accept if u < q / p",
    accepts: (round, i, u) => f(f(u[i]) * f(round.drafts[i].p)) < f(round.drafts[i].q),
    keptShare: (row) => row[Q] * Math.min(1, row[P] > 0 ? row[Q] / row[P] : 1),
    keptRest: (place) => place.rest.swapped,
  },
  {
    id: "residual-forgotten",
    name: "the residual forgotten",
    what: "after a rejection, draw from the target's distribution itself",
    next: drawnFromTarget,
    nextShare: (row) => row[P],
  },
  {
    id: "residual-by-softmax",
    name: "the residual by softmax",
    what: "softmax(max(p − q, 0)) in place of a division by the sum",
    next: drawnBySoftmax,
    nextShare: (row, place) => Math.exp(row[RESIDUAL]) / softmaxSum(place),
  },
  {
    id: "accept-the-targets-argmax-only",
    name: "accept the target's best token only",
    what: "accept a draft if it is the argmax of p",
    accepts: (round, i) => round.drafts[i].draw.token === targetsBest(round.places[i]),
    keptShare: (row, place) => (row[ID] === targetsBest(place) ? row[Q] : 0),
    keptRest: () => 0,
  },
  {
    id: "one-uniform-for-all-drafts",
    name: "one number for all drafts",
    what: "compare every draft of a round with the same u",
    accepts: (round, i, u) => acceptsDraft(round.drafts[i], u[0]),
    // Given that the earlier drafts were accepted, u is known to lie below each of their ratios.
    keptShare: (row, place, round, i) => Math.min(row[Q], row[P] / below(round, i)),
    keptRest: (place, round, i) => Math.min(place.rest.q, place.rest.min / below(round, i)),
  },
].map((rule) => ({ ...RIGHT, ...rule }));
const WRONG_BLOCK_RULES = [
  {
    id: "block-accepted-by-weight-alone",
    name: "by the weight alone",
    what: "accept each run if u < w, which suits the longest run only",
    accepts: (round, i, u) => f(u[i]) < f(round.drafts[i].weight),
  },
  {
    id: "one-uniform-for-all-drafts",
    name: "one number for all runs",
    what: "compare every run with the same u",
    accepts: (round, i, u) => acceptsRun(round.drafts[i], u[0]),
  },
].map((rule) => ({ ...RIGHT, ...rule }));
const rules = isGreedy ? [] : isBlock ? WRONG_BLOCK_RULES : WRONG_RULES;
const below = (round, i) => Math.min(1, ...round.drafts.slice(0, i).map(chance)) || 1;

const recordedNumbers = (round) => ({ drafts: round.drafts.map((draft) => draft.u), next: round.next.u });

// What a round does by a rule and these numbers: `tokens` are those it emits, null where the recording does not know.
function outcome(index, numbers = recordedNumbers(rounds[index]), rule = RIGHT) {
  const round = rounds[index];
  const flags = round.drafts.map((_, i) => rule.accepts(round, i, numbers.drafts));
  const kept = rule.keeps(flags);
  const verdicts = flags.map((_, i) => (i < kept ? "accepted" : isBlock || i === kept ? "rejected" : "not looked at"));
  const next = rule.next(round.places[kept], numbers.next);
  const tokens = [...round.drafts.slice(0, kept).map((draft) => draft.draw.token), next];
  const room = trace.settings.max_new_tokens - emittedBefore[index];
  const end = tokens.findIndex((token) => trace.settings.eos_ids.includes(token));
  return { kept, verdicts, next, tokens: tokens.slice(0, Math.min(room, end < 0 ? tokens.length : end + 1)) };
}

const emittedIn = (index) => trace.text.ids.slice(emittedBefore[index], emittedBefore[index + 1]);
const sameTokens = (a, b) => a.length === b.length && a.every((token, i) => token === b[i]);

// The distribution of the token at a draft's place by a rule, if the round gets there: a share for each listed token, and the rest.
function lawOf(rule, index, i) {
  const round = rounds[index];
  const place = round.places[i];
  const keptShare = rule.keptShare ?? ((row) => Math.min(row[P], row[Q]));
  const keptRest = rule.keptRest ?? (() => place.rest.min);
  const nextShare = rule.nextShare ?? ((row) => row[RESIDUAL] / place.residual_sum);
  const kept = place.tokens.map((row) => keptShare(row, place, round, i));
  const refused = Math.max(0, 1 - sum(kept) - keptRest(place, round, i));
  const shares = place.tokens.map((row, n) => kept[n] + refused * nextShare(row, place));
  return { shares, rest: 1 - sum(shares) };
}

// -- the check of the recording ---------------------------------------------------------------------------------------

const SUMS = 1e-5; // of the total: engines add up a vocabulary in different orders

function checkTrace() {
  const counts = { verdicts: 0, draws: 0, counts: 0, ranges: 0 };
  const problems = [];
  const check = (kind, agrees, problem) => {
    counts[kind] += 1;
    if (!agrees) problems.push(problem);
  };
  const drawAgrees = ({ u, before, after, sum: total }) =>
    u === null ? after > before : before - SUMS * total <= u * total && u * total < after + SUMS * total;
  const close = (a, b) => Math.abs(a - b) <= 1e-5 * Math.max(1e-3, Math.abs(b));

  check("draws", drawAgrees(trace.prompt.next), "the first token");
  let [text, cached] = [[trace.prompt.next.token], null];
  rounds.forEach((round, index) => {
    const here = `round ${index + 1}`;
    const again = outcome(index);
    let weight = 1;
    round.drafts.forEach((draft, i) => {
      const where = `${here}, draft ${i + 1}`;
      const name = quoted(draft.draw.token);
      check("verdicts", again.verdicts[i] === draft.verdict, `${where} (${name}): recorded as ${draft.verdict}, here ${again.verdicts[i]}`);
      check("draws", drawAgrees(draft.draw), `${where} (${name}): u does not lead to this token`);
      const listed = round.places[i].tokens.find((row) => row[ID] === draft.draw.token);
      check("counts", listed && close(listed[P], draft.p) && close(listed[Q], draft.q), `${where} (${name}): p or q differs from the list of this place`);
      if (isBlock) {
        weight = Math.min(1, weight * ratio(draft));
        check("counts", Math.abs(weight - draft.weight) <= SUMS, `${where} (${name}): the weight of the run`);
      }
    });
    check("counts", again.kept === round.num_accepted, `${here}: ${round.num_accepted} drafts recorded as accepted, here ${again.kept}`);
    check("draws", drawAgrees(round.next), `${here}: u does not lead to the next token, ${quoted(round.next.token)}`);
    const last = again.kept === round.drafts.length ? null : again.next;
    check("draws", last === null || last === round.next.token || !close(round.next.after - round.next.before, residualShare(round, last)), `${here}: the next token is ${quoted(round.next.token)}, here ${quoted(last)}`);
    check("counts", outcomeLength(round, index) === round.num_emitted, `${here}: ${count(round.num_emitted, "token")} emitted`);
    check("counts", text.at(-1) === round.input, `${here}: begins with another token than the last one emitted`);
    check("counts", cached === null || cached === round.cache.before, `${here}: begins with another cache than the round before left`);
    text = text.concat([...round.drafts.map((draft) => draft.draw.token).slice(0, round.num_accepted), round.next.token].slice(0, round.num_emitted));
    cached = round.cache.after;
    for (const kind of Object.keys(round.sees)) {
      const seen = round.sees[kind];
      check("ranges", sameTokens(seen.draft, inSight(kind, round, null)), `${here}: what a draft step sees in ${kind} layers`);
      seen.verify.forEach((range, row) => check("ranges", sameTokens(range, inSight(kind, round, row)), `${here}: what row ${row + 1} of verify sees in ${kind} layers`));
    }
  });
  check("counts", sameTokens(text, trace.text.ids), "the text is not what the rounds emitted");
  return { counts, problems };
}

const residualShare = (round, token) => round.places[round.num_accepted].tokens.find((row) => row[ID] === token)?.[RESIDUAL] ?? 0;
function outcomeLength(round, index) {
  const tokens = [...round.drafts.slice(0, round.num_accepted).map((draft) => draft.draw.token), round.next.token];
  const end = tokens.findIndex((token) => trace.settings.eos_ids.includes(token));
  return Math.min(trace.settings.max_new_tokens - emittedBefore[index], end < 0 ? tokens.length : end + 1);
}

const isSliding = (kind) => kind.includes("sliding");
// [first, last] position in sight; row: of verify, null: a draft step.
function inSight(kind, round, row) {
  const last = row === null ? round.cache.before - 1 : round.cache.before + row;
  const window = trace.model.window + (row === null && trace.model.convention === "transformers" ? 1 : 0);
  return [isSliding(kind) ? Math.max(0, last - window + 1) : 0, last];
}

// The cache's rule: position p is in slot p % capacity, so with `last` written last, this is what slot s holds.
const held = (slot, last, capacity) => last - ((((last - slot) % capacity) + capacity) % capacity);

function slotStates(kind, index, stage) {
  const round = rounds[index];
  const { before, written, after } = round.cache;
  const capacity = trace.model.donors[kind].capacity;
  const isWritten = stage >= VERIFY;
  const newest = isWritten ? before + written - 1 : before - 1;
  const [first, last] = isWritten ? [inSight(kind, round, 0)[0], inSight(kind, round, round.drafts.length)[1]] : inSight(kind, round, null);
  const stale = index > 0 ? [rounds[index - 1].cache.after, rounds[index - 1].cache.before + rounds[index - 1].cache.written - 1] : [0, -1];
  return Array.from({ length: capacity }, (_, slot) => {
    let position = held(slot, newest, capacity);
    if (!isWritten) {
      const left = held(slot, stale[1], capacity); // what the round before wrote and took back is still there
      if (stale[0] <= left && left <= stale[1]) return { slot, position: left, state: "taken" };
    }
    if (position < 0) return { slot, position: null, state: "empty" };
    if (isWritten && position >= before) {
      const isTaken = stage >= ROLL_BACK && position >= after;
      return { slot, position, state: isTaken ? "taken" : "written" };
    }
    return { slot, position, state: first <= position && position <= last ? "seen" : "hidden" };
  });
}

// -- the place that is shown ------------------------------------------------------------------------------------------

const place = { round: 0, stage: 0, draft: 0, view: null, rule: "", rejected: false, moved: new Map(), ring: false };
const roundNow = () => rounds[place.round];
const draftNow = () => roundNow().drafts[place.draft];
const atDraft = () => roundNow().places[place.draft];
const ruleNow = () => rules.find((rule) => rule.id === place.rule) ?? null;

// The numbers of this round, with those that were moved.
function numbersNow() {
  const numbers = recordedNumbers(roundNow());
  return {
    drafts: numbers.drafts.map((u, i) => place.moved.get(i) ?? u),
    next: place.moved.get("next") ?? numbers.next,
  };
}

function go(changes) {
  const before = place.round;
  Object.assign(place, changes);
  place.round = Math.max(0, Math.min(rounds.length - 1, place.round));
  place.stage = Math.max(0, Math.min(STAGES.length - 1, place.stage));
  if (rounds.length) place.draft = Math.max(0, Math.min(roundNow().drafts.length - 1, place.draft));
  if (place.round !== before) place.moved.clear();
  draw();
}

function stepStage(by) {
  const at = place.round * STAGES.length + place.stage + by;
  const last = rounds.length * STAGES.length - 1;
  const to = Math.max(0, Math.min(last, at));
  go({ round: Math.floor(to / STAGES.length), stage: to % STAGES.length });
}

const nameOf = (stage) => STAGES[stage].replace(" ", "-");
const hashOf = () => `#r=${place.round + 1}&s=${nameOf(place.stage)}&d=${place.draft + 1}`;
function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  const [round, draft] = [Number(given.get("r")), Number(given.get("d"))];
  const stage = STAGES.findIndex((_, index) => nameOf(index) === given.get("s"));
  const isPlace = Number.isInteger(round) && round > 0;
  if (isPlace) go({ round: round - 1, stage: Math.max(0, stage), draft: Number.isInteger(draft) && draft > 0 ? draft - 1 : 0 });
  return isPlace;
}

// One sentence for each place: what a screen reader says, and what stands under the buttons.
function sentence() {
  const round = roundNow();
  const draft = draftNow();
  const [head, name] = [`Round ${place.round + 1}, ${STAGES[place.stage]}:`, quoted(draft.draw.token)];
  const which = `draft ${place.draft + 1}, ${name}`;
  switch (place.stage) {
    case 0: {
      const donors = Object.values(trace.model.donors).map((donor) => donor.layer).sort((a, b) => a - b);
      return `${head} ${count(round.cache.before, "token")} in the cache; the drafter reads the keys and values of ${donors.length === 1 ? "layer" : "layers"} ${donors.join(" and ")}.`;
    }
    case DRAFT:
      return `${head} ${which}, ${draft.draw.u === null ? "the drafter's best token" : `drawn with probability q = ${number(draft.q)}`}.`;
    case VERIFY:
      return `${head} ${which}: the target gives it p = ${number(draft.p)}.`;
    case ACCEPT:
      return `${head} ${which}, ${draft.verdict}${reason(draft)}.`;
    case EMIT:
      return `${head} ${count(round.num_emitted, "token")}: ${Math.min(round.num_accepted, round.num_emitted)} of ${count(round.drafts.length, "draft")}${ownToken(round)}${ending()}.`;
    default:
      return `${head} ${count(round.cache.after, "token")} stay in the cache, ${round.cache.written - round.num_emitted} of ${round.cache.written} written are taken back.`;
  }
}

function reason(draft) {
  if (draft.verdict === "not looked at") return ": an earlier draft was rejected";
  if (isGreedy) return draft.verdict === "accepted" ? ": it is the target's best token" : ": it is not the target's best token";
  const limit = isBlock ? threshold(draft) : ratio(draft);
  const name = isBlock ? "s / (s + 1 - w)" : "p / q";
  const byLonger = draft.verdict === "accepted" && draft.u >= limit ? ", but a longer run is accepted" : "";
  return `: u = ${number(draft.u)} is ${draft.u < limit ? "below" : "not below"} ${name} = ${number(limit)}${byLonger}`;
}

function ownToken(round) {
  if (round.num_emitted <= round.num_accepted) return "";
  return ` and ${quoted(round.next.token)} from ${round.num_accepted === round.drafts.length ? "the target's own distribution" : "the residual"}`;
}

function ending() {
  if (place.round < rounds.length - 1) return "";
  return trace.text.ended_by === "eos" ? "; the end-of-text token ends the text" : "; the budget ends the text";
}

// -- drawing ----------------------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
function node(tag, attributes = {}, ...children) {
  const made = ["svg", "rect", "line", "path"].includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

const token = (id, most) => node("bdi", {}, shown(textOf(id), most));
const across = (x) => `${Math.max(0, Math.min(100, 100 * x)).toFixed(3)}%`;
const box = (kind, x, width, y = 0, height = "100%") => node("rect", { class: kind, x: across(x), width: across(Math.max(0, width)), y, height });
const post = (x) => node("line", { class: "post", x1: across(x), x2: across(x), y1: 0, y2: "100%", "data-x": x });
const picture = (label, height, ...children) => node("svg", { class: "bars", role: "img", "aria-label": label, height, width: "100%" }, ...children);
const swatch = (kind) => node("svg", { "aria-hidden": "true" }, node("rect", { class: kind, x: 1, y: 1, width: "92%", height: "80%" }));
const legend = (...items) => node("ul", { class: "legend" }, items.map(([kind, label]) => node("li", {}, swatch(kind), label)));
const numeric = (value) => node("td", { class: "number" }, typeof value === "number" ? number(value) : value);
function table(caption, heads, rows, kind = null) {
  return node(
    "table", { class: kind },
    node("caption", {}, caption),
    node("thead", {}, node("tr", {}, heads.map((head) => node("th", { scope: "col", class: head.startsWith("#") ? "number" : null }, head.replace("#", ""))))),
    node("tbody", {}, rows),
  );
}

// -- the views --------------------------------------------------------------------------------------------------------

function viewText() {
  const astray = firstAstray();
  const roundLink = (round, index) => {
    const ids = emittedIn(index);
    const tokens = ids.map((id, i) => {
      return inText(id, i < round.num_accepted ? "drafted" : "own");
    });
    const refused = place.rejected ? round.drafts.slice(round.num_accepted).map((draft) => node("del", { class: "struck" }, node("bdi", {}, shown(textOf(draft.draw.token))))) : [];
    const own = tokens.length > round.num_accepted ? [tokens.pop()] : [];
    const isNow = index === place.round;
    const mark = index === astray ? node("strong", { class: "astray" }, "⚠ from here on, another text ") : null;
    return [mark, node("a", { href: `#r=${index + 1}&s=share&d=1`, "aria-current": isNow ? "step" : null, tabindex: isNow ? 0 : -1 }, node("sup", {}, `${index + 1}`), tokens, refused, own)];
  };
  const prompt = trace.prompt.ids.map(textOf).join("");
  return [
    node("p", { id: "text-body" }, node("span", { class: "prompt" }, node("bdi", {}, lines(shownInText(prompt)))), inText(trace.prompt.next.token, "own"), rounds.map(roundLink)),
    legend(["of-target", "the target's own token (boxed)"], ["of-drafter", "a draft that was accepted (underlined)"]),
    node("p", { class: "note" }, place.rejected ? "Rejected drafts are struck out. " : "x shows the rejected drafts. ", "A small number begins each round; the prompt is grey."),
  ];
}
const shownInText = (text) => (text.length > 2000 ? `…${text.slice(-2000)}` : text).replace(/[^\n\S]/g, " ").replace(UNSEEN, (c) => (c === "\n" ? c : shown(c)));
const lines = (text) => text.split("\n").flatMap((line, i) => (i ? ["↵", node("br"), line] : [line]));
// A token with its spaces; behind one that ends a line, a new line.
function inText(id, kind) {
  const text = textOf(id);
  const made = node("span", { class: kind }, node("bdi", {}, shownInText(text.slice(0, 200)).replaceAll("\n", "↵"), text.length > 200 ? `…(${text.length} characters)` : ""));
  return text.endsWith("\n") ? [made, node("br")] : [made];
}

function firstAstray() {
  const rule = ruleNow();
  if (rule === null) return place.moved.size ? place.round : -1;
  return rounds.findIndex((round, index) => !sameTokens(outcome(index, undefined, rule).tokens, emittedIn(index)));
}

function viewRound() {
  const { stage } = place;
  const round = roundNow();
  const known = (from, text) => node("span", {}, stage >= from ? text : " ");
  const isAccepted = (i) => i < round.num_accepted;
  const drafts = round.drafts.map((draft, i) => {
    const state = stage < ACCEPT ? "" : isAccepted(i) ? "accepted" : draft.verdict === "rejected" ? "rejected" : "passed";
    const sign = { accepted: "✓ accepted", rejected: "✗ rejected", passed: "· not looked at" }[state] ?? "";
    return node(
      "li", { class: `${state} ${i === place.draft ? "chosen" : ""}`, "data-draft": i + 1 },
      node("strong", {}, stage >= DRAFT ? token(draft.draw.token) : `draft ${i + 1}`),
      known(DRAFT, `q = ${number(draft.q)}`),
      known(VERIFY, `p = ${number(draft.p)}`),
      known(ACCEPT, isGreedy ? "" : `u = ${number(draft.u)}`),
      known(ACCEPT, `${sign}${stage >= EMIT && isAccepted(i) && !draft.emitted ? ", behind the end" : ""}`),
    );
  });
  const isBonus = round.num_accepted === round.drafts.length;
  const own = node(
    "li", { class: stage >= ACCEPT ? "final" : "" },
    node("strong", {}, stage >= ACCEPT ? token(round.next.token) : "the target's own"),
    known(ACCEPT, isGreedy ? "" : `u = ${number(round.next.u)}`),
    known(ACCEPT, isBonus ? "◆ bonus token" : "◆ from the residual"),
    known(EMIT, round.num_emitted > round.num_accepted ? "emitted" : "behind the end: not emitted"),
  );
  return [
    node("ol", { class: "stages" }, STAGES.map((name, index) => node("li", { "aria-current": index === stage ? "step" : null }, name))),
    node("p", {}, "Newest token, not in the cache yet: ", token(round.input)),
    node("ul", { class: "drafts" }, drafts, own),
    node("p", {}, stage < EMIT ? "What later stages find out is still empty." : `Emitted: ${count(round.num_emitted, "token")}. The next round drafts from the hidden state of row ${round.num_emitted} of verify, which predicted the newest token.`),
  ];
}

function viewVerdict() {
  const numbers = numbersNow();
  const now = outcome(place.round, numbers);
  const rows = roundNow().drafts.map((draft, i) => {
    const u = numbers.drafts[i];
    const limit = threshold(draft);
    const verdict = now.verdicts[i];
    const [name, sign] = [isBlock ? "s / (s + 1 − w)" : "p / q", { accepted: "✓", rejected: "✗", "not looked at": "·" }[verdict]];
    const compared = isGreedy ? `p = ${number(draft.p)}` : `u ${number(u)} ${u < limit ? "<" : "≥"} ${number(isBlock ? limit : ratio(draft))} = ${name}`;
    const detail = isBlock ? `w = ${number(draft.weight)}, s = ${number(draft.surplus)}. ` : "";
    const label = `draft ${i + 1}: filled up to ${number(limit)}, u at ${number(u)}`;
    return node(
      "li", { class: i === place.draft ? "chosen" : null },
      node("div", {}, `${i + 1} `, token(draft.draw.token), ` ${detail}${compared}: `, node("strong", {}, `${sign} ${verdict}${isBlock && verdict === "accepted" && u >= limit ? ", with a longer run" : ""}`)),
      picture(label, 22, box("axis", 0, 1), box("kept", 0, limit), box("of-target", 0, limit), isGreedy ? null : post(u)),
    );
  });
  const rule = isBlock
    ? "The longest run whose u is below s / (s + 1 − w) is accepted, even if a shorter one is not. w is the weight of the run, s what the target has left after it."
    : isGreedy ? "Greedy: a draft is accepted if it is the target's best token. No random number is needed." : "A draft is accepted if its random number u is below p / q. Drafts behind the first rejection are not looked at.";
  return [node("p", {}, rule), node("ol", { class: "verdicts" }, rows), isGreedy ? null : legend(["kept", "from 0 to 1: accepted if u is here"], ["post", "u"]), isGreedy ? null : whatIf(numbers, now)];
}

function whatIf(numbers, now) {
  const slider = (key, label, value) => {
    const id = `move-${key}`;
    return node(
      "p", {}, node("label", { for: id }, label), " ",
      node("input", { type: "range", id, min: 0, max: 0.999, step: 0.001, value, oninput: (event) => move(key, Number(event.target.value)) }), " ",
      node("output", { for: id }, number(value)),
    );
  };
  const round = roundNow();
  const kept = now.kept;
  const isLast = kept === round.drafts.length;
  const next = now.next === null ? "a token that is not listed" : quoted(now.next);
  const same = sameTokens(now.tokens, emittedIn(place.round));
  const result = `With these numbers the round keeps ${count(kept, "draft")} and draws ${next} from ${isLast ? "the target's own distribution" : "the residual"}. ` +
    (same ? "The text is the recorded one." : "From here on the recording does not hold.");
  return node(
    "div", { id: "what-if" }, node("h3", {}, "What if u were …"),
    slider(place.draft, `u of draft ${place.draft + 1}`, numbers.drafts[place.draft]),
    slider("next", "u of the next token", numbers.next),
    node("p", { id: "what-if-result", "aria-live": "polite" }, result),
    place.moved.size ? node("button", { type: "button", onclick: () => { place.moved.clear(); draw(); } }, "Back to the recorded numbers") : null,
  );
}

function move(key, value) {
  place.moved.set(key, Math.max(0, Math.min(0.999, value)));
  draw();
}

// Rows of a place: the largest of p and q first, the rest last.
const byWeight = (here) => [...here.tokens].sort((a, b) => Math.max(b[P], b[Q]) - Math.max(a[P], a[Q]) || a[ID] - b[ID]);

function viewDistributions() {
  const [here, draft] = [atDraft(), draftNow()];
  const rest = [null, here.rest.p, here.rest.q];
  const rows = [...byWeight(here), rest];
  const widest = Math.max(...here.tokens.map((row) => Math.max(row[P], row[Q]))); // the bar of all others may be cut
  const shared = sum(here.tokens.map((row) => Math.min(row[P], row[Q]))) + here.rest.min;
  const made = rows.map((row) => {
    const [p, q] = [row[P], row[Q]];
    const both = row === rest ? here.rest.min : Math.min(p, q);
    const over = row === rest ? Math.max(0, p - both) : Math.max(0, p - q);
    const label = `p ${number(p)}, q ${number(q)}, of both ${number(both)}, left over ${number(over)}`;
    const bar = picture(label, 20, box("kept", 0, both / widest, 1, 18), box("left-over", both / widest, Math.min(over, Math.max(0, widest - both)) / widest, 1, 18), box("of-target", 0, p / widest, 1, 18), box("of-drafter", 0, q / widest, 4, 12));
    const isCut = row === rest && Math.max(p, q) > widest;
    const name = row === rest ? `all other tokens${isCut ? " (bar cut)" : ""}` : [token(row[ID], 24), row[ID] === draft.draw.token ? " ← draft" : ""];
    return node("tr", { class: row[ID] === draft.draw.token ? "chosen" : null }, node("th", { scope: "row" }, name), node("td", { class: "bar" }, bar), numeric(p), numeric(q));
  });
  return [
    node("p", {}, `Draft ${place.draft + 1}. The accepted share, the sum of min(p, q), is ${number(shared)}: `, node("strong", {}, `whatever is drafted here is kept with ${percent(shared)}`), "."),
    table("Next token by the target (p) and by the drafter (q)", ["token", "p and q", "#p", "#q"], made),
    legend(["kept", "in both: accepted"], ["left-over", "p − q: left over, the residual"], ["of-target", "p, target"], ["of-drafter", "q, drafter"]),
    isBlock || isGreedy ? null : proof(here, shared),
    ruleNow() === null || isBlock ? null : wrongLaw(here),
  ];
}

function proof(here, shared) {
  const share = (residual) => (here.residual_sum > 0 ? ((1 - shared) * residual) / here.residual_sum : 0);
  const rows = byWeight(here).slice(0, 8).map((row) => {
    const [kept, drawnAfter] = [Math.min(row[P], row[Q]), share(row[RESIDUAL])];
    return node("tr", {}, node("th", { scope: "row" }, token(row[ID], 16)), numeric(kept), numeric(drawnAfter), numeric(kept + drawnAfter), numeric(row[P]));
  });
  return node(
    "details", {}, node("summary", {}, "Why the text follows the target: kept + drawn = p"),
    table("Drafted and kept with min(p, q); or refused, and drawn from the residual", ["token", "#kept", "#+ drawn", "#= sum", "#p"], rows),
  );
}

function wrongLaw(here) {
  const rule = ruleNow();
  const law = lawOf(rule, place.round, place.draft);
  const order = here.tokens.map((row, i) => [row, law.shares[i]]).sort((a, b) => Math.max(b[0][P], b[1]) - Math.max(a[0][P], a[1]));
  const line = (name, p, share) => node("tr", {}, node("th", { scope: "row" }, name), numeric(p), numeric(share), numeric(`${share >= p ? "+" : "−"}${number(Math.abs(share - p))}`));
  const distance = (sum(order.map(([row, share]) => Math.abs(share - row[P]))) + Math.abs(law.rest - here.rest.p)) / 2;
  return node(
    "div", { id: "wrong-law" }, node("h3", {}, `Wrong rule: ${rule.name}`),
    node("p", {}, `By it the token at this place has another distribution, at least ${number(distance)} of total variation from the target's.`),
    table("If the round gets here", ["token", "#p", "#by this rule", "#difference"], [...order.slice(0, 8).map(([row, share]) => line(token(row[ID], 16), row[P], share)), line("all other tokens", here.rest.p + sum(order.slice(8).map(([row]) => row[P])), law.rest + sum(order.slice(8).map(([, share]) => share)))]),
  );
}

function viewNext() {
  const [numbers, round] = [numbersNow(), roundNow()];
  const now = outcome(place.round, numbers);
  const here = round.places[now.kept];
  const isLast = now.kept === round.drafts.length;
  const total = here.residual_sum;
  const rows = here.tokens.filter((row) => row[RESIDUAL] > 0);
  const segments = (from, to) => rows.map((row) => {
    const [start, end] = [row[RESIDUAL_BEFORE] / total, (row[RESIDUAL_BEFORE] + row[RESIDUAL]) / total].map((x) => (x - from) / (to - from));
    if (end <= 0 || start >= 1) return null;
    return box(row[ID] === now.next ? "segment drawn" : "segment", Math.max(0, start), Math.min(1, end) - Math.max(0, start), 3, 24);
  });
  const u = numbers.next;
  const what = isGreedy ? "The target's best token." : isLast ? "All drafts were accepted, so the next token is drawn from the target's own distribution: the bonus token." : `The next token is drawn from the residual of draft ${now.kept + 1}'s place: ${isBlock ? "max(w p − q, 0)" : "max(p − q, 0)"}, divided by its sum, ${number(total)}.`;
  if (isGreedy) return [node("p", {}, what, " ", token(round.next.token))];
  const [from, to] = u < 0.03 ? [0, 0.06] : u > 0.97 ? [0.94, 1] : [u - 0.03, u + 0.03];
  const drawnRow = rows.find((row) => row[ID] === now.next);
  const segment = (row) => `${number(row[RESIDUAL_BEFORE] / total)} to ${number((row[RESIDUAL_BEFORE] + row[RESIDUAL]) / total)}`;
  const listed = [...rows].sort((a, b) => b[RESIDUAL] - a[RESIDUAL]).slice(0, 10);
  if (drawnRow && !listed.includes(drawnRow)) listed.push(drawnRow);
  return [
    node("p", {}, what),
    node("p", {}, `u = ${number(u)} lies in the segment of `, node("strong", {}, now.next === null ? "a token that is not listed" : token(now.next)), "."),
    picture(`from 0 to 1 in the order of token ids; u at ${number(u)}`, 30, box("segment others", 0, 1, 3, 24), segments(0, 1), post(u)),
    node("p", { class: "note" }, `Under the lens, from ${number(from)} to ${number(to)}:`),
    picture(`the same from ${number(from)} to ${number(to)}`, 30, box("segment others", 0, 1, 3, 24), segments(from, to), post((u - from) / (to - from))),
    legend(["segment", "a listed token"], ["segment others", "tokens that are not listed"], ["segment drawn", "the drawn one"]),
    table("Segments, the widest first; they lie in the order of token ids", ["token", "from … to", "#share"], listed.map((row) => node("tr", { class: row === drawnRow ? "chosen" : null }, node("th", { scope: "row" }, token(row[ID], 24), row === drawnRow ? " ← u" : ""), node("td", {}, segment(row)), numeric(row[RESIDUAL] / total)))),
  ];
}

const SLOT_WORDS = { seen: "committed, in sight", hidden: "committed, out of sight", written: "written by this round", taken: "taken back: nothing reads it", empty: "empty" };

function viewCache() {
  const { before, after, written } = roundNow().cache;
  const what = place.stage < VERIFY
    ? `Before verify: ${before} tokens are committed. Every draft step reads, and none writes.`
    : place.stage < ROLL_BACK
      ? `Verify wrote ${written} tokens, at positions ${before} to ${before + written - 1}: the newest token and all drafts.`
      : `Rollback sets the length from ${before + written} back to ${after}. Nothing is copied or cleared: the rejected keys stay in their slots until the next verify writes over them, and no mask shows them.`;
  return [
    node("p", {}, what),
    Object.keys(trace.model.donors).map(cacheOf),
    node("ul", { class: "legend" }, Object.entries(SLOT_WORDS).map(([state, words]) => node("li", {}, node("span", { class: `slot key ${state}`, "aria-hidden": "true" }, "p"), ` ${words}`))),
    node("button", { type: "button", "aria-pressed": `${place.ring}`, onclick: () => go({ ring: !place.ring }) }, "Draw the ring as a circle"),
  ];
}

const MOST_SLOTS = 256;
function cacheOf(kind) {
  const [donor, round] = [trace.model.donors[kind], roundNow()];
  const states = slotStates(kind, place.round, place.stage);
  const seen = place.stage < VERIFY ? inSight(kind, round, null) : [inSight(kind, round, 0), inSight(kind, round, round.drafts.length)];
  const sight = place.stage < VERIFY ? `every draft step sees positions ${seen[0]} to ${seen[1]}` : `the first row of verify sees ${seen[0][0]} to ${seen[0][1]}, the last ${seen[1][0]} to ${seen[1][1]}`;
  const counts = Object.entries(SLOT_WORDS).map(([state, words]) => [states.filter((slot) => slot.state === state).length, words]).filter(([n]) => n).map(([n, words]) => `${n} ${words}`);
  // A full layer is longer than what is in it; a very long one is shown around its end.
  const used = isSliding(kind) ? states.length : Math.min(states.length, Math.ceil((round.cache.before + round.cache.written) / 32) * 32);
  const from = Math.max(0, used - MOST_SLOTS);
  const cells = states.slice(from, used);
  const title = isSliding(kind) ? `Sliding layer ${donor.layer}: a ring of ${donor.capacity} slots, window ${trace.model.window}` : `Full layer ${donor.layer}: ${donor.capacity} slots, one for each position`;
  const drawing = place.ring && isSliding(kind)
    ? circle(states)
    : node("div", { class: "slots", role: "img", "aria-label": counts.join(", ") }, cells.map(({ slot, position, state }) => node("span", { class: `slot ${state}`, "data-slot": slot, "data-state": state, title: `slot ${slot}: ${position === null ? "empty" : `position ${position}, ${SLOT_WORDS[state]}`}` }, position === null ? "" : `${position}`)));
  const left = [from ? `slots 0 to ${from - 1} come before` : "", used < states.length ? `slots ${used} to ${states.length - 1} are empty` : ""].filter(Boolean).join("; ");
  return node("div", {}, node("h3", {}, title), node("p", {}, `${sight[0].toUpperCase()}${sight.slice(1)}. Each cell is a slot with the position it holds${left ? `; ${left}` : ""}.`), drawing, node("p", { class: "note" }, `${counts.join(", ")}.`));
}

function circle(states) {
  const [n, outer, inner] = [states.length, 100, 72];
  const point = (radius, at) => `${(110 + radius * Math.sin((2 * Math.PI * at) / n)).toFixed(2)} ${(110 - radius * Math.cos((2 * Math.PI * at) / n)).toFixed(2)}`;
  const arcs = states.map(({ slot, state }) => node("path", { class: `arc ${state}`, d: `M${point(outer, slot)}A${outer} ${outer} 0 0 1 ${point(outer, slot + 1)}L${point(inner, slot + 1)}A${inner} ${inner} 0 0 0 ${point(inner, slot)}Z` }));
  return node("svg", { class: "ring", viewBox: "0 0 220 220", role: "img", "aria-label": `the ring of ${n} slots as a circle, slot 0 at the top, clockwise` }, arcs);
}

function viewClusters() {
  const { head } = trace.model;
  const draft = draftNow();
  if (head.kind !== "clustered" || !draft.clusters) return [node("p", {}, "The drafter has a dense head: every draft step scores the whole vocabulary.")];
  const best = targetsBest(atDraft());
  const [rank, home] = [new Map(draft.clusters.map(([cluster], i) => [cluster, i + 1])), head.cluster_of[best]];
  const inReach = rank.has(home);
  const cells = head.clusters > 256 ? null : node(
    "div", { class: "clusters", role: "img", "aria-label": `${draft.clusters.length} of ${head.clusters} clusters searched; the number is the rank of its score` },
    Array.from({ length: head.clusters }, (_, cluster) => node("span", { class: `cluster ${rank.has(cluster) ? "searched" : ""} ${cluster === home ? "holds" : ""}`, title: `cluster ${cluster}` }, `${rank.get(cluster) ?? ""}${cluster === head.cluster_of[draft.draw.token] ? "✓" : ""}${cluster === home ? "◆" : ""}`)),
  );
  const words = (cluster) => {
    const members = clusterMembers.get(cluster) ?? [];
    const first = [draft.draw.token, best].filter((id) => head.cluster_of[id] === cluster);
    return [...new Set([...first, ...members])].slice(0, 6).flatMap((id, i) => (i ? [" · ", token(id, 16)] : [token(id, 16)]));
  };
  return [
    node("p", {}, `Draft ${place.draft + 1}: of ${head.clusters} clusters with ${head.size} tokens each, the ${draft.clusters.length} with the best scores are searched; every other token has q = 0.`),
    draft.reach === undefined ? null : node("p", {}, node("strong", {}, `${percent(draft.reach)} of the target's probability is in reach`), "."),
    home === undefined ? null : node("p", {}, "The target's best token, ", token(best), inReach ? `, is in cluster ${home}, rank ${rank.get(home)}.` : `, is in cluster ${home}: out of reach, q = 0.`),
    cells,
    cells ? node("p", { class: "note" }, "Outlined: searched, with the rank of the score. ✓ the draft's cluster, ◆ that of the target's best token.") : null,
    table("The best clusters, with their tokens that occur in this trace", ["#rank", "cluster", "#score", "tokens"], draft.clusters.slice(0, 8).map(([cluster, score], i) => node("tr", { class: cluster === head.cluster_of[draft.draw.token] ? "chosen" : null }, numeric(`${i + 1}`), node("td", {}, `${cluster}`), numeric(`${score.toFixed(2)}`), node("td", {}, words(cluster))))),
  ];
}
const clusterMembers = new Map();
for (const [id, cluster] of Object.entries(trace.model.head.cluster_of ?? {})) {
  if (!clusterMembers.has(cluster)) clusterMembers.set(cluster, []);
  clusterMembers.get(cluster).push(Number(id));
}

const AROUND = 25; // rounds drawn before and after the current one
function viewTime() {
  const { times } = trace;
  if (times === null) return [node("p", {}, "No times were measured for this trace.")];
  const roundTime = times.draft + times.verify + times.accept + times.rollback;
  const tokensAt = (index) => emittedBefore[index] - 1; // after the first token, which the prefill gives
  const [first, end] = [Math.max(0, place.round - AROUND), Math.min(rounds.length, place.round + AROUND + 1)];
  const start = { step: tokensAt(first) * times.step, round: first * roundTime };
  const length = Math.max(tokensAt(end) * times.step - start.step, end * roundTime - start.round);
  const at = (ms) => ms / length;
  const steps = Array.from({ length: tokensAt(end) - tokensAt(first) }, (_, i) => box("part-verify", at(i * times.step), at(times.step) * 0.94, 4, 20));
  const parts = ["draft", "verify", "accept", "rollback"];
  const lane = [];
  for (let index = first; index < end; index += 1) {
    let from = (index - first) * roundTime;
    for (const part of parts) {
      const pieces = part === "draft" ? rounds[index].drafts.length : 1;
      for (let piece = 0; piece < pieces; piece += 1) {
        lane.push(box(`part-${part}`, at(from), at(times[part] / pieces), 4, 20));
        from += times[part] / pieces;
      }
    }
  }
  const [done, fraction] = [tokensAt(place.round + 1), [0, times.draft, times.draft + times.verify, roundTime - times.rollback, roundTime - times.rollback, roundTime][place.stage]];
  const [stepMs, roundMs] = [done * times.step, (place.round + 1) * roundTime];
  const total = tokensAt(rounds.length) / rounds.length;
  return [
    node("div", { class: "lanes" },
      node("p", {}, `Autoregressive, one token a step (${times.step.toFixed(2)} ms):`),
      picture("one box for each autoregressive step; the line is at the last token before this round", 28, steps, post(at(tokensAt(place.round) * times.step - start.step))),
      node("p", {}, `With drafts, ${rounds[place.round].drafts.length + 1} tokens a round at most (${roundTime.toFixed(2)} ms):`),
      picture("for each round the draft steps, verify, accept and rollback; the line is at the current stage", 28, lane, post(at((place.round - first) * roundTime + fraction)))),
    legend(["part-draft", `draft ${times.draft.toFixed(2)} ms`], ["part-verify", `verify ${times.verify.toFixed(2)} ms`], ["part-accept", `accept ${times.accept.toFixed(2)} ms`], ["part-rollback", `rollback ${times.rollback.toFixed(2)} ms`]),
    node("p", {}, `After this round, ${count(done, "token")}: ${stepMs.toFixed(1)} ms one by one, ${roundMs.toFixed(1)} ms with drafts, `, node("strong", {}, `${(stepMs / roundMs).toFixed(2)} times as fast`), "."),
    node("p", {}, `The whole text has ${total.toFixed(2)} tokens a round. The cost model: ${total.toFixed(2)} × ${times.step.toFixed(2)} / ${roundTime.toFixed(2)} = ${((total * times.step) / roundTime).toFixed(2)}.`),
    node("p", { class: "note" }, `Both lanes have one scale${end - first < rounds.length ? `, and show rounds ${first + 1} to ${end}` : ""}. Times: ${times.how}.`),
  ];
}

function viewSummary() {
  const places = Math.max(...rounds.map((round) => round.drafts.length));
  const byPlace = Array.from({ length: places }, (_, i) => {
    const reached = rounds.filter((round) => i < round.drafts.length && (isBlock || round.num_accepted >= i));
    const kept = reached.filter((round) => round.num_accepted > i).length;
    const expected = sum(reached.map((round) => sum(round.places[i].tokens.map((row) => Math.min(row[P], row[Q]))) + round.places[i].rest.min)) / reached.length;
    return node("tr", {}, node("th", { scope: "row" }, `${i + 1}`), numeric(`${reached.length}`), numeric(`${kept}`), numeric(reached.length ? percent(kept / reached.length) : "–"), isBlock ? null : numeric(reached.length ? percent(expected) : "–"));
  });
  const heads = ["draft", isBlock ? "#rounds" : "#looked at", "#accepted", "#share", ...(isBlock ? [] : ["#expected"])];
  const most = places + 1;
  const byKept = Array.from({ length: most }, (_, n) => rounds.filter((round) => round.num_accepted === n).length);
  const top = Math.max(...byKept);
  return [
    node("p", {}, `${count(rounds.length, "round")}, ${((trace.text.ids.length - 1) / rounds.length).toFixed(2)} tokens a round of at most ${places + 1}. The text ended at ${trace.text.ended_by === "eos" ? "an end-of-text token" : "the end of its budget"}.`),
    table(isBlock ? "Accepted, by draft position" : "Accepted, by draft position; expected is the mean accepted share", heads, byPlace, "narrow"),
    table("Rounds, by the number of accepted drafts", ["#accepted", "rounds", "#count"], byKept.map((n, i) => node("tr", {}, numeric(`${i}`), node("td", { class: "bar" }, picture(`${n} rounds`, 16, box("kept", 0, n / top, 2, 12), box("of-target", 0, n / top, 2, 12))), numeric(`${n}`))), "narrow"),
  ];
}

const VIEWS = [
  { id: "text", title: "Text", make: viewText, wide: true },
  { id: "round", title: "Round", make: viewRound, wide: true },
  { id: "verdict", title: "Verdict", make: viewVerdict },
  { id: "distributions", title: "Two distributions", make: viewDistributions },
  { id: "next", title: "Next token", make: viewNext },
  { id: "clusters", title: "Clusters", make: viewClusters },
  { id: "cache", title: "Cache", make: viewCache, wide: true },
  { id: "time", title: "Time", make: viewTime, wide: true },
  { id: "summary", title: "Summary", make: viewSummary, wide: true },
];
const VIEW_OF_STAGE = ["cache", "clusters", "distributions", "verdict", "next", "cache"];

// -- the controls -----------------------------------------------------------------------------------------------------

const byId = (id) => document.getElementById(id);
const stillMotion = matchMedia("(prefers-reduced-motion: reduce)");
let timer = null;

function play() {
  if (timer !== null) {
    clearInterval(timer);
    timer = null;
  } else {
    timer = setInterval(() => (atEnd() ? play() : stepStage(1)), stillMotion.matches ? 3000 : 1000);
  }
  drawButtons();
}
const atEnd = () => place.round === rounds.length - 1 && place.stage === STAGES.length - 1;

function show(index) {
  place.view = VIEWS[index].id;
  draw();
  const section = byId(place.view);
  section.scrollIntoView({ block: "start" });
  section.focus({ preventScroll: true });
}

function present() {
  document.body.classList.toggle("present");
  place.view ??= VIEW_OF_STAGE[place.stage];
  draw();
}

function find(text) {
  const found = (index) => rounds[index] && [...emittedIn(index), ...rounds[index].drafts.map((draft) => draft.draw.token)].some((id) => textOf(id).toLowerCase().includes(text.toLowerCase()));
  for (let by = 1; by <= rounds.length && text; by += 1) {
    const index = (place.round + by) % rounds.length;
    if (found(index)) return go({ round: index, stage: 0, draft: 0 });
  }
  byId("sentence").textContent = `No token of this text or of its drafts contains '${shown(text)}'.`;
}

function nextRule() {
  const names = ["", ...rules.map((rule) => rule.id)];
  go({ rule: names[(names.indexOf(place.rule) + 1) % names.length] });
}

function moveBy(amount) {
  if (isGreedy) return;
  const u = numbersNow().drafts[place.draft];
  move(place.draft, Math.round(1000 * (u + amount)) / 1000);
}

// Each key has a button, or a field, that does the same.
const BUTTONS = [
  ["Home", "|‹", "First round", () => go({ round: 0, stage: 0 })],
  ["PageUp", "«", "Previous round", () => go({ round: place.round - 1 })],
  ["ArrowLeft", "‹", "Previous stage", () => stepStage(-1)],
  ["ArrowRight", "›", "Next stage", () => stepStage(1)],
  ["PageDown", "»", "Next round", () => go({ round: place.round + 1 })],
  ["End", "›|", "Last round", () => go({ round: rounds.length - 1, stage: 0 })],
  ["ArrowUp", "↑", "Previous draft", () => go({ draft: place.draft - 1 })],
  ["ArrowDown", "↓", "Next draft", () => go({ draft: place.draft + 1 })],
  [" ", "▶", "Play", play],
];
const KEYS = {
  ...Object.fromEntries(BUTTONS.map(([key, , , act]) => [key, act])),
  ...Object.fromEntries(VIEWS.map((_, index) => [`${index + 1}`, () => show(index)])),
  p: present,
  x: () => go({ rejected: !place.rejected }),
  w: nextRule,
  g: () => byId("go-to").focus(),
  "/": () => byId("find").focus(),
  "[": () => moveBy(-0.01),
  "]": () => moveBy(0.01),
  "{": () => moveBy(-0.1),
  "}": () => moveBy(0.1),
  "?": () => { byId("help").open = !byId("help").open; if (byId("help").open) byId("help").scrollIntoView(); },
  Escape: () => { byId("help").open = false; if (document.body.classList.contains("present")) present(); byId("player").focus(); },
};
const KEY_WORDS = [
  ["→ ←", "next, previous stage"], ["⇧ → ⇧ ←, or PgDn PgUp", "next, previous round"], ["↓ ↑", "next, previous draft"], ["Home End", "first, last round"],
  ["Space", "play, pause"], ["1 … 9", "the views, in their order"], ["p", "one view alone, large"], ["x", "rejected drafts in the text"], ["w", "the next wrong rule"],
  ["[ ] { }", "move u of the draft by 0.01, by 0.1"], ["g /", "go to a round, find a token"], ["? Esc", "this list; back to the buttons"],
];

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const typed = event.target.closest("input, select, textarea");
  if (typed && event.key !== "Escape") return;
  if (event.key === " " && event.target.closest("button, summary, a")) return; // Space presses these
  const isLetter = event.key.length === 1 && event.key !== " ";
  if (isLetter && !byId("letters").checked) return;
  const key = event.shiftKey && event.key === "ArrowRight" ? "PageDown" : event.shiftKey && event.key === "ArrowLeft" ? "PageUp" : event.key;
  if (!(key in KEYS)) return;
  event.preventDefault();
  KEYS[key]();
}

function drawButtons() {
  byId("buttons").querySelector('[data-key=" "]').textContent = timer === null ? "▶" : "❚❚";
  byId("buttons").querySelector('[data-key=" "]').setAttribute("aria-label", timer === null ? "Play" : "Pause");
  byId("where").textContent = `Round ${place.round + 1} of ${rounds.length}`;
  byId("present").setAttribute("aria-pressed", `${document.body.classList.contains("present")}`);
  byId("rejected").setAttribute("aria-pressed", `${place.rejected}`);
  byId("rule").value = place.rule;
}

function build() {
  const { engine, target = "", drafter = "", platform = "", dtype = "" } = trace.made_by;
  const { sampling, draft_length } = trace.settings;
  const how = isGreedy ? "greedy" : `temperature ${sampling.temperature}${sampling.top_k ? `, top-k ${sampling.top_k}` : ""}${sampling.top_p < 1 ? `, top-p ${sampling.top_p}` : ""}, accepted by ${acceptance}`;
  byId("about").textContent = `Speculative decoding: a drafter proposes ${draft_length} tokens a round, the target checks them in one pass. Recorded by ${shown(engine, 80)}${target ? ` from ${shown(target, 80)}${drafter && drafter !== target ? ` and ${shown(drafter, 80)}` : ""}` : ""}: ${how}, seed ${trace.settings.seed}${dtype ? `, ${shown(dtype)}` : ""}${platform ? ` on ${shown(platform)}` : ""}.`;
  byId("buttons").append(
    ...BUTTONS.map(([key, sign, label, act]) => node("button", { type: "button", "data-key": key, "aria-label": label, title: label, onclick: act }, sign)),
    node("span", { id: "where" }),
  );
  const field = (label, input) => node("label", {}, `${label} `, input);
  const onEnter = (act) => (event) => { if (event.key === "Enter") act(event.target.value); };
  byId("more").append(
    field("Go to round", node("input", { type: "number", id: "go-to", min: 1, max: rounds.length, onkeydown: onEnter((value) => Number(value) >= 1 && go({ round: Math.round(Number(value)) - 1, stage: 0 })) })),
    field("Find a token", node("input", { type: "search", id: "find", onkeydown: onEnter(find) })),
    node("button", { type: "button", id: "rejected", onclick: KEYS.x }, "Rejected drafts"),
    field("Wrong rule", node("select", { id: "rule", disabled: !rules.length, onchange: (event) => go({ rule: event.target.value }) }, node("option", { value: "" }, "none"), rules.map((rule) => node("option", { value: rule.id }, rule.name)))),
    node("button", { type: "button", id: "present", onclick: present }, "One view alone"),
    field("Letter keys", node("input", { type: "checkbox", id: "letters", checked: true })),
    node("p", { id: "rule-result", "aria-live": "polite" }),
  );
  byId("views").append(...VIEWS.map(({ id, title, wide }, index) => node("section", { id, class: wide ? "wide" : null, tabindex: -1, "aria-labelledby": `${id}-title` }, node("h2", { id: `${id}-title` }, title, " ", node("kbd", { "aria-hidden": "true" }, `${index + 1}`)), node("div", {}))));
  byId("help").lastElementChild.append(table("They act while the focus is in this page's main part, and not in a field", ["key", "does"], KEY_WORDS.map(([key, words]) => node("tr", {}, node("td", {}, node("kbd", {}, key)), node("td", {}, words)))));
  byId("tables").addEventListener("toggle", tables);
  addEventListener("beforeprint", () => { byId("tables").open = true; tables(); });
  document.querySelector("main").addEventListener("keydown", onKey);
  addEventListener("hashchange", readHash);
}

function tables() {
  const into = byId("tables").lastElementChild;
  if (!byId("tables").open || into.childElementCount) return;
  into.append(...rounds.map((round, index) => table(
    `Round ${index + 1}: emits ${count(round.num_emitted, "token")}`, ["token", "#q", "#p", "#u", "verdict"],
    [...round.drafts.map((draft) => node("tr", {}, node("td", {}, token(draft.draw.token)), numeric(draft.q), numeric(draft.p), numeric(draft.u), node("td", {}, draft.verdict))),
      node("tr", {}, node("td", {}, token(round.next.token)), numeric("–"), numeric("–"), numeric(round.next.u), node("td", {}, round.num_accepted === round.drafts.length ? "bonus token" : "from the residual"))],
  )));
}

function drawRule() {
  const rule = ruleNow();
  const astray = rule === null ? -1 : firstAstray();
  const tokens = astray < 0 ? [] : outcome(astray, undefined, rule).tokens;
  byId("rule-result").textContent = rule === null ? "" : `Wrong rule, ${rule.name}: ${rule.what}. ` + (astray < 0 ? "With these very numbers the text stays as it is; its distribution does not." : `With these very numbers the text goes another way in round ${astray + 1}, which emits ${tokens.map((id) => (id === null ? "a token that is not listed" : quoted(id))).join(", ")}.`);
}

function draw() {
  const focused = document.activeElement?.id;
  const hadLink = document.activeElement?.matches?.("#text-body a");
  byId("sentence").textContent = sentence();
  const now = place.view ?? VIEW_OF_STAGE[place.stage];
  for (const { id, make } of VIEWS) {
    const section = byId(id);
    const opened = [...section.querySelectorAll("details")].map((details) => details.open);
    section.classList.toggle("now", id === now);
    section.lastElementChild.replaceChildren(...make().flat(Infinity).filter((child) => child !== null));
    section.querySelectorAll("details").forEach((details, i) => { details.open = opened[i] ?? false; });
  }
  drawButtons();
  drawRule();
  if (hadLink) document.querySelector("#text-body a[aria-current]")?.focus({ preventScroll: true });
  else if (focused && document.activeElement?.id !== focused) byId(focused)?.focus({ preventScroll: true });
  if (location.hash !== hashOf()) history.replaceState(null, "", hashOf());
}

function begin() {
  const { counts, problems } = checkTrace();
  const status = byId("checked");
  if (problems.length) {
    status.className = "bad";
    status.textContent = `✗ Checked here: ${count(problems.length, "thing")} of the recording ${problems.length === 1 ? "does" : "do"} not agree with this page's own arithmetic: ${problems.slice(0, 5).join("; ")}${problems.length > 5 ? "; …" : ""}.`;
  } else {
    status.className = "good";
    status.textContent = `✓ Checked here: ${count(counts.verdicts, "verdict")}, ${count(counts.draws, "draw")}, ${count(counts.counts, "count")} and ${counts.ranges} ranges of the cache agree with the recording.`;
  }
  if (!rounds.length) {
    byId("sentence").textContent = `The text ended with its first token, ${quoted(trace.prompt.next.token)}: there are no rounds.`;
    return;
  }
  build();
  if (!readHash()) draw();
  byId("player").focus({ preventScroll: true });
}

// For tests, and for the curious at the browser's console.
globalThis.tracePage = { trace, place, go, outcome, rules, lawOf, slotStates, checkTrace, sentence, show };
begin();
