"A report of 200 runs (of 10,000 steps in `make bench`): small, self-contained, harmless, and read in a real browser; odd runs break nothing."
import math, os, random, re
from html.parser import HTMLParser
import pytest
from tests import house
import mlstack.tracking as track
from mlstack.core import MlstackError
from mlstack.tracking.charts import BLUE, line_chart, path, point_chart, thinned

evil = ['<script>document.title="owned"</script>', '"><img src=x onerror="document.title=1">', "' onmouseover='document.title=2", '</style><h1>', ']]>&lt;', '\u202egnp.exe', '日本 🚀', 'a'*300]

@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "200 runs of 3 metrics, some with names that want to be markup."
    folder,rng = tmp_path_factory.mktemp('runs'),random.Random(0)
    here = os.getcwd()
    os.chdir(folder) # where there is no repository to look at 200 times
    for i in range(200):
        c = dict(lr=10**rng.uniform(-4,-1), opt=rng.choice(['adam','sgd']), width=rng.choice([32,64]), note=evil[i] if i<len(evil) else 'plain')
        floor = .1+(math.log10(c['lr'])+2.5)**2*.1
        steps = house.moments(2_000, 10_000)
        with track.init(project='big', config=c, name=evil[i] if i<len(evil) else f'run {i}', dir=folder) as run:
            for j in range(steps):
                loss = floor+2/(1+j*20/steps)
                run.log({'val_loss': loss, 'train/loss': loss*.9, 'val_acc': 1-loss/3})
            if i==1: run.finish(exit_code=1, error='ValueError: <img src=x onerror=alert(1)>')
            if i==2: run.log({'val_loss': math.nan})
    os.chdir(here)
    return folder

@pytest.fixture(scope='module')
def report(made):
    r = track.runs(project='big', dir=made).report(made/'report.html', metrics=['val_loss','train/loss','val_acc'])
    return r.path

def test_size(report): assert os.path.getsize(report)<2_000_000

class Tags(HTMLParser):
    "All tags and the attributes that fetch or run something."
    def __init__(self, text):
        super().__init__()
        self.tags,self.wrong = {},[]
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag,0)+1
        self.wrong += [(tag,k,v) for k,v in attrs if k.startswith('on') or k in ('src','href','action','srcdoc','xlink:href') or 'url(' in (v or '')]

def test_it_fetches_nothing_and_has_one_script(report):
    text = report.read_text()
    found = Tags(text)
    assert not found.wrong and not found.tags.keys() & {'img','link','iframe','object','embed','base','form','a','foreignobject','use','image'}, found.wrong
    assert found.tags['script']==1 and found.tags['h1']==1 and "default-src 'none'" in text
    style = text.partition('<style>')[2].partition('</style>')[0]
    assert len(style)>500 and 'url(' not in style and '@import' not in style

def test_what_it_says(report):
    text = report.read_text()
    for o in ('200 runs', '199 finished, 1 failed', 'The best val_loss is', 'the best before it was', 'lr matters most', 'What changed since the previous best', f'nan at step {house.moments(2_000, 10_000)} and to the end', 'ValueError: &lt;img src=x'): assert o in text, o

