// one chart: a metric of some runs
const cards = new Map()
function focus(id, group) { S.hover = id; for (const c of cards.values()) c.focus(id, group) }
const sight = new IntersectionObserver(es => es.forEach(e => { e.target.card.visible = e.isIntersecting; if (e.isIntersecting) e.target.card.load() }), {rootMargin:'300px'})
const axisNames = {step:'step', relative:'duration', time:'time'}

class Card {
  constructor(k, ids = () => selected().filter(id => S.runs.get(id)?.has.has(k))) {
    this.k = k; this.ids = ids; this.stamp = this.have = ''; this.data = null
    this.info = el('span','sub'); this.plot = el('div','plot'); this.below = el('div','below')
    this.more = button('⤢','corner',() => fullCard() == this ? unfull() : full(k),'full screen'); this.more.setAttribute('aria-label','full screen')
    this.box = el('section','card', el('h2','',el('span','',k),this.info,this.more), this.plot, this.below); this.box.card = this; this.box.querySelector('h2').title = k
    sight.observe(this.box)
    this.sized = new ResizeObserver(() => this.resized()); this.sized.observe(this.plot)
  }
  resized() { if (!this.u || !this.plot.clientWidth) return; this.u.setSize(this.size()); this.want() }
  remove() { sight.unobserve(this.box); this.sized.disconnect(); this.u?.destroy(); this.u = null; this.box.remove() }
  size() { return {width:this.plot.clientWidth || 380, height:this.plot.clientHeight || 230} }

  // which axis: the step unless chosen otherwise, or what define_metric told
  axis() { if (S.axis != 'step') return S.axis; for (const id of this.ids()) { const x = S.runs.get(id)?.axes[this.k]; if (x) return x } return 'step' }
  zoom() { return S.zoom?.axis == this.axis() ? S.zoom : null }
  buckets() { return Math.min(2000, 250*Math.ceil(this.size().width*(devicePixelRatio || 1)/250)) } // one for each pixel, in steps
  logx() { return S.logx && this.axis() != 'time' }

  want() {
    this.stamp = JSON.stringify([this.ids().map(id => [id, S.runs.get(id)?.points]), this.axis(), this.zoom(), this.logx(), this.buckets()])
    if (this.visible) this.load()
    const look = JSON.stringify([S.group, S.band, this.ids().map(tint)])
    if (this.data && this.look != look && this.have == this.stamp) this.rebuild()
    this.look = look
  }
  async load() {
    if (this.have == this.stamp || this.busy) return
    this.busy = true
    const stamp = this.stamp, zoom = this.zoom(), x = this.axis()
    try {
      const data = unpack(await ask('api/curves', {runs:this.ids(), metric:this.k, x, low:zoom?.low ?? null, high:zoom?.high ?? null, log:this.logx(), n:this.buckets()}))
      this.data = Object.assign(data, {axis:x, logx:this.logx()}); this.have = stamp; this.rebuild()
    } catch (e) { this.info.textContent = e instanceof TypeError ? 'not connected' : e.message; setTimeout(() => this.visible && this.load(), 5000) }
    this.busy = false
    if (this.have == stamp && this.stamp != stamp) this.load()
  }

