// the runs of an analysis: all that are listed, or those that are shown
const scoped = () => S.scope == 'selected' ? selected().map(id => S.runs.get(id)) : shown
function scopeTool() {
  const seg = el('span','seg')
  for (const [v,text] of [['listed','all listed'],['selected','shown']]) { const b = button(text,'',() => { S.scope = v; link(); views.show() }); b.dataset.scope = v; seg.append(b) }
  return seg
}
function showScope() { for (const b of document.querySelectorAll('[data-scope]')) b.setAttribute('aria-pressed', b.dataset.scope == S.scope) }
keep('scope', () => S.scope == 'listed' ? '' : S.scope, v => { S.scope = v == 'selected' ? v : 'listed' })
S.metric = '' // what the analyses are about
const aim = () => S.columns.numbers.includes('s:'+S.metric) ? S.metric : (S.columns.numbers[0] ?? '').slice(2)
const aims = []
function aimTool() { const s = make('select', {onchange:() => { S.metric = s.value.slice(2); link(); views.show() }}); aims.push(s); return labelled('metric', s) }
function showAims() { for (const s of aims) options(s, [['', S.columns.numbers.slice(0,200).map(c => [c,title(c)])]], aim() ? 's:'+aim() : '') }
keep('metric', () => S.metric, v => { S.metric = v })

// parallel coordinates: a line for each run across its parameters to the metric; drag on an axis to keep a part of it
const pc = { axes:null, brush:{}, lines:[], scales:[], hover:null,
  chosen() { return this.axes || S.columns.differ.filter(c => !/[.:_]seed$/i.test(c) && scoped().filter(r => value(r,c) !== undefined).length > 1).slice(0,8) },
  all() { const last = 's:'+aim(); return [...this.chosen().filter(c => c != last), last] },
}
const pcFrame = make('div', {cls:'frame', id:'pc'}), pcInfo = el('span','sub'), pcNames = el('div','axes'), pcBox = el('div','stage', pcFrame)
const pcSelect = button('show these','link',() => pick(kept().slice(0,MOST).map(r => r.id)),'show the curves of the runs that are left'), pcFilter = button('as a filter','link',toQuery,'write the filter for it'), pcClear = button('clear','link',() => { pc.brush = {}; link(); views.show() })
views.add({name:'parallel', title:'Parallel', show:paintParallel}).append(el('div','bar tools', scopeTool(), aimTool(), chooser('axes', everyAxis, () => pc.chosen(), cols => { pc.axes = cols; link(); views.show() }), pcInfo, pcSelect, pcFilter, pcClear), pcBox)
function everyAxis() { return [['config', S.columns.config], ['metrics', S.columns.numbers], ['run', ['r:created','r:duration','r:state','r:group']]].map(([name,cols]) => [name, cols.map(c => [c])]) }
keep('axes', () => pc.axes ? packed(pc.axes) || '-' : '', v => { pc.axes = v == '-' ? [] : v ? unpacked(v) : null })
keep('brush', () => Object.entries(pc.brush).map(([c,[a,b]]) => encodeURIComponent(c)+':'+a.toFixed(4)+':'+b.toFixed(4)).join(','), v => {
  pc.brush = Object.fromEntries(v.split(',').map(o => o.split(':')).filter(o => o.length == 3).map(([c,a,b]) => [decodeURIComponent(c), [+a,+b]])) })

