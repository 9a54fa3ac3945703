"page.py: how long a browser waits for the page: 100 runs with 10,000 points each, a zoom, and a list of 1,000 runs."
import json, random, shutil, tempfile, time
from pathlib import Path
from selenium import webdriver
import mlstack.tracking as track

folder = Path(tempfile.mkdtemp(prefix='mlstack-page-'))
watch = """
window.frames_of = {drawn:[], listed:[]}
document.addEventListener('DOMContentLoaded', () => new MutationObserver(all => { for (const o of all) {
  if (o.attributeName == 'data-drawn') requestAnimationFrame(() => frames_of.drawn.push(performance.now()))
  if (o.target.id == 'rows' && o.target.children.length) requestAnimationFrame(() => frames_of.listed.push(performance.now())) } })
  .observe(document.body, {subtree:true, childList:true, attributes:true, attributeFilter:['data-drawn']}))"""

def browser():
    o = webdriver.ChromeOptions()
    o.binary_location = shutil.which('chromium')
    for a in ('--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-proxy-server', '--disable-background-networking', f'--user-data-dir={folder/"profile"}'): o.add_argument(a)
    d = webdriver.Chrome(options=o, service=webdriver.ChromeService(shutil.which('chromedriver')))
    d.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=1400, height=900, deviceScaleFactor=1, mobile=False))
    d.execute_cdp_cmd('Page.addScriptToEvaluateOnNewDocument', dict(source=watch))
    return d

def until(d, script):
    end = time.monotonic() + 60
    while not (got := d.execute_script('return ' + script)):
        assert time.monotonic() < end, script
        time.sleep(.02)
    return got

def curves(dir):
    rng = random.Random(0)
    for i in range(100):
        with track.init(project='curves', dir=dir, config=dict(lr=rng.random()), name=f'run {i}') as run:
            level = 3.
            for _ in range(10_000):
                level = .9995*level + .05*rng.gauss(0, 1)
                run.log(loss=level)

def ended(dir, n):
    for i in range(n):
        path = dir/'many'/f'{i:05}'
        for o in ('events', 'lanes'): (path/o).mkdir(parents=True)
        (path/'meta.json').write_text(json.dumps(dict(format=1, id=path.name, project='many', name=f'run {i}', created=1.7e9+i, tags=[])))
        events = [dict(k='start', t=1.7e9+i, owner=True, process={}), *(dict(k='config', t=1.7e9+i, p=[f'p{j}'], v=i*j) for j in range(18)),
            dict(k='finish', t=1.7e9+i+9, state='finished', last={k: i/1000 for k in ('loss', 'acc', 'val')})]
        (path/'events'/'w.jsonl').write_text(''.join(json.dumps(o)+'\n' for o in events))

def first(d, dir, what):
    "Of a server that has just started, and then again."
    page, took = track.ui(port=0, block=False, dir=dir), []
    try:
        for _ in range(4):
            d.get('about:blank')
            d.get(page.url + '#' + what[0])
            until(d, f'frames_of.{what[1]}.length')
            took.append(d.execute_script(f'return frames_of.{what[1]}[0]'))
            if what[1] == 'drawn': zooms.append(zoom(d))
    finally: page.close()
    return took[0], sorted(took[1:])[1]

def zoom(d):
    return d.execute_async_script("""const done = arguments[0], drawn = frames_of.drawn, before = drawn.length, start = performance.now(), u = [...cards.values()][0].u
        u.setSelect({left:200, top:0, width:300, height:100}); (function look() { drawn.length > before ? done(drawn[before]-start) : setTimeout(look, 1) })()""")

zooms, d = [], browser()
try:
    for name, make in dict(curves=curves, many=lambda dir: ended(dir, 1000)).items():
        (folder/name).mkdir()
        make(folder/name)
    ids = ','.join(f'curves%252F{o.id}' for o in track.runs(dir=folder/'curves'))
    drawn = first(d, folder/'curves', (f'on={ids}', 'drawn'))
    listed = first(d, folder/'many', ('', 'listed'))
finally:
    d.quit()
    shutil.rmtree(folder, ignore_errors=True)
print(json.dumps(dict(first=drawn[0], drawn=drawn[1], zoom=sorted(zooms[1:])[1], list_first=listed[0], listed=listed[1])))