  rebuild() {
    const d = this.data; if (!d) return
    const rows = d.rows.map(tidy), smooth = S.smooth > 0 ? rows.map(ema) : rows
    const banded = S.group && S.band, drawn = banded ? bandsOf(d, smooth) : linesOf(d, rows, smooth)
    this.lines = drawn.lines; this.sight = yInSight(drawn)
    this.info.textContent = (banded ? many(drawn.lines.length,'group')+', ' : '')+many(d.runs.length,'run')+(d.exact ? '' : ', '+d.points.toLocaleString('en')+' points')
    this.below.textContent = d.bad.some(n => n) ? many(d.bad.filter(n => n).length,'run')+' with values that are NaN or infinite, marked at the foot' : ''
    this.rug = d.bad.some(n => n) ? d.rows.map((row,i) => d.bad[i] ? [tint(d.runs[i]), places(row)] : null).filter(Boolean) : []
    this.paint(d, drawn)
    if (S.hover) this.focus(S.hover)
    this.box.dataset.drawn = d.runs.length
  }
  paint(d, drawn) { // with new points alone the plot can stay, which is half the time of a zoom
    const kind = JSON.stringify([drawn.lines.map((o,i) => [o.colour, o.width, few(drawn.data[i+1])]), d.axis, d.logx, S.log, document.documentElement.dataset.theme])
    if (this.u && kind == this.kind) return this.u.setData(drawn.data)
    this.kind = kind
    this.u?.destroy(); this.u = new uPlot(chartOptions(this, d, drawn), drawn.data, this.plot)
    this.u.over.ondblclick = reset; this.u.over.onmouseleave = hush
  }
  near(u) { // the line by the cursor and where it has a value there
    const i = this.focused, at = u.cursor.idx, line = i ? this.lines[i-1] : null
    if (at == null || !line?.name || u.cursor.left < 0) return null
    const row = u.data[i]; let j = at
    for (let d = 0; row[j] == null && d < 60; d++) j = row[at-d] != null ? at-d : row[at+d] != null ? at+d : at
    return row[j] == null ? null : {line, j, i}
  }
  say(u) {
    if (!u.over.matches(':hover')) return
    const hit = this.near(u); if (!hit) return hush()
    const place = u.over.getBoundingClientRect(), about = this.lines.map((line,n) => ({line, v:nearest(u.data[n+1], hit.j)})).filter(o => o.line.name && o.v != null).sort((a,b) => b.v-a.v)
    const mine = about.findIndex(o => o.line == hit.line), from = Math.max(0, Math.min(mine-4, about.length-9))
    const rows = about.slice(from, from+9).map(o => { const dot = el('i'); dot.style.background = o.line.colour
      return el('div', o.line == hit.line ? 'me' : '', dot, el('b','',num(o.v)), el('span','', o.line.name+(o.line.low ? '  '+num(nearest(o.line.low,hit.j))+' … '+num(nearest(o.line.high,hit.j)) : ''))) })
    const left = about.length-rows.length
    say(place.left+u.cursor.left, place.top+u.cursor.top, el('div','sub',placeName(this.data.axis, u.data[0][hit.j])), el('div','values',...rows), left > 0 ? el('div','sub','and '+left+' more') : null)
  }
  focus(id, group) {
    if (!this.u) return
    const i = this.lines.findIndex(o => o.name && (group !== undefined ? o.group === group : S.group && S.band ? S.runs.has(id) && o.group === groupKey(S.runs.get(id)) : o.id == id))
    this.u.setSeries(i < 0 ? null : i+1, {focus:true}, false)
  }
}

// what the server sent: x, and a row for each run; NaN where a run has nothing, infinity where what it has is not finite
function unpack(buffer) {
  const n = new DataView(buffer).getUint32(0, true), head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, n)))
  let at = (4+n+7)&~7
  head.x = Array.from(new Float64Array(buffer, at, head.n)); at += 8*head.n
  head.rows = head.runs.map(() => { const r = new Float32Array(buffer, at, head.n); at += 4*head.n; return r })
  return head
}
function tidy(row) { // to the plot undefined is no point here, and null a gap
  const out = new Array(row.length)
  for (let i = 0; i < row.length; i++) { const v = row[i]; out[i] = v !== v ? undefined : !isFinite(v) || S.log && v <= 0 ? null : v }
  return out
}
function ema(row) { let m = 0, w = 0; const b = S.smooth; return row.map(v => { if (v == null) return v; m = b*m+(1-b)*v; w = b*w+(1-b); return m/w }) }
function places(row) { const out = []; for (let i = 0; i < row.length; i++) if (row[i] === Infinity || row[i] === -Infinity) out.push(i); return out }
function nearest(row, j) { for (let d = 0; d < 60; d++) { if (row[j-d] != null) return row[j-d]; if (row[j+d] != null) return row[j+d] } return null }

