// one run: a page of its own over the list, with tabs. A tab is {name, title, has(run), open(box, run)}; open() may return {update(run), close()}.
const runTabs = []
const one = {id:'', tab:'overview', run:null, stamp:'', open:null, timer:null}
const oneBox = $('one')
keep('tab', () => S.run && one.tab != 'overview' ? one.tab : '', v => { one.tab = v || 'overview'; if (one.run && one.run.id == S.run) showTab() })
document.querySelector('.logo').onclick = closeRun

async function details(id) {
  Object.assign(one, {id, run:null, stamp:''}); closeTab()
  document.body.classList.add('has-one'); oneBox.hidden = false
  oneBox.replaceChildren(el('div','onehead', backButton(), el('h1','', S.runs.get(id)?.name || id)))
  await readRun()
}
function hideDetails() {
  clearTimeout(one.timer); closeTab(); one.id = ''; one.run = null
  document.body.classList.remove('has-one'); oneBox.hidden = true; oneBox.replaceChildren(); document.title = 'mlstack runs'
}
async function readRun() { // again and again: a live run grows, and any run may be removed or described elsewhere
  clearTimeout(one.timer); const id = one.id; if (!id) return
  try {
    const run = await get('api/run', {id}); if (one.id != id) return
    takeRun(run)
  } catch (e) { if (one.id == id) lost(e) }
  if (one.id == id) one.timer = setTimeout(readRun, document.hidden ? 10000 : one.run?.state == 'running' ? 2000 : 8000)
}
function takeRun(run) {
  const {seconds, ...rest} = run, stamp = JSON.stringify(rest), first = !one.run; if (stamp == one.stamp) return
  one.run = run; one.stamp = stamp; document.title = run.name+' · mlstack'
  oneBox.querySelector('.lost')?.remove()
  paintHead(); if (first || !one.open) showTab(); else one.open.update?.(run)
}
function lost(e) {
  if (oneBox.querySelector('.lost')) return
  const box = el('div','lost', el('b','', e.status == 404 ? 'This run is not here any more' : e.status ? 'This run cannot be read' : 'Not connected'), el('p','', e.status == 404 ? 'It was removed, or its folder was moved.' : e.status ? e.message : 'The server has ended; start it again with  mlstack ui'))
  if (e.status == 404) box.append(press('bring it back from the trash', async () => { try { await ask('api/undo', {run:one.id.split('/').pop()}); box.remove(); one.stamp = ''; readRun() } catch (e) { toast(e.message) } }))
  if (!one.run) oneBox.append(box); else oneBox.querySelector('.onehead').after(box)
}

// the head: what it is called, how it stands, its tabs
const press = (text, fn, cls='link') => button(text, cls, fn)
const backButton = () => { const b = press('‹ runs', closeRun, 'back'); b.title = 'back to the list (Esc)'; return b }
function paintHead() {
  const r = one.run, box = oneBox.querySelector('.onehead')
  if (box.contains(document.activeElement) && document.activeElement.matches('input')) return // somebody is typing a name
  const sub = el('div','sub', r.id, ' · ', date(r.created), ' · ', span(r.seconds), r.points ? ' · '+many(r.points,'row') : '')
  const remove = press('remove', () => confirmIn(remove, 'Move this run to the trash?', 'remove', removeRun), 'link danger'); remove.hidden = r.state == 'running'
  const title = el('h1','', editable(r.name, {label:'name', save:name => describe({name})}))
  box.replaceChildren(backButton(), el('div','onetitle', el('div','', title, el('span','state '+r.state, r.state)), sub), remove)
  const nav = oneBox.querySelector('.onetabs') || el('nav','tabs onetabs'); nav.setAttribute('role','tablist')
  nav.replaceChildren(...runTabs.filter(t => t.has(r)).map(t => { const b = press(t.title, () => goTab(t.name), 'tab'); b.setAttribute('role','tab'); b.setAttribute('aria-selected', t.name == one.tab); b.dataset.tab = t.name; return b }))
  if (!nav.isConnected) oneBox.append(nav, el('div','onebody'))
}
function goTab(name) { one.tab = name; link(true); showTab() }
function closeTab() { one.open?.close?.(); one.open = null }
function showTab() {
  closeTab(); const tab = runTabs.find(t => t.name == one.tab && t.has(one.run)) || runTabs[0], body = oneBox.querySelector('.onebody'); if (!body) return
  for (const b of oneBox.querySelectorAll('.onetabs .tab')) b.setAttribute('aria-selected', b.dataset.tab == tab.name)
  oneBox.querySelector('.onetabs [aria-selected=true]')?.scrollIntoView({block:'nearest', inline:'nearest'})
  body.className = 'onebody tab-'+tab.name; body.replaceChildren(); body.scrollTop = 0
  one.open = tab.open(body, one.run) || {}
}