const inBrush = (c, t) => { const b = pc.brush[c]; return !b || t !== null && t >= b[0]-1e-9 && t <= b[1]+1e-9 }
const kept = () => pc.lines.filter(o => o.kept).map(o => o.run)
function paintParallel() {
  showScope(); showAims()
  const runs = scoped(), cols = pc.all(), target = cols.at(-1)
  for (const c of Object.keys(pc.brush)) if (!cols.includes(c)) delete pc.brush[c]
  if (!runs.length || !aim()) { pcBox.replaceChildren(empty('Nothing to compare', runs.length ? 'These runs have no number in their summary.' : 'No run is listed.')); return }
  pcBox.replaceChildren(pcFrame)
  pc.scales = cols.map((c,i) => scaleOf(runs.map(r => value(r,c)), undefined, i < cols.length-1 ? 8 : 0))
  const heat = pc.scales.at(-1)
  pc.lines = runs.map(run => { const at = cols.map((c,i) => pc.scales[i].at(value(run,c))); return {run, at, kept:cols.every((c,i) => inBrush(c,at[i])), heat:heat.at(value(run,target))} })
  const n = kept().length, brushed = Object.keys(pc.brush).length
  pcInfo.textContent = brushed ? n+' of '+many(runs.length,'run') : many(runs.length,'run')
  pcSelect.hidden = pcFilter.hidden = pcClear.hidden = !brushed
  drawParallel(cols)
}
function drawParallel(cols) {
  const wide = Math.max(pcBox.clientWidth-32, cols.length*96), tall = Math.max(300, Math.min(620, $('views').clientHeight-150)), left = 56, right = 64, top = 46, foot = 34
  const x = i => cols.length > 1 ? left+i*(wide-left-right)/(cols.length-1) : wide/2, y = t => t === null ? tall-12 : tall-foot-t*(tall-top-foot)
  Object.assign(pc, {x, y, cols, tall, top, foot, gap:(wide-left-right)/Math.max(1,cols.length-1)})
  pcFrame.style.height = tall+'px'; pcFrame.style.width = wide+'px'
  const g = canvasIn(pcFrame, wide, tall); pcFrame.querySelector('canvas').setAttribute('aria-label', many(pc.lines.length,'run')+' across '+many(cols.length,'axis').replace('axiss','axes'))
  const towards = best(aim()) == 'max' ? 1 : -1 // the best are drawn last
  const order = [...pc.lines].sort((a,b) => a.kept-b.kept || towards*((a.heat ?? -1)-(b.heat ?? -1)))
  g.lineWidth = order.length > 300 ? 1 : 1.4
  for (const o of order) { g.globalAlpha = o.kept ? (order.length > 100 ? .5 : .75) : .09; g.strokeStyle = o.kept && o.heat !== null ? ramp(o.heat) : css('--faint'); trace(g,o) }
  g.globalAlpha = 1
  if (pc.hover) { g.lineWidth = 3.2; g.strokeStyle = css('--ink'); trace(g, pc.hover); g.lineWidth = 1.8; g.strokeStyle = pc.hover.heat === null ? css('--faint') : ramp(pc.hover.heat); trace(g, pc.hover) }
  cols.forEach((c,i) => drawAxis(g, c, i))
  pcNames.replaceChildren(...cols.map((c,i) => { const e = el('div','axis-name'+(i == cols.length-1 ? ' aim' : ''), title(c)); e.title = title(c); e.style.left = x(i)+'px'; e.style.maxWidth = Math.max(80, pc.gap-10)+'px'; return e }))
  if (pcNames.parentNode != pcFrame) pcFrame.append(pcNames)
  pcFrame.dataset.drawn = pc.lines.length
}
function trace(g, o) {
  g.beginPath(); g.moveTo(pc.x(0), pc.y(o.at[0]))
  for (let i = 1; i < o.at.length; i++) { const a = pc.x(i-1), b = pc.x(i), mid = (a+b)/2; g.bezierCurveTo(mid, pc.y(o.at[i-1]), mid, pc.y(o.at[i]), b, pc.y(o.at[i])) }
  g.stroke()
}
function drawAxis(g, c, i) {
  const x = Math.round(pc.x(i))+.5, s = pc.scales[i], b = pc.brush[c], labels = css('--soft')
  g.strokeStyle = i == pc.cols.length-1 && s.kind != 'levels' ? heatFill(g) : css('--axis'); g.lineWidth = i == pc.cols.length-1 ? 5 : 1
  g.beginPath(); g.moveTo(x, pc.y(1)); g.lineTo(x, pc.y(0)); g.stroke(); g.lineWidth = 1
  if (b) { g.fillStyle = css('--accent'); g.globalAlpha = .22; g.fillRect(x-7, pc.y(b[1]), 14, pc.y(b[0])-pc.y(b[1])); g.globalAlpha = 1; g.strokeStyle = css('--accent'); g.strokeRect(x-7, pc.y(b[1]), 14, pc.y(b[0])-pc.y(b[1])) }
  g.textBaseline = 'middle'; g.textAlign = 'right'
  const text = t => { let s = t; while (s.length > 1 && g.measureText(s).width > Math.max(40, Math.min(pc.gap-16, 110))) s = s.slice(0,-2)+'…'; return s }
  const write = (t, y) => { const label = text(t), w = g.measureText(label).width; g.fillStyle = css('--card'); g.globalAlpha = .72; g.fillRect(x-9-w, y-7, w+3, 14); g.globalAlpha = 1; g.fillStyle = labels; g.fillText(label, x-8, y) }
  for (const v of s.ticks(Math.floor(pc.tall/(s.kind == 'levels' ? 26 : 70)))) write(show(c,v), pc.y(s.at(v)))
  if (pc.lines.some(o => o.at[i] === null)) write('none', pc.y(null))
}

