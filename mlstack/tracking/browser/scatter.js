// scatter: any column against any other, coloured by a third
const sc = { x:'', y:'', c:'', logx:'', logy:'', points:[], hover:null,
  of(k) { return this[k] || (k == 'x' ? S.columns.differ.find(c => typeof value(shown[0] || {config:{}},c) == 'number') || S.columns.differ[0] || 'r:created' : k == 'y' ? 's:'+aim() : k == 'c' ? (S.group || '') : '') },
}
const scFrame = make('div', {cls:'frame', id:'sc'}), scBox = el('div','stage', scFrame), scSelects = {}, scInfo = el('span','sub'), scLegend = el('div','legend')
const scSelect = (k, text) => { const s = scSelects[k] = make('select', {onchange:() => { sc[k] = s.value || 'none'; link(); views.show() }}); return labelled(text, s) }
const scLog = (k, text) => { const s = scSelects[k] = check(text, 'sc-'+k, on => { sc[k] = on ? 'log' : 'linear'; link(); views.show() }); return s }
views.add({name:'scatter', title:'Scatter', show:paintScatter}).append(el('div','bar tools', scopeTool(), scSelect('x','x'), scSelect('y','y'), scSelect('c','colour'), scLog('logx','log x'), scLog('logy','log y'), scInfo), scBox)
for (const k of ['x','y','c','logx','logy']) keep('s'+k, () => sc[k], v => { sc[k] = v })

