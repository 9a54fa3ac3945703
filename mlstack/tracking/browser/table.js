// the runs as a table of chosen columns, in the order and the groups of the list
const TH = 34
const table = { cols:null,
  chosen() { return this.cols || ['r:state', ...S.columns.numbers.slice(0,4), ...S.columns.differ.slice(0,8), 'r:created', 'r:duration'] },
  choose(cols) { this.cols = cols; link(); views.show() },
  width: c => { const longest = Math.max(title(c).length, ...shown.slice(0,60).map(r => show(c, value(r,c)).length)); return Math.max(S.group && c[0] == 's' ? 104 : 70, Math.min(220, longest*8+34)) },
}
const thead = el('div','thead'), tbody = el('div','tbody'), tframe = make('div', {cls:'tframe', tabIndex:-1}, thead, tbody)
const tcount = el('span','sub')
const everyColumn = () => [['run', ...[S.columns.run]], ['config', S.columns.config], ['metrics', S.columns.summary]].map(([name,cols]) => [name, cols.map(c => [c])])
views.add({name:'table', title:'Table', show:paintTable, reach:i => { // the keyboard went to row i
  const top = i*TH, sight = tframe.clientHeight-TH
  if (top < tframe.scrollTop) tframe.scrollTop = top
  else if (top+TH > tframe.scrollTop+sight) tframe.scrollTop = top+TH-sight
  paintTable()
}}).append(el('div','bar tools', chooser('columns', everyColumn, () => table.chosen(), cols => table.choose(cols)), button('as chosen by the page','link',() => table.choose(null)), el('span','gap'), tcount), tframe)
keep('cols', () => table.cols ? packed(table.cols) || '-' : '', v => { table.cols = v == '-' ? [] : v ? unpacked(v) : null })

function headOf(c) {
  const dir = S.sort.slice(1) == c ? (S.sort[0] == '-' ? ' ↓' : ' ↑') : '', b = button('','th',() => sortBy(dir == ' ↓' ? '+'+c : dir ? '' : '-'+c), title(c)+': click to sort')
  b.append(el('span','',title(c)), el('i','',dir)); return b
}
function cellOf(r, c) {
  if (c == 'r:state') return el('div','td', el('span','state '+r.state, r.state))
  const v = value(r,c), e = el('div','td'+(typeof v == 'number' && c[0] != 'r' || c == 'r:duration' ? ' n' : ''), show(c,v))
  if (typeof v == 'string') e.title = v
  return e
}
function tableRow(o, cols) {
  if (!o.runs) { const on = S.on.has(o.id), first = el('div','td first', dotOf(on, tint(o.id)), el('span','name',o.name), button('›','more',null,'open this run')); first.title = o.name
    const e = el('div','row'+(on ? ' on' : ''), first, ...cols.map(c => cellOf(o,c))); e.dataset.id = o.id; return e }
  const on = o.runs.filter(r => S.on.has(r.id)).length, key = 's:'+main(), fold = button('›','more'+(S.folded.has(o.key) ? '' : ' down'),null,'fold or unfold')
  const mean = c => { const vs = o.runs.map(r => finite(value(r,c))); return vs.every(v => v !== null) ? vs.reduce((a,b) => a+b)/vs.length : null }
  const cell = c => c[0] == 's' && mean(c) !== null ? el('div','td n', c == key ? best(main())+' '+num(o.best) : '⌀ '+num(mean(c))) : el('div','td')
  const e = el('div','row group'+(on ? ' on' : ''), el('div','td first', dotOf(on == o.runs.length, tintOf(o.key), on), el('span','name text',o.label+'  ·  '+o.runs.length), fold), ...cols.map(cell))
  e.dataset.group = o.key; return e
}
function paintTable() {
  const cols = table.chosen().filter(c => c != 'r:name'), first = Math.max(150, Math.min(320, 84+7.6*Math.max(0, ...shown.slice(0,200).map(r => r.name.length)))), grid = `minmax(${first}px,1.2fr) `+cols.map(c => `minmax(${table.width(c)}px,1fr)`).join(' ')
  tcount.textContent = many(shown.length,'run')+', '+many(cols.length,'column')
  const head = [headOf('r:name'), ...cols.map(headOf)]; head[0].classList.add('first')
  thead.replaceChildren(...head); thead.style.gridTemplateColumns = grid
  thead.style.minWidth = tbody.style.minWidth = first+cols.reduce((a,c) => a+table.width(c), 0)+'px'
  const from = Math.max(0, Math.floor(tframe.scrollTop/TH)-8), to = Math.min(items.length, Math.ceil((tframe.scrollTop+tframe.clientHeight)/TH)+8)
  tbody.style.height = items.length*TH+'px'
  tbody.replaceChildren(...items.slice(from,to).map((o,i) => { const e = tableRow(o,cols); e.style.top = (from+i)*TH+'px'; e.style.gridTemplateColumns = grid; if (from+i == at) e.classList.add('at'); return e }))
}
let painted = 0
tframe.onscroll = () => { painted ||= requestAnimationFrame(() => { painted = 0; paintTable() }) }
tbody.onclick = clicked
new ResizeObserver(() => { if (views.now?.name == 'table' && S.ready) paintTable() }).observe(tframe)
