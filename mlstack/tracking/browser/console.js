// the console: lines are fetched in blocks and only those in sight exist
const LINE = 18, BLOCK = 500
// colours of a terminal as classes; everything else is text
function terminal(text, find) {
  const out = el('span'), parts = text.split(/(\x1b\[[\d;:]*m)/); let style = {}
  for (const p of parts) {
    if (p.startsWith('\x1b[')) { style = colourCodes(p.slice(2,-1), style); continue }
    const plain = p.replace(/[\x00-\x08\x0b-\x1f\x7f]/g, ''); if (!plain) continue
    const s = el('span', [style.fg, style.bg, style.bold && 'bold', style.dim && 'dim', style.italic && 'italic', style.under && 'under'].filter(Boolean).join(' '), ...marked(plain, find))
    if (style.rgb) s.style.color = style.rgb
    out.append(s)
  }
  return out
}
function marked(text, find) {
  if (!find) return [text]
  const out = [], low = text.toLowerCase(), f = find.toLowerCase(); let at = 0
  for (let i = low.indexOf(f); i >= 0 && out.length < 200; i = low.indexOf(f, at)) { out.push(text.slice(at,i), el('mark','',text.slice(i,i+f.length))); at = i+f.length }
  return [...out, text.slice(at)]
}
function colourCodes(codes, was) {
  const style = {...was}, list = codes.split(/[;:]/).map(Number)
  for (let i = 0; i < list.length; i++) { const c = list[i]
    if (c == 0) for (const k in style) delete style[k]
    else if (c == 1) style.bold = true; else if (c == 2) style.dim = true; else if (c == 3) style.italic = true; else if (c == 4) style.under = true
    else if (c == 22) style.bold = style.dim = false; else if (c == 23) style.italic = false; else if (c == 24) style.under = false
    else if (c >= 30 && c <= 37 || c >= 90 && c <= 97) { style.fg = 'fg'+c%10; style.rgb = '' } else if (c >= 40 && c <= 47 || c >= 100 && c <= 107) style.bg = 'bg'+c%10
    else if (c == 39) style.fg = style.rgb = ''; else if (c == 49) style.bg = ''
    else if (c == 38 || c == 48) { const rgb = list[i+1] == 2 ? list.slice(i+2,i+5) : palette(list[i+2]); i += list[i+1] == 2 ? 4 : 2; if (c == 38) { style.rgb = 'rgb('+rgb.map(o => Math.min(255, o|0)).join(',')+')'; style.fg = '' } }
  }
  return style
}
function palette(n) { if (n >= 232) { const g = 8+10*(n-232); return [g,g,g] } if (n < 16) return [n&1 ? 190 : 60, n&2 ? 160 : 60, n&4 ? 210 : 60]; n -= 16; return [n/36|0, (n/6|0)%6, n%6].map(o => o && 55+40*o) }

runTabs.push({name:'console', title:'Console', has:r => r.parts.includes('console'), open(box, run) {
  const s = {total:0, blocks:new Map(), follow:true, find:'', found:[], hits:0, at:-1, times:false, closed:false}
  const rows = el('div','lines-in'), view = el('div','console mono', rows), info = el('span','sub count'), end = press('follow', () => { s.follow = true; view.scrollTop = 1e9; paint() })
  const field = Object.assign(el('input','field small'), {type:'search', placeholder:'find', ariaLabel:'find in the console'}), times = Object.assign(el('input'), {type:'checkbox'})
  box.append(el('div','bar onetools', field, press('‹', () => jump(-1), 'icon step'), press('›', () => jump(1), 'icon step'), info, el('span','gap'), el('label','tool',times,' times'), end), view)
  view.tabIndex = 0; view.setAttribute('aria-label','what the run printed')
  async function block(i, again) {
    if (s.blocks.has(i) && !again) return
    const was = s.blocks.get(i); if (!was) s.blocks.set(i, [])
    try {
      const got = await get('api/console', {id:run.id, first:i*BLOCK, n:BLOCK}); if (s.closed) return
      s.blocks.set(i, got.lines); grown(got.total); paint()
    } catch (e) { if (!was) s.blocks.delete(i); info.textContent = e.status ? e.message : 'not connected' }
  }
  function grown(total) { s.total = total; rows.style.height = total*LINE+'px'; if (s.follow) view.scrollTop = 1e9; if (!s.find) info.textContent = total.toLocaleString('en')+(total == 1 ? ' line' : ' lines') }
  function paint() {
    const from = Math.max(0, Math.floor(view.scrollTop/LINE)-12), to = Math.min(s.total, Math.ceil((view.scrollTop+view.clientHeight)/LINE)+12), out = []
    for (let b = Math.floor(from/BLOCK); b <= Math.floor(Math.max(from,to-1)/BLOCK); b++) block(b)
    for (let i = from; i < to; i++) { const o = s.blocks.get(Math.floor(i/BLOCK))?.[i%BLOCK]; if (!o) continue
      const line = el('div','line'+(o[1] == 'e' ? ' err' : '')+(i == s.found[s.at] ? ' here' : ''), s.times ? el('span','when', new Date(o[0]*1000).toLocaleTimeString([], {hour12:false})) : null, terminal(o[2], s.find)); line.style.top = i*LINE+'px'; out.push(line) }
    rows.replaceChildren(...out); end.hidden = s.follow
  }
  view.onscroll = () => { s.follow = view.scrollTop+view.clientHeight > s.total*LINE-3*LINE; requestAnimationFrame(paint) }
  async function search() {
    s.find = field.value; s.at = -1; s.found = []; s.hits = 0
    if (s.find) try { const got = await get('api/console', {id:run.id, first:0, n:0, find:s.find}); if (field.value != s.find) return; s.found = got.found; s.hits = got.hits } catch (e) { info.textContent = e.message; return }
    grown(s.total); if (s.find) { s.hits ? jump(1) : info.textContent = 'not found' } paint()
  }
  function jump(by) { if (!s.found.length) return; s.at = (s.at+by+s.found.length)%s.found.length; s.follow = false; view.scrollTop = Math.max(0, s.found[s.at]*LINE-view.clientHeight/2); info.textContent = (s.at+1).toLocaleString('en')+' of '+s.hits.toLocaleString('en'); paint() }
  let typing; field.oninput = () => { clearTimeout(typing); typing = setTimeout(search, 200) }
  field.onkeydown = e => { if (e.key != 'Escape') e.stopPropagation(); if (e.key == 'Enter') jump(e.shiftKey ? -1 : 1) }
  times.onchange = () => { s.times = times.checked; paint() }
  async function first() { try { const got = await get('api/console', {id:run.id, first:0, n:0}); if (s.closed) return; grown(got.total); if (s.total) { await block(Math.floor((s.total-1)/BLOCK)); view.scrollTop = 1e9; paint() } } catch (e) { info.textContent = e.message } }
  first(); const tail = setInterval(() => { if (one.run?.state == 'running' && !document.hidden) block(Math.floor(Math.max(0,s.total-1)/BLOCK), true).then(async () => { const got = await get('api/console', {id:run.id, first:0, n:0}); if (got.total != s.total) { grown(got.total); paint() } }).catch(() => {}) }, 2000)
  return {close() { s.closed = true; clearInterval(tail) }, update(r) { if (r.state != 'running') block(Math.floor(Math.max(0,s.total-1)/BLOCK), true) }}
}})

// code, environment, notebook: fetched when they are looked at
const fetched = (part, fill) => (box, run) => { box.append(el('p','sub pad','…')); get('api/part', {id:run.id, part}).then(d => { box.replaceChildren(); fill(box, d) }, e => box.replaceChildren(el('div','banner bad',e.message))) }
runTabs.push({name:'code', title:'Code', has:r => r.parts.includes('code'), open:fetched('code', (box, d) => {
  const {patch, changed, left_out, git, dirty, ...rest} = d, files = (patch||'').split(/^(?=diff --git )/m).filter(o => o.startsWith('diff'))
  box.append(el('div','panels', panel('Commit', git === false ? el('p','sub','This was not run from a git repository.') : facts(rest))))
  if (left_out && left_out !== '{}' && Object.keys(left_out).length) box.append(panel('Left out of the record', facts(left_out)))
  if (!files.length) return git === false ? null : box.append(el('p','sub pad','Nothing differed from the commit.'))
  box.append(el('h2','over', files.length+(files.length == 1 ? ' file differs' : ' files differ')+' from the commit'), ...files.map((text,i) => diffOf(text, files.length < 6 && text.length < 20000)))
})})
function diffOf(text, open) {
  const lines = text.replace(/\n$/,'').split('\n'), name = (/ b\/(.*)$/.exec(lines[0]) || [])[1] || lines[0], box = el('details','diff'), plus = lines.filter(l => /^\+(?!\+\+ )/.test(l)).length, minus = lines.filter(l => /^-(?!-- )/.test(l)).length
  box.append(el('summary','', el('span','mono',name), el('span','plus','+'+plus), el('span','minus','−'+minus)))
  box.ontoggle = () => { if (box.open && box.children.length == 1) box.append(el('pre','patch mono', ...lines.slice(1).filter(l => !/^(index|---|\+\+\+|new file|deleted file|old mode|new mode)/.test(l)).slice(0,20000).map(l => el('span', l[0] == '@' ? 'h' : l[0] == '+' ? 'a' : l[0] == '-' ? 'd' : '', l+'\n')))) }
  box.open = open; return box
}
runTabs.push({name:'environment', title:'Environment', has:r => r.parts.includes('environment'), open:fetched('environment', (box, d) => box.append(panel('', facts(d, 1))))})
runTabs.push({name:'notebook', title:'Notebook', has:r => r.parts.includes('notebook'), open:fetched('notebook', (box, {ran, ...state}) => {
  if (state.clean === false) box.append(el('div','banner warn','The cells did not run from top to bottom as they are written.'))
  box.append(panel('State of the notebook', facts(state)), el('h2','over','Cells as they ran'), ...(ran||[]).map((source,i) => el('div','cell', el('span','sub mono','['+((state.execution_count||ran.length)-ran.length+i+1)+']'), el('pre','mono',source))))
})})
