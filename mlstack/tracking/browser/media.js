// pictures, sound, pages, tables and histograms of one run, each with a slider over its steps
const fileAt = (run, path, more) => 'api/file?'+new URLSearchParams({id:run, path, ...more})
const kindName = {'image-file':'Pictures', 'chart-file':'Charts', 'video-file':'Video', 'table-file':'Tables', 'histogram':'Histograms', 'html-file':'Pages', 'audio-file':'Sound'}

function failing(e, text) { e.onerror = () => e.replaceWith(el('div','missing', text || 'This file is not here, or only half of it.')); return e }
const caption = o => o.caption ? el('figcaption','',longText(said(o.caption),120)) : null
function imageItem(o, run) {
  const img = failing(Object.assign(el('img'), {src:fileAt(run,o.path), alt:said(o.caption || 'picture'), loading:'lazy', decoding:'async'}))
  if (o.width) { img.width = o.width; img.height = o.height; if (o.width <= 96) img.classList.add('tiny') }
  img.onclick = () => largeView(img.src, said(o.caption))
  return el('figure','', ...withLayers(img, o, run), caption(o))
}
// boxes and masks over a picture, each with a switch
function withLayers(img, o, run) {
  const layers = [...Object.keys(o.boxes || {}).map(k => [k, () => boxesOf(o, o.boxes[k])]), ...Object.keys(o.masks || {}).map(k => [k, () => maskOf(o.masks[k], run)])]
  if (!layers.length) return [img]
  const pic = el('div','pic', img), tools = el('div','layers')
  for (const [k, draw] of layers) { const layer = el('div','layer', ...draw()); pic.append(layer); const tick = make('input', {type:'checkbox', checked:true, onchange:() => layer.hidden = !tick.checked}); tools.append(el('label','tool', tick, el('span','',k))) }
  return [pic, tools]
}
const tinted = i => colours[Math.abs(i || 0)%colours.length]
function boxesOf(o, {box_data=[], class_labels={}}) { // as W&B has them: parts of the picture, or pixels
  return box_data.slice(0,500).map(b => {
    const p = b.position || {}, w = b.domain == 'pixel' ? o.width : 1, h = b.domain == 'pixel' ? o.height : 1, [x,y,wide,high] = p.middle ? [p.middle[0]-p.width/2, p.middle[1]-p.height/2, p.width, p.height] : [p.minX, p.minY, p.maxX-p.minX, p.maxY-p.minY]
    const text = said(b.box_caption ?? class_labels?.[b.class_id] ?? ''), e = el('div','boxed', text ? el('span','',brief(text,60)) : null), c = tinted(b.class_id); e.title = text
    Object.assign(e.style, {left:100*x/w+'%', top:100*y/h+'%', width:100*wide/w+'%', height:100*high/h+'%', borderColor:c}); if (text) e.firstChild.style.background = c
    return e })
}
function maskOf(m, run) { // a picture whose grey is the number of a class
  const canvas = el('canvas'), source = new Image(), names = el('div','classes'); source.src = fileAt(run, m.path)
  source.onload = () => { canvas.width = source.naturalWidth; canvas.height = source.naturalHeight; const g = canvas.getContext('2d'); g.drawImage(source,0,0); const d = g.getImageData(0,0,canvas.width,canvas.height), seen = new Set()
    for (let i = 0; i < d.data.length; i += 4) { const k = d.data[i]; if (!k) { d.data[i+3] = 0; continue } seen.add(k); const c = parseInt(tinted(k).slice(1),16); d.data[i] = c>>16; d.data[i+1] = c>>8&255; d.data[i+2] = c&255; d.data[i+3] = 130 }
    g.putImageData(d,0,0); names.replaceChildren(...[...seen].slice(0,20).map(k => { const e = el('span','', said(m.class_labels?.[k] ?? k)); e.style.background = tinted(k); return e })) }
  return [canvas, names]
}
function largeView(src, text) {
  const img = Object.assign(el('img'), {src, alt:text}), box = el('div','large', img, text ? el('p','',text) : null), shut = () => { box.remove(); removeEventListener('keydown', key, true) }
  const key = e => { if (e.key == 'Escape') { e.stopPropagation(); shut() } }
  box.onclick = shut; addEventListener('keydown', key, true); document.body.append(box)
}
const audioItem = (o, run) => el('figure','sound', failing(Object.assign(el('audio'), {src:fileAt(run,o.path), controls:true, preload:'metadata'})), caption(o))
const videoItem = (o, run) => o.path.endsWith('.gif') ? imageItem(o, run) : el('figure','', failing(Object.assign(el('video'), {src:fileAt(run,o.path), controls:true, preload:'metadata'})), caption(o))
function htmlItem(o, run) { // a stranger's page: no scripts and an origin of its own, here by the frame and again by what the server sends with it
  const frame = el('iframe','page'); frame.setAttribute('sandbox',''); frame.title = 'a page that the run logged'; frame.src = fileAt(run,o.path)
  const larger = press('larger', () => { frame.classList.toggle('tall'); larger.textContent = frame.classList.contains('tall') ? 'smaller' : 'larger' })
  const allow = press('allow its scripts', () => { allow.remove(); frame.setAttribute('sandbox','allow-scripts'); frame.src = fileAt(run,o.path,{scripts:1}) }); allow.title = 'A figure of plotly needs them. They still reach neither this page nor the network, plotly’s own library apart.'
  return el('figure','wide', frame, el('div','under-page', larger, allow))
}

