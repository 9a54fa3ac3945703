"Jobs on the page: to their owner only, as text only, live, and started again with what was changed, in a real browser."
import http.client, json, os, pickle, subprocess, sys
from urllib.parse import urlsplit
import pytest
import mlstack.tracking as track
from mlstack import core
from mlstack.core import write_file
from mlstack.resources import handles, job_views
from mlstack.resources.records import begin, end, finish, new_record, records
from mlstack.resources.schedules import new_schedule, scheduled
from tests.house import go_to, until

NASTY = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
WANT = dict(gpus=0, gpu_mem=0, cpus=1, mem=0)


def book(*cells):
    made = [dict(cell_type='code', metadata=dict(tags=list(tags)), source=code, execution_count=None, outputs=[]) for code, *tags in cells]
    return dict(cells=made, metadata={}, nbformat=4, nbformat_minor=5)


def train(config, epochs=1): return config['lr']*epochs


class StandIn:
    "An executor that notes what it is asked."
    def __init__(self): self.started, self.cancelled, self.states = [], [], {}
    def check(self, spec): pass
    def start(self, found):
        for o in found: self.started.append(o.id); write_file(o/'handle.json', '{}')
    def look(self, job): return self.states.get(job.id, dict(state='waiting', why=f'because {NASTY}'))
    def cancel(self, job, reason): self.cancelled.append(job.id); finish(job, 'cancelled', reason)


def make(name, kind, state=None, reason='', *, spec=(), **files):
    job = new_record(dict(kind=kind, name=name, on='stand-in', want=WANT, nodes=1, user='me', env=dict(WORD='hush-hush'), secrets=['KEY'] if 'secrets_json' in files else [], project='p', runs='/nowhere', cwd='/') | dict(spec), **files)
    if state is None: return job
    begin(job, 1, process=dict(host='here'), leased=dict(gpus=[], cores=[0]))
    job.log.write_text(f'first line\n\x1b[32mgreen\x1b[0m {NASTY}\n')
    if state == 'running': return job
    end(job, 1, state, reason, exitcode=int(state == 'failed'), usage=dict(cpu=1.5))
    finish(job, state, reason)
    return job


@pytest.fixture
def world(tmp_path, monkeypatch):
    "Jobs of all kinds, and a page that shows them."
    for o in ('STATE', 'QUEUE', 'LEASES'): monkeypatch.setenv(f'MLSTACK_{o}', str(tmp_path/o))
    monkeypatch.setattr(job_views, '_queue', lambda: [dict(id='0stranger', own=False, user='ann', what='1 GPU', state='running', why='', seconds=60, left=30, gpus=['GPU-1'])])
    stand_in = StandIn()
    handles.register('stand-in', stand_in)
    core.provide('page_views.jobs', job_views.page_views)
    job_views._overview.at, job_views._overview.said = 0., None
    with track.init(project='p', dir=tmp_path/'runs', name='a run') as run: run.log(loss=1.)
    jobs = dict(stand_in=stand_in,
        running=make(NASTY, 'command', 'running', spec=dict(command=['python', 'train.py', '--lr', '0.1', NASTY])), waiting=make('waits', 'command', spec=dict(command=['true'])),
        failed=make('evaluate', 'notebook', 'failed', f'KeyError: {NASTY}', spec=dict(notebook='/there/evaluate.ipynb', params=dict(lr=.1, note=NASTY)), notebook_ipynb=json.dumps(book(('lr = .5\nnote = ""\nepochs: int = 3', 'parameters'), ('lr',))).encode()),
        function=make('mlp', 'function', 'finished', call_pkl=pickle.dumps((train, (dict(lr=.1, opt='adam'),), {})), spec=dict(runs=str(tmp_path/'runs'), project='p', run=run.id)))
    (jobs['failed']/'output.ipynb').write_text(json.dumps(book(('x', 'failed'), (NASTY,))))
    jobs['schedule'] = new_schedule('0 3 * * *', dict(kind='command', name=NASTY, command=['true'], on='stand-in'))
    page = track.ui(port=0, block=False, dir=tmp_path/'runs')
    yield page, jobs
    page.close()
    core._providers.pop('page_views.jobs', None)
    handles._executors.pop('stand-in', None)


