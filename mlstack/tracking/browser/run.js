// one run
function hideDetails() { $('drawer').classList.remove('open') }
function kv(d) { const dl = el('dl','kv'); for (const k in d) if (d[k] !== '' && d[k] !== null && d[k] !== undefined) dl.append(el('dt','',k), el('dd','', typeof d[k] == 'object' ? JSON.stringify(d[k]) : Number.isInteger(d[k]) ? d[k].toLocaleString('en') : num(d[k]))); return dl }
async function details(id) {
  const box = $('drawer'), r = await (await fetch('api/run?'+new URLSearchParams({id}))).json(), close = el('button','icon','✕')
  close.onclick = closeRun; close.setAttribute('aria-label','close')
  const part = (title, d) => Object.keys(d||{}).length ? [el('h3','',title), kv(d)] : []
  const patch = el('pre','patch mono')
  for (const line of (r.patch||'').split('\n')) patch.append(el('span', /^(diff|index|---|\+\+\+|@@|new file)/.test(line) ? 'h' : line[0] == '+' ? 'a' : line[0] == '-' ? 'd' : '', line+'\n'))
  box.replaceChildren(...[el('div','top', el('div','', el('h1','',r.name), el('div','sub',r.project+' / '+r.id)), close), el('div','', el('span','state '+r.state,r.state), '  ', el('span','sub',new Date(r.created*1000).toLocaleString()+', '+age(r.seconds))),
    r.error ? el('div','error mono',r.error) : null, r.notes ? el('p','',r.notes) : null, ...(r.problems||[]).map(p => el('div','error',p)),
    ...part('config',r.config), ...part('summary',r.summary), ...part('artifacts',r.artifacts), ...part('where it came from',{command:r.command, host:r.host, folder:r.path, tags:(r.tags||[]).join(', '), group:r.group}),
    ...part('code',r.code), ...(r.patch ? [el('h3','','uncommitted changes'), patch] : []), ...part('environment',r.env)].filter(Boolean))
  box.classList.add('open'); box.scrollTop = 0; close.focus()
}