const showItem = {'image-file':imageItem, 'audio-file':audioItem, 'html-file':htmlItem, 'table-file':tableItem, 'video-file':videoItem, 'chart-file':chartItem}
function chartItem(o, run) {
  const figure = imageItem(o, run); if (o.table?.path) { const more = press('as a table', () => more.replaceWith(tableItem(o.table, run))); figure.append(more) }
  return figure
}
const otherItem = (o, run) => el('div','missing', 'A '+said(o._type).replace('-file','')+' is not drawn here. ', o.path ? make('a', {cls:'link', href:fileAt(run,o.path), download:''}, 'download it') : null)

// a table: pages of it come from the server, sorted there
function tableItem(o, run) {
  const t = {first:0, n:25, sort:'', down:'', find:''}, head = el('thead'), body = el('tbody'), info = el('span','sub count'), back = press('‹', () => turn(-1), 'icon step'), on = press('›', () => turn(1), 'icon step')
  const field = Object.assign(el('input','field small'), {type:'search', placeholder:'find', ariaLabel:'find in the table'})
  const box = el('div','tablebox', el('div','tabletools', field, el('span','gap'), info, back, on), el('div','scroll', el('table','data', head, body)))
  function turn(by) { t.first = Math.max(0, t.first+by*t.n); load() }
  let typing; field.oninput = () => { clearTimeout(typing); typing = setTimeout(() => { t.find = field.value; t.first = 0; load() }, 200) }; field.onkeydown = e => { if (e.key != 'Escape') e.stopPropagation() }
  async function load() {
    try {
      const got = await get('api/table', {id:run, path:o.path, ...t})
      head.replaceChildren(el('tr','', ...got.columns.map((name,i) => { const th = el('th','', press(name, () => { if (t.sort !== i) { t.sort = i; t.down = '' } else if (!t.down) t.down = 1; else { t.sort = ''; t.down = '' } t.first = 0; load() }, ''), t.sort === i ? el('span','arrow', t.down ? '↓' : '↑') : null); if (got.rows.some(r => typeof r[i] == 'number') && got.rows.every(r => typeof r[i] != 'string' || r[i] == 'nan')) th.className = 'number'; th.setAttribute('aria-sort', t.sort === i ? (t.down ? 'descending' : 'ascending') : 'none'); return th })))
      body.replaceChildren(...got.rows.map(row => el('tr','', ...row.map(v => cell(v, run)))))
      info.textContent = got.total ? (got.first+1).toLocaleString('en')+' – '+(got.first+got.rows.length).toLocaleString('en')+' of '+got.total.toLocaleString('en') : 'no row'
      back.disabled = !got.first; on.disabled = got.first+got.rows.length >= got.total
    } catch (e) { info.textContent = e.status ? e.message : 'not connected' }
  }
  load(); return box
}
function cell(v, run) {
  if (v && typeof v == 'object' && showItem[v._type] && v._type != 'table-file') return el('td','media', showItem[v._type](v, run))
  return el('td', typeof v == 'number' || v === 'nan' ? 'number' : '', typeof v == 'number' ? num(v) : longText(said(v), 160))
}

