// the pictures of one sweep, on the page and in the report of one file: needs base.js alone
const sweepStates = {DONE:'#4263eb', PRUNED:'#d9932f', RUNNING:'#2b9a66', PAUSED:'#9c5fd6', WAITING:'#98a0ad', LOST:'#c2459b', FAILED:'#e03131'}
const sweepBadge = s => { const e = el('span','state sweep-state',s.toLowerCase()); e.dataset.state = s; return e }
function sweepBoard(hooks) { // hooks: about(n) and weigh() give promises, run(trial) opens its run if there is a page of runs
const B = { head:null, rows:[], hover:null, brush:{}, kept:null, x:'number', ylog:null, param:'', sort:'', most:50, open:null, weighed:null, charts:[], drag:null }
const better = (a, b) => B.head.goal == 'maximize' ? a > b : a < b
const known = t => t.value !== null && t.state != 'FAILED'
const press = (text, fn, cls='link') => button(text, cls, fn)
const caption = t => [el('b','','trial '+t.n), el('div','sub',t.state.toLowerCase()+(t.value === null ? '' : ' · '+B.head.metric+' '+num(t.value))), el('div','facts', ...B.head.params.flatMap((p,i) => t.params[i] === null ? [] : [el('span','',p.name), el('span','',word(t.params[i]))]))]
const word = v => typeof v == 'number' ? num(v) : typeof v == 'string' ? v : JSON.stringify(v)
const curveAt = (t, i) => t.reports < 2 || t.curve.length < 2 ? 1 : 1+Math.floor(i*(t.reports-1)/(t.curve.length-1)) // which report this point is
const isKept = t => !B.kept || B.kept.has(t.n)

// a card with a canvas; paint(g, wide, tall) draws and gives the places [{t, x, y}] that the mouse finds
function chart(title, paint, tall=260, ...tools) {
  const frame = el('div','sweep-frame'), info = el('span','sub'), card = el('section','card sweep-card', el('h2','',el('span','',title),info,...tools), frame), c = {card, frame, info, tall, paint, places:[]}
  frame.style.height = tall+'px'
  frame.onpointermove = e => { if (B.drag) return; const b = frame.getBoundingClientRect(), x = e.clientX-b.left, y = e.clientY-b.top; let least = 16**2, hit = null
    for (const p of c.places) { const d = (p.x-x)**2+(p.y-y)**2; if (d < least) { least = d; hit = p.t } }
    hover(hit); frame.style.cursor = hit ? 'pointer' : ''; hit ? say(e.clientX, e.clientY, ...caption(hit)) : hush() }
  frame.onpointerleave = () => { hush(); hover(null) }
  frame.onclick = () => { if (B.hover) openTrial(B.hover.n) }
  new ResizeObserver(() => draw(c)).observe(frame)
  B.charts.push(c); return c
}
function draw(c) {
  const wide = c.frame.clientWidth; if (!B.head || !wide || c.card.hidden) return
  const g = canvasIn(c.frame, wide, c.tall); g.textBaseline = 'middle'; g.lineJoin = 'round'
  c.places = c.paint(g, wide, c.tall) || []
}
let waiting = 0
function hover(t) { if (t == B.hover) return; B.hover = t; waiting ||= requestAnimationFrame(() => { waiting = 0; B.charts.forEach(draw); B.charts.forEach(c => c.over?.()) }) }

// axes with a grid; gives where values are
function axesIn(g, wide, tall, sx, sy, xname, yname) {
  const left = 54, right = 12, top = 12, foot = 34, w = wide-left-right, h = tall-top-foot, line = (a,b,c,d) => { g.beginPath(); g.moveTo(a,b); g.lineTo(c,d); g.stroke() }
  const X = v => { const t = seatOf(sx,v); return t === null ? null : left+t*w }, Y = v => { const t = seatOf(sy,v); return t === null ? null : top+h-t*h }
  g.strokeStyle = css('--grid'); g.fillStyle = css('--soft'); g.lineWidth = 1
  for (const v of sy.ticks(Math.max(2, Math.floor(h/44)))) { const y = Math.round(Y(v))+.5; line(left,y,left+w,y); g.textAlign = 'right'; g.fillText(cutTo(g, word(v), left-10), left-6, y) }
  const ticks = sx.ticks(Math.max(2, Math.floor(w/74))), room = w/Math.max(1,ticks.length)-6; g.textAlign = 'center'
  for (const v of ticks) { const x = Math.round(X(v))+.5; line(x,top,x,top+h); g.fillText(cutTo(g, sx.text ? sx.text(v) : word(v), Math.max(30,room)), Math.min(Math.max(x, left), wide-16), top+h+11) }
  g.fillText(cutTo(g, xname, w), left+w/2, tall-8)
  return {X, Y, left, top, w, h, clip:() => { g.save(); g.beginPath(); g.rect(left-4, top-4, w+8, h+8); g.clip() }}
}
const seatOf = (s, v) => { const t = s.at(v); return t === null || s.kind != 'levels' ? t : (t*(s.all.length-1)+.5)/s.all.length }
function cutTo(g, text, wide) { let s = text; while (s.length > 1 && g.measureText(s).width > wide) s = s.slice(0,-2)+'…'; return s }
function calm(values, log) { // the scale of what matters: the worst tenth may lie beyond its edge
  const all = values.filter(v => finite(v) !== null && (!log || v > 0)).sort((a,b) => a-b); if (!all.length) return linear(0,1)
  const at = p => all[Math.round(p*(all.length-1))]; let low = all[0], high = all.at(-1)
  if (B.head.goal == 'maximize') low = Math.max(low, at(.1)-(high-at(.1))*.6); else high = Math.min(high, at(.9)+(at(.9)-low)*.6)
  if (log) return logarithmic(low > 0 ? low : all[0], high)
  const edge = (high-low)*.04 || Math.abs(high)*.1 || 1; return linear(low-edge, high+edge)
}
const wantsLog = values => { const all = values.filter(v => finite(v) !== null); return all.length > 0 && all.every(v => v > 0) && Math.max(...all) >= 100*Math.min(...all) }
const spotColour = t => t.state == 'DONE' ? css('--accent') : sweepStates[t.state] || sweepStates.WAITING
function spot(g, x, y, t, r=3.6) { g.globalAlpha = isKept(t) ? .85 : .12; g.fillStyle = spotColour(t); g.beginPath(); g.arc(x,y,r,0,7); g.fill(); g.globalAlpha = 1 }
function ring(g, x, y) { g.strokeStyle = css('--ink'); g.lineWidth = 2; g.beginPath(); g.arc(x,y,6.5,0,7); g.stroke() }

// best so far
const xSeg = el('span','seg'); for (const [v,text] of [['number','trial'],['time','time']]) { const b = press(text, () => { B.x = v; bestChart.card.querySelectorAll('[data-x]').forEach(o => o.setAttribute('aria-pressed', o.dataset.x == v)); draw(bestChart) }, ''); b.dataset.x = v; b.setAttribute('aria-pressed', v == 'number'); xSeg.append(b) }
const bestChart = chart('Best so far', (g, wide, tall) => {
  const done = B.rows.filter(t => known(t) && t.ended !== null), byTime = B.x == 'time', x0 = B.head.created, xOf = t => byTime ? t.ended-x0 : t.n
  const log = wantsLog(done.map(t => t.value)), sx = linear(0, Math.max(1, byTime ? Math.max(...done.map(xOf), 1) : B.rows.length-1)), sy = calm(done.map(t => t.value), log)
  if (byTime) sx.text = span
  const a = axesIn(g, wide, tall, sx, sy, byTime ? 'since the start' : 'trial', B.head.metric); a.clip()
  const places = done.map(t => ({t, x:a.X(xOf(t)), y:Math.min(Math.max(a.Y(t.value) ?? a.top, a.top), a.top+a.h)})); for (const p of places) spot(g, p.x, p.y, p.t, done.length > 300 ? 2.4 : 3.4)
  g.strokeStyle = css('--ink'); g.lineWidth = 1.8; g.beginPath(); let best = null, y = null
  for (const t of [...done].sort((p,q) => xOf(p)-xOf(q))) { if (best !== null && !better(t.value,best)) continue; const x = a.X(xOf(t)), to = a.Y(t.value); if (best === null) g.moveTo(x,to); else { g.lineTo(x,y); g.lineTo(x,to) } best = t.value; y = to }
  if (best !== null) { g.lineTo(a.left+a.w,y); g.stroke() }
  const p = B.hover && places.find(o => o.t == B.hover); if (p) ring(g, p.x, p.y)
  g.restore(); return places
}, 270, xSeg)

// learning curves by state, the bands of the rule
const logBox = check('log','', on => { B.ylog = on; draw(curveChart) })
const curveChart = chart('Learning curves', (g, wide, tall) => {
  const with_ = B.rows.filter(t => t.curve.length), all = with_.flatMap(t => t.curve), log = B.ylog ?? wantsLog(all); logBox.querySelector('input').checked = log
  curveChart.card.hidden = !with_.length; if (!with_.length) return
  const longest = with_.reduce((m,t) => Math.max(m,t.reports), 1), sx = linear(1, Math.max(2,longest)), sy = calm(all, log), a = axesIn(g, wide, tall, sx, sy, 'report', B.head.metric); a.clip()
  const path = t => { g.beginPath(); t.curve.forEach((v,i) => { const y = a.Y(v); if (y !== null) g.lineTo(a.X(curveAt(t,i)), y) }); g.stroke() }, order = ['FAILED','PRUNED','LOST','PAUSED','WAITING','DONE','RUNNING']
  const places = []; for (const t of with_) t.curve.forEach((v,i) => { const y = a.Y(v); if (y !== null) places.push({t, x:a.X(curveAt(t,i)), y}) })
  for (const t of [...with_].sort((p,q) => order.indexOf(p.state)-order.indexOf(q.state))) { g.globalAlpha = !isKept(t) ? .05 : with_.length > 300 ? .22 : with_.length > 60 ? .4 : .7; g.lineWidth = t.n == B.head.best?.n ? 2.4 : 1.2; g.strokeStyle = spotColour(t); if (t.n == B.head.best?.n) g.globalAlpha = 1; path(t); if (t.curve.length == 1) spot(g, a.X(1), a.Y(t.curve[0]) ?? 0, t, 2) }
  g.globalAlpha = 1; g.setLineDash([4,4]); g.textAlign = 'left'; g.font = '10.5px ui-sans-serif,system-ui,sans-serif'; let last = -99
  for (const b of B.head.bands) { if (b.at > longest) continue; const x = Math.round(a.X(b.at))+.5; g.strokeStyle = css('--axis'); g.lineWidth = 1; g.beginPath(); g.moveTo(x,a.top); g.lineTo(x,a.top+a.h); g.stroke()
    if (b.threshold !== null) { const y = a.Y(b.threshold); if (y !== null) { g.setLineDash([]); g.strokeStyle = css('--red'); g.lineWidth = 2.5; g.beginPath(); g.moveTo(x-7,y); g.lineTo(x+7,y); g.stroke(); g.setLineDash([4,4]) } }
    if (x-last > 50 && x < a.left+a.w-40) { g.fillStyle = css('--soft'); g.fillText('band '+b.at, x+3, a.top+5); last = x } }
  g.setLineDash([]); if (B.hover?.curve.length) { g.strokeStyle = css('--ink'); g.lineWidth = 4; path(B.hover); g.strokeStyle = spotColour(B.hover); g.lineWidth = 2; path(B.hover) }
  g.restore(); return places
}, 270, logBox)

// parallel coordinates: drag on an axis to keep a part of it
const axisNames = el('div','axes'), clear = press('clear', () => { B.brush = {}; keepBrushed() }), pc = {scales:[], x:() => 0, y:() => 0, cols:0}
const axisValue = (t, i) => i == B.head.params.length ? (known(t) ? t.value : null) : t.params[i]
const pcChart = chart('Parameters', (g, wide, tall) => {
  const P = B.head.params, cols = P.length+1, left = 56, right = 62, top = 42, foot = 26, shown = B.rows.filter(t => known(t) || t.state == 'RUNNING' || t.state == 'FAILED')
  pc.scales = [...P.map((p,i) => { const vs = B.rows.map(t => t.params[i]).filter(v => v !== null); return p.kind == 'levels' ? levels([...new Set(vs.map(v => typeof v == 'object' ? JSON.stringify(v) : v))].sort(compareValues)) : scaleOf(vs, p.kind == 'log') }), calm(B.rows.filter(known).map(t => t.value), wantsLog(B.rows.filter(known).map(t => t.value)))]
  const inner = Math.max(wide, cols*92); if (inner > wide+1 && pcChart.frame.firstChild) { g = canvasIn(pcChart.frame, inner, tall); g.textBaseline = 'middle' }
  const gap = (inner-left-right)/Math.max(1,cols-1), x = i => left+i*gap, y = t => t === null ? tall-6 : tall-foot-Math.min(1,Math.max(0,t))*(tall-top-foot); Object.assign(pc, {x, y, cols, gap, top, foot, tall})
  const heat = t => known(t) ? pc.scales.at(-1).at(t.value) : null, at = t => pc.scales.map((s,i) => s.at(axisValue(t,i))), good = B.head.goal == 'maximize' ? 1 : -1
  const trace = q => { g.beginPath(); g.moveTo(x(0),y(q[0])); for (let i = 1; i < cols; i++) { const a = x(i-1), b = x(i), m = (a+b)/2; g.bezierCurveTo(m,y(q[i-1]),m,y(q[i]),b,y(q[i])) } g.stroke() }
  const lines = shown.map(t => ({t, at:at(t), heat:heat(t)})).sort((p,q) => isKept(p.t)-isKept(q.t) || good*((p.heat ?? -9*good)-(q.heat ?? -9*good)))
  g.lineWidth = lines.length > 300 ? 1 : 1.4
  for (const o of lines) { g.globalAlpha = isKept(o.t) ? (lines.length > 100 ? .42 : .75) : .06; g.strokeStyle = isKept(o.t) && o.heat !== null ? ramp(Math.min(1,Math.max(0,good < 0 ? o.heat : 1-o.heat))) : css('--faint'); trace(o.at) }
  g.globalAlpha = 1; const h = B.hover && lines.find(o => o.t == B.hover); if (h) { g.lineWidth = 4; g.strokeStyle = css('--ink'); trace(h.at); g.lineWidth = 2; g.strokeStyle = h.heat === null ? css('--faint') : ramp(good < 0 ? h.heat : 1-h.heat); trace(h.at) }
  const names = [...P.map(p => p.name), B.head.metric]
  names.forEach((name,i) => { const s = pc.scales[i], b = B.brush[i], X = Math.round(x(i))+.5; g.strokeStyle = css('--axis'); g.lineWidth = i == P.length ? 3 : 1; g.beginPath(); g.moveTo(X,y(1)); g.lineTo(X,y(0)); g.stroke(); g.lineWidth = 1
    if (b) { g.fillStyle = css('--accent'); g.globalAlpha = .22; g.fillRect(X-7,y(b[1]),14,y(b[0])-y(b[1])); g.globalAlpha = 1; g.strokeStyle = css('--accent'); g.strokeRect(X-7,y(b[1]),14,y(b[0])-y(b[1])) }
    g.textAlign = 'right'; for (const v of s.ticks(Math.floor(tall/(s.kind == 'levels' ? 26 : 60)))) { const label = cutTo(g, word(v), Math.max(36,Math.min(gap-16,100))), w = g.measureText(label).width, Y = y(s.at(v)); g.fillStyle = css('--card'); g.globalAlpha = .75; g.fillRect(X-9-w,Y-7,w+3,14); g.globalAlpha = 1; g.fillStyle = css('--soft'); g.fillText(label,X-8,Y) } })
  axisNames.replaceChildren(...names.map((n,i) => { const e = el('div','axis-name'+(i == P.length ? ' aim' : ''), n); e.title = n; e.style.left = x(i)+'px'; e.style.maxWidth = Math.max(76,gap-8)+'px'; return e })); if (axisNames.parentNode != pcChart.frame) pcChart.frame.append(axisNames)
  clear.hidden = !B.kept; pcChart.info.textContent = B.kept ? B.kept.size+' of '+many(B.rows.length,'trial')+' kept' : 'drag along an axis to keep a part'
  const places = []; for (const o of lines) if (isKept(o.t)) for (let i = 0; i < cols; i++) for (const f of i < cols-1 ? [0,.25,.5,.75] : [0]) { const ease = f == 0 ? 0 : f == .5 ? .5 : f < .5 ? .149 : .851; places.push({t:o.t, x:x(i)+f*gap, y:y(o.at[i])+(f ? (y(o.at[i+1])-y(o.at[i]))*ease : 0)}) }
  return places
}, 330, clear)
pcChart.card.classList.add('broad')
const level = y => Math.min(1, Math.max(0, (pc.tall-pc.foot-y)/(pc.tall-pc.top-pc.foot))), pcAt = e => { const b = pcChart.frame.querySelector('canvas').getBoundingClientRect(); return [e.clientX-b.left, e.clientY-b.top] }
pcChart.frame.onpointerdown = e => { const [x,y] = pcAt(e), i = Math.round((x-pc.x(0))/pc.gap); if (i < 0 || i >= pc.cols || Math.abs(pc.x(i)-x) > 15) return; e.preventDefault(); B.drag = {i, from:level(y), moved:false}; pcChart.frame.setPointerCapture(e.pointerId); hush() }
const pcMove = pcChart.frame.onpointermove
pcChart.frame.onpointermove = e => { if (!B.drag) return pcMove(e); const to = level(pcAt(e)[1]); if (Math.abs(to-B.drag.from) > .012) B.drag.moved = true; if (B.drag.moved) { B.brush[B.drag.i] = [Math.min(to,B.drag.from), Math.max(to,B.drag.from)]; keepBrushed() } }
pcChart.frame.onpointerup = () => { if (!B.drag) return; if (!B.drag.moved) delete B.brush[B.drag.i]; const was = B.drag; B.drag = null; keepBrushed(); if (was) pcChart.frame.dataset.brushed = Object.keys(B.brush).length }
pcChart.frame.onclick = e => { const [x] = pcAt(e), i = Math.round((x-pc.x(0))/pc.gap); if (B.hover && Math.abs(pc.x(i)-x) > 15) openTrial(B.hover.n) }
function keepBrushed() { brushed(); B.charts.forEach(draw); paintTable() }
function brushed() {
  const on = Object.entries(B.brush); if (!on.length || !pc.scales.length) { B.kept = null; return }
  B.kept = new Set(B.rows.filter(t => on.every(([i,[a,b]]) => { const v = pc.scales[i].at(axisValue(t,+i)); return v !== null && Math.min(1,Math.max(0,v)) >= a-1e-9 && Math.min(1,Math.max(0,v)) <= b+1e-9 })).map(t => t.n))
}

// importance with its intervals
const barsBox = el('div','sweep-bars'), barsInfo = el('span','sub'), barsCard = el('section','card sweep-card', el('h2','',el('span','','Importance'),barsInfo), barsBox)
function paintBars(d) {
  if (!B.param && d.rows.length) { B.param = d.rows[0].parameter; paintSlice() }
  barsInfo.textContent = d.rows.length ? 'of '+d.runs+' trials, with 90% intervals' : ''
  const per = v => (100*Math.min(1,Math.max(0,v))).toFixed(2)+'%'
  barsBox.replaceChildren(...d.rows.slice(0,20).map(o => { const bar = el('i','bar-fill'), whisker = el('i','whisker'); bar.style.width = per(o.importance); whisker.style.left = per(o.low); whisker.style.width = `calc(${per(o.high)} - ${per(o.low)})`; whisker.hidden = !d.known
    return make('button', {cls:'bar-row'+(o.sure ? '' : ' unsure'), title:o.parameter+': show it against the metric', onclick:() => { B.param = o.parameter; paintSlice(); sliceChart.card.scrollIntoView({block:'nearest'}) }}, el('span','bar-name',o.parameter), el('span','bar-line',bar,whisker), el('span','bar-value',o.importance.toFixed(2))) }), el('p','sub note', d.verdict))
  barsBox.dataset.drawn = d.rows.length
}
async function weigh() {
  const done = B.rows.filter(t => known(t) && t.ended !== null).length; if (done < 8) { barsBox.replaceChildren(el('p','sub note','told from 8 finished trials on')); return }
  if (B.weighed !== null && (B.weighing || done < B.weighed*1.15+(B.head.state == 'running' ? 1 : 0)) && !(B.head.state != 'running' && done != B.weighed)) return
  if (B.weighing) return; B.weighing = true; if (B.weighed === null) barsBox.replaceChildren(el('p','sub note','weighing …'))
  try { paintBars(await hooks.weigh()); B.weighed = done } catch (e) { barsBox.replaceChildren(el('p','sub note',e.message)); B.weighed = done }
  B.weighing = false
}

// one parameter against the metric
const sliceSelect = make('select', {cls:'field', onchange:() => { B.param = sliceSelect.value; draw(sliceChart) }}); sliceSelect.setAttribute('aria-label','parameter')
const jitter = n => ((n*2654435761>>>0)%1000)/500-1
const sliceChart = chart('Slice', (g, wide, tall) => {
  const i = Math.max(0, B.head.params.findIndex(p => p.name == B.param)), p = B.head.params[i]; sliceChart.card.hidden = !p; if (!p) return
  const done = B.rows.filter(t => known(t) && t.params[i] !== null), log = wantsLog(done.map(t => t.value)), sx = pc.scales[i]?.kind ? pc.scales[i] : scaleOf(done.map(t => t.params[i]), p.kind == 'log'), a = axesIn(g, wide, tall, sx, calm(done.map(t => t.value), log), p.name, B.head.metric); a.clip()
  const places = done.map(t => ({t, x:(a.X(t.params[i]) ?? a.left)+(sx.kind == 'levels' ? jitter(t.n)*Math.min(26, a.w/sx.all.length*.3) : 0), y:Math.min(Math.max(a.Y(t.value) ?? a.top, a.top), a.top+a.h)})), r = done.length > 300 ? 2.4 : 3.6
  for (const o of places) spot(g, o.x, o.y, o.t, r)
  const h = B.hover && places.find(o => o.t == B.hover); if (h) ring(g, h.x, h.y)
  g.restore(); return places
}, 270, sliceSelect)
function paintSlice() { options(sliceSelect, [['', B.head.params.map(p => [p.name,p.name])]], B.param || B.head.params[0]?.name || ''); draw(sliceChart) }

// several objectives: those that no other trial beats in all
const front = rows => { const sign = B.head.objectives.map(o => o.goal == 'maximize' ? -1 : 1), dominates = (p,q) => p.values.every((v,i) => sign[i]*v <= sign[i]*q.values[i]) && p.values.some((v,i) => v != q.values[i]); return rows.filter(t => !rows.some(o => dominates(o,t))) }
const frontChart = chart('Pareto front', (g, wide, tall) => {
  const O = B.head.objectives, done = B.rows.filter(t => t.values && t.values.every(v => finite(v) !== null) && t.state != 'FAILED'); frontChart.card.hidden = O.length < 2 || !done.length; if (frontChart.card.hidden) return
  const sx = scaleOf(done.map(t => t.values[0])), sy = scaleOf(done.map(t => t.values[1])), a = axesIn(g, wide, tall, sx, sy, O[0].name+' ('+O[0].goal+')', O[1].name); frontChart.info.textContent = O[1].name+' ('+O[1].goal+') against '+O[0].name; a.clip()
  const best = front(done), places = done.map(t => ({t, x:a.X(t.values[0]), y:a.Y(t.values[1])})); for (const p of places) spot(g, p.x, p.y, p.t)
  if (O.length == 2) { g.strokeStyle = css('--ink'); g.lineWidth = 1.5; g.beginPath(); for (const t of [...best].sort((p,q) => p.values[0]-q.values[0])) g.lineTo(a.X(t.values[0]), a.Y(t.values[1])); g.stroke() }
  for (const p of places) if (best.includes(p.t)) { g.strokeStyle = css('--ink'); g.lineWidth = 1.5; g.beginPath(); g.arc(p.x,p.y,5,0,7); g.stroke() }
  const h = B.hover && places.find(o => o.t == B.hover); if (h) ring(g, h.x, h.y)
  frontChart.frame.dataset.front = best.length; g.restore(); return places
}, 270)

// the trials
const tableBox = el('div','sweep-table'), tableInfo = el('span','sub'), more = press('more', () => { B.most += 200; paintTable() })
const sorts = {trial:t => t.n, state:t => t.state, value:t => t.value, reports:t => t.reports, took:t => t.seconds}
function paintTable() {
  const P = B.head.params, keys = {...sorts}; P.forEach((p,i) => { keys['c:'+p.name] = t => t.params[i] })
  let rows = B.rows.filter(isKept); const by = keys[B.sort.slice(1)], sign = B.sort[0] == '-' ? -1 : 1
  if (by) rows = rows.map(t => [by(t),t]).sort(([a],[b]) => a === null ? 1 : b === null ? -1 : sign*compareValues(a,b)).map(o => o[1]); else rows = [...rows].reverse()
  tableInfo.textContent = many(rows.length,'trial')
  const th = (key, text, cls='') => { const b = press(text+(B.sort.slice(1) == key ? (B.sort[0] == '-' ? ' ↓' : ' ↑') : ''), () => { B.sort = B.sort == '+'+key ? '-'+key : B.sort == '-'+key ? '' : '+'+key; paintTable() }, 'th-sort'); return el('th',cls,b) }
  const head = el('tr','', th('trial','trial'), th('state','state'), th('value',B.head.metric,'number'), ...P.map(p => th('c:'+p.name,p.name)), th('reports','reports','number'), th('took','took','number'), el('th','','why'))
  const row = t => { const tr = el('tr', t.n == B.head.best?.n ? 'best' : '', el('td','number',String(t.n)), el('td','',sweepBadge(t.state)), el('td','number',t.value === null ? '' : num(t.value)), ...t.params.map(v => { const e = el('td', typeof v == 'number' ? 'number' : '', v === null ? '' : word(v)); e.title = e.textContent; return e }), el('td','number',String(t.reports)), el('td','number nowrap',t.seconds ? span(t.seconds) : ''), el('td','why',(t.attempt ? 'attempt '+(t.attempt+1)+(t.why ? ': ' : '') : '')+t.why)); tr.dataset.n = t.n; tr.onclick = () => openTrial(t.n); tr.onpointerenter = () => hover(t); tr.onpointerleave = () => hover(null); return tr }
  const at = tableBox.scrollLeft; tableBox.replaceChildren(el('table','data', el('thead','',head), el('tbody','',...rows.slice(0,B.most).map(row)))); tableBox.scrollLeft = at
  more.hidden = rows.length <= B.most; more.textContent = 'and '+(rows.length-B.most)+' more'
}
const tableCard = el('section','card sweep-card broad', el('h2','',el('span','','Trials'),tableInfo), tableBox, more)

// one trial: its sentence, its error, its run
const one = el('div','sweep-one'); one.hidden = true
async function openTrial(n) {
  B.open = n; const t = B.rows[n]; if (!t) return
  const words = el('p','sweep-words','…'), bar = el('div','sweep-onehead', el('b','','trial '+n), sweepBadge(t.state), ...(hooks.run ? [press('open its run', () => hooks.run(t))] : []), el('span','gap'), press('close', () => { B.open = null; one.hidden = true }))
  one.replaceChildren(bar, words, el('div','sub mono', t.run)); one.hidden = false; one.dataset.n = n
  try { const d = await hooks.about(n); if (B.open != n) return; const [first,...rest] = d.text.split('\n\n'); words.textContent = first; if (rest.length) one.append(el('pre','patch',rest.join('\n\n'))); if (d.config) one.append(el('pre','patch',d.config)) } catch (e) { words.textContent = e.message }
  one.dataset.ready = n
}

// what is above the pictures
const titleBox = el('div','sweep-head'), legend = el('div','legend'), fileBox = el('details','sweep-file')
function paintHead() {
  const h = B.head, c = h.counts, ended = (c.DONE||0)+(c.PRUNED||0)+(c.FAILED||0), fill = el('i'); fill.style.width = h.total ? 100*Math.min(1,ended/h.total)+'%' : '0%'
  const best = h.best ? el('p','sweep-best', el('b','','best '+h.metric+' '+num(h.best.value)), ' by ', press('trial '+h.best.n, () => openTrial(h.best.n)), el('span','sub', '  '+h.params.map((p,i) => B.rows[h.best.n]?.params[i] == null ? '' : p.name+' '+word(B.rows[h.best.n].params[i])).filter(Boolean).join(' · '))) : null
  titleBox.replaceChildren(...[el('div','sweep-title', ...(hooks.back ? [press('‹ sweeps', hooks.back, 'back')] : []), el('h1','',h.name || 'sweep '+h.id), el('span','state '+(h.state == 'running' ? 'running' : 'finished'), h.state), el('span','sub', [h.name ? h.id : '', h.project, h.method, (h.goal == 'maximize' ? 'greatest ' : 'least ')+h.metric, h.rule].filter(Boolean).join(' · '))),
    el('div','sweep-progress', el('div','meter-line',fill), el('span','sub', ended+(h.total ? ' of '+h.total : '')+' trials'+(h.why ? ', '+h.why : '')+' · '+span(h.elapsed)+(h.state == 'running' && h.eta != null ? ' · about '+age(h.eta)+' left' : ''))), best].filter(Boolean))
  legend.replaceChildren(...Object.keys(sweepStates).filter(s => c[s]).map(s => { const i = el('i'); i.style.background = s == 'DONE' ? 'var(--accent)' : sweepStates[s]; return el('span','', i, s.toLowerCase()+' '+c[s]) }))
  if (h.file !== undefined && fileBox.text != h.file) { fileBox.text = h.file; fileBox.replaceChildren(el('summary','','The sweep file, seed '+h.seed), el('pre','patch',h.file)) }
}
const box = el('div','sweep', titleBox, legend, one, el('div','sweep-grid', bestChart.card, curveChart.card, pcChart.card, barsCard, sliceChart.card, frontChart.card, tableCard), fileBox)
let paintedTable = ''
return { box, B, redraw:() => B.charts.forEach(draw), open:openTrial,
  update(head, rows) { B.head = head; B.rows = rows; for (const k of Object.keys(B.brush)) if (+k > head.params.length) delete B.brush[k]
    if (B.hover) B.hover = rows[B.hover.n]
    frontChart.card.hidden = head.objectives.length < 2; pcChart.card.hidden = !head.params.length; curveChart.card.hidden = !rows.some(t => t.curve.length)
    paintHead(); B.charts.forEach(draw); brushed(); paintSlice(); paintTable(); weigh(); box.dataset.drawn = rows.length } }
}
// rows come as lists in the order of `columns`
function sweepRow(columns, list) { const t = {}; columns.forEach((c,i) => { t[c] = list[i] }); return t }
