'use strict'
const $ = id => document.getElementById(id)

// Everything that comes from a run is set as text, never as markup.
function el(tag, cls, ...kids) { const e = document.createElement(tag); if (cls) e.className = cls; for (const k of kids) if (k != null) e.append(k); return e }
function make(tag, props, ...kids) { const { cls, ...rest } = props; return Object.assign(el(tag, cls, ...kids), rest) }
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()
const store = { get: k => { try { return localStorage.getItem('mlstack.'+k) } catch { return null } }, set: (k,v) => { try { localStorage.setItem('mlstack.'+k,v) } catch {} } }

// what is known and what is looked at
const S = { runs:new Map(), order:[], on:new Map(), cursor:0, total:0, epoch:'', touched:false, ready:false, now:Date.now()/1000, metrics:[], differ:[], columns:{}, projects:[],
  axis:'step', smooth:0, log:false, logx:false, zoom:null, hover:null, run:'', group:'', folded:new Set(), sort:'', scope:'listed', left:0 }

// numbers, times and values as people write them
const num = v => v === null || v === undefined ? '' : typeof v != 'number' ? String(v) : !isFinite(v) ? String(v) : v === 0 ? '0' :
  Number.isInteger(v) && Math.abs(v) < 1e6 ? String(v) : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(2).replace(/\.?0*e/,'e').replace('e+','e') : String(+v.toPrecision(4))
const age = s => s < 60 ? Math.round(s)+' s' : s < 3600 ? Math.round(s/60)+' min' : s < 86400 ? Math.round(s/3600)+' h' : Math.round(s/86400)+' d'
const two = n => String(n).padStart(2,'0')
const span = s => s == 0 ? '0' : s < 1 ? +(s*1000).toPrecision(3)+' ms' : s < 60 ? +s.toPrecision(3)+' s' : s < 3600 ? Math.floor(s/60)+':'+two(Math.floor(s%60)) : Math.floor(s/3600)+':'+two(Math.floor(s/60%60))+' h'
const date = t => { const d = new Date(t*1000); return d.getFullYear()+'-'+two(d.getMonth()+1)+'-'+two(d.getDate())+' '+two(d.getHours())+':'+two(d.getMinutes()) }
const many = (n, what) => n.toLocaleString('en')+' '+what+(n == 1 ? '' : 's')

// columns: c:lr is of the config, s:loss of the summary, r:state of the run itself
const duration = r => r.state == 'running' ? Math.max(0, S.now-r.created) : r.seconds
function value(r, col) {
  const k = col.slice(2)
  return col[0] == 'c' ? r.config[k] : col[0] == 's' ? r.summary[k] : k == 'duration' ? duration(r) : k == 'tags' ? (r.tags.length ? r.tags.join(', ') : undefined) : r[k] === '' ? undefined : r[k]
}
const finite = v => typeof v == 'number' && isFinite(v) ? v : null
function show(col, v) {
  if (v === undefined || v === null) return ''
  return col == 'r:created' ? date(v) : col == 'r:duration' ? span(v) : typeof v == 'number' ? num(v) : typeof v == 'object' ? JSON.stringify(v) : String(v)
}
function title(col) { const k = col.slice(2); return col[0] == 'c' && S.both?.has(k) ? 'config.'+k : k }
const best = k => /(^|[^a-z])(loss|err|error|perplexity|ppl|nll|mse|mae|rmse|wer|cer|bpb|fid|divergence|regret|latency|seconds|time|cost)([^a-z]|$)|loss$|error$/i.test(k) ? 'min' : 'max'
const compareValues = (a, b) => typeof a == 'number' && typeof b == 'number' ? a-b : String(a).localeCompare(String(b), undefined, {numeric:true})

// colours: of a run, of a group, of a number between 0 and 1
const colours = ['#4263eb','#e8590c','#2b9a66','#ae3ec9','#e03131','#1098ad','#f08c00','#846358','#d6336c','#5c940d','#7048e8','#0b7285','#c2255c','#495057']
function rarest(taken) { const n = new Map(); for (const c of taken) n.set(c,(n.get(c)||0)+1); return colours.reduce((a,c) => (n.get(c)||0) < (n.get(a)||0) ? c : a) }
function colour(id) { if (!S.on.has(id)) S.on.set(id, rarest(S.on.values())); return S.on.get(id) }
const tints = new Map()
function tintOf(key) { if (!tints.has(key)) tints.set(key, rarest(tints.values())); return tints.get(key) }
const tint = id => S.group && S.runs.has(id) ? tintOf(groupKey(S.runs.get(id))) : S.on.get(id) || '#888888'
const stops = [[59,91,219],[16,152,173],[64,168,95],[232,163,61],[224,82,32]]
function ramp(t) {
  const at = Math.min(.9999, Math.max(0,t))*(stops.length-1), i = Math.floor(at), f = at-i
  return 'rgb('+stops[i].map((v,j) => Math.round(v+(stops[i+1][j]-v)*f)).join(',')+')'
}