// histograms over steps: brighter is more; the one under the pointer is drawn below
class Heat {
  constructor(run, name) {
    Object.assign(this, {run, name, at:-1}); this.map = el('canvas','heat'); this.bars = el('canvas','heat-bars'); this.info = el('div','sub heat-info'); this.low = el('span'); this.high = el('span'); this.first = el('span'); this.last = el('span')
    this.box = el('div','heatbox', el('div','heat-y', this.high, this.low), this.map, el('div','heat-x', this.first, this.last), this.bars, this.info)
    const point = e => { if (!this.d) return; const r = this.map.getBoundingClientRect(); this.at = Math.max(0, Math.min(this.d.steps.length-1, Math.floor((e.clientX-r.left)/r.width*this.d.steps.length))); this.paint() }
    this.map.onpointermove = this.map.onpointerdown = point
    this.size = new ResizeObserver(() => this.paint()); this.size.observe(this.map); this.load()
  }
  close() { this.size.disconnect() }
  async load() { try { this.d = await get('api/histograms', {id:this.run, name:this.name}); this.at = this.d.steps.length-1; this.paint() } catch (e) { this.info.textContent = e.status ? e.message : 'not connected' } }
  canvas(c) { const k = devicePixelRatio || 1, w = c.clientWidth, h = c.clientHeight; c.width = w*k; c.height = h*k; const x = c.getContext('2d'); x.scale(k,k); return [x,w,h] }
  paint() {
    const d = this.d; if (!d || !this.map.clientWidth) return
    const [x,w,h] = this.canvas(this.map), n = d.steps.length, m = d.rows[0].length, colour = css('--accent')
    d.rows.forEach((row,i) => { const most = Math.max(...row) || 1; row.forEach((v,j) => { if (!v) return; x.globalAlpha = Math.min(1, .08+.92*Math.sqrt(v/most)); x.fillStyle = colour; x.fillRect(Math.floor(i*w/n), Math.floor(h-(j+1)*h/m), Math.ceil(w/n), Math.ceil(h/m)) }) })
    if (n > 1) { x.globalAlpha = 1; x.strokeStyle = css('--ink'); x.strokeRect(Math.floor(this.at*w/n)+.5, .5, Math.max(2,Math.ceil(w/n)-1), h-1) }
    const [y,bw,bh] = this.canvas(this.bars), row = d.rows[this.at], most = Math.max(...row) || 1; y.fillStyle = colour
    row.forEach((v,j) => { const t = v/most*(bh-2); y.fillRect(j*bw/m, bh-t, Math.max(1,bw/m-1), t) })
    this.low.textContent = num(d.low); this.high.textContent = num(d.high); this.first.textContent = 'step '+num(d.steps[0]); this.last.textContent = n > 1 ? num(d.steps.at(-1)) : ''
    this.info.replaceChildren(el('span','',num(d.low)), el('b','','step '+num(d.steps[this.at])), el('span','',num(d.high)))
  }
}

