'use strict'
const $ = id => document.getElementById(id)
// Everything that comes from a run is set as text, never as markup.
function el(tag, cls, ...kids) { const e = document.createElement(tag); if (cls) e.className = cls; for (const k of kids) if (k != null) e.append(k); return e }
const colours = ['#4263eb','#e8590c','#2b9a66','#ae3ec9','#e03131','#1098ad','#f08c00','#846358','#d6336c','#5c940d','#7048e8','#0b7285','#c2255c','#495057']
const S = { runs:new Map(), order:[], on:new Map(), cursor:0, total:0, axis:'step', smooth:0, log:false, zoom:null, hover:null, touched:false, epoch:'' }
const num = v => v === null || v === undefined ? '' : typeof v !== 'number' ? String(v) : !isFinite(v) ? String(v) : v === 0 ? '0' :
  Number.isInteger(v) && Math.abs(v) < 1e6 ? String(v) : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(2).replace('e+','e') : String(+v.toPrecision(4))
const age = s => s < 60 ? Math.round(s)+' s' : s < 3600 ? Math.round(s/60)+' min' : s < 86400 ? Math.round(s/3600)+' h' : Math.round(s/86400)+' d'
const two = n => String(n).padStart(2,'0')
const span = s => s == 0 ? '0' : s < 1 ? +(s*1000).toPrecision(3)+' ms' : s < 60 ? +s.toPrecision(3)+' s' : s < 3600 ? Math.floor(s/60)+':'+two(Math.floor(s%60)) : Math.floor(s/3600)+':'+two(Math.floor(s/60%60))+' h'
const store = { get: k => { try { return localStorage.getItem('mlstack.'+k) } catch { return null } }, set: (k,v) => { try { localStorage.setItem('mlstack.'+k,v) } catch {} } }
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()

// light and dark
const dark = matchMedia('(prefers-color-scheme:dark)')
function theme(t) { document.documentElement.dataset.theme = t; for (const c of cards.values()) c.rebuild() }
$('theme').onclick = () => { const t = document.documentElement.dataset.theme == 'dark' ? 'light' : 'dark'; store.set('theme', t); theme(t) }
dark.onchange = () => { if (!store.get('theme')) theme(dark.matches ? 'dark' : 'light') }

