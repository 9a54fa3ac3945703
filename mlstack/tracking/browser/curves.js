// curves
const cards = new Map()
function focus(id) { S.hover = id; for (const c of cards.values()) c.focus(id) }
views.add({name:'curves', title:'Curves', show:draw})
$('view-curves').append(curveTools(), Object.assign(el('div'), {id:'charts'}))
function curveTools() {
  const seg = el('span','seg'); seg.id = 'axis'
  for (const [x,name] of [['step','step'],['relative','duration'],['time','time']]) { const b = el('button','',name); b.dataset.x = x; b.setAttribute('aria-pressed', x == 'step'); seg.append(b) }
  const smooth = Object.assign(el('input'), {id:'smooth', type:'range', min:0, max:.98, step:.02, value:0}), log = Object.assign(el('input'), {id:'log', type:'checkbox'})
  const reset = Object.assign(el('button','link','reset zoom'), {id:'reset', hidden:true}), bar = el('div','bar', seg, el('label','tool','smooth ',smooth), el('label','tool',log,' log'), reset)
  bar.id = 'tools'; return bar
}
function draw() {
  const names = S.metrics.filter(k => [...S.on.keys()].some(id => S.order.includes(id) && S.runs.get(id)?.metrics.includes(k)))
  const box = $('charts')
  if (!S.order.length) { const pre = el('pre','mono','import mlstack.tracking as track\n\nrun = track.init(project="mnist", config=dict(lr=3e-3))\nrun.log({"loss": .3})')
    cards.clear(); return box.replaceChildren(S.total ? el('div','empty',el('b','','No run matches'),el('p','','The filter leaves nothing of '+S.total+' runs.')) : el('div','empty',el('b','','No runs yet'),el('p','','This page fills itself as soon as a run is logged:'),pre)) }
  if (!names.length) { cards.clear(); return box.replaceChildren(el('div','empty',el('b','',S.on.size ? 'No curves' : 'No run is selected'),el('p','',S.on.size ? 'The selected runs have logged no numbers.' : 'Click runs in the list to see their curves.'))) }
  for (const k of [...cards.keys()]) if (!names.includes(k)) { cards.get(k).remove(); cards.delete(k) }
  for (const k of names) if (!cards.has(k)) cards.set(k, new Card(k))
  const want = names.map(k => cards.get(k).box)
  if (want.length != box.children.length || want.some((e,i) => box.children[i] != e)) box.replaceChildren(...want)
  const stamp = k => JSON.stringify([[...S.on.keys()].filter(id => S.order.includes(id)).map(id => [id, S.runs.get(id)?.metrics.includes(k) ? S.runs.get(id).points : 0]), S.axis, S.zoom])
  for (const k of names) { const c = cards.get(k); c.want(stamp(k)) }
}
const sight = new IntersectionObserver(es => es.forEach(e => { e.target.card.visible = e.isIntersecting; if (e.isIntersecting) e.target.card.load() }), {rootMargin:'300px'})
class Card {
  constructor(k) {
    this.k = k; this.info = el('span','sub'); this.plot = el('div','plot'); this.tip = el('div','tip'); this.stamp = this.have = ''; this.data = null
    this.box = el('section','card', el('h2','',el('span','',k),this.info), this.plot, this.tip); this.box.card = this; this.box.querySelector('h2').title = k
    sight.observe(this.box); new ResizeObserver(() => this.u && this.plot.clientWidth && this.u.setSize({width:this.plot.clientWidth, height:230})).observe(this.plot)
  }
  remove() { sight.unobserve(this.box); this.u?.destroy(); this.u = null; this.box.remove() }
  want(stamp) { this.stamp = stamp; if (this.visible) this.load(); else if (this.data) this.recolour() }
  recolour() {}
  async load() {
    if (this.have == this.stamp || this.busy) return
    this.busy = true; const stamp = this.stamp, runs = [...S.on.keys()].filter(id => S.order.includes(id) && S.runs.get(id)?.metrics.includes(this.k))
    try {
      const answer = await post('api/curves', {runs, metric:this.k, x:S.axis, low:S.zoom?.[0] ?? null, high:S.zoom?.[1] ?? null})
      this.data = unpack(await answer.arrayBuffer()); this.have = stamp; this.rebuild()
    } catch (e) { this.info.textContent = 'not connected' }
    this.busy = false
    if (this.have == stamp && this.stamp != stamp) this.load()
  }
  rebuild() {
    const d = this.data; if (!d) return
    const raws = d.rows.map(row => { const out = new Array(row.length)
      for (let i = 0; i < row.length; i++) { const v = row[i]; out[i] = v !== v ? undefined : !isFinite(v) || S.log && v <= 0 ? null : v } return out })
    const smooth = S.smooth > 0, faint = smooth && raws.length <= 12
    const lines = smooth ? raws.map(ema) : raws, data = [d.x, ...(faint ? raws : []), ...lines]
    this.ids = [...(faint ? d.runs.map(() => null) : []), ...d.runs]
    this.info.textContent = d.runs.length+(d.runs.length == 1 ? ' run' : ' runs')+(d.exact ? '' : ', '+d.points.toLocaleString('en')+' points')
    const few = row => { let n = 0; for (const v of row) if (v != null && ++n > 12) return false; return true }, alpha = d.runs.length > 40 ? .6 : 1
    const series = [{}, ...this.ids.map((id,i) => { const c = S.on.get(id ?? d.runs[i]) || '#888'
      return { stroke: id ? c : c+'40', width: id ? 1.6 : 1, alpha, points:{show:!!id && few(data[i+1]), size:6, fill:c}, pxAlign:0 } })]
    const grid = {stroke:css('--grid'), width:1}, axis = {stroke:css('--faint'), grid, ticks:{show:false}, font:'11px ui-sans-serif,system-ui,sans-serif'}
    const opts = { width:this.plot.clientWidth || 380, height:230, legend:{show:false}, padding:[8,10,0,0],
      scales:{ x:{time:S.axis == 'time'}, y:S.log ? {distr:3, range:(u,lo,hi) => lo === null ? [.1,10] : lo == hi ? [lo/2,hi*2] : [lo*(lo/hi)**.04, hi*(hi/lo)**.04]} : {range:(u,lo,hi) => lo === null ? [0,1] : lo == hi ? [lo-(Math.abs(lo)*.1||1), hi+(Math.abs(hi)*.1||1)] : [lo-(hi-lo)*.04, hi+(hi-lo)*.04]} },
      axes:[{...axis, size:28, values:S.axis == 'time' ? undefined : (u,vs) => vs.map(v => v == null ? '' : S.axis == 'relative' ? span(v) : v == null ? '' : Math.abs(v) >= 1e4 ? +(v/1000).toPrecision(4)+'k' : num(v))},
        {...axis, size:52, values:(u,vs) => vs.map(v => v == null ? '' : num(v))}],
      series, focus:{alpha:.18}, cursor:{ drag:{x:true,y:false,setScale:false}, focus:{prox:40}, points:{size:6} },
      hooks:{ setSelect:[u => { if (u.select.width > 6) { S.zoom = [u.posToVal(u.select.left,'x'), u.posToVal(u.select.left+u.select.width,'x')]; $('reset').hidden = false; u.setSelect({left:0,top:0,width:0,height:0}, false); draw() } }],
        setCursor:[u => this.say(u)], setSeries:[(u,i) => { this.near = i }] } }
    this.u?.destroy(); this.u = new uPlot(opts, data, this.plot)
    this.u.over.ondblclick = reset
    if (S.hover) this.focus(S.hover)
    this.box.dataset.drawn = d.runs.length
  }
  say(u) {
    const i = this.near, x = u.cursor.idx, id = i ? this.ids[i-1] : null
    if (x == null || !id || u.cursor.left < 0) { this.tip.style.display = 'none'; return }
    let j = x; const row = u.data[i]; for (let d = 0; row[j] == null && d < 60; d++) j = row[x-d] != null ? x-d : row[x+d] != null ? x+d : x
    if (row[j] == null) { this.tip.style.display = 'none'; return }
    const at = u.data[0][j], where = S.axis == 'step' ? 'step '+num(Math.round(at)) : S.axis == 'relative' ? span(at) : new Date(at*1000).toLocaleTimeString()
    const b = el('b','',num(row[j])); b.style.color = S.on.get(id) || ''
    this.tip.replaceChildren(b, '  '+(S.runs.get(id)?.name ?? id)+'  ·  '+where); this.tip.style.display = 'block'
    const left = u.cursor.left+64, w = this.tip.offsetWidth; this.tip.style.left = Math.min(left, this.box.clientWidth-w-8)+'px'; this.tip.style.top = Math.max(4, u.cursor.top+8)+'px'
  }
  focus(id) { if (!this.u) return; const i = id ? this.ids.indexOf(id) : -1; this.u.setSeries(i < 0 ? null : i+1, {focus:true}, false) }
}
function ema(row) { let m = 0, w = 0; const b = S.smooth; return row.map(v => { if (v == null) return v; m = b*m+(1-b)*v; w = b*w+(1-b); return m/w }) }
function unpack(buffer) {
  const n = new DataView(buffer).getUint32(0, true), head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, n))); let at = (4+n+7)&~7
  head.x = Array.from(new Float64Array(buffer, at, head.n)); at += 8*head.n
  head.rows = head.runs.map(() => { const r = new Float32Array(buffer, at, head.n); at += 4*head.n; return r }); return head
}
function reset() { S.zoom = null; $('reset').hidden = true; draw() }
$('reset').onclick = reset
$('axis').onclick = e => { const b = e.target.closest('button'); if (!b) return; S.axis = b.dataset.x; for (const o of $('axis').children) o.setAttribute('aria-pressed', o == b); reset() }
$('smooth').oninput = () => { S.smooth = +$('smooth').value; for (const c of cards.values()) c.rebuild() }
$('log').onchange = () => { S.log = $('log').checked; for (const c of cards.values()) c.rebuild() }