// one name: a card with what was logged at the step of its slider
class MediaCard {
  constructor(run, entry) {
    Object.assign(this, {run, entry, steps:null, at:-1}); this.where = el('span','sub'); this.body = el('div','media-body'); this.slide = Object.assign(el('input'), {type:'range', min:0, max:0, value:0, ariaLabel:'step of '+entry.name})
    this.wide = ['table-file','html-file'].includes(entry.kind); this.bar = el('div','media-slide', this.slide); this.bar.hidden = true
    this.box = el('section','card media-card'+(this.wide ? ' wide' : ''), el('h2','', el('span','',entry.name), this.where), this.body, this.bar); this.box.querySelector('h2').title = entry.name
    let moving; this.slide.oninput = () => { this.at = +this.slide.value; this.say(); clearTimeout(moving); moving = setTimeout(() => this.item(), 60) }
    this.seen = new IntersectionObserver(es => { if (es.some(e => e.isIntersecting)) { this.seen.disconnect(); this.load() } }, {rootMargin:'300px'}); this.seen.observe(this.box)
  }
  close() { this.seen.disconnect(); this.heat?.close() }
  say() { if (this.steps) this.where.textContent = 'step '+num(this.steps[this.at])+(this.steps.length > 1 ? ' · '+(this.at+1)+' of '+this.steps.length : '') }
  async load() {
    this.loaded = true; if (this.entry.kind == 'histogram') { if (this.heat) this.heat.load(); else { this.heat = new Heat(this.run, this.entry.name); this.body.replaceChildren(this.heat.box) } this.where.textContent = this.entry.count+(this.entry.count == 1 ? ' step' : ' steps'); return }
    try {
      const atEnd = !this.steps || this.at == this.steps.length-1; this.steps = (await get('api/media', {id:this.run, name:this.entry.name})).steps
      this.slide.max = this.steps.length-1; this.bar.hidden = this.steps.length < 2
      if (atEnd) { this.at = this.steps.length-1; this.slide.value = this.at; await this.item() }
      this.say()
    } catch (e) { this.body.replaceChildren(el('div','missing', e.status ? e.message : 'not connected')) }
  }
  async item() {
    const at = this.at, got = await get('api/media', {id:this.run, name:this.entry.name, i:at}).catch(e => ({items:[], why:e.message})); if (at != this.at) return
    const key = JSON.stringify(got.items); if (key == this.key) return; this.key = key
    this.body.style.minHeight = this.body.offsetHeight+'px' // no jump while pictures load
    this.body.replaceChildren(...got.items.slice(0,200).map(o => (showItem[o._type] || otherItem)(o, this.run)), ...(got.why ? [el('div','missing',got.why)] : []))
    setTimeout(() => this.body.style.minHeight = '', 400)
  }
}
runTabs.splice(2, 0, {name:'media', title:'Media', has:r => r.media.length, open(box, run) {
  const cards = new Map(), find = Object.assign(el('input','field small'), {type:'search', placeholder:'find', ariaLabel:'find by name'}), grids = el('div')
  find.onkeydown = e => { if (e.key != 'Escape') e.stopPropagation() }; find.oninput = () => { for (const c of cards.values()) c.box.hidden = !c.entry.name.toLowerCase().includes(find.value.toLowerCase()) }
  function paint(r) {
    const kinds = [...Object.keys(kindName), ''], of = e => e.kind in kindName ? e.kind : ''
    for (const e of r.media) { const c = cards.get(e.name); if (!c) cards.set(e.name, new MediaCard(r.id, e)); else if (c.entry.count != e.count) { c.entry = e; if (c.loaded) c.load() } }
    const layout = kinds.map(k => r.media.filter(e => of(e) == k)).filter(l => l.length), key = JSON.stringify(layout.map(l => l.map(e => e.name)))
    if (key != grids.dataset.key) { grids.dataset.key = key; grids.replaceChildren(...layout.flatMap(l => [el('h2','over', kindName[of(l[0])] || 'Other'), el('div','media-grid kind-'+(of(l[0])||'other'), ...l.map(e => cards.get(e.name).box))])) }
  }
  if (run.media.length > 8) box.append(el('div','bar onetools', find))
  box.append(grids); paint(run)
  const themed = new MutationObserver(() => cards.forEach(c => c.heat?.paint())); themed.observe(document.documentElement, {attributeFilter:['data-theme']})
  return {update:paint, close() { themed.disconnect(); cards.forEach(c => c.close()) }}
}})
