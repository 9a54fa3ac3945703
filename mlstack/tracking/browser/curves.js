// the view of curves: tools, and a chart for each metric in sections by what stands before the first slash
S.band = true; S.calm = false; S.find = ''; S.closed = new Set()
function setAxis(x) { S.axis = x; S.zoom = null; link(); showTools(); views.show() }
function reset() { if (!S.zoom) return; S.zoom = null; link(true); views.show() }
function redraw() { link(); for (const c of cards.values()) c.rebuild() }

const axis = make('span', {cls:'seg', id:'axis'}, ...Object.entries(axisNames).map(([x,name]) => { const b = button(name,'',() => setAxis(x)); b.dataset.x = x; return b }))
const axisOther = make('select', {id:'axis-other', title:'a metric as the x axis', onchange:() => setAxis(axisOther.value || 'step')})
axisOther.setAttribute('aria-label','another axis'); axis.append(axisOther)
const smoothed = el('span','sub'), smoothing = make('input', {id:'smooth', type:'range', min:0, max:.98, step:.02, value:0, oninput:() => { S.smooth = +smoothing.value; showTools(); redraw() }})
const finder = make('input', {id:'find', cls:'field', type:'search', placeholder:'find charts', oninput:() => { S.find = finder.value; link(); views.show() }})
finder.setAttribute('aria-label','find charts')
const bandTool = check('mean ± range', 'band', on => { S.band = on; link(); views.show() })
views.add({name:'curves', title:'Curves', show:draw, hide:unfull}).append(make('div', {cls:'bar tools', id:'tools'}, axis, el('label','tool', el('span','','smooth'), smoothing, smoothed),
  check('log y','log', on => { S.log = on; redraw() }), check('log x','logx', on => { S.logx = on; S.zoom = null; link(); views.show() }), check('no outliers','calm', on => { S.calm = on; redraw() }), bandTool,
  make('button', {cls:'link', id:'reset', onclick:reset}, 'reset zoom'), el('span','gap'), finder), make('div', {id:'charts'}))

function showTools() {
  for (const b of axis.querySelectorAll('button')) b.setAttribute('aria-pressed', b.dataset.x == S.axis)
  options(axisOther, [['', [['','metric …'], ...S.metrics.map(k => [k,k])]]], axisNames[S.axis] ? '' : S.axis)
  axisOther.classList.toggle('on', !axisNames[S.axis])
  smoothing.value = S.smooth; smoothed.textContent = S.smooth ? S.smooth.toFixed(2) : ''
  $('log').checked = S.log; $('logx').checked = S.logx; $('band').checked = S.band; $('calm').checked = S.calm; bandTool.hidden = !S.group; $('reset').hidden = !S.zoom
  if (finder.value != S.find) finder.value = S.find
}
keep('x', () => S.axis == 'step' ? '' : S.axis, v => { S.axis = v || 'step' })
keep('smooth', () => S.smooth || '', v => { S.smooth = Math.min(.98, Math.max(0, +v || 0)) })
keep('log', () => S.log, v => { S.log = !!v })
keep('logx', () => S.logx, v => { S.logx = !!v })
keep('calm', () => S.calm, v => { S.calm = !!v })
keep('lines', () => !S.band, v => { S.band = !v })
keep('zoom', () => S.zoom ? [S.zoom.low, S.zoom.high, encodeURIComponent(S.zoom.axis)].join(',') : '', v => { const [low,high,axis] = v.split(','); S.zoom = v && isFinite(low) && isFinite(high) ? {axis:decodeURIComponent(axis || 'step'), low:+low, high:+high} : null })
keep('find', () => S.find, v => { S.find = v })
keep('closed', () => packed(S.closed), v => { S.closed = new Set(unpacked(v)) })
keep('chart', () => S.full, v => { S.full = v })

function draw() {
  showTools()
  const ids = selected(), words = S.find.toLowerCase().split(/\s+/).filter(Boolean)
  const logged = S.metrics.filter(k => ids.some(id => S.runs.get(id).has.has(k))), names = logged.filter(k => words.every(w => k.toLowerCase().includes(w)))
  for (const [k,c] of [...cards]) if (!logged.includes(k)) { c.remove(); cards.delete(k) }
  const why = nothing(ids, logged, names)
  if (why) { for (const c of cards.values()) c.box.remove(); return $('charts').replaceChildren(why) }
  for (const k of names) if (!cards.has(k)) cards.set(k, new Card(k))
  arrangeCards(names)
  for (const k of names) cards.get(k).want()
  if (S.full && !fullCard()) cards.has(S.full) ? full(S.full) : 0
}
function nothing(ids, logged, names) {
  const script = el('pre','mono','import mlstack.tracking as track\n\nrun = track.init(project="mnist", config=dict(lr=3e-3))\nrun.log({"loss": .3})')
  if (!S.total) return empty('No runs yet', 'This page fills itself as soon as a run is logged:', script)
  if (!S.order.length) return empty('No run matches', 'The filter leaves nothing of '+many(S.total,'run')+'.')
  if (!ids.length) return empty('No run is selected', 'Click runs in the list to see their curves.')
  if (!logged.length) return empty('No curves', 'The selected runs have logged no numbers.')
  if (!names.length) return empty('No chart matches', 'None of '+many(logged.length,'metric')+' has “'+S.find+'” in its name.')
}
const sections = new Map() // the parts that were made, by name
function arrangeCards(names) {
  const groups = new Map()
  for (const k of names) { const i = k.indexOf('/'), name = i > 0 ? k.slice(0,i) : ''; (groups.get(name) || groups.set(name,[]).get(name)).push(k) }
  const single = groups.size == 1 || names.length < 5
  const want = single ? [sectionOf('', names, true)] : [...groups].map(([name,ks]) => sectionOf(name, ks, false))
  settle($('charts'), want)
}
function sectionOf(name, names, single) {
  if (!sections.has(name)) {
    const head = button('','section',() => { S.closed.has(name) ? S.closed.delete(name) : S.closed.add(name); link(); views.show() }), grid = el('div','grid')
    sections.set(name, {head, grid, box:el('div','part', head, grid)})
  }
  const s = sections.get(name), open = single || !S.closed.has(name)
  s.head.hidden = single; s.head.setAttribute('aria-expanded', open); s.head.replaceChildren(el('span','caret','›'), el('span','',name || 'other'), el('span','sub',names.length))
  settle(s.grid, open ? names.map(k => cards.get(k).box) : [])
  return s.box
}
function settle(box, want) { if (want.length != box.children.length || want.some((e,i) => box.children[i] != e)) box.replaceChildren(...want) }

// one chart on the whole screen
S.full = ''
function fullCard() { return cards.get(S.full)?.box.classList.contains('full') ? cards.get(S.full) : null }
function full(k) { unfull(); S.full = k; cards.get(k).box.classList.add('full'); cards.get(k).more.textContent = '✕'; link() }
function unfull() { const c = fullCard(); S.full = ''; if (c) { c.box.classList.remove('full'); c.more.textContent = '⤢' } link() }