// a line for each run; where there are few, what was smoothed stays faintly behind
function linesOf(d, rows, smooth) {
  const faint = smooth != rows && rows.length <= 12, of = i => ({id:d.runs[i], name:S.runs.get(d.runs[i])?.name ?? d.runs[i], group:S.group && S.runs.has(d.runs[i]) ? groupKey(S.runs.get(d.runs[i])) : undefined, colour:tint(d.runs[i]), width:d.runs.length > 40 ? 1 : 1.6})
  const lines = d.runs.map((id,i) => of(i)), behind = faint ? lines.map(o => ({colour:o.colour+'40', width:1})) : []
  return {data:[d.x, ...(faint ? rows : []), ...smooth], lines:[...behind, ...lines]}
}
// a line for the mean of each group, and a band from its least to its greatest run
function bandsOf(d, rows) {
  const groups = new Map(), pairs = !d.exact // of buckets two values each are the least and the greatest
  d.runs.forEach((id,i) => { const r = S.runs.get(id); if (!r) return; const key = groupKey(r); (groups.get(key) || groups.set(key,[]).get(key)).push(i) })
  const lines = [], data = [d.x]
  for (const [key,members] of groups) {
    const {mean,low,high} = together(members.map(i => pairs ? halves(rows[i]).map(filled) : [filled(rows[i])]), d.x.length)
    const label = key ? show(S.group, value(S.runs.get(d.runs[members[0]]), S.group)) : 'none'
    data.push(mean); lines.push({name:label+' ('+members.length+')', group:key, colour:tintOf(key), width:1.8, low, high})
  }
  return {data, lines}
}
function together(runs, n) { // each run as [its values], or as [least, greatest]
  const mean = new Array(n), low = new Array(n), high = new Array(n)
  for (let j = 0; j < n; j++) {
    let sum = 0, count = 0, least = Infinity, most = -Infinity
    for (const r of runs) { const a = r[0][j], b = r.at(-1)[j]; if (a == null) continue
      sum += (a+b)/2; count++; if (a < least) least = a; if (b > most) most = b }
    if (count) { mean[j] = sum/count; low[j] = least; high[j] = most }
  }
  return {mean, low, high}
}
function halves(row) { // the least and the greatest of each pair, at both of its places
  const low = new Array(row.length), high = new Array(row.length)
  for (let j = 0; j < row.length; j++) { const a = row[j&~1], b = row[j|1]; if (a === undefined && b === undefined) continue
    if (a == null || b == null) low[j] = high[j] = a ?? b; else { low[j] = Math.min(a,b); high[j] = Math.max(a,b) } }
  return [low, high]
}
function filled(row) { // between its own points a run is on the line that is drawn
  const out = row.slice(); let last = -1
  for (let j = 0; j < row.length; j++) { if (row[j] === undefined) continue
    if (last >= 0 && row[j] !== null && row[last] !== null) for (let i = last+1; i < j; i++) out[i] = row[last]+(row[j]-row[last])*(i-last)/(j-last)
    last = j }
  return out
}