def ask(page, path, body=None, token=True, **headers):
    at = urlsplit(page.url)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=300)
    if token: headers['X-Mlstack-Token'] = page.server.guard.token
    if body is not None: headers['Content-Type'] = 'application/json'
    connection.request('GET' if body is None else 'POST', path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    answer.text = answer.read().decode()
    connection.close()
    return answer


def said(page, path, body=None):
    answer = ask(page, path, body)
    assert answer.status == 200, answer.text
    return json.loads(answer.text)


GETS = ['/api/jobs', '/api/job?id={0}', '/api/job/log?id={0}', '/api/job/notebook?id={0}']
POSTS = ['/api/job/cancel', '/api/job/delete', '/api/job/again', '/api/schedule']

def test_only_the_owner_is_answered(world, monkeypatch):
    page, jobs = world
    id = jobs['failed'].id
    assert all(ask(page, o.format(id), token=False).status == 200 for o in GETS)
    monkeypatch.setattr(job_views, 'peer', lambda connection: os.getuid()+1)
    for path in GETS: assert (a := ask(page, path.format(id), token=False)).status == 403 and 'shown to their owner' in a.text
    for path in POSTS: assert ask(page, path, dict(id=id)).status == 403
    monkeypatch.setattr(job_views, 'peer', lambda connection: None)  # a system that does not tell
    assert ask(page, '/api/jobs').status == 403
    closed = track.ui(port=0, block=False, dir=page.server.board.folder, token=True)
    try: assert ask(closed, '/api/jobs', token=False).status == 403 and ask(closed, '/api/jobs').status == 200
    finally: closed.close()


def test_another_user_of_this_machine(world):
    "A real one where we may become one."
    page, jobs = world
    code = """import encodings.idna, os, socket, sys
if os.getuid() == 0: os.setgid(65534); os.setuid(65534)
c = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
c.sendall(b'GET /api/jobs HTTP/1.0\\r\\nHost: 127.0.0.1\\r\\n\\r\\n')
print(c.recv(100).split()[1].decode())"""
    got = subprocess.run([sys.executable, '-c', code, str(urlsplit(page.url).port)], capture_output=True, text=True, timeout=300)
    assert got.stdout.strip() == ('403' if os.getuid() == 0 else '200'), got.stderr


def test_changes_need_the_token(world):
    page, jobs = world
    for path in POSTS: assert (a := ask(page, path, dict(id=jobs['running'].id, do='delete'), token=False)).status == 403 and 'token' in a.text
    assert not jobs['stand_in'].cancelled and len(scheduled()) == 1


@pytest.mark.parametrize('id', ['', '..', '../jobs', '.', 'x/../y', '%2e%2e', '0', 'A'*14])
def test_no_id_leads_elsewhere(world, id):
    page, jobs = world
    for path in GETS[1:]: assert ask(page, path.format(id)).status in (400, 404)
    for path in POSTS: assert ask(page, path, dict(id=id, do='delete')).status in (400, 404)


def test_no_variable_and_no_secret_is_told(world):
    page, jobs = world
    job = make('hides', 'command', 'running', spec=dict(command=['true']), secrets_json=json.dumps(dict(KEY='hush-hush')).encode())
    text = ask(page, '/api/jobs').text + ''.join(ask(page, f'/api/job?id={o.id}').text for o in (job, *(v for k, v in jobs.items() if k not in ('stand_in', 'schedule'))))
    assert 'hush-hush' not in text and '"KEY"' in text


def test_the_list_and_one_job(world):
    page, jobs = world
    rows = {o['id']: o for o in said(page, '/api/jobs')['jobs']}
    assert {k: rows[jobs[k].id]['state'] for k in ('running', 'waiting', 'failed', 'function')} == dict(running='waiting', waiting='waiting', failed='failed', function='finished')  # as its executor says
    assert rows['0stranger']['user'] == 'ann' and not rows['0stranger']['own'] and rows['0stranger']['left'] == 30
    one = said(page, f'/api/job?id={jobs["failed"].id}')
    assert one['again'] == dict(lr=.1, note=NASTY, epochs=3) and one['tries'][0]['reason'].startswith('KeyError') and one['output']
    first = said(page, '/api/jobs')
    assert said(page, f'/api/jobs?stamp={first["stamp"]}').get('same')
    finish(jobs['waiting'], 'cancelled', 'why not')
    job_views._overview.at = 0.
    assert not said(page, f'/api/jobs?stamp={first["stamp"]}').get('same')


def test_the_log_is_followed_from_where_one_was(world):
    page, jobs = world
    job = jobs['running']
    got = said(page, f'/api/job/log?id={job.id}')
    assert got['text'] == f'first line\ngreen {NASTY}\n'
    with open(job.log, 'ab') as f: f.write('half an ü'.encode()[:-1])
    assert said(page, f'/api/job/log?id={job.id}&at={got["next"]}')['text'] == ''
    with open(job.log, 'ab') as f: f.write('ü'.encode()[1:]+b'\n')
    assert said(page, f'/api/job/log?id={job.id}&at={got["next"]}')['text'] == 'half an ü\n'
    job.log.write_bytes(b'x'*1_000_000)
    long = said(page, f'/api/job/log?id={job.id}')
    assert long['at'] == 1_000_000-(1<<18) and len(long['text']) == 1<<18
    assert said(page, f'/api/job/log?id={jobs["waiting"].id}')['text'] == ''


def test_the_notebook_runs_nothing(world):
    page, jobs = world
    answer = ask(page, f'/api/job/notebook?id={jobs["failed"].id}')
    policy = answer.headers['Content-Security-Policy']
    assert 'sandbox;' in policy and "default-src 'none'" in policy and 'script' not in policy and '<script' not in answer.text and 'id=failed' in answer.text


def test_a_notebook_again(world):
    page, jobs = world
    made = said(page, '/api/job/again', dict(id=jobs['failed'].id, fields=dict(lr='1', epochs='7'), name='once more'))['id']
    new = job_views.Record(records()[0].path)
    assert new.id == made == jobs['stand_in'].started[-1] and new.spec['run'] == made and new.spec['again'] == jobs['failed'].id
    assert new.spec['params'] == dict(lr=1., note=NASTY, epochs=7) and type(new.spec['params']['lr']) is float and new.spec['name'] == 'once more'
    assert (new/'notebook.ipynb').read_bytes() == (jobs['failed']/'notebook.ipynb').read_bytes() and not (new/'output.ipynb').exists()
    n = len(records())
    for fields, why in ((dict(lr='fast'), 'is no float'), (dict(speed='1'), 'cannot be changed'), ('lr', 'names and texts'), (dict(lr=1), 'is a text')):
        assert (a := ask(page, '/api/job/again', dict(id=jobs['failed'].id, fields=fields))).status == 400 and why in a.text
    assert len(records()) == n


@pytest.mark.parametrize('text, words', [('python train.py --lr 0.2', ['python', 'train.py', '--lr', '0.2']), ("echo '; rm -rf ~' $(reboot) `x` | y", ['echo', '; rm -rf ~', '$(reboot)', '`x`', '|', 'y'])])
def test_a_command_again(world, text, words):
    "Its words as a shell would split them; there is no shell."
    page, jobs = world
    said(page, '/api/job/again', dict(id=jobs['running'].id, fields=dict(command=text)))
    assert records()[0].spec['command'] == words
    assert ask(page, '/api/job/again', dict(id=jobs['running'].id, fields=dict(command="echo '"))).status == 400
    assert ask(page, '/api/job/again', dict(id=jobs['running'].id, fields=dict(command=' '))).status == 400
    assert ask(page, '/api/job/again', dict(id=jobs['running'].id, name='two\nlines')).status == 400


def test_a_function_again(world):
    "The page changes what the call will be, and opens nothing."
    page, jobs = world
    run = track.runs(project='p', dir=page.server.board.folder)[0]
    with track.init(project='p', dir=page.server.board.folder, id=run.id, resume=True, config=dict(lr=.1, opt='adam')): pass
    assert said(page, f'/api/job?id={jobs["function"].id}')['again'] == dict(lr=.1, opt='adam')
    said(page, '/api/job/again', dict(id=jobs['function'].id, fields=dict(lr='0.25')))
    first = records()[0]
    said(page, '/api/job/again', dict(id=first.id, fields={}))  # of one that was changed, unchanged
    for job in (first, records()[0]):
        fn, args, kwargs = pickle.loads((job/'call.pkl').read_bytes())
        assert fn(*args, **kwargs) == .25


def test_a_secret_that_the_page_does_not_know(world, monkeypatch):
    page, jobs = world
    job = make('hides', 'command', 'finished', spec=dict(command=['true']), secrets_json=b'{}')
    assert (a := ask(page, '/api/job/again', dict(id=job.id))).status == 400+9 and 'KEY' in a.text
    monkeypatch.setenv('KEY', 'known here')
    new = said(page, '/api/job/again', dict(id=job.id))['id']
    assert json.loads((job.path.parent/new/'secrets.json').read_text()) == dict(KEY='known here') and 'known here' not in (job.path.parent/new/'spec.json').read_text()


# in a browser

@pytest.fixture(scope='module')
def browser(chromium): return chromium(1280, 900)
@pytest.fixture(scope='module')
def phone(chromium): return chromium(390, 800)


def load(browser, page, job=''):
    go_to(browser, page.url+'#view=jobs'+(f'&job={job}' if job else ''), "document.querySelector('.jobhead h1')" if job else "document.querySelector('.jobs .queue')")


def click(browser, text, within='.jobs button'):
    "In one step: what is drawn again meanwhile would be another button."
    until(browser, f"(() => {{ const b = [...document.querySelectorAll('{within}')].find(b => {json.dumps(text)} == '' || b.textContent == {json.dumps(text)}); b?.click(); return !!b }})()")


def silent(browser, status='no such'): assert not [o for o in browser.get_log('browser') if o['level'] == 'SEVERE' and status not in o['message']]


def test_all_is_shown_as_text(browser, world):
    page, jobs = world
    load(browser, page)
    assert browser.execute_script("return [...document.querySelectorAll('.queue .who-job .link')].map(e => e.textContent)") == [NASTY, 'waits']
    assert browser.execute_script("return [document.querySelectorAll('.jobs .span').length, document.querySelectorAll('.jobs .book').length]") == [3, 1]
    for key in ('running', 'failed', 'function'):
        load(browser, page, jobs[key].id)
        until(browser, "document.querySelector('.joblog')?.textContent.includes('onerror')")
        click(browser, 'start again …')
        until(browser, "document.querySelector('.fields input')")
    assert browser.execute_script('return [window.hit ?? null, document.querySelectorAll("body img").length, document.querySelectorAll("script").length]') == [None, 0, 2]
    silent(browser)


def test_a_job_is_followed_and_cancelled(browser, world):
    page, jobs = world
    job = jobs['running']
    jobs['stand_in'].states[job.id] = dict(state='running')
    load(browser, page, job.id)
    until(browser, "document.querySelector('.jobhead .state').textContent == 'running'")
    with open(job.log, 'a') as f: f.write('10%\r50%\rall of it\n')
    until(browser, "document.querySelector('.joblog').textContent.endsWith('all of it\\n') && !document.querySelector('.joblog').textContent.includes('50%')")
    click(browser, 'cancel')
    assert not jobs['stand_in'].cancelled  # it asks first
    click(browser, 'cancel it')
    until(browser, "document.querySelector('.jobhead .state').textContent == 'cancelled'")
    assert jobs['stand_in'].cancelled == [job.id]
    silent(browser)


def test_the_form_starts_a_copy(browser, world):
    page, jobs = world
    load(browser, page)
    click(browser, '', '.book')
    click(browser, 'start again …')
    field = until(browser, "document.querySelector('.fields [name=lr]')")
    field.clear()
    field.send_keys('fast')
    click(browser, 'start')
    assert 'is no float' in until(browser, "document.querySelector('.jobs .error')?.textContent")
    field.clear()
    field.send_keys('0.125')
    click(browser, 'start')
    until(browser, f"document.querySelector('.jobhead .state')?.textContent == 'waiting' && location.hash.includes('{records()[0].id[:4]}')")
    new = records()[0]
    assert new.spec['params']['lr'] == .125 and jobs['stand_in'].started == [new.id]
    browser.back()
    until(browser, f"location.hash.includes('{jobs['failed'].id}') && document.querySelector('.jobhead .state')?.textContent == 'failed'")
    click(browser, '‹ jobs')
    until(browser, "document.querySelectorAll('.queue .who-job').length == 4")
    silent(browser, 'status of 400')


def test_schedules_are_paused_and_deleted(browser, world):
    page, jobs = world
    load(browser, page)
    click(browser, 'pause')
    until(browser, "[...document.querySelectorAll('.jobs button')].some(b => b.textContent == 'resume')")
    assert jobs['schedule'].paused
    click(browser, 'resume')
    until(browser, "[...document.querySelectorAll('.jobs button')].some(b => b.textContent == 'pause')")
    click(browser, 'delete', '.jobs .danger')
    click(browser, 'delete', '.confirm button')
    until(browser, "![...document.querySelectorAll('.jobs h2')].some(e => e.textContent.startsWith('Schedules'))")
    assert not scheduled()
    silent(browser)


@pytest.mark.parametrize('key', ['', 'running', 'failed', 'function'])
def test_it_fits_a_phone(phone, world, key):
    page, jobs = world
    load(phone, page, key and jobs[key].id)
    if key:
        click(phone, 'start again …')
        until(phone, "document.querySelector('.fields input')")
    assert phone.execute_script('return document.documentElement.scrollWidth') <= 390


def test_no_jobs_and_no_chapter(browser, tmp_path, monkeypatch, world):
    page, jobs = world
    monkeypatch.setenv('MLSTACK_STATE', str(tmp_path/'empty'))
    monkeypatch.setattr(job_views, '_queue', lambda: [])
    job_views._overview.at = 0.
    browser.get('about:blank')
    browser.get(page.url+'#view=jobs')
    assert until(browser, "document.querySelector('.jobs .empty b')?.textContent") == 'No jobs yet'
    from mlstack.tracking import page as tracking_page
    monkeypatch.setattr(tracking_page, 'more_views', lambda: [])
    assert 'api/jobs' not in tracking_page.page_html() and 'api/runs' in tracking_page.page_html()