def test_in_a_browser(chromium, report):
    "Names are text, no error, the pointer names the run, the table sorts."
    wide = chromium(1300, 900)
    wide.get(f'file://{report}')
    assert wide.title=='big' and not wide.get_log('browser')
    assert wide.execute_script("return performance.getEntriesByType('resource').length")==0
    cells = "[...document.querySelectorAll('.runs tbody tr')].map(r=>r.cells[{}].textContent)"
    names = wide.execute_script('return '+cells.format(0))
    assert len(names)==200 and {o[:57] for o in evil if len(o)<60}<={o[:57] for o in names}
    heads = wide.execute_script("return [...document.querySelectorAll('.runs th')].map(o=>o.textContent)")
    wide.execute_script("document.querySelectorAll('.runs th')[arguments[0]].click()", heads.index('lr'))
    lr = [float(o) for o in wide.execute_script('return '+cells.format(heads.index('lr')))]
    assert lr==sorted(lr)
    wide.execute_script("document.querySelectorAll('.runs th')[arguments[0]].click()", heads.index('lr'))
    assert [float(o) for o in wide.execute_script('return '+cells.format(heads.index('lr')))]==sorted(lr, reverse=True)
    say = """const c=document.querySelectorAll('svg[data-box]')[0];c.scrollIntoView();const p=c.querySelector('path[data-n="run 150"]'),s=c.getBoundingClientRect(),k=s.width/c.viewBox.baseVal.width;
        const l=p.getPointAtLength(p.getTotalLength()*.3);c.dispatchEvent(new PointerEvent('pointermove',{clientX:s.left+l.x*k,clientY:s.top+l.y*k}));
        const t=document.getElementById('tip');return [getComputedStyle(t).display,t.textContent]"""
    display,text = wide.execute_script(say)
    assert display=='block' and re.fullmatch(r'.+ · [\d.]+ at \d+', text), text

def test_the_tooltip_tells_the_truth(chromium, tmp_path):
    "The value under the pointer is the value that was logged, on a plain and on a logarithmic axis."
    for name,curve in (('plain', [10.,20.,35.,40.]), ('log', [1000.,10.,.1,.001])):
        with track.init(project='tip', name=name, dir=tmp_path) as run:
            for v in curve: run.log(loss=v)
    for name,curve in (('plain', [10.,20.,35.,40.]), ('log', [1000.,10.,.1,.001])):
        track.runs(f'name=="{name}"', dir=tmp_path).report(tmp_path/'one.html')
        d = chromium(1000, 800)
        d.get(f'file://{tmp_path/"one.html"}')
        for step in (1,2):
            text = d.execute_script("""const c=document.querySelector('svg[data-box]'),p=c.querySelector('[data-n]'),s=c.getBoundingClientRect(),k=s.width/c.viewBox.baseVal.width,q=points(p)[arguments[0]];
                c.dispatchEvent(new PointerEvent('pointermove',{clientX:s.left+q[0]*k,clientY:s.top+q[1]*k}));return document.getElementById('tip').textContent""", step)
            value,at = re.fullmatch(r'.* · (\S+) at (\d+)', text).groups()
            assert int(at)==step and abs(float(value)/curve[step]-1)<.02, text

def test_on_a_phone_and_in_the_dark(chromium, report):
    phone = chromium(390, 844, dark=True)
    phone.get(f'file://{report}')
    assert phone.execute_script('return document.documentElement.scrollWidth')<=390
    dark,light = (sum(map(int, re.findall(r'\d+', phone.execute_script(f"return getComputedStyle(document.body).{k}"))[:3])) for k in ('backgroundColor','color'))
    assert dark<150<500<light
    printed = phone.execute_cdp_cmd('Page.printToPDF', dict(printBackground=False))
    assert len(printed['data'])>10_000

@pytest.mark.parametrize('n', [1,2,3,9])
def test_few_runs(tmp_path, n):
    for i in range(n):
        with track.init(project='few', config=dict(lr=i), dir=tmp_path) as run: run.log(loss=1/(i+1))
    text = track.runs(dir=tmp_path).report().html
    assert text.count('<h2>')>=4

def test_runs_without_metrics_without_config_and_running(tmp_path):
    track.init(project='odd', dir=tmp_path, name='no metrics').finish()
    assert 'no metrics' in track.runs(dir=tmp_path).report().html
    open_one = track.init(project='odd', dir=tmp_path, name='runs', config=dict(a=[1,{'b':2}], c=None))
    open_one.log(quality=1., words='text', flag=True)
    text = track.runs(dir=tmp_path).report().html
    assert 'cannot be told from its name' in text and '1 running' in text
    assert 'The best quality is 1' in track.runs(dir=tmp_path).report(mode='max').html
    open_one.log(quality=math.inf)
    for v in (math.nan, -math.inf, 1e308, -1e308, 5e-324): open_one.log(quality=v)
    track.runs(dir=tmp_path).report(mode='max')
    open_one.finish()