// changing a run
async function describe(what) {
  try { takeRun(await ask('api/describe', {id:one.id, ...what})); refresh() } catch (e) { toast(e.message); one.stamp = ''; readRun() }
}
async function removeRun() {
  const id = one.id
  try { await ask('api/remove', {id}) } catch (e) { return toast(e.message) }
  closeRun(); S.on.delete(id); refresh()
  toast('The run is in the trash.', 'undo', async () => { await ask('api/undo', {run:id.split('/').pop()}); refresh() })
}
// a text that becomes a field when it is clicked; Enter or leaving it saves, Escape does not
function editable(text, {label, save, long, empty}) {
  const shown = press(text || empty || '', () => {
    const field = el(long ? 'textarea' : 'input','edit'); field.value = text; field.setAttribute('aria-label', label); if (long) field.rows = Math.min(14, Math.max(4, text.split('\n').length+1))
    let over = false; const end = ok => { if (over) return; over = true; field.replaceWith(shown); if (ok && field.value.trim() != text.trim()) { text = field.value.trim(); shown.textContent = text || empty || ''; save(text) } }
    field.onkeydown = e => { e.stopPropagation(); if (e.key == 'Escape') end(false); if (e.key == 'Enter' && (!long || e.ctrlKey || e.metaKey)) end(true) }
    field.onblur = () => end(true); shown.replaceWith(field); field.focus(); if (!long) field.select()
  }, 'editable'+(text ? '' : ' none'))
  shown.title = 'click to change'; return shown
}
function tagEditor(run) {
  const box = el('div','tags'), add = Object.assign(el('input','addtag'), {placeholder:'+ tag', ariaLabel:'add a tag', maxLength:200})
  for (const t of run.tags) { const x = press('×', () => describe({tags:run.tags.filter(o => o != t), was:run.tags}), 'x'); x.setAttribute('aria-label','remove the tag '+t); box.append(el('span','tag', el('span','',t), x)) }
  add.onkeydown = e => { e.stopPropagation(); if (e.key == 'Enter' && add.value.trim()) { add.blur(); describe({tags:[...run.tags, add.value.trim()], was:run.tags}).then(() => oneBox.querySelector('.addtag')?.focus()) } }
  box.append(add); return box
}
function confirmIn(place, question, yes, fn) { // in the page: a frame may not open dialogs
  const box = el('span','confirm', question+' ', press(yes, () => { box.replaceWith(place); fn() }, 'danger solid'), press('keep', () => box.replaceWith(place), 'solid'))
  place.replaceWith(box); box.querySelector('button').focus()
}
function toast(text, action, fn) {
  document.querySelector('.toast')?.remove(); const box = el('div','toast', el('span','',text)); box.setAttribute('role','status')
  if (action) box.append(press(action, async () => { box.remove(); try { await fn() } catch (e) { toast(e.message) } }))
  document.body.append(box); setTimeout(() => box.remove(), action ? 12000 : 6000)
}