// how a chart is drawn
const stepName = v => Math.abs(v) >= 1e4 ? +(v/1000).toPrecision(5)+'k' : num(v)
const axisText = {relative:span, step:stepName}
function placeName(axis, v) { return axis == 'step' ? 'step '+Math.round(v).toLocaleString('en') : axis == 'relative' ? 'after '+span(v) : axis == 'time' ? date(v)+':'+two(new Date(v*1000).getSeconds()) : axis+' '+num(v) }
const plain = v => { const m = v/10**Math.floor(Math.log10(v)+1e-9); return Math.abs(m-Math.round(m)) < 1e-6 } // on a log axis: 1, 2, 30, …
function yInSight({data, lines}) { // what the y axis must hold beyond the lines, or, without outliers, instead of all of them
  const rows = [...data.slice(1), ...lines.flatMap(o => o.low ? [o.low,o.high] : [])], all = []
  if (!S.calm) { let low = Infinity, high = -Infinity
    for (const row of rows) for (const v of row) if (v != null) { if (v < low) low = v; if (v > high) high = v }
    return low <= high ? [low,high] : null }
  for (const row of data.slice(1)) { const step = Math.ceil(row.length*(data.length-1)/20000); for (let i = 0; i < row.length; i += step) if (row[i] != null) all.push(row[i]) }
  all.sort((a,b) => a-b)
  if (!all.length) return null
  const low = all[Math.floor(.05*(all.length-1))], high = all[Math.ceil(.95*(all.length-1))], wide = high-low
  return [Math.max(all[0], S.log ? low*(low/high)**.3 : low-.3*wide), Math.min(all.at(-1), S.log ? high*(high/low)**.3 : high+.3*wide)]
}
function yRange(u, low, high) {
  if (low === null) return S.log ? [.1,10] : [0,1]
  if (S.log) return low == high ? [low/2, high*2] : [low*(low/high)**.04, high*(high/low)**.04]
  const edge = low == high ? Math.abs(low)*.1 || 1 : (high-low)*.04
  return [low-edge, high+edge]
}
const logRange = (u, low, high) => !(low > 0) ? [1,10] : low == high ? [low/2,high*2] : [low,high] // uPlot never ends with a log axis from 0
function few(row) { let n = 0; for (const v of row) if (v != null && ++n > 12) return false; return true } // these are drawn as points too
function chartOptions(card, d, {lines, data}) {
  const alpha = lines.length > 40 ? .6 : 1
  const series = lines.map((o,i) => ({stroke:o.colour, width:o.width, alpha, points:{show:!!o.name && few(data[i+1]), size:6, fill:o.colour}, pxAlign:0}))
  const axis = {stroke:css('--faint'), grid:{stroke:css('--grid'), width:1}, ticks:{show:false}, font:'11px ui-sans-serif,system-ui,sans-serif'}, text = axisText[d.axis] || num
  const named = d.axis != 'step' && !axisNames[d.axis] // another metric as the axis is named
  return { ...card.size(), legend:{show:false}, padding:[8,10,0,0], series:[{}, ...series], focus:{alpha:.18},
    scales:{ x:d.axis == 'time' ? {time:true} : d.logx ? {time:false, distr:3, range:logRange} : {time:false}, y:{distr:S.log ? 3 : 1, range:u => yRange(u, ...(card.sight || [null,null]))} },
    axes:[{...axis, size:28, values:d.axis == 'time' ? undefined : (u,vs) => vs.map(v => v == null || d.logx && !plain(v) ? '' : text(v)), ...(named ? {label:d.axis, labelSize:14, labelFont:axis.font, labelGap:-6} : {})},
      {...axis, size:52, values:(u,vs) => vs.map(v => v == null || S.log && !plain(v) ? '' : num(v))}],
    cursor:{ drag:{x:true, y:false, setScale:false}, focus:{prox:40}, points:{size:6} },
    hooks:{ setSelect:[u => zoomTo(card, u)], setCursor:[u => card.say(u)], setSeries:[(u,i) => { card.focused = i }], drawAxes:[u => drawBands(u, card)], draw:[u => drawRug(u, card.rug)] } }
}
function drawBands(u, card) { // from the least to the greatest run of a group
  const g = u.ctx, x = j => u.valToPos(u.data[0][j], 'x', true), y = v => u.valToPos(v, 'y', true)
  g.save(); g.beginPath(); g.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height); g.clip()
  card.lines.forEach((o,i) => { if (!o.low) return
    const there = []; for (let j = 0; j < o.low.length; j++) if (o.low[j] !== undefined) there.push(j)
    g.beginPath(); for (const j of there) g.lineTo(x(j), y(o.high[j])); for (const j of there.reverse()) g.lineTo(x(j), y(o.low[j]))
    g.globalAlpha = card.focused && card.focused != i+1 ? .03 : card.focused ? .22 : .13; g.fillStyle = o.colour; g.fill() })
  g.restore()
}
function drawRug(u, rug) { // where a run was not a number
  const g = u.ctx, foot = u.bbox.top+u.bbox.height, h = 5*devicePixelRatio
  for (const [c,at] of rug) { g.fillStyle = c; for (const i of at) { const x = u.valToPos(u.data[0][i], 'x', true); if (x >= u.bbox.left && x <= u.bbox.left+u.bbox.width) g.fillRect(Math.round(x)-1, foot-h, 2, h) } }
}
function zoomTo(card, u) {
  if (u.select.width <= 6) return
  const [low,high] = [u.select.left, u.select.left+u.select.width].map(v => u.posToVal(v,'x'))
  u.setSelect({left:0, top:0, width:0, height:0}, false)
  S.zoom = {axis:card.axis(), low, high}; link(true); views.show()
}
