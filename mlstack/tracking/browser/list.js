// the list, as long as it may be: only the rows in sight exist
const H = 54
let shown = [], items = [], at = -1 // runs in their order; these with the heads of groups between; where the keyboard is
const main = () => S.sort[1] == 's' ? S.sort.slice(3) : S.metrics[0]

function hints(r) { // the parameters that tell a run from the others
  const told = S.differ.filter(k => k in r.config && 'c:'+k != S.group).slice(0,4).map(k => k.split('.').pop()+' '+num(r.config[k])).join(' · ')
  const where = S.projects.length > 1 && !$('project').value && S.group != 'r:project' ? r.project : ''
  return [where, told || r.tags.join(', ')].filter(Boolean).join(' · ') || r.project
}
function dotOf(on, tint, some) { const d = el('span','dot'+(on ? ' on' : some ? ' some' : '')); if (on || some) d.style.setProperty('--tint', tint); return d }
function runRow(r) {
  const key = main(), on = S.on.has(r.id), name = el('div','name', el('span','',r.name))
  if (r.state != 'finished') name.append(el('span','state '+r.state, r.state))
  const told = (key in r.summary ? key.split('/').slice(-2).join('/')+' · ' : '')+age(Math.max(0,S.now-r.created))
  const more = button('›','more',null,'open this run'); more.setAttribute('aria-label','details of '+r.name)
  const e = el('div','row'+(on ? ' on' : ''), dotOf(on, tint(r.id)), el('div','text', name, el('div','sub',hints(r))), el('div','value', el('div','',num(r.summary[key])), el('div','sub',told)), more)
  e.dataset.id = r.id; e.title = r.name+'\n'+hints(r)
  return e
}
function groupRow(g) {
  const on = g.runs.filter(r => S.on.has(r.id)).length, live = g.runs.filter(r => r.state == 'running').length, key = main()
  const more = button('›','more'+(S.folded.has(g.key) ? '' : ' down'),null,'fold or unfold'); more.setAttribute('aria-label','fold '+g.label)
  const e = el('div','row group'+(on ? ' on' : ''), dotOf(on == g.runs.length, tintOf(g.key), on), el('div','text', el('div','name',el('span','',g.label)), el('div','sub',many(g.runs.length,'run')+(live ? ', '+live+' live' : ''))),
    el('div','value', el('div','',num(g.best)), el('div','sub',g.best === null ? '' : best(key)+' · mean '+num(g.mean))), more)
  e.dataset.group = g.key; e.title = title(S.group)+' = '+g.label
  return e
}
function paintRows() {
  const list = $('list'), from = Math.max(0, Math.floor(list.scrollTop/H)-6), to = Math.min(items.length, Math.ceil((list.scrollTop+list.clientHeight)/H)+6)
  $('rows').style.height = items.length*H+'px'
  $('rows').replaceChildren(...items.slice(from,to).map((o,i) => {
    const e = o.runs ? groupRow(o) : runRow(o)
    e.style.top = (from+i)*H+'px'; if (from+i == at) e.classList.add('at')
    return e
  }))
}
let painting = 0
$('list').onscroll = () => { painting ||= requestAnimationFrame(() => { painting = 0; paintRows() }) }

// choosing runs
function changed() { S.touched = true; paintRows(); link(); views.show() }
function toggle(id) { S.on.has(id) ? S.on.delete(id) : colour(id); changed() }
function toggleGroup(key) {
  const runs = items.find(o => o.runs && o.key == key)?.runs || [], on = runs.every(r => S.on.has(r.id))
  for (const r of runs) on ? S.on.delete(r.id) : colour(r.id)
  changed()
}
function fold(key) { S.folded.has(key) ? S.folded.delete(key) : S.folded.add(key); arrange(); link(); views.show() }
function pick(ids) { const want = new Set(ids); S.on = new Map([...S.on].filter(([k]) => want.has(k))); ids.forEach(colour); changed() }
const MOST = 200 // curves that one can still look at
$('none').onclick = () => pick([]); $('top').onclick = () => pick(shown.slice(0,10).map(r => r.id)); $('all').onclick = () => pick(shown.slice(0,MOST).map(r => r.id))
function clicked(e) { // the same in the list and in the table
  const row = e.target.closest('.row'); if (!row) return
  const more = e.target.closest('.more'), { id, group } = row.dataset
  at = items.findIndex(o => id ? o.id == id : o.runs && o.key == group)
  if (id) more ? openRun(id) : toggle(id)
  else if (group !== undefined) more || e.target.closest('.text') ? fold(group) : toggleGroup(group)
}
$('rows').onclick = clicked
$('rows').onmouseover = e => { const row = e.target.closest('.row'); focus(row?.dataset.id ?? null, row?.dataset.group) }
$('rows').onmouseleave = () => focus(null)
keep('on', () => !S.touched ? '' : S.on.size ? packed(S.on.keys()) : '-', v => { S.touched = !!v; S.on.clear(); if (v && v != '-') unpacked(v).forEach(colour) })