function heatFill(g) { const f = g.createLinearGradient(0, pc.y(0), 0, pc.y(1)); for (const t of [0,.25,.5,.75,1]) f.addColorStop(t, ramp(t)); return f }

// the mouse: over a line it names the run, on an axis it brushes
let brushing = null
const pcAt = e => { const b = pcFrame.getBoundingClientRect(); return [e.clientX-b.left, e.clientY-b.top] }
const level = y => Math.min(1, Math.max(0, (pc.tall-pc.foot-y)/(pc.tall-pc.top-pc.foot)))
function axisNear(x) { const i = Math.round((x-pc.x(0))/pc.gap); return i >= 0 && i < pc.cols.length && Math.abs(pc.x(i)-x) < 16 ? i : -1 }
function lineNear(x, y) {
  const i = Math.max(0, Math.min(pc.cols.length-2, Math.floor((x-pc.x(0))/pc.gap))), f = Math.min(1, Math.max(0, (x-pc.x(i))/pc.gap)), ease = bezierAt(f)
  let found = null, least = 9
  for (const o of pc.lines) { if (!o.kept || pc.cols.length < 2) continue; const d = Math.abs(pc.y(o.at[i])+(pc.y(o.at[i+1])-pc.y(o.at[i]))*ease-y); if (d < least) { least = d; found = o } }
  return found
}
function bezierAt(f) { // how high the curve of trace() is when it is f along
  let t = f; for (let i = 0; i < 8; i++) { const x = 1.5*t*(1-t)*(1-t)+1.5*t*t*(1-t)+t*t*t; t += f-x }
  return t*t*(3-2*t)
}
pcFrame.onpointerdown = e => { const [x,y] = pcAt(e), i = axisNear(x); if (i < 0) return pc.hover && openRun(pc.hover.run.id)
  brushing = {c:pc.cols[i], from:level(y), moved:false}; pcFrame.setPointerCapture(e.pointerId); hush() }
pcFrame.onpointermove = e => {
  const [x,y] = pcAt(e)
  if (brushing) { const to = level(y); if (Math.abs(to-brushing.from) > .01) brushing.moved = true
    if (brushing.moved) pc.brush[brushing.c] = [Math.min(to,brushing.from), Math.max(to,brushing.from)]; return paintParallel() }
  const i = axisNear(x), was = pc.hover; pc.hover = i < 0 ? lineNear(x,y) : null
  pcFrame.style.cursor = i >= 0 ? 'ns-resize' : pc.hover ? 'pointer' : ''
  if (pc.hover != was) drawParallel(pc.cols)
  pc.hover ? say(e.clientX, e.clientY, ...tipOf(pc.hover.run, pc.cols)) : hush()
}
pcFrame.onpointerup = () => { if (!brushing) return; if (!brushing.moved) delete pc.brush[brushing.c]; brushing = null; link(); paintParallel() }
pcFrame.onpointerleave = () => { if (brushing) return; hush(); if (pc.hover) { pc.hover = null; drawParallel(pc.cols) } }
new ResizeObserver(() => { if (views.now?.name == 'parallel' && S.ready) paintParallel() }).observe(pcBox)

// a brush in the words of the filter
const quoted = v => typeof v == 'string' ? "'"+v.replace(/\\/g,'\\\\').replace(/'/g,"\\'").replace(/\n/g,'\\n')+"'" : typeof v == 'boolean' ? (v ? 'True' : 'False') : String(v)
function asked(c) { const k = c.slice(2), part = {c:'config', s:'summary', r:'run'}[c[0]]
  return /^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$/.test(k) ? (c[0] == 'c' ? k : part+'.'+k) : '`'+k+'`' }
function clause(c) {
  const s = pc.scales[pc.cols.indexOf(c)], [a,b] = pc.brush[c], name = asked(c)
  if (s.kind == 'levels') return name+' in ['+s.all.filter(v => s.at(v) >= a-1e-9 && s.at(v) <= b+1e-9).map(quoted).join(', ')+']'
  const within = pc.lines.map(o => value(o.run,c)).filter(v => { const t = s.at(v); return t !== null && t >= a && t <= b })
  if (!within.length) return name+' == None'
  const low = within.reduce((x,y) => Math.min(x,y)), high = within.reduce((x,y) => Math.max(x,y))
  return String(low)+' <= '+name+' <= '+String(high)
}
function toQuery() {
  const old = $('query').value.trim(), told = Object.keys(pc.brush).map(clause).join(' and ')
  $('query').value = old ? (/\bor\b/.test(old) ? '('+old+')' : old)+' and '+told : told
  pc.brush = {}; link(true); refresh()
}