// light and dark
const dark = matchMedia('(prefers-color-scheme:dark)')
function theme(t) { document.documentElement.dataset.theme = t; for (const c of cards.values()) c.rebuild(); views.show() }
$('theme').onclick = () => { const t = document.documentElement.dataset.theme == 'dark' ? 'light' : 'dark'; store.set('theme', t); theme(t) }
dark.onchange = () => { if (!store.get('theme')) theme(dark.matches ? 'dark' : 'light') }

// what the address keeps: each part is a key, what it is now ('' for nothing), and what to do with what it was
const parts = []
function keep(key, get, set) { parts.push({key, get, set}) }
function link(push) { // push: a step that the browser's back button undoes
  if (restoring) return
  const q = new URLSearchParams()
  for (const o of parts) { const v = o.get(); if (v !== '' && v != null && v !== false) q.set(o.key, v === true ? 1 : v) }
  const to = '#'+q
  if (to != location.hash && (to != '#' || location.hash)) history[push ? 'pushState' : 'replaceState'](null, '', to)
}
let restoring = false
function restore() {
  const q = new URLSearchParams(location.hash.slice(1)); restoring = true
  for (const o of parts) o.set(q.get(o.key) ?? '')
  restoring = false
}
addEventListener('popstate', () => { restore(); refresh() })
const packed = list => [...list].map(encodeURIComponent).join(','), unpacked = text => text ? text.split(',').map(decodeURIComponent) : []

// views: what the right side can show; show(box, ids) is called on entering and whenever a run or the selection changed
const views = {
  all:[], now:null,
  add(view) {
    view.box = make('div', {cls:'view', id:'view-'+view.name, hidden:true})
    view.tab = make('button', {cls:'tab', onclick:() => this.go(view.name, true)}, view.title)
    view.tab.setAttribute('role','tab')
    this.all.push(view); $('tabs').append(view.tab); $('views').append(view.box)
    return view.box
  },
  go(name, push) {
    const to = this.all.find(v => v.name == name) || this.all[0]
    if (to == this.now) return
    hush(); this.now?.hide?.(this.now.box); this.now = to
    for (const v of this.all) { v.box.hidden = v != to; v.tab.setAttribute('aria-selected', v == to) }
    to.tab.scrollIntoView({block:'nearest', inline:'nearest'}); $('views').scrollTop = 0
    link(push); this.show()
  },
  show() { if (S.ready) this.now?.show(this.now.box, selected()) },
}
const selected = () => { const there = new Set(S.order); return [...S.on.keys()].filter(id => there.has(id)) }
keep('view', () => views.now == views.all[0] ? '' : views.now?.name, v => views.go(v))

// one run: details(id) and hideDetails() are in run.js
function openRun(id) { S.run = id; link(true); details(id) }
function closeRun() { if (!S.run) return; S.run = ''; link(true); hideDetails() }
keep('run', () => S.run, id => { if (id == S.run) return; S.run = id; id ? details(id) : hideDetails() })

// asking the server and being told; what is posted carries the token of this page, an error's message is the server's sentence
const token = document.querySelector('meta[name=token]').content
if (location.search) history.replaceState(null, '', location.pathname+location.hash)
async function ask(path, body) {
  const answer = await fetch(path, body && {method:'POST', body:JSON.stringify(body), headers:{'Content-Type':'application/json', 'X-Mlstack-Token':token}})
  if (!answer.ok) throw Object.assign(new Error(await answer.text()), {status:answer.status})
  return answer.headers.get('Content-Type').startsWith('application/json') ? answer.json() : answer.arrayBuffer()
}
const get = (path, about) => ask(path+'?'+new URLSearchParams(about))
const tip = document.body.appendChild(el('div','tip'))
function say(x, y, ...kids) {
  tip.replaceChildren(...kids.filter(Boolean)); tip.style.display = 'block'
  const w = tip.offsetWidth, h = tip.offsetHeight
  tip.style.left = Math.max(4, x+16+w > innerWidth-8 ? x-16-w : x+16)+'px'; tip.style.top = Math.max(4, Math.min(y+12, innerHeight-h-8))+'px'
}
function hush() { tip.style.display = 'none' }
function tipOf(r, cols) { // a run's name, and some of its columns
  const rows = cols.flatMap(c => [el('span','',title(c)), el('span','',show(c, value(r,c)) || '–')])
  return [el('b','',r.name), el('div','sub',r.project+' · '+r.state), el('div','facts',...rows)]
}
function empty(head, ...text) { return el('div','empty', el('b','',head), ...text.map(t => typeof t == 'string' ? el('p','',t) : t)) }

// parts of the tools
const button = (text, cls, onclick, help='') => make('button', {cls, onclick, title:help}, text)
function labelled(text, control) { return el('label','tool', el('span','',text), control) }
function check(text, id, on) { const box = make('input', {type:'checkbox', id, onchange:() => on(box.checked)}); return el('label','tool', box, el('span','',text)) }
function options(select, groups, now) { // groups: [[title, [[value, text]]]]; what is there stays if it is the same
  const sign = JSON.stringify(groups)
  if (select.sign != sign) {
    const of = list => list.map(([v,t]) => make('option', {value:v}, t))
    select.replaceChildren(...groups.flatMap(([name,list]) => !list.length ? [] : name ? [make('optgroup', {label:name}, ...of(list))] : of(list)))
    select.sign = sign
  }
  select.value = now
  if (select.selectedIndex < 0 && now) { select.append(make('option', {value:now}, now)); select.value = now; select.sign = '' }
}
const columnGroups = (config, summary, run) => [['config', config.map(c => [c,title(c)])], ['metrics', summary.map(c => [c,title(c)])], ['run', run.map(c => [c,title(c)])]]