// order and groups
const groupKey = r => { const v = value(r, S.group); return v === undefined || v === null ? '' : JSON.stringify(v) }
function arrange() {
  shown = S.order.map(id => S.runs.get(id)).filter(Boolean)
  if (S.sort) shown = sorted(shown, S.sort)
  items = S.group ? grouped(shown) : shown
  if (at >= items.length) at = -1
  paintRows()
}
function sorted(runs, sort) { // +c:lr or -s:loss; what has no value comes last either way
  const sign = sort[0] == '-' ? -1 : 1, col = sort.slice(1), of = r => { const v = value(r,col); return v === undefined || v === null || v === 'nan' ? null : v }
  return runs.map(r => [of(r),r]).sort(([a],[b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign*compareValues(a,b)).map(o => o[1])
}
function grouped(runs) {
  const groups = new Map()
  for (const r of runs) { const key = groupKey(r); (groups.get(key) || groups.set(key,[]).get(key)).push(r) }
  const all = [...groups].map(([key,runs]) => ({ key, runs, label:key ? show(S.group, value(runs[0],S.group)) : 'none', ...told(runs) }))
  if (!S.sort) all.sort((a,b) => !a.key ? 1 : !b.key ? -1 : compareValues(value(a.runs[0],S.group), value(b.runs[0],S.group)))
  return all.flatMap(g => S.folded.has(g.key) ? [g] : [g, ...g.runs])
}
function told(runs) { // the best and the mean of the main metric
  const key = main(), vs = runs.map(r => finite(r.summary[key])).filter(v => v !== null)
  if (!vs.length) return { best:null, mean:null }
  return { best:vs.reduce((a,b) => Math[best(key)](a,b)), mean:vs.reduce((a,b) => a+b)/vs.length }
}
function sortBy(sort) { S.sort = sort; digestTools(); arrange(); link(); views.show() }
$('sort').onchange = () => sortBy($('sort').value)
keep('sort', () => S.sort, v => { S.sort = v })
function groupBy(col) {
  S.group = col; S.folded.clear(); tints.clear()
  if (col && !S.touched) S.order.slice(0,MOST).forEach(colour) // a group is of all its runs
  digestTools(); arrange(); link(); views.show()
}
$('group').onchange = () => groupBy($('group').value)
keep('group', () => S.group, v => { if (v != S.group) tints.clear(); S.group = v })
keep('folded', () => packed(S.folded), v => { S.folded = new Set(unpacked(v)) })

// what there is to choose from
const dull = k => /^_?(global_?)?(epoch|step|steps|iter|iteration|lr|learning_rate|seconds|time)$/i.test(k.split('/').pop()) ? 1 : 0
const telling = k => /loss|acc|err|f1|auc|score|perplexity|ppl|reward|mse|mae/i.test(k) ? 0 : 1, held = k => /val|test|eval/i.test(k) ? 0 : 1
const byInterest = (a, b) => dull(a)-dull(b) || telling(a)-telling(b) || held(a)-held(b) || (a < b ? -1 : 1) // those to look at first come first
function metricNames() {
  const count = new Map()
  for (const id of S.order) { const r = S.runs.get(id); if (r) for (const k of r.metrics) count.set(k,(count.get(k)||0)+1) }
  return [...count.keys()].sort(byInterest)
}
function spread(part) { // for each key how many runs have it and whether its values differ
  const seen = new Map(); let n = 0
  for (const id of S.order) { const r = S.runs.get(id); if (!r) continue
    n++
    for (const k in r[part]) { const v = r[part][k], s = seen.get(k) || seen.set(k,{n:0, first:v, differs:false, numbers:0}).get(k)
      s.n++; if (typeof v == 'number') s.numbers++; if (!s.differs && s.first !== v && JSON.stringify(s.first) != JSON.stringify(v)) s.differs = true } }
  for (const s of seen.values()) if (s.n < n) s.differs = true
  return seen
}
function digest() {
  S.metrics = metricNames()
  const config = spread('config'), summary = spread('summary'), rank = new Map(S.metrics.map((k,i) => [k,i])), place = k => rank.get(k) ?? 1e9
  S.differ = [...config].filter(([,s]) => s.differs).map(([k]) => k)
  S.both = new Set([...config.keys()].filter(k => summary.has(k)))
  const summaries = [...summary.keys()].sort((a,b) => place(a)-place(b) || (a < b ? -1 : 1))
  S.columns = { differ:S.differ.map(k => 'c:'+k), config:[...S.differ, ...[...config.keys()].filter(k => !config.get(k).differs)].map(k => 'c:'+k),
    summary:summaries.map(k => 's:'+k), numbers:summaries.filter(k => summary.get(k).numbers).map(k => 's:'+k), run:['r:state','r:created','r:duration','r:project','r:group','r:sweep','r:tags','r:points','r:id'] }
  digestTools()
}
function digestTools() {
  const both = c => [['-'+c, title(c)+'  ↓'], ['+'+c, title(c)+'  ↑']]
  options($('sort'), [['', [['','newest first'], ['+r:name','name'], ['-r:duration','longest']]], ['metrics', S.columns.numbers.slice(0,40).flatMap(both)], ['config', S.columns.config.slice(0,60).flatMap(both)]], S.sort)
  options($('group'), [['', [['','none'], ...['r:state','r:tags','r:group','r:sweep','r:project'].map(c => [c,title(c)])]], ['config', S.columns.config.slice(0,100).map(c => [c,title(c)])]], S.group)
  const n = selected().length
  $('chosen').textContent = n+' shown'
}

// asking the server: what changed since the cursor
let asking = null, timer = null, typing
async function refresh() {
  clearTimeout(timer)
  const q = $('query').value, project = $('project').value
  try {
    asking?.abort(); asking = new AbortController()
    const answer = await (await fetch('api/runs?'+new URLSearchParams({q, project, cursor:S.cursor, epoch:S.epoch}), {signal:asking.signal})).json()
    learn(answer, project)
  } catch (e) { if (e.name == 'AbortError') return; $('count').textContent = 'not connected'; $('count').title = 'the server has ended; start it again with  mlstack ui' }
  timer = setTimeout(() => document.hidden ? (timer = setTimeout(refresh, 2000)) : refresh(), S.left ? 20 : 2000)
}
function learn(answer, project) {
  $('query').classList.toggle('bad', !!answer.error); $('note').textContent = answer.error || ''; $('count').title = ''
  const before = S.order
  if (answer.epoch != S.epoch) { S.runs.clear(); S.epoch = answer.epoch }
  S.cursor = answer.cursor; S.now = answer.now; S.left = answer.left
  for (const r of answer.runs) { r.has = new Set(r.metrics); S.runs.set(r.id, r) }
  if (!answer.error) { S.order = answer.order; S.total = answer.total }
  S.projects = answer.projects
  options($('project'), [['', [['','all projects'], ...answer.projects.map(p => [p,p])]]], project)
  const live = S.order.filter(id => S.runs.get(id)?.state == 'running').length
  $('count').textContent = (S.order.length == S.total ? many(S.total,'run') : S.order.length.toLocaleString('en')+' of '+many(S.total,'run')) + (S.left ? ', reading '+S.left.toLocaleString('en')+' more' : live ? ', '+live+' live' : '')
  const same = S.ready && !answer.runs.length && before.length == S.order.length && before.every((id,i) => id == S.order[i])
  if (same) return paintRows()
  if (!S.touched) { const first = S.order.slice(0, S.group ? MOST : 10); S.on = new Map([...S.on].filter(([id]) => first.includes(id))); first.forEach(colour) }
  S.ready = true
  digest(); arrange(); views.show()
}
$('query').oninput = () => { clearTimeout(typing); typing = setTimeout(() => { link(); refresh() }, 180) }
$('project').onchange = () => { S.touched = false; link(); refresh() }
document.addEventListener('visibilitychange', () => { if (!document.hidden) refresh() })
keep('q', () => $('query').value, v => { $('query').value = v })
keep('project', () => $('project').value, v => { if (v && ![...$('project').options].some(o => o.value == v)) $('project').append(make('option', {value:v}, v)); $('project').value = v })