// names and values, searchable when there are many
const said = v => v === null || v === undefined ? '' : Array.isArray(v) && v.every(o => typeof o != 'object') ? v.join(', ') : typeof v == 'object' ? JSON.stringify(v) : typeof v == 'number' ? (Number.isInteger(v) ? v.toLocaleString('en') : String(+v.toPrecision(6))) : String(v)
function longText(text, most=400) {
  if (text.length <= most) return el('span','',text)
  const s = el('span','',text.slice(0,most)+'… '), more = press('all '+text.length.toLocaleString('en')+' characters', () => s.replaceChildren(text)); s.append(more); return s
}
function facts(d, find) {
  const keys = Object.keys(d).filter(k => said(d[k]) !== ''), dl = el('dl','kv')
  const paint = q => dl.replaceChildren(...keys.filter(k => !q || (k+' '+said(d[k])).toLowerCase().includes(q.toLowerCase())).slice(0,2000).flatMap(k => [el('dt','',k), el('dd', typeof d[k] == 'number' ? 'number' : '', longText(said(d[k])))]))
  paint(''); if (keys.length < (find ?? 16)) return dl
  const box = Object.assign(el('input','field small'), {placeholder:'find', ariaLabel:'find a name or value', type:'search'}); box.oninput = () => paint(box.value); box.onkeydown = e => { if (e.key != 'Escape') e.stopPropagation() }
  return el('div','', box, dl)
}
const panel = (title, ...kids) => el('section','panel', title ? el('h2','',title) : null, ...kids)
const bytes = n => n < 1e3 ? n+' bytes' : n < 1e6 ? +(n/1e3).toPrecision(3)+' kB' : n < 1e9 ? +(n/1e6).toPrecision(3)+' MB' : +(n/1e9).toPrecision(3)+' GB'
const runLink = id => { const b = press(S.runs.get(id)?.name || id, () => openRun(id)); b.title = id; return b }

runTabs.push({name:'overview', title:'Overview', has:() => true, open(box, run) {
  const paint = r => {
    const typing = box.contains(document.activeElement) ? document.activeElement : null; if (typing?.matches('.edit') || typing?.value) return
    const origin = {command:r.command, host:r.host, folder:r.path, processes:r.processes > 1 ? r.processes : '', 'job type':r.job_type, sweep:r.sweep, trial:r.trial, parent:r.parent, 'forked from':r.forked ? said(r.forked) : ''}
    box.replaceChildren(...[
      r.error ? el('div','banner bad mono', r.error) : null, ...r.problems.map(p => el('div','banner warn', p)),
      ...r.alerts.slice(-20).reverse().map(a => el('div','banner '+({ERROR:'bad',WARN:'warn'}[a.level]||'info'), el('span','', el('b','',longText(a.title, 200)), ' ', longText(a.text||'')), el('span','sub',date(a.t)))),
      el('div','panels',
        panel('Summary', Object.keys(r.summary).length ? facts(r.summary) : el('p','sub','Nothing was logged yet.')),
        panel('Config', Object.keys(r.config).length ? facts(r.config) : el('p','sub','This run has no config.')),
        panel('Notes', editable(r.notes, {label:'notes', long:true, empty:'Click to write what this run was for.', save:notes => describe({notes})}),
          el('h2','','Tags'), tagEditor(r), el('h2','','Group'), editable(r.group, {label:'group', empty:'none', save:group => describe({group})})),
        panel('Origin', facts(origin)))].filter(Boolean))
    if (typing?.matches('.addtag')) box.querySelector('.addtag').focus()
  }
  paint(run); return {update:paint}
}})