def test_where_it_cannot_be_written(tmp_path):
    with track.init(project='p', dir=tmp_path) as run: run.log(loss=1.)
    rs = track.runs(dir=tmp_path)
    (tmp_path/'file').write_text('')
    with pytest.raises(MlstackError, match='could not be written'): rs.report(tmp_path/'file'/'a.html')
    with pytest.raises(MlstackError, match='End it in .html'): rs.report(tmp_path/'a.txt')
    old = rs.report(tmp_path/'a.html').path.read_text()
    with pytest.raises(MlstackError): rs.report(tmp_path/'a.html', metrics='nothing')
    assert (tmp_path/'a.html').read_text()==old

def test_a_spike_of_one_step_is_in_the_picture():
    y = [0.]*50_000
    y[31_234] = 7.
    x,v = thinned(range(50_000), y, 100)
    assert len(x)<=100 and max(v)==7
    svg = line_chart([('a', range(50_000), y, BLUE, 1)], 'm', points=100)
    assert len(svg)<4000

def test_a_path_is_where_its_points_are():
    "Differences with one decimal do not drift: the last point is within a tenth."
    rng = random.Random(1)
    xs,ys = [i*.317 for i in range(3000)],[rng.uniform(-100,300) for _ in range(3000)]
    x = y = 0.
    for kind,rest in re.findall('([Ml])([^Ml]*)', path(xs, ys)):
        n = [float(o) for o in re.findall(r'-?(?:\d+\.?\d*|\.\d+)', rest)]
        for a,b in zip(n[::2], n[1::2]): x,y = (a,b) if kind=='M' else (x+a,y+b)
    assert abs(x-xs[-1])<.06 and abs(y-ys[-1])<.06

def test_points_over_anything():
    svg = point_chart([(n, v, 1., BLUE) for n,v in zip('abcdef', [1,'x',True,None,math.nan,10**20])], 'm', 'p')
    assert svg.count('<circle')==5

def test_ranked_and_milestones(tmp_path):
    "Best first, runs without a value last; milestones are those that were the best in their time, newest first."
    values = [5.,math.nan,3.,4.,math.inf,3.,1.,2.]
    for i,v in enumerate(values):
        with track.init(project='p', name=str(i), dir=tmp_path) as run: run.log(loss=v, quality=-v)
    track.init(project='p', name='empty', dir=tmp_path).finish()
    rs = track.runs(dir=tmp_path)
    names = [o.name for o in rs.ranked('loss')]
    assert names[0]=='6' and names[1]=='7' and set(names[2:4])=={'2','5'} and names[4:6]==['3','0'] and set(names[6:])=={'1','4','empty'}
    assert [o.name for o in rs.milestones('loss')]==['6','2','0']
    assert [o.name for o in rs.ranked('quality','max')][0]=='6' and len(rs[:0].ranked('loss'))==0
    with pytest.raises(MlstackError): rs.ranked('quality')
    with pytest.raises(MlstackError): rs.ranked('los','min')

def test_outliers_do_not_accuse_the_ordinary(tmp_path):
    "Fine-tuning, where all begin and end close together; few runs; runs with one value."
    rng = random.Random(0)
    for i in range(20):
        with track.init(project='tune', name=str(i), dir=tmp_path) as run:
            for j in range(20): run.log(loss=.5-.01*j+rng.gauss(0,.003))
    for i in range(20):
        with track.init(project='once', name=str(i), dir=tmp_path) as run: run.log(acc=.9+rng.gauss(0,.01))
    assert not track.runs(project='tune', dir=tmp_path).outliers('loss').rows
    assert not track.runs(project='once', dir=tmp_path).outliers('acc').rows
    assert not track.runs(project='tune', dir=tmp_path)[:3].outliers('loss').rows