// a list of columns to tick, with a field to find them
function chooser(text, list, chosen, change) {
  const find = make('input', {cls:'field', placeholder:'find', type:'search'}), box = el('div','options'), pop = el('div','chooser', find, box)
  const row = c => { const tick = make('input', {type:'checkbox', checked:chosen().includes(c)})
    tick.onchange = () => change(tick.checked ? [...chosen(),c] : chosen().filter(o => o != c))
    return el('label','', tick, el('span','',title(c))) }
  const paint = () => { const want = find.value.toLowerCase()
    box.replaceChildren(...list().flatMap(([name,cols]) => { const found = cols.filter(([c]) => title(c).toLowerCase().includes(want)).slice(0,200)
      return found.length ? [el('h4','',name), ...found.map(([c]) => row(c))] : [] })) }
  const b = button(text, 'ghost', () => { pop.togglePopover(); paint(); const at = b.getBoundingClientRect()
    pop.style.left = Math.max(8, Math.min(at.left, innerWidth-pop.offsetWidth-8))+'px'; pop.style.top = at.bottom+6+'px'; find.focus() })
  pop.popover = 'auto'; find.oninput = paint
  return el('span','', b, pop)
}

// a canvas as large as its box, in the pixels of the screen
function canvasIn(box, width, height) {
  let c = box.querySelector('canvas'); if (!c) { c = el('canvas'); c.setAttribute('role','img'); box.prepend(c) }
  const scale = devicePixelRatio || 1
  c.width = Math.round(width*scale); c.height = Math.round(height*scale); c.style.width = width+'px'; c.style.height = height+'px'
  const g = c.getContext('2d'); g.scale(scale,scale); g.font = '11px ui-sans-serif,system-ui,sans-serif'
  return g
}

// a scale of a chart: where a value is between 0 and 1, and where to write what
function scaleOf(values, log, few = 0) { // numbers with no more than `few` values are levels too
  const known = values.filter(v => v !== undefined && v !== null && v !== '' && !(typeof v == 'string' && /^-?(nan|inf)$/.test(v))), numbers = known.filter(v => typeof v == 'number')
  const kinds = few && new Set(known).size
  if (!numbers.length || numbers.length < known.length || kinds > 1 && kinds <= few && kinds*2 <= known.length) return levels([...new Set(known.map(v => typeof v == 'object' ? JSON.stringify(v) : v))].sort(compareValues))
  const low = numbers.reduce((a,b) => Math.min(a,b)), high = numbers.reduce((a,b) => Math.max(a,b))
  if (log === undefined) log = low > 0 && high >= 50*low
  return log && high > 0 ? logarithmic(numbers.reduce((a,b) => b > 0 ? Math.min(a,b) : a, high), high) : linear(low, high)
}
function levels(all) {
  const at = new Map(all.map((v,i) => [String(v), all.length > 1 ? i/(all.length-1) : .5]))
  return { kind:'levels', all, at: v => at.get(typeof v == 'object' ? JSON.stringify(v) : String(v)) ?? null, ticks: n => all.filter((v,i) => i%Math.ceil(all.length/n) == 0) }
}
function linear(low, high) {
  const wide = high-low || Math.abs(low)*.1 || 1, from = high > low ? low : low-wide/2
  return { kind:'linear', low:from, high:from+wide, at: v => finite(v) === null ? null : (v-from)/wide, back: t => from+t*wide, ticks: n => round(from, from+wide, n) }
}
function logarithmic(low, high) {
  const a = Math.log10(low), wide = Math.log10(high)-a || 1, from = high > low ? a : a-wide/2
  return { kind:'log', low, high, at: v => finite(v) === null || v <= 0 ? null : (Math.log10(v)-from)/wide, back: t => 10**(from+t*wide), ticks: n => powers(from, from+wide, n) }
}
function round(low, high, n) {
  const raw = (high-low)/n, unit = 10**Math.floor(Math.log10(raw)), step = unit*[1,2,5,10].find(m => m*unit >= raw), out = []
  for (let v = Math.ceil(low/step-1e-9)*step; v <= high+step*1e-9; v += step) out.push(+v.toPrecision(12))
  return out
}
function powers(a, b, n) {
  const some = ms => { const out = []; for (let e = Math.floor(a); e <= b; e++) for (const m of ms) { const l = e+Math.log10(m); if (l >= a-1e-9 && l <= b+1e-9) out.push(+(m*10**e).toPrecision(3)) } return out }
  const tens = some([1]); if (tens.length < 3) return some([1,2,5])
  return tens.filter((v,i) => i%Math.ceil(tens.length/n) == 0)
}