// curves of this run; several charts share axis, zoom and smoothing
const oneAxis = {x:'step', zoom:null, smooth:0}
function lineTools(charts, smooth) {
  const seg = el('span','seg'), reset = press('reset zoom', () => { oneAxis.zoom = null; all() })
  const all = () => { reset.hidden = !oneAxis.zoom; for (const c of charts) c.load(true) }
  for (const [x,name] of [['step','step'],['relative','duration'],['time','time']]) { const b = press(name, () => { oneAxis.x = x; oneAxis.zoom = null; for (const o of seg.children) o.setAttribute('aria-pressed', o == b); all() }, ''); b.setAttribute('aria-pressed', x == oneAxis.x); seg.append(b) }
  const slide = Object.assign(el('input'), {type:'range', min:0, max:.98, step:.02, value:oneAxis.smooth}); slide.oninput = () => { oneAxis.smooth = +slide.value; for (const c of charts) c.rebuild() }
  reset.hidden = !oneAxis.zoom; charts.zoomed = all
  return el('div','bar onetools', seg, smooth ? el('label','tool','smooth ',slide) : null, reset)
}
class Lines {
  constructor(id, metric, title, unit, charts) {
    Object.assign(this, {id, metric, unit, charts}); this.plot = el('div','plot'); this.info = el('span','sub'); this.box = el('section','card', el('h2','', el('span','',title), this.info), this.plot); this.box.querySelector('h2').title = metric
    this.seen = new IntersectionObserver(es => { this.visible = es.some(e => e.isIntersecting); if (this.visible) this.load() }, {rootMargin:'200px'}); this.seen.observe(this.box)
    this.size = new ResizeObserver(() => this.u && this.plot.clientWidth && this.u.setSize({width:this.plot.clientWidth, height:230})); this.size.observe(this.plot)
  }
  close() { this.seen.disconnect(); this.size.disconnect(); this.u?.destroy(); this.u = null }
  async load(again) {
    if (again) this.data = null; if (this.data || this.busy || !this.visible) return
    this.busy = true; const asked = JSON.stringify(oneAxis)
    try { this.data = unpack(await ask('api/curves', {runs:[this.id], metric:this.metric, x:oneAxis.x, low:oneAxis.zoom?.[0] ?? null, high:oneAxis.zoom?.[1] ?? null})); this.rebuild() }
    catch (e) { this.info.textContent = e.status ? e.message : 'not connected' }
    this.busy = false; if (JSON.parse(asked).x != oneAxis.x) this.load(true)
  }
  rebuild() {
    const d = this.data; if (!d || !this.box.isConnected) return
    const k = this.unit == 'bytes' ? 2**-30 : 1, raw = Array.from(d.rows[0], v => v !== v ? undefined : isFinite(v) ? v*k : null), smooth = oneAxis.smooth > 0
    let m = 0, w = 0; const line = smooth ? raw.map(v => v == null ? v : (m = oneAxis.smooth*m+(1-oneAxis.smooth)*v, w = oneAxis.smooth*w+1-oneAxis.smooth, m/w)) : raw
    const last = line.findLast(v => v != null); this.info.textContent = last == null ? '' : num(last)+({bytes:' GiB', percent:' %'}[this.unit] || '')
    const grid = {stroke:css('--grid'), width:1}, axis = {stroke:css('--faint'), grid, ticks:{show:false}, font:'11px ui-sans-serif,system-ui,sans-serif'}, colour = css('--accent'), few = line.filter(v => v != null).length <= 24
    const opts = { width:this.plot.clientWidth || 380, height:230, legend:{show:false}, padding:[8,10,0,0], cursor:{drag:{x:true,y:false,setScale:false}},
      scales:{x:{time:oneAxis.x == 'time'}, y:{range:(u,lo,hi) => this.unit == 'percent' ? [0, Math.max(100,hi||0)] : lo === null ? [0,1] : lo == hi ? [lo-(Math.abs(lo)*.1||1), hi+(Math.abs(hi)*.1||1)] : [this.unit ? 0 : lo-(hi-lo)*.04, hi+(hi-lo)*.04]}},
      axes:[{...axis, size:28, values:oneAxis.x == 'time' ? undefined : (u,vs) => vs.map(v => v == null ? '' : oneAxis.x == 'relative' ? span(v) : num(v))}, {...axis, size:52, values:(u,vs) => vs.map(v => v == null ? '' : num(v))}],
      series:[{}, ...(smooth ? [{stroke:colour+'45', width:1, points:{show:false}}] : []), {stroke:colour, width:1.6, points:{show:few, size:5, fill:colour}}],
      hooks:{ setSelect:[u => { if (u.select.width > 6) { oneAxis.zoom = [u.posToVal(u.select.left,'x'), u.posToVal(u.select.left+u.select.width,'x')]; this.charts.zoomed() } }],
        setCursor:[u => { const i = u.cursor.idx, v = i == null ? null : u.data.at(-1)[i]; if (v == null) return; const x = u.data[0][i]; this.info.textContent = num(v)+'  at '+(oneAxis.x == 'step' ? 'step '+num(Math.round(x)) : oneAxis.x == 'relative' ? span(x) : new Date(x*1000).toLocaleTimeString()) }] } }
    this.u?.destroy(); this.u = new uPlot(opts, [d.x, ...(smooth ? [raw] : []), line], this.plot); this.box.dataset.drawn = 1
  }
}
function lineTab(box, groups, id, smooth) { // groups: [heading, [[metric, title, unit], …]]
  const charts = [], kids = groups.flatMap(([heading,list]) => [heading ? el('h2','over',heading) : null, el('div','lines', ...list.map(([k,title,unit]) => { const c = new Lines(id, k, title, unit, charts); charts.push(c); return c.box }))])
  box.append(lineTools(charts, smooth), ...kids.filter(Boolean))
  const themed = new MutationObserver(() => charts.forEach(c => c.rebuild())); themed.observe(document.documentElement, {attributeFilter:['data-theme']})
  return {charts, reload:() => charts.forEach(c => c.load(true)), close() { themed.disconnect(); charts.forEach(c => c.close()) }}
}
runTabs.push({name:'curves', title:'Curves', has:r => r.metrics.length, open(box, run) {
  oneAxis.zoom = null; let points = run.points, names = run.metrics.join('\n'), tab
  const build = r => { tab?.close(); box.replaceChildren(); tab = lineTab(box, [['', [...r.metrics].sort(byInterest).map(k => [k,k,''])]], r.id, true) }
  build(run)
  return {update(r) { if (r.metrics.join('\n') != names) { names = r.metrics.join('\n'); build(r) } else if (r.points != points) tab.reload(); points = r.points }, close:() => tab.close()}
}})

