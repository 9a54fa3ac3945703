// compare: the runs that are shown side by side, what differs marked, and what of the code changed between two
const cmp = { all:false, a:'', b:'', stamp:'', most:12 }
const cmpBox = el('div','stage'), cmpInfo = el('span','sub')
views.add({name:'compare', title:'Compare', show:paintCompare}).append(el('div','bar tools', check('only what differs','differing', on => { cmp.all = !on; link(); views.show() }), cmpInfo), cmpBox)
keep('same', () => cmp.all, v => { cmp.all = !!v })
keep('a', () => cmp.a, v => { cmp.a = v })
keep('b', () => cmp.b, v => { cmp.b = v })

const cmpTable = el('div','compare'), cmpDiff = el('div','diff'), cmpA = make('select', {onchange:() => { cmp.a = cmpA.value; link(); views.show() }}), cmpB = make('select', {onchange:() => { cmp.b = cmpB.value; link(); views.show() }})
function paintCompare(box, ids) {
  const all = ids.map(id => S.runs.get(id)), runs = all.slice(0,cmp.most)
  $('differing').checked = !cmp.all
  cmpInfo.textContent = all.length > runs.length ? 'the first '+runs.length+' of '+many(all.length,'run') : many(runs.length,'run')
  if (runs.length < 2) return cmpBox.replaceChildren(empty('Choose two runs or more', 'Click runs in the list: they stand here side by side.'))
  cmpTable.replaceChildren(tableOf(runs)); pairTools(runs)
  settle(cmpBox, [cmpTable, cmpPair]); changes()
  cmpBox.dataset.drawn = runs.length
}
function tableOf(runs) {
  const head = el('tr','', el('th',''), ...runs.map(r => { const dot = dotOf(true, tint(r.id)), th = el('th','', el('div','who', dot, button(r.name,'link',() => openRun(r.id),'open this run')), el('div','sub', r.project)); return th }))
  const part = (name, cols) => { const rows = cols.map(c => lineOf(runs,c)).filter(Boolean); return rows.length ? [el('tr','part', make('th', {colSpan:runs.length+1}, name)), ...rows] : [] }
  const keysOf = part => [...new Set(runs.flatMap(r => Object.keys(r[part])))].map(k => part[0]+':'+k), order = (known, cols) => { const at = new Map(known.map((c,i) => [c,i])); return cols.sort((a,b) => (at.get(a) ?? 1e9)-(at.get(b) ?? 1e9)) }
  const rows = [...part('run', S.columns.run), ...part('config', order(S.columns.config, keysOf('config'))), ...part('metrics', order(S.columns.summary, keysOf('summary')))]
  return el('table','', el('thead','',head), el('tbody','', ...rows))
}
function lineOf(runs, c) {
  const vs = runs.map(r => value(r,c)), signs = vs.map(v => JSON.stringify(v) ?? ''), differs = signs.some(s => s != signs[0])
  if (!differs && !cmp.all || vs.every(v => v === undefined || v === null)) return null
  const usual = runs.length == 2 ? signs[0] : usualOf(signs), top = c[0] == 's' && differs ? bestOf(vs, c.slice(2)) : null
  const cell = (v,i) => make('td', {cls:(top !== null && v === top ? 'top' : '')+(differs && c[0] == 'c' && usual !== null && signs[i] != usual ? ' other' : ''), title:show(c,v)}, c == 'r:state' ? el('span','state '+v, v) : show(c,v) || '–')
  return el('tr','', el('th','',c.slice(2)), ...vs.map(cell))
}
function usualOf(signs) { // what more than half of them have
  const n = new Map(); for (const s of signs) n.set(s,(n.get(s)||0)+1)
  for (const [s,m] of n) if (2*m > signs.length) return s
  return null
}
function bestOf(vs, k) { const numbers = vs.map(finite).filter(v => v !== null); return numbers.length > 1 ? numbers.reduce((a,b) => Math[best(k)](a,b)) : null }
const cmpPair = el('div','pair', el('h3','', el('span','','What changed from '), cmpA, el('span','',' to '), cmpB), cmpDiff)
function pairTools(runs) {
  const ids = runs.map(r => r.id), list = runs.map(r => [r.id, r.name]) // the older of two is where one came from
  const byAge = [...runs].sort((x,y) => x.created-y.created).map(r => r.id)
  const a = ids.includes(cmp.a) ? cmp.a : byAge.find(id => id != cmp.b), b = ids.includes(cmp.b) && cmp.b != a ? cmp.b : byAge.findLast(id => id != a)
  options(cmpA, [['',list]], a); options(cmpB, [['',list]], b); cmpNow = [a,b]
}
let cmpNow = []
async function changes() {
  const [a,b] = cmpNow, stamp = a+'\n'+b; if (cmp.stamp == stamp) return
  cmp.stamp = stamp; cmpDiff.replaceChildren(el('p','sub','comparing …'))
  try { const d = await ask('api/diff', {a,b}); if (cmp.stamp == stamp) showDiff(d) }
  catch (e) { if (cmp.stamp == stamp) { cmp.stamp = ''; cmpDiff.replaceChildren(el('p','error',e.message)) } }
}
function showDiff(d) {
  const part = (name, rows) => !rows.length ? [] : [el('h4','',name), el('table','changes', ...rows.slice(0,200).map(([k,x,y]) => el('tr','', el('th','',k), el('td','old',show('c:',x) || '–'), el('td','new',show('c:',y) || '–'))))]
  const ra = S.runs.get(d.a), rb = S.runs.get(d.b), config = [...new Set([...Object.keys(ra.config), ...Object.keys(rb.config)])].filter(k => JSON.stringify(ra.config[k]) != JSON.stringify(rb.config[k])).map(k => [k, ra.config[k], rb.config[k]])
  cmpDiff.replaceChildren(...part('config',config), ...part('code',d.code), ...part('environment',d.env), ...(d.patch ? [el('h4','','uncommitted code'), patchOf(d.patch)] : []),
    ...(config.length+d.code.length+d.env.length || d.patch ? [] : [el('p','sub','No difference was recorded in config, code or environment.')]))
  cmpDiff.dataset.drawn = 1
}
function patchOf(text) {
  const pre = el('pre','patch mono')
  for (const line of text.split('\n')) pre.append(el('span', /^(diff|index|---|\+\+\+|@@|new file)/.test(line) ? 'h' : line[0] == '+' ? 'a' : line[0] == '-' ? 'd' : '', line+'\n'))
  return pre
}
