// the list, as long as it may be: only the rows in sight exist
const H = 54
let shown = []
function colour(id) { if (!S.on.has(id)) { const used = new Map(); for (const c of S.on.values()) used.set(c,(used.get(c)||0)+1)
  S.on.set(id, colours.reduce((a,c) => (used.get(c)||0) < (used.get(a)||0) ? c : a)) } return S.on.get(id) }
function params(r) { return S.differ.filter(k => k in r.config).slice(0,4).map(k => k.split('.').pop()+' '+num(r.config[k])).join(' · ') || (r.tags||[]).join(', ') || r.project }
function rowOf(r, top) {
  const key = S.sortKey || S.metrics[0], on = S.on.has(r.id), dot = el('span','dot')
  if (on) dot.style.background = S.on.get(r.id)
  const more = el('button','more','›'), name = el('div','name', el('span','',r.name))
  if (r.state != 'finished') { const s = el('span','state '+r.state, r.state); name.append(s) }
  more.title = 'what this run is'; more.setAttribute('aria-label', 'details of '+r.name)
  const e = el('div','row'+(on?' on':''), dot, el('div','',name,el('div','sub',params(r))), el('div','value',el('div','',num(r.summary[key])),el('div','sub',(key in r.summary ? key.split('/').slice(-2).join('/')+' · ' : '')+age(Math.max(0,S.now-r.created)))), more)
  e.style.top = top+'px'; e.dataset.id = r.id; e.children[1].style.minWidth = 0; e.title = r.name+'\n'+params(r)
  return e
}
function paintRows() {
  const list = $('list'), from = Math.max(0, Math.floor(list.scrollTop/H)-6), to = Math.min(shown.length, Math.ceil((list.scrollTop+list.clientHeight)/H)+6)
  $('rows').style.height = shown.length*H+'px'
  $('rows').replaceChildren(...shown.slice(from,to).map((r,i) => rowOf(r,(from+i)*H)))
}
$('list').onscroll = () => requestAnimationFrame(paintRows)
$('rows').onclick = e => { const row = e.target.closest('.row'); if (!row) return
  if (e.target.closest('.more')) return openRun(row.dataset.id)
  S.touched = true; const id = row.dataset.id
  S.on.has(id) ? S.on.delete(id) : colour(id); paintRows(); views.show() }
$('rows').onmouseover = e => { const row = e.target.closest('.row'); focus(row ? row.dataset.id : null) }
$('rows').onmouseleave = () => focus(null)
function pick(ids) { S.touched = true; S.on = new Map([...S.on].filter(([k]) => ids.includes(k))); ids.forEach(colour); paintRows(); views.show() }
$('none').onclick = () => pick([]); $('top').onclick = () => pick(shown.slice(0,10).map(r => r.id)); $('all').onclick = () => pick(shown.slice(0,200).map(r => r.id))
$('sort').onchange = arrange