// how the machine was doing
const machine = [['Processor', /^system\/(process\.)?(cpu|threads)/], ['Memory', /^system\/(process\.)?memory/], ['GPU', /^system\/gpu/], ['Disk', /^system\/disk/], ['Network', /^system\/network/], ['Other', /./]]
const unitOf = k => /process\.memory|disk\.free|gpu\.\d+\.memory$/.test(k) ? 'bytes' : /process\.cpu|threads/.test(k) ? 'count' : /(cpu|memory|disk|percent)$/.test(k) ? 'percent' : /read|written|sent|received/.test(k) ? 'rate' : ''
const wordsOf = k => ({'system/cpu':'processor, whole machine','system/memory':'memory, whole machine','system/disk':'disk in use','system/disk.free':'disk free','system/process.cpu':'processor, this process (100 % a core)','system/process.memory':'memory, this process','system/process.threads':'threads'})[k]
  || k.replace('system/','').replace(/^gpu\.(\d+)\./,'GPU $1, ').replace('watts','power in watts').replace('celsius','temperature in °C').replace('.',' ')+(unitOf(k) == 'rate' ? ', bytes a second' : '')
runTabs.push({name:'system', title:'System', has:r => r.system.length, open(box, run) {
  oneAxis.zoom = null; if (oneAxis.x == 'step') oneAxis.x = 'relative'
  const left = new Set(run.system), groups = machine.map(([title,test]) => [title, run.system.filter(k => left.has(k) && test.test(k) && left.delete(k)).map(k => [k, wordsOf(k), unitOf(k)])]).filter(([,l]) => l.length)
  const tab = lineTab(box, groups, run.id, false)
  let timer = setInterval(() => { if (one.run?.state == 'running' && !document.hidden && !oneAxis.zoom) tab.reload() }, 10000)
  return {close() { clearInterval(timer); oneAxis.x = 'step'; tab.close() }}
}})