function paintScatter() {
  showScope()
  const runs = scoped(), [X,Y,C] = ['x','y','c'].map(k => sc.of(k)), groups = columnGroups(S.columns.config, S.columns.summary, S.columns.run.slice(0,-1))
  options(scSelects.x, groups, X); options(scSelects.y, groups, Y); options(scSelects.c, [['', [['','run']]], ...groups], C == 'none' ? '' : C)
  const all = runs.map(run => ({run, vx:value(run,X), vy:value(run,Y)})), there = all.filter(o => told1(o.vx) && told1(o.vy))
  if (!there.length) { scBox.replaceChildren(empty('No point', 'No run has both '+title(X)+' and '+title(Y)+'.')); return }
  scBox.replaceChildren(scFrame, scLegend)
  const logOf = (k, vs) => { const s = scaleOf(vs, sc[k] == 'log' ? true : sc[k] == 'linear' ? false : undefined); scSelects[k].querySelector('input').checked = s.kind == 'log'; scSelects[k].hidden = s.kind == 'levels' || X == 'r:created' && k == 'logx'; return s }
  sc.sx = X == 'r:created' ? scaleOf(there.map(o => o.vx), false) : logOf('logx', there.map(o => o.vx)); sc.sy = logOf('logy', there.map(o => o.vy))
  sc.heat = C && C != 'none' ? scaleOf(there.map(o => value(o.run,C))) : null
  sc.points = there.map(o => ({...o, at:seat(sc.sx,o.vx), up:seat(sc.sy,o.vy)})).filter(o => o.at !== null && o.up !== null)
  scInfo.textContent = many(sc.points.length,'run')+(sc.points.length < all.length ? ', '+(all.length-sc.points.length)+' without both' : '')
  Object.assign(sc, {X, Y, C}); drawScatter()
}
const told1 = v => v !== undefined && v !== null && !(typeof v == 'string' && /^-?(nan|inf)$/.test(v)) && !(typeof v == 'number' && !isFinite(v))
const seat = (s, v) => { const t = s.at(v); return t === null || s.kind != 'levels' ? t : (t*(s.all.length-1)+.5)/s.all.length } // kinds stand in the middle of their part
function shade(run) {
  if (!sc.heat) return tint(run.id)
  const v = value(run, sc.C), t = sc.heat.at(v)
  return t === null ? css('--faint') : sc.heat.kind == 'levels' ? (sc.C == S.group ? tintOf(groupKey(run)) : colours[sc.heat.all.findIndex(o => String(o) == (typeof v == 'object' ? JSON.stringify(v) : String(v)))%colours.length]) : ramp(t)
}
function drawScatter() {
  const wide = Math.max(300, scBox.clientWidth-32), tall = Math.max(300, Math.min(620, $('views').clientHeight-170)), left = 66, right = 18, top = 34, foot = 50
  sc.px = o => left+14+o.at*(wide-left-right-28)+(sc.sx.kind == 'levels' ? jitter(o.run.id)*.3*Math.min(130, (wide-left)/sc.sx.all.length) : 0); sc.py = o => tall-foot-10-o.up*(tall-top-foot-20)
  scFrame.style.height = tall+'px'; scFrame.style.width = wide+'px'
  const g = canvasIn(scFrame, wide, tall); scFrame.querySelector('canvas').setAttribute('aria-label', title(sc.Y)+' against '+title(sc.X))
  g.strokeStyle = css('--grid'); g.fillStyle = css('--soft'); g.lineWidth = 1; g.textBaseline = 'middle'
  const line = (a,b,c,d) => { g.beginPath(); g.moveTo(a,b); g.lineTo(c,d); g.stroke() }, cut = (t,w) => { let s = t; while (s.length > 1 && g.measureText(s).width > w) s = s.slice(0,-2)+'…'; return s }
  for (const v of sc.sy.ticks(Math.floor(tall/60))) { const y = Math.round(tall-foot-10-seat(sc.sy,v)*(tall-top-foot-20))+.5; line(left,y,wide-right,y); g.textAlign = 'right'; g.fillText(cut(show(sc.Y,v),left-12), left-8, y) }
  const ticks = sc.sx.ticks(Math.floor(wide/(sc.X == 'r:created' ? 150 : 90)))
  for (const v of ticks) { const x = Math.round(left+14+seat(sc.sx,v)*(wide-left-right-28))+.5; line(x,top,x,tall-foot); g.textAlign = 'center'; g.fillText(cut(show(sc.X,v), (wide-left)/ticks.length-6), x, tall-foot+14) }
  g.fillStyle = css('--ink'); g.textAlign = 'center'; g.fillText(title(sc.X), left+(wide-left-right)/2, tall-14)
  g.textAlign = 'left'; g.fillText(title(sc.Y), 16, 16)
  const r = sc.points.length > 500 ? 3 : 4.5
  for (const o of sc.points) { const on = !sc.heat && !S.on.has(o.run.id); g.globalAlpha = on ? .45 : .85; g.fillStyle = on ? css('--faint') : shade(o.run); g.beginPath(); g.arc(sc.px(o), sc.py(o), r, 0, 7); g.fill() }
  g.globalAlpha = 1
  if (sc.hover) { g.strokeStyle = css('--ink'); g.lineWidth = 2; g.beginPath(); g.arc(sc.px(sc.hover), sc.py(sc.hover), r+2.5, 0, 7); g.stroke() }
  scLegend.replaceChildren(...legend())
  scFrame.dataset.drawn = sc.points.length
}
function legend() {
  if (!sc.heat) return [el('span','sub','coloured as in the list; runs that are not shown are grey')]
  const swatch = (c,t) => { const i = el('i'); i.style.background = c; return el('span','', i, t) }
  if (sc.heat.kind != 'levels') { const bar = el('i','ramp'); bar.style.background = 'linear-gradient(90deg,'+[0,.25,.5,.75,1].map(ramp).join(',')+')'; const ticks = [sc.heat.back(0), sc.heat.back(1)].map(v => show(sc.C, v)); return [el('b','',title(sc.C)), el('span','', ticks[0], bar, ticks[1])] }
  const one = v => sc.points.find(o => { const w = value(o.run,sc.C); return (typeof w == 'object' ? JSON.stringify(w) : String(w)) == String(v) })
  return [el('b','',title(sc.C)), ...sc.heat.all.slice(0,14).map(v => [v,one(v)]).filter(o => o[1]).map(([v,o]) => swatch(shade(o.run), show(sc.C,v))), sc.heat.all.length > 14 ? el('span','sub','and '+(sc.heat.all.length-14)+' more') : null].filter(Boolean)
}
function jitter(id) { let h = 0; for (const c of id) h = (h*31+c.charCodeAt(0))|0; return ((h>>>0)%1000)/500-1 } // the same for a run each time
scFrame.onpointermove = e => {
  const b = scFrame.getBoundingClientRect(), x = e.clientX-b.left, y = e.clientY-b.top, was = sc.hover; let least = 14**2; sc.hover = null
  for (const o of sc.points) { const d = (sc.px(o)-x)**2+(sc.py(o)-y)**2; if (d < least) { least = d; sc.hover = o } }
  if (sc.hover != was) drawScatter()
  scFrame.style.cursor = sc.hover ? 'pointer' : ''
  sc.hover ? say(e.clientX, e.clientY, ...tipOf(sc.hover.run, [...new Set([sc.X, sc.Y, ...(sc.heat ? [sc.C] : [])])])) : hush()
}
scFrame.onpointerleave = () => { hush(); if (sc.hover) { sc.hover = null; drawScatter() } }
scFrame.onclick = () => { if (sc.hover) openRun(sc.hover.run.id) }
new ResizeObserver(() => { if (views.now?.name == 'scatter' && S.ready) paintScatter() }).observe(scBox)