function arrange() {
  const v = $('sort').value; S.sortKey = v.slice(1)
  shown = S.order.map(id => S.runs.get(id)).filter(Boolean)
  if (v) { const sign = v[0] == '-' ? -1 : 1, k = S.sortKey, of = r => typeof r.summary[k] == 'number' && !isNaN(r.summary[k]) ? r.summary[k] : null
    shown = [...shown].sort((a,b) => { const x = of(a), y = of(b); return x === null ? (y === null ? 0 : 1) : y === null ? -1 : sign*(x-y) }) }
  paintRows()
}
function metricNames() { // those to look at first come first
  const count = new Map()
  for (const id of S.order) { const r = S.runs.get(id); if (r) for (const k of r.metrics) count.set(k,(count.get(k)||0)+1) }
  const dull = k => /^_?(global_?)?(epoch|step|steps|iter|iteration|lr|learning_rate|seconds|time)$/i.test(k.split('/').pop()) ? 1 : 0
  const told = k => /loss|acc|err|f1|auc|score|perplexity|ppl|reward|mse|mae/i.test(k) ? 0 : 1, held = k => /val|test|eval/i.test(k) ? 0 : 1
  return [...count.keys()].sort((a,b) => dull(a)-dull(b) || told(a)-told(b) || held(a)-held(b) || (a < b ? -1 : 1))
}
function digest() {
  S.metrics = metricNames()
  const seen = new Map(); let n = 0
  for (const id of S.order) { const r = S.runs.get(id); if (!r) continue; n++; for (const k in r.config) { const s = seen.get(k) || seen.set(k,{n:0,v:new Set()}).get(k); s.n++; if (s.v.size < 2) s.v.add(JSON.stringify(r.config[k])) } }
  S.differ = [...seen].filter(([,s]) => s.v.size > 1 || s.n < n).map(([k]) => k)
  const was = $('sort').value, options = [['','newest first'], ...S.metrics.slice(0,30).flatMap(k => [['-'+k,k+'  ↓'],['+'+k,k+'  ↑']])]
  if (options.length != $('sort').length || options.some(([v],i) => $('sort').options[i].value != v)) {
    $('sort').replaceChildren(...options.map(([v,t]) => { const o = el('option','',t); o.value = v; return o })); $('sort').value = options.some(([v]) => v == was) ? was : '' }
}

// asking the server: what changed since the cursor
let asking = null, timer = null
async function refresh(again) {
  clearTimeout(timer)
  const q = $('query').value, project = $('project').value
  try {
    asking?.abort(); asking = new AbortController()
    const answer = await (await fetch('api/runs?'+new URLSearchParams({q, project, cursor:S.cursor, epoch:S.epoch}), {signal:asking.signal})).json()
    $('query').classList.toggle('bad', !!answer.error); $('note').textContent = answer.error || ''
    if (answer.epoch != S.epoch) { S.runs.clear(); S.epoch = answer.epoch }
    S.cursor = answer.cursor; S.now = answer.now
    for (const r of answer.runs) S.runs.set(r.id, r)
    if (!answer.error) { S.order = answer.order; S.total = answer.total }
    const options = ['', ...answer.projects]
    if (options.length != $('project').length) { $('project').replaceChildren(...options.map(p => { const o = el('option','',p || 'all projects'); o.value = p; return o })); $('project').value = project }
    const live = S.order.filter(id => S.runs.get(id)?.state == 'running').length
    $('count').textContent = (S.order.length == S.total ? S.total+' runs' : S.order.length+' of '+S.total+' runs') + (live ? ', '+live+' live' : '')
    if (!S.touched) { S.on.clear(); S.order.slice(0,10).forEach(colour) }
    else for (const id of [...S.on.keys()]) if (!S.runs.has(id)) S.on.delete(id)
    digest(); arrange(); views.show()
    $('count').title = ''
  } catch (e) { if (e.name == 'AbortError') return; $('count').textContent = 'not connected'; $('count').title = 'the server has ended; start it again with  mlstack ui' }
  timer = setTimeout(() => document.hidden ? (timer = setTimeout(refresh, 2000)) : refresh(), 2000)
}
let typing
keep('q', () => $('query').value, v => { $('query').value = v })
keep('project', () => $('project').value, v => { if (v && ![...$('project').options].some(o => o.value == v)) { const o = el('option','',v); o.value = v; $('project').append(o) } $('project').value = v })
$('query').oninput = () => { clearTimeout(typing); typing = setTimeout(() => { link(); refresh() }, 180) }
$('project').onchange = () => { S.touched = false; link(); refresh() }
document.addEventListener('visibilitychange', () => { if (!document.hidden) refresh() })
document.addEventListener('keydown', e => { if (e.key == '/' && document.activeElement != $('query')) { e.preventDefault(); $('query').focus() } if (e.key == 'Escape') { closeRun(); document.activeElement.blur() } })

