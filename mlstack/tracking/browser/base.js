'use strict'
const $ = id => document.getElementById(id)
// Everything that comes from a run is set as text, never as markup.
function el(tag, cls, ...kids) { const e = document.createElement(tag); if (cls) e.className = cls; for (const k of kids) if (k != null) e.append(k); return e }
const colours = ['#4263eb','#e8590c','#2b9a66','#ae3ec9','#e03131','#1098ad','#f08c00','#846358','#d6336c','#5c940d','#7048e8','#0b7285','#c2255c','#495057']
const S = { runs:new Map(), order:[], on:new Map(), cursor:0, total:0, axis:'step', smooth:0, log:false, zoom:null, hover:null, touched:false, epoch:'', run:'' }
const num = v => v === null || v === undefined ? '' : typeof v !== 'number' ? String(v) : !isFinite(v) ? String(v) : v === 0 ? '0' :
  Number.isInteger(v) && Math.abs(v) < 1e6 ? String(v) : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(2).replace('e+','e') : String(+v.toPrecision(4))
const age = s => s < 60 ? Math.round(s)+' s' : s < 3600 ? Math.round(s/60)+' min' : s < 86400 ? Math.round(s/3600)+' h' : Math.round(s/86400)+' d'
const two = n => String(n).padStart(2,'0')
const span = s => s == 0 ? '0' : s < 1 ? +(s*1000).toPrecision(3)+' ms' : s < 60 ? +s.toPrecision(3)+' s' : s < 3600 ? Math.floor(s/60)+':'+two(Math.floor(s%60)) : Math.floor(s/3600)+':'+two(Math.floor(s/60%60))+' h'
const store = { get: k => { try { return localStorage.getItem('mlstack.'+k) } catch { return null } }, set: (k,v) => { try { localStorage.setItem('mlstack.'+k,v) } catch {} } }
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()

// the server: get() gives what was asked for, post() changes something and carries the token of this page; an error's message is the server's sentence
const token = document.querySelector('meta[name=token]').content
if (location.search.includes('token=')) history.replaceState(null, '', location.pathname+location.hash)
async function answered(response) { if (!response.ok) throw Object.assign(new Error(await response.text()), {status:response.status}); return response }
const get = async (path, ask) => (await answered(await fetch(path+(ask ? '?'+new URLSearchParams(ask) : '')))).json()
const post = async (path, body) => answered(await fetch(path, {method:'POST', body:JSON.stringify(body), headers:{'Content-Type':'application/json', 'X-Mlstack-Token':token}}))

// light and dark
const dark = matchMedia('(prefers-color-scheme:dark)')
function theme(t) { document.documentElement.dataset.theme = t; for (const c of cards.values()) c.rebuild() }
$('theme').onclick = () => { const t = document.documentElement.dataset.theme == 'dark' ? 'light' : 'dark'; store.set('theme', t); theme(t) }
dark.onchange = () => { if (!store.get('theme')) theme(dark.matches ? 'dark' : 'light') }


// what the address keeps: each part is a key, what it is now ('' for nothing), and what to do with what it was
const parts = []
function keep(key, get, set) { parts.push({key, get, set}) }
function link(push) { // push: a step that the browser's back button undoes
  const q = new URLSearchParams(); for (const o of parts) { const v = o.get(); if (v !== '' && v != null) q.set(o.key, v) }
  const to = '#'+q; if (to != location.hash) history[push ? 'pushState' : 'replaceState'](null, '', to)
}
function restore() { const q = new URLSearchParams(location.hash.slice(1)); for (const o of parts) o.set(q.get(o.key) ?? '') }
addEventListener('popstate', () => { restore(); refresh() })

// views: what the right side can show; show(box, ids) is called on entering and whenever a run or the selection changed
const views = {
  all:[], now:null,
  add(view) {
    view.box = el('div','view'); view.box.hidden = true; view.box.id = 'view-'+view.name
    view.tab = el('button','tab',view.title); view.tab.onclick = () => this.go(view.name, true); view.tab.setAttribute('role','tab')
    this.all.push(view); $('tabs').append(view.tab); $('views').append(view.box)
  },
  go(name, push) {
    const to = this.all.find(v => v.name == name) || this.all[0]
    if (to == this.now) return
    this.now?.hide?.(this.now.box); this.now = to
    for (const v of this.all) { v.box.hidden = v != to; v.tab.setAttribute('aria-selected', v == to) }
    link(push); this.show()
  },
  show() { this.now?.show(this.now.box, selected()) },
}
const selected = () => { const there = new Set(S.order); return [...S.on.keys()].filter(id => there.has(id)) }
keep('view', () => views.now == views.all[0] ? '' : views.now?.name, v => views.go(v))

// one run: details(id) and hideDetails() are in run.js
function openRun(id) { S.run = id; link(true); details(id) }
function closeRun() { if (!S.run) return; S.run = ''; link(true); hideDetails() }
keep('run', () => S.run, id => { if (id == S.run) return; S.run = id; id ? details(id) : hideDetails() })
